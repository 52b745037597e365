-- name: find_token
-- Good or not: the reader says what is wrong.
SELECT k.id, k.tenant_id, n.name AS tenant, k.subject, k.role, k.expires_at, k.revoked_at, k.node_name, k.pool,
       n.disabled_at AS tenant_disabled_at, u.disabled_at AS user_disabled_at
  FROM token k
  JOIN tenant n ON n.id = k.tenant_id
  LEFT JOIN "user" u ON u.tenant_id = k.tenant_id AND u.name = k.subject
 WHERE k.hash = :hash

-- name: identity_here
SELECT n.id AS tenant_id, n.disabled_at AS tenant_disabled_at, u.role, u.disabled_at AS user_disabled_at
  FROM tenant n LEFT JOIN "user" u ON u.tenant_id = n.id AND u.name = :name
 WHERE n.name = :tenant

-- name: ensure_token
INSERT INTO token (tenant_id, hash, subject, role, name, prefix, created_at)
VALUES (:tenant_id, :hash, :subject, :role, :name, :prefix, :now_us)
ON CONFLICT (hash) DO UPDATE
   SET tenant_id = excluded.tenant_id, subject = excluded.subject, role = excluded.role,
       name = excluded.name, prefix = excluded.prefix, revoked_at = NULL, expires_at = NULL
