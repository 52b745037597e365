-- name: select_task_ids
-- A template: the joins, the condition and the order come from fixed tables in task_list.py.
SELECT t.id, /* sort */ FROM task t /* joins */
 WHERE t.tenant_id = :tenant_id /* where */
 ORDER BY /* order */ LIMIT :limit

-- name: count_task_ids
SELECT count(*) AS n FROM task t /* joins */ WHERE t.tenant_id = :tenant_id /* where */

-- name: show_tasks
SELECT t.*, s.body AS spec_body, c.body AS demand, p.name AS pool, n.name AS node, e.name AS tenant,
       CASE WHEN j.array_total > 0 THEN 1 ELSE 0 END AS is_array
  FROM task t
  JOIN job j ON j.id = t.job_id
  JOIN tenant e ON e.id = t.tenant_id
  JOIN spec s ON s.id = t.spec_id
  JOIN lane l ON l.id = t.lane_id
  JOIN resource_class c ON c.id = l.class_id
  JOIN pool p ON p.id = l.pool_id
  LEFT JOIN node n ON n.id = t.node_id
 WHERE t.id IN ids(:task_ids)

-- name: show_last_attempts
-- Of each task, all attempts without what they wrote, oldest first; the reader keeps the last.
SELECT a.task_id, a.attempt, a.round, a.finish_no, a.wall_us, a.user_us, a.system_us, a.max_rss_bytes,
       a.minor_faults, a.major_faults, a.blocks_in, a.blocks_out, a.voluntary_switches, a.involuntary_switches,
       n.name AS node
  FROM attempt a LEFT JOIN node n ON n.id = a.node_id
 WHERE a.task_id IN ids(:task_ids)
 ORDER BY a.task_id, a.round, a.ended_at, a.attempt

-- name: attempts_of_task
SELECT a.task_id, a.attempt, a.round, a.finish_no, a.state, a.reason, a.message, a.exit_code, a.signal,
       a.assigned_at, a.started_at, a.ended_at, a.wall_us, a.user_us, a.system_us, a.max_rss_bytes,
       a.minor_faults, a.major_faults, a.blocks_in, a.blocks_out, a.voluntary_switches, a.involuntary_switches,
       a.stdout_bytes, a.stderr_bytes, a.folder, n.name AS node
  FROM attempt a LEFT JOIN node n ON n.id = a.node_id
 WHERE a.task_id = :task_id
 ORDER BY a.round, a.ended_at, a.attempt

-- name: task_place
SELECT t.id, t.tenant_id, t.state, t.attempt, t.round, t.node_id, t.submitted_by, n.name AS node,
       n.server_id, n.state AS node_state, n.heartbeat_at
  FROM task t LEFT JOIN node n ON n.id = t.node_id
 WHERE t.id = :task_id AND t.tenant_id = :tenant_id

-- name: output_of_attempt
SELECT attempt, stdout, stderr, stdout_bytes, stderr_bytes, stdout_blob, stderr_blob, ended_at
  FROM attempt
 WHERE task_id = :task_id AND attempt = :attempt
 ORDER BY round DESC LIMIT 1

-- name: output_of_last_attempt
SELECT attempt, stdout, stderr, stdout_bytes, stderr_bytes, stdout_blob, stderr_blob, ended_at
  FROM attempt
 WHERE task_id = :task_id
 ORDER BY round DESC, ended_at DESC, attempt DESC LIMIT 1

-- name: value_of_task
SELECT value FROM attempt
 WHERE task_id = :task_id AND value IS NOT NULL
 ORDER BY round DESC, ended_at DESC, attempt DESC LIMIT 1

-- name: tasks_of_job
SELECT id FROM task WHERE id >= :first AND id <= :last AND tenant_id = :tenant_id ORDER BY id LIMIT :limit

-- name: open_tasks_of_job
SELECT id FROM task
 WHERE id >= :first AND id <= :last AND tenant_id = :tenant_id
   AND state IN ('blocked', 'queued', 'held', 'assigned', 'running', 'suspended')
 ORDER BY id LIMIT :limit

-- name: failed_tasks_of_job
SELECT id FROM task
 WHERE id >= :first AND id <= :last AND tenant_id = :tenant_id AND state = 'failed'
 ORDER BY id LIMIT :limit

-- name: task_by_own_id
-- The living one before those that have ended, then the latest.
SELECT id FROM task
 WHERE own_id = :own_id AND tenant_id = :tenant_id
 ORDER BY CASE WHEN submitted_by = :subject THEN 0 ELSE 1 END,
          CASE WHEN ended_at IS NULL THEN 0 ELSE 1 END, created_at DESC, id DESC
 LIMIT 1

-- name: lock_tasks
SELECT id, tenant_id, submitted_by, job_id, state, attempt, round, node_id, asked, is_parent, waits_on,
       not_before_at, spec_id, lane_id, retry_count, priority, own_id, reason, assigned_at, started_at
  FROM task WHERE id IN ids(:task_ids) ORDER BY id
/* for update */

-- name: ask_tasks
-- Ask the nodes of these tasks; the latest wish counts, but a cancel stays one, and a signal replaces no end.
UPDATE task
   SET asked = :asked, asked_at = :now_us, message = COALESCE(CAST(:message AS TEXT), message)
 WHERE id IN ids(:task_ids) AND node_id IS NOT NULL AND (asked IS NULL OR asked <> 'cancel')
   AND (asked IS NULL OR asked <> 'requeue' OR CAST(:asked AS TEXT) NOT LIKE 'signal:%')

-- name: hold_tasks
UPDATE task
   SET state = 'held', reason = 'requested', previous_state = state, previous_since = state_since,
       state_since = :now_us
 WHERE id IN ids(:task_ids) AND state IN ('queued', 'blocked')

-- name: release_tasks
UPDATE task
   SET state = CASE WHEN waits_on > 0 OR not_before_at > :now_us THEN 'blocked' ELSE 'queued' END,
       reason = NULL, previous_state = state, previous_since = state_since, state_since = :now_us
 WHERE id IN ids(:task_ids) AND state = 'held'

-- name: forget_hold
-- A hold that the node has not answered yet.
UPDATE task SET asked = NULL, asked_at = NULL WHERE id IN ids(:task_ids) AND asked = 'hold'

-- name: states_of_tasks
SELECT id, state FROM task WHERE id IN ids(:task_ids)

-- name: node_is_connected
SELECT CASE WHEN server_id IS NULL THEN 0 ELSE 1 END AS connected FROM node WHERE id = :node_id

-- name: demands_of_tasks
SELECT t.id, p.name, c.body
  FROM task t JOIN lane l ON l.id = t.lane_id JOIN pool p ON p.id = l.pool_id
  JOIN resource_class c ON c.id = l.class_id
 WHERE t.id IN ids(:task_ids)
