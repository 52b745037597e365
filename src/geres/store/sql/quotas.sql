-- Quotas are rows of "limit": scope quota, key WHAT:USER (no user: the tenant; *: each user).

-- name: quotas
SELECT key, most FROM "limit" WHERE tenant_id = :tenant_id AND scope = 'quota' ORDER BY key

-- name: lock_quotas
SELECT key, most FROM "limit"
 WHERE tenant_id = :tenant_id AND scope = 'quota' AND key IN words(:keys) ORDER BY key
/* for update */

-- name: try_quotas
-- Those that another server's turn holds are left out.
SELECT key FROM "limit"
 WHERE tenant_id = :tenant_id AND scope = 'quota' AND key IN words(:keys) ORDER BY key
/* skip locked */

-- name: use_of_nodes
-- What runs, by submitter and class.
SELECT l.submitted_by, c.body, count(*)
  FROM task t JOIN lane l ON l.id = t.lane_id JOIN resource_class c ON c.id = l.class_id
 WHERE t.node_id IS NOT NULL AND l.tenant_id = :tenant_id
 GROUP BY l.submitted_by, c.id, c.body

-- name: open_of_users
-- What has not ended, by whose jobs it is in.  The job `default` is always there and does not count.
SELECT submitted_by, SUM(CASE WHEN named = 1 AND name = 'default' THEN 0 ELSE 1 END) AS jobs,
       SUM(task_count + array_total - array_done - succeeded - failed - cancelled - skipped) AS open
  FROM job
 WHERE tenant_id = :tenant_id AND state IN ('active', 'disabled', 'closing')
 GROUP BY submitted_by

-- name: on_nodes_by_owner
SELECT j.submitted_by, count(*)
  FROM task t JOIN job j ON j.id = t.job_id
 WHERE t.node_id IS NOT NULL AND j.tenant_id = :tenant_id
 GROUP BY j.submitted_by
