-- name: show_pools
SELECT id, name, settings, version, created_at FROM pool WHERE tenant_id = :tenant_id ORDER BY name

-- name: nodes_of_pools
SELECT pool_id, state, count(*) FROM node WHERE tenant_id = :tenant_id AND removed_at IS NULL GROUP BY pool_id, state

-- name: lock_pool
SELECT id, name, settings, version, created_at FROM pool WHERE tenant_id = :tenant_id AND name = :name
/* for update */

-- name: settings_of_pool
SELECT name, settings FROM pool WHERE id = :pool_id

-- name: edit_pool
UPDATE pool SET settings = :settings, version = version + 1 WHERE id = :pool_id

-- name: lock_starting_node
-- No row back: another connection of the node says how far it is.
SELECT draining, state, (SELECT count(*) FROM task t WHERE t.node_id = node.id) AS task_count
  FROM node WHERE id = :node_id AND epoch = :epoch
/* for no key update */

-- name: set_node_reason
UPDATE node SET reason = :reason WHERE id = :node_id

-- name: nodes_that_failed_to_start
SELECT n.name, n.reason, n.state_since, p.name AS pool, e.name AS tenant
  FROM node n JOIN pool p ON p.id = n.pool_id JOIN tenant e ON e.id = n.tenant_id
 WHERE n.state = 'start_failed' AND n.removed_at IS NULL
 ORDER BY n.id LIMIT :limit
