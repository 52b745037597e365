-- name: ping
SELECT 1

-- name: asked_long_ago
SELECT t.id, t.asked, t.asked_at, n.name FROM task t JOIN node n ON n.id = t.node_id
 WHERE t.asked IS NOT NULL AND t.asked_at <= :before_us
 ORDER BY t.asked_at LIMIT :limit
