-- name: is_user
-- Whether there is or was such a user; of one of an identity provider there may be no more than what was
-- submitted.  No tenant: in any.
SELECT 1
 WHERE EXISTS (SELECT 1 FROM "user" u
                WHERE u.name = :name AND (CAST(:tenant_id AS BIGINT) IS NULL OR u.tenant_id = :tenant_id))
    OR EXISTS (SELECT 1 FROM job j
                WHERE j.submitted_by = :name AND (CAST(:tenant_id AS BIGINT) IS NULL OR j.tenant_id = :tenant_id))
    OR EXISTS (SELECT 1 FROM "limit" l
                WHERE l.scope = 'quota' AND l.tenant_id = :tenant_id
                  AND l.key IN ('running:' || :name, 'cpus:' || :name, 'queued:' || :name, 'jobs:' || :name))
    OR EXISTS (SELECT 1 FROM task t
                WHERE t.submitted_by = :name AND (CAST(:tenant_id AS BIGINT) IS NULL OR t.tenant_id = :tenant_id))

-- name: names_of_users
SELECT name FROM "user" WHERE CAST(:tenant_id AS BIGINT) IS NULL OR tenant_id = :tenant_id ORDER BY name LIMIT :limit

-- name: is_node
SELECT 1 FROM node WHERE tenant_id = :tenant_id AND name = :name

-- name: names_of_nodes
SELECT name FROM node WHERE tenant_id = :tenant_id ORDER BY name LIMIT :limit

-- name: is_pool
SELECT 1 FROM pool WHERE tenant_id = :tenant_id AND name = :name

-- name: names_of_pools
SELECT name FROM pool WHERE tenant_id = :tenant_id ORDER BY name LIMIT :limit
