-- name: list_tenants
SELECT t.id, t.name, t.created_at, t.disabled_at,
       (SELECT count(*) FROM "user" u WHERE u.tenant_id = t.id) AS users,
       (SELECT count(*) FROM node n WHERE n.tenant_id = t.id) AS nodes,
       (SELECT count(*) FROM job j
         WHERE j.tenant_id = t.id AND j.state IN ('active', 'disabled', 'closing')) AS jobs
  FROM tenant t
 WHERE CAST(:name AS TEXT) IS NULL OR t.name = :name
 ORDER BY t.name

-- name: set_tenant_disabled
UPDATE tenant SET disabled_at = :disabled_at
 WHERE id = :tenant_id AND (disabled_at IS NULL) <> (CAST(:disabled_at AS BIGINT) IS NULL)

-- name: list_users
SELECT u.id, u.name, t.name AS tenant, u.role, u.created_at, u.disabled_at,
       (SELECT count(*) FROM token k
         WHERE k.tenant_id = u.tenant_id AND k.subject = u.name AND k.revoked_at IS NULL
           AND (k.expires_at IS NULL OR k.expires_at > :now_us)) AS tokens
  FROM "user" u JOIN tenant t ON t.id = u.tenant_id
 WHERE u.tenant_id = :tenant_id AND (CAST(:name AS TEXT) IS NULL OR u.name = :name)
 ORDER BY u.name

-- name: create_user
INSERT INTO "user" (tenant_id, name, role, created_at) VALUES (:tenant_id, :name, :role, :now_us)
ON CONFLICT (tenant_id, name) DO NOTHING

-- name: lock_user
SELECT role, disabled_at FROM "user" WHERE tenant_id = :tenant_id AND name = :name /* for update */

-- name: edit_user
UPDATE "user" SET role = :role, disabled_at = :disabled_at WHERE tenant_id = :tenant_id AND name = :name

-- name: tokens_of_user
SELECT id, role, own_role FROM token
 WHERE tenant_id = :tenant_id AND subject = :subject AND role IN ('admin', 'operator', 'user', 'viewer')

-- name: count_tokens
SELECT count(*) FROM token
 WHERE tenant_id = :tenant_id AND subject = :subject AND revoked_at IS NULL
   AND (expires_at IS NULL OR expires_at > :now_us)

-- name: set_token_role
UPDATE token SET role = :role WHERE id = :token_id

-- name: create_token
INSERT INTO token (tenant_id, hash, subject, role, own_role, name, prefix, created_by, created_at, expires_at)
VALUES (:tenant_id, :hash, :subject, :role, :own_role, :name, :prefix, :created_by, :now_us, :expires_at)
RETURNING id

-- name: list_tokens
SELECT k.*, t.name AS tenant FROM token k JOIN tenant t ON t.id = k.tenant_id
 WHERE k.tenant_id = :tenant_id AND (CAST(:subject AS TEXT) IS NULL OR k.subject = :subject)
   AND (CAST(:everything AS INTEGER) = 1
        OR (k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > :now_us)))
 ORDER BY k.id

-- name: tokens_called
-- By id, by what it begins with, by name: good ones first, then the newest.
SELECT k.*, t.name AS tenant FROM token k JOIN tenant t ON t.id = k.tenant_id
 WHERE k.tenant_id = :tenant_id AND (k.id = :token_id OR k.prefix = :called OR k.name = :called)
   AND (CAST(:subject AS TEXT) IS NULL OR k.subject = :subject)
 ORDER BY CASE WHEN k.id = :token_id THEN 0 ELSE 1 END,
          CASE WHEN k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > :now_us) THEN 0 ELSE 1 END,
          k.id DESC
 LIMIT 1

-- name: token_by_id
SELECT k.*, t.name AS tenant FROM token k JOIN tenant t ON t.id = k.tenant_id WHERE k.id = :token_id

-- name: revoke_token
UPDATE token SET revoked_at = :now_us WHERE id = :token_id AND revoked_at IS NULL

-- name: end_token
UPDATE token SET expires_at = :expires_at
 WHERE id = :token_id AND (expires_at IS NULL OR expires_at > :expires_at)

-- name: token_used
UPDATE token SET last_used_at = :at WHERE id = :token_id AND (last_used_at IS NULL OR last_used_at < :at)

-- name: forget_tokens
-- Those that have been no good for long.
DELETE FROM token
 WHERE id IN (SELECT id FROM token
               WHERE revoked_at < :before_us OR expires_at < :before_us ORDER BY id LIMIT :limit)

-- name: write_audit
INSERT INTO audit (tenant_id, at, subject, role, action, target, address, result, facts)
VALUES (:tenant_id, :now_us, :subject, :role, :action, :target, :address, :result, :facts)

-- name: select_audit
-- A template: the condition comes from a fixed table in audit.py.
SELECT a.id, a.at, t.name AS tenant, a.subject, a.role, a.action, a.target, a.address, a.result, a.facts
  FROM audit a LEFT JOIN tenant t ON t.id = a.tenant_id
 WHERE 1 = 1 /* where */
 ORDER BY a.id DESC LIMIT :limit

-- name: forget_audit
DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < :before_us ORDER BY at LIMIT :limit)
