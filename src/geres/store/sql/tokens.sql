-- name: find_caller
SELECT k.tenant_id, n.name AS tenant, k.subject, k.role
  FROM token k JOIN tenant n ON n.id = k.tenant_id
 WHERE k.hash = :hash AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > :now_us)

-- name: ensure_token
INSERT INTO token (tenant_id, hash, subject, role, created_at)
VALUES (:tenant_id, :hash, :subject, :role, :now_us)
ON CONFLICT (hash) DO UPDATE
   SET tenant_id = excluded.tenant_id, subject = excluded.subject, role = excluded.role,
       revoked_at = NULL, expires_at = NULL
