-- name: why_task
SELECT t.job_id, t.lane_id, t.priority, t.seq, t.waits_on, t.asked, c.body AS demand,
       COALESCE((SELECT spec.on_disconnect FROM spec WHERE spec.id = t.spec_id),
                (SELECT node.on_disconnect FROM node WHERE node.id = t.node_id), 'run') AS on_disconnect
  FROM task t JOIN lane l ON l.id = t.lane_id JOIN resource_class c ON c.id = l.class_id
 WHERE t.id = :task_id

-- name: open_parents
SELECT parent_task_id, parent_job_id FROM dependency
 WHERE child_id = :task_id AND done = 0
 ORDER BY COALESCE(parent_task_id, 0), COALESCE(parent_job_id, 0) LIMIT :limit

-- name: tasks_before
SELECT count(*) FROM
       (SELECT 1 AS one FROM task
         WHERE lane_id = :lane_id AND state = 'queued'
           AND (priority > :priority OR (priority = :priority AND (seq < :seq OR (seq = :seq AND id < :task_id))))
         LIMIT :limit) AS first

-- name: most_of_limit
SELECT most FROM "limit" WHERE tenant_id = :tenant_id AND scope = :scope AND key = :key

-- name: queued_by_lane
SELECT (SELECT count(*) FROM task t WHERE t.lane_id = l.id AND t.state = 'queued') AS queued,
       (SELECT min(t.id) FROM task t WHERE t.lane_id = l.id AND t.state = 'queued') AS first, p.name, c.body
  FROM lane l JOIN resource_class c ON c.id = l.class_id JOIN pool p ON p.id = l.pool_id
 WHERE l.job_id = :job_id AND l.active = 1
 ORDER BY l.id

-- name: failures_of_job
SELECT state, reason, exit_code, signal, count(*) AS n, min(id) AS first
  FROM task
 WHERE id >= :first AND id <= :last AND state IN ('failed', 'cancelled', 'skipped')
 GROUP BY state, reason, exit_code, signal
 ORDER BY count(*) DESC, min(id) LIMIT :limit

-- name: live_of_job
SELECT state, reason, NULL AS exit_code, NULL AS signal, count(*) AS n, min(id) AS first
  FROM task
 WHERE id >= :first AND id <= :last AND state IN ('blocked', 'held', 'assigned', 'running', 'suspended')
 GROUP BY state, reason
 ORDER BY count(*) DESC, min(id) LIMIT :limit
