-- name: find_secret
SELECT value FROM secret WHERE name = :name

-- name: add_secret
INSERT INTO secret (name, value, created_at) VALUES (:name, :value, :now_us)
ON CONFLICT (name) DO NOTHING
