-- name: create_join_token
INSERT INTO join_token (tenant_id, hash, pool, uses, created_by, created_at, expires_at)
VALUES (:tenant_id, :hash, :pool, :uses, :created_by, :now_us, :expires_at)
RETURNING id

-- name: list_join_tokens
-- The newest; used, expired and revoked ones too.
SELECT * FROM join_token WHERE tenant_id = :tenant_id ORDER BY id DESC LIMIT :limit

-- name: revoke_join_token
UPDATE join_token SET revoked_at = COALESCE(revoked_at, :now_us)
 WHERE id = :id AND tenant_id = :tenant_id
RETURNING *

-- name: find_join_token
SELECT j.*, n.name AS tenant, n.disabled_at AS tenant_disabled_at
  FROM join_token j JOIN tenant n ON n.id = j.tenant_id
 WHERE j.hash = :hash

-- name: use_join_token
-- No row back: another machine was quicker.
UPDATE join_token SET used = used + 1
 WHERE id = :id AND used < uses
RETURNING id

-- name: credentials_of_node
SELECT id, hash, join_token_id, pool FROM token
 WHERE tenant_id = :tenant_id AND node_name = :node AND revoked_at IS NULL
 ORDER BY id

-- name: add_credential
INSERT INTO token (tenant_id, hash, subject, role, name, created_by, created_at, node_name, pool, join_token_id)
VALUES (:tenant_id, :hash, :subject, 'node', 'node', :created_by, :now_us, :node, :pool, :join_token_id)
ON CONFLICT (hash) DO NOTHING
RETURNING id

-- name: revoke_credentials
UPDATE token SET revoked_at = :now_us
 WHERE tenant_id = :tenant_id AND node_name = :node AND revoked_at IS NULL AND hash <> :keep

-- name: node_to_join
SELECT state, lease_until, info FROM node WHERE tenant_id = :tenant_id AND name = :node

-- name: take_removed_back
-- A join token is as good as an operator's word.
UPDATE node SET removed_at = NULL, going = NULL, draining = 0
 WHERE tenant_id = :tenant_id AND name = :node AND removed_at IS NOT NULL

-- name: forget_join_tokens
-- Long after they were good; credentials keep their number.
DELETE FROM join_token WHERE id IN (
    SELECT id FROM join_token WHERE expires_at <= :before_us ORDER BY id LIMIT :limit)
