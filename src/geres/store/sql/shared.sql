-- name: shared_secret
SELECT value FROM secret WHERE name = :name

-- name: share_secret
INSERT INTO secret (name, value, created_at) VALUES (:name, :value, :now_us)
ON CONFLICT (name) DO NOTHING
