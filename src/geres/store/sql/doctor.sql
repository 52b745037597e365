-- name: ping
SELECT 1

-- name: asked_long_ago
SELECT t.id, t.asked, t.asked_at, n.name FROM task t JOIN node n ON n.id = t.node_id
 WHERE t.asked IS NOT NULL AND t.asked_at <= :before_us
 ORDER BY t.asked_at LIMIT :limit

-- name: pools_without_taker
-- Pools of which no node that is connected takes tasks, with a node that drains and a task that waits.
SELECT p.name AS pool, e.name AS tenant,
       (SELECT min(n.name) FROM node n
         WHERE n.pool_id = p.id AND n.server_id IS NOT NULL AND n.removed_at IS NULL) AS draining,
       (SELECT count(*) FROM node n
         WHERE n.pool_id = p.id AND n.server_id IS NOT NULL AND n.removed_at IS NULL) AS connected,
       (SELECT t.id FROM lane l JOIN task t ON t.lane_id = l.id AND t.state = 'queued'
         WHERE l.pool_id = p.id AND l.active = 1 LIMIT 1) AS waiting
  FROM pool p JOIN tenant e ON e.id = p.tenant_id
 WHERE NOT EXISTS (SELECT 1 FROM node n
                    WHERE n.pool_id = p.id AND n.server_id IS NOT NULL AND n.draining = 0)
 ORDER BY p.id LIMIT :limit
