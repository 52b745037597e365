-- name: agents_to_ask
SELECT id, name, state, server_id, (SELECT count(*) FROM task WHERE task.node_id = node.id) AS task_count
  FROM node
 WHERE tenant_id = :tenant_id AND name IN words(:names) AND removed_at IS NULL
 ORDER BY id

-- name: ask_agent
UPDATE node SET asked = :asked WHERE id = :node_id

-- name: asked_of_agents
SELECT id, asked FROM node WHERE id IN ids(:node_ids) AND asked IS NOT NULL ORDER BY id

-- name: told_agents
UPDATE node SET asked = NULL WHERE id IN ids(:node_ids)
