-- name: register_server
INSERT INTO server (url, version, started_at, lease_until, secret, fingerprint)
VALUES (:url, :version, :now_us, :lease_until, :secret, :fingerprint)
RETURNING id

-- name: renew_server
-- A server that was thought gone is there again, by its old id.
INSERT INTO server (id, url, version, started_at, lease_until, secret, fingerprint)
VALUES (:server_id, :url, :version, :started_at, :lease_until, :secret, :fingerprint)
ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until

-- name: server_renewed_since
-- Another server whose lease was renewed after that moment: then the store was there all the time.
SELECT id FROM server
 WHERE id <> :server_id AND lease_until > :lease_until
 ORDER BY id LIMIT 1

-- name: living_servers
SELECT id, url, secret, fingerprint FROM server WHERE lease_until > :now_us ORDER BY id

-- name: show_servers
SELECT server.id, server.url, server.version, server.started_at,
       (SELECT count(*) FROM node
         WHERE node.server_id = server.id
           AND (CAST(:tenant_id AS BIGINT) IS NULL OR node.tenant_id = :tenant_id)) AS nodes
  FROM server
 WHERE server.lease_until > :now_us OR server.id = :server_id
 ORDER BY server.id

-- name: holder_of_attempt
SELECT server.id, server.url, server.secret, server.fingerprint
  FROM task
  JOIN node ON node.id = task.node_id
  JOIN server ON server.id = node.server_id
 WHERE task.id = :task_id AND task.attempt = :attempt AND server.lease_until > :now_us

-- name: holder_of_node
SELECT server.id, server.url, server.secret, server.fingerprint
  FROM node
  JOIN server ON server.id = node.server_id
 WHERE node.id = :node_id AND server.lease_until > :now_us

-- name: renew_older_servers
-- The previous release renews no lease of its own: it is there as long as those of its nodes are renewed.
UPDATE server
   SET lease_until = (SELECT max(node.lease_until) FROM node WHERE node.server_id = server.id)
 WHERE secret = ''
   AND lease_until < (SELECT max(node.lease_until) FROM node WHERE node.server_id = server.id)

-- name: servers_gone
SELECT id, url FROM server WHERE lease_until <= :now_us AND id <> :server_id ORDER BY id LIMIT :limit
/* skip locked */

-- name: lock_nodes_of_servers
SELECT id FROM node WHERE server_id IN ids(:server_ids) ORDER BY id
/* for no key update */

-- name: forget_holder
UPDATE node SET server_id = NULL WHERE id IN ids(:node_ids) AND server_id IN ids(:server_ids)

-- name: drop_servers
DELETE FROM server WHERE id IN ids(:server_ids)

-- name: lock_nodes_to_extend
-- Of one server, or of all where none is named.  A lease that ends later was written before a clock was set back.
SELECT id FROM node
 WHERE lease_until <> :lease_until
   AND (CAST(:server_id AS BIGINT) IS NULL OR server_id = CAST(:server_id AS BIGINT))
 ORDER BY id
/* for no key update */

-- name: extend_leases
UPDATE node SET lease_until = :lease_until
 WHERE id IN ids(:node_ids) AND lease_until <> :lease_until

-- name: extend_servers
UPDATE server SET lease_until = :lease_until WHERE lease_until <> :lease_until
