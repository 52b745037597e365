-- name: node_ids_called
SELECT id FROM node WHERE tenant_id = :tenant_id AND name IN words(:names)

-- name: lock_nodes_to_act
SELECT n.id, n.name, n.state, n.draining, n.going, n.removed_at, n.server_id,
       (SELECT count(*) FROM task t WHERE t.node_id = n.id) AS task_count
  FROM node n WHERE n.id IN ids(:node_ids) ORDER BY n.id
/* for no key update */

-- name: set_draining
UPDATE node SET draining = :draining, going = :going, going_why = :why, removed_at = NULL WHERE id = :node_id

-- name: nodes_going
-- Those with which there is something to do now: many may wait for long tasks, and must not hide the others.
SELECT id, tenant_id, name, state, going, going_why, address, info FROM node
 WHERE going IN ('remove', 'remove:requeue', 'remove:terminate', 'reboot', 'reboot:requeue', 'reboot:terminate')
   AND (NOT EXISTS (SELECT 1 FROM task WHERE task.node_id = node.id)
        OR (going NOT IN ('remove', 'reboot')
            AND EXISTS (SELECT 1 FROM task WHERE task.node_id = node.id
                           AND (asked IS NULL OR asked NOT IN ('cancel', 'requeue')))))
 ORDER BY id LIMIT :limit

-- name: unasked_on_node
-- What still has to be told that it must leave; one that is asked something else is asked again.
SELECT id FROM task
 WHERE node_id = :node_id AND (asked IS NULL OR asked NOT IN ('cancel', 'requeue'))
 ORDER BY id + 0 LIMIT :limit

-- name: has_task_on_node
SELECT 1 FROM task WHERE node_id = :node_id LIMIT 1

-- name: begin_going
-- No row back: another server was quicker, or the operator has changed their mind.
UPDATE node SET going = :next WHERE id = :node_id AND going = :going AND NOT EXISTS (
    SELECT 1 FROM task WHERE task.node_id = node.id)
RETURNING id

-- name: remove_node
UPDATE node
   SET removed_at = :now_us, epoch = epoch + 1, server_id = NULL, lease_until = NULL
 WHERE id = :node_id

-- name: revoke_all_credentials
UPDATE token SET revoked_at = :now_us WHERE tenant_id = :tenant_id AND node_name = :node AND revoked_at IS NULL

-- name: stop_going
UPDATE node SET going = NULL, going_why = NULL WHERE id = :node_id AND going = :going

-- name: note_address
UPDATE node SET address = :address, kick_count = 0 WHERE id = :node_id

-- name: let_come_back
-- A machine that was to start again has.
UPDATE node SET going = NULL, going_why = NULL, draining = 0 WHERE id = :node_id AND going = 'rebooting'
RETURNING id

-- name: silent_nodes
-- The pause is doubled with each try, up to ten times.
SELECT id, name, heartbeat_at, kicked_at, kick_count, address, info FROM node
 WHERE state = 'lost' AND removed_at IS NULL AND heartbeat_at <= :silent_us AND heartbeat_at > :give_up_us
   AND (kicked_at IS NULL
        OR :now_us - kicked_at >= :again_us << CAST(
            CASE WHEN kick_count > 10 THEN 10 WHEN kick_count < 1 THEN 0 ELSE kick_count - 1 END AS INTEGER))
 ORDER BY id LIMIT :limit

-- name: note_kick
-- No row back: another server was quicker.
UPDATE node SET kicked_at = :now_us, kick_count = kick_count + 1
 WHERE id = :node_id AND state = 'lost' AND kick_count = :kick_count
RETURNING kick_count
