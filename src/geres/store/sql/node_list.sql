-- name: show_nodes
SELECT n.*, p.name AS pool FROM node n JOIN pool p ON p.id = n.pool_id
 WHERE n.tenant_id = :tenant_id AND n.removed_at IS NULL ORDER BY n.name

-- name: show_node
SELECT n.*, p.name AS pool FROM node n JOIN pool p ON p.id = n.pool_id
 WHERE n.tenant_id = :tenant_id AND n.name = :name

-- name: history_of_node
SELECT at, state, why FROM node_event WHERE node_id = :node_id ORDER BY at DESC LIMIT :limit

-- name: tasks_on_node
SELECT id FROM task WHERE node_id = :node_id ORDER BY id + 0 LIMIT :limit

-- name: classes_on_nodes
SELECT t.node_id, c.body, count(*) FROM task t
  JOIN lane l ON l.id = t.lane_id
  JOIN resource_class c ON c.id = l.class_id
 WHERE t.node_id IS NOT NULL AND t.tenant_id = :tenant_id
 GROUP BY t.node_id, c.id, c.body

-- name: jobs_by_state
SELECT state, count(*) AS n FROM job WHERE tenant_id = :tenant_id GROUP BY state

-- name: nodes_by_state
SELECT state, count(*) AS n FROM node WHERE tenant_id = :tenant_id AND removed_at IS NULL GROUP BY state

-- name: active_schedules
SELECT count(*) FROM schedule WHERE tenant_id = :tenant_id AND state = 'active'

-- name: count_quarantine
SELECT count(*) FROM quarantine

-- name: list_quarantine
SELECT id, at, kind, key, error FROM quarantine ORDER BY id DESC LIMIT :limit
