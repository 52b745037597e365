-- name: find_node
SELECT * FROM node WHERE tenant_id = :tenant_id AND name = :name
/* for update */

-- name: create_node
INSERT INTO node (tenant_id, pool_id, name, state, state_since, created_at)
VALUES (:tenant_id, :pool_id, :name, 'starting', :now_us, :now_us)
ON CONFLICT (tenant_id, name) DO UPDATE SET name = excluded.name
RETURNING id

-- name: connect_node
UPDATE node
   SET epoch = epoch + 1, server_id = :server_id, lease_until = :lease_until, heartbeat_at = :now_us,
       boot_id = :boot_id, host_id = :host_id, cpus = :cpus, memory_bytes = :memory_bytes, gpus = :gpus, info = :info,
       pool_id = :pool_id, instance = :instance, on_disconnect = :on_disconnect
 WHERE id = :node_id
RETURNING epoch, draining

-- name: move_node
UPDATE node
   SET previous_state = state, previous_since = state_since, state = :state, state_since = :now_us
 WHERE id = :node_id AND state <> :state

-- name: add_node_event
INSERT INTO node_event (node_id, at, state, why) VALUES (:node_id, :now_us, :state, :why)

-- name: attempts_of_node
SELECT task.id, task.attempt, task.state, task.lane_id, task.spec_id, task.argv, task.item, task.asked,
       task.retry_count, task.requeue_count, task.lost_count, task.round, task.is_parent, task.assigned_at,
       task.started_at, task.message, task.node_id, task.submitted_by, task.asked_at, resource_class.body AS demand
  FROM task
  JOIN lane ON lane.id = task.lane_id
  JOIN resource_class ON resource_class.id = lane.class_id
 WHERE task.node_id = :node_id
 ORDER BY task.id

-- name: lock_nodes_to_change
-- In order, as everybody locks them; their epoch does not change, so turns need not wait.
SELECT id FROM node WHERE id IN ids(:node_ids) ORDER BY id
/* for no key update */

-- name: renew_leases
-- Only of nodes whose connection is still this one.  The holder is set again where it was thought gone.
UPDATE node SET lease_until = :lease_until, heartbeat_at = :now_us, server_id = :server_id
  FROM json_each(:batch) AS batch
 WHERE node.id = CAST(batch.value->>0 AS BIGINT) AND node.epoch = CAST(batch.value->>1 AS BIGINT)
RETURNING node.id, node.draining

-- name: leases
-- Nodes that were renewed together share one.  A node that is gone and still has attempts stands for itself; what
-- is to be kept for it stays with it until the node is back, or an operator removes it.
SELECT lease_until, heartbeat_at, 0 AS node_id, 'connected' AS state FROM node
 WHERE state IN ('starting', 'idle', 'running', 'draining', 'start_failed') AND lease_until IS NOT NULL
 GROUP BY lease_until, heartbeat_at
UNION ALL
SELECT lease_until, heartbeat_at, id, state FROM node
 WHERE state IN ('lost', 'offline')
   AND EXISTS (SELECT 1 FROM task JOIN spec ON spec.id = task.spec_id
                WHERE task.node_id = node.id
                  AND (COALESCE(spec.on_disconnect, node.on_disconnect, 'run') <> 'keep'
                       OR node.removed_at IS NOT NULL))

-- name: lock_nodes_of_leases
-- One that is locked is being renewed, or says hello at this moment and keeps what it has.
SELECT id, lease_until, heartbeat_at, state FROM node
 WHERE (state IN ('starting', 'idle', 'running', 'draining', 'start_failed') AND lease_until IN ids(:untils))
    OR (state IN ('lost', 'offline') AND id IN ids(:node_ids))
 ORDER BY id LIMIT :limit
/* skip locked */

-- name: lose_node
-- The epoch rises, so that nothing the node still says on its old connection counts.
UPDATE node SET epoch = epoch + 1, server_id = NULL, lease_until = NULL WHERE id = :node_id

-- name: infos_of_nodes
SELECT id, info FROM node WHERE id IN ids(:node_ids)

-- name: attempts_to_take_back
SELECT id, attempt, node_id, state, asked, lane_id, spec_id, retry_count, requeue_count, lost_count, round,
       is_parent, assigned_at, started_at, message
  FROM task
 WHERE node_id IN ids(:node_ids)
   AND EXISTS (SELECT 1 FROM spec JOIN node ON node.id = task.node_id
                WHERE spec.id = task.spec_id
                  AND (COALESCE(spec.on_disconnect, node.on_disconnect, 'run') <> 'keep'
                       OR node.removed_at IS NOT NULL))
 ORDER BY id + 0 LIMIT :limit
/* for update */

-- name: disconnect_node
UPDATE node SET server_id = NULL WHERE id = :node_id AND epoch = :epoch

-- name: goodbye_node
UPDATE node SET server_id = NULL, lease_until = NULL WHERE id = :node_id AND epoch = :epoch
