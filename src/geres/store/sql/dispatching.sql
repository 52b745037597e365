-- name: job_facts
SELECT id, name, meta, array_total FROM job WHERE id IN ids(:job_ids)

-- name: asked_on
-- `+ 0`: by the index of what was asked, not by the key through all tasks.
SELECT node_id, id, attempt, asked, message, asked_at FROM task
 WHERE node_id IN ids(:node_ids) AND asked IS NOT NULL AND id + 0 > :after
 ORDER BY id + 0 LIMIT :limit

-- name: kills_on
SELECT node_id, task_id, attempt FROM kill
 WHERE node_id IN ids(:node_ids) AND (node_id, task_id, attempt) > (:node_id, :task_id, :attempt)
 ORDER BY node_id, task_id, attempt LIMIT :limit

-- name: look_at_nodes
SELECT id, epoch, draining FROM node WHERE id IN ids(:node_ids)

-- name: assigned_on
SELECT node_id, id, attempt FROM task WHERE node_id IN ids(:node_ids) AND state = 'assigned' ORDER BY id

-- name: show_busy
UPDATE node
   SET previous_state = node.state, previous_since = node.state_since, state = CAST(batch.value->>2 AS TEXT),
       state_since = :now_us
  FROM json_each(:batch) AS batch
 WHERE node.id = CAST(batch.value->>0 AS BIGINT) AND node.epoch = CAST(batch.value->>1 AS BIGINT)
   AND node.state <> CAST(batch.value->>2 AS TEXT) AND node.state IN ('starting', 'idle', 'running', 'draining')
RETURNING node.id, node.state

-- name: epoch_of_node
SELECT id, epoch FROM node WHERE id = :node_id

-- name: far_nodes
SELECT id, epoch, tenant_id, draining,
       CASE WHEN state IN ('starting', 'start_failed') THEN COALESCE(reason, state) END AS out_of_service
  FROM node
 WHERE server_id IS NOT NULL AND server_id <> :server_id
 ORDER BY id

-- name: hellos_of_nodes
SELECT id, epoch, info FROM node WHERE id IN ids(:node_ids)

-- name: classes_on_far_nodes
SELECT t.node_id, c.body, count(*) FROM task t
  JOIN node n ON n.id = t.node_id
  JOIN lane l ON l.id = t.lane_id
  JOIN resource_class c ON c.id = l.class_id
 WHERE t.node_id IS NOT NULL AND n.server_id IS NOT NULL AND n.server_id <> :server_id
 GROUP BY t.node_id, c.id, c.body
