-- Each statement names what breaks one invariant: its id first, then the facts that its sentence tells.

-- name: jobs_miscounted
SELECT j.id, count(t.id) AS made, j.task_count
  FROM job j LEFT JOIN task t ON t.job_id = j.id
 GROUP BY j.id, j.task_count
HAVING count(t.id) <> j.task_count
 ORDER BY j.id LIMIT :limit

-- name: jobs_with_wrong_ends
SELECT j.id, count(t.id) AS ended, j.succeeded + j.failed + j.cancelled + j.skipped AS counted
  FROM job j LEFT JOIN task t ON t.job_id = j.id AND t.ended_at IS NOT NULL
 GROUP BY j.id, j.succeeded, j.failed, j.cancelled, j.skipped
HAVING sum(CASE WHEN t.state = 'succeeded' THEN 1 ELSE 0 END) <> j.succeeded
    OR sum(CASE WHEN t.state = 'failed' THEN 1 ELSE 0 END) <> j.failed
    OR sum(CASE WHEN t.state = 'cancelled' THEN 1 ELSE 0 END) <> j.cancelled
    OR sum(CASE WHEN t.state = 'skipped' THEN 1 ELSE 0 END) <> j.skipped
 ORDER BY j.id LIMIT :limit

-- name: tasks_without_one_result
SELECT t.id, count(a.finish_no) AS results, t.state
  FROM task t
  JOIN job j ON j.id = t.job_id
  LEFT JOIN attempt a ON a.task_id = t.id AND a.round = t.round AND a.finish_no IS NOT NULL
 WHERE j.results_cut = 0
 GROUP BY t.id, t.state, t.ended_at
HAVING count(a.finish_no) <> CASE WHEN t.ended_at IS NULL THEN 0 ELSE 1 END
 ORDER BY t.id LIMIT :limit

-- name: rounds_with_two_results
SELECT a.task_id, a.round, count(*) AS results
  FROM attempt a WHERE a.finish_no IS NOT NULL
 GROUP BY a.task_id, a.round
HAVING count(*) > 1
 ORDER BY a.task_id LIMIT :limit

-- name: tasks_unlike_their_results
SELECT t.id, t.state, a.state AS result
  FROM task t JOIN attempt a ON a.task_id = t.id AND a.round = t.round AND a.finish_no IS NOT NULL
 WHERE t.ended_at IS NOT NULL AND t.state <> a.state
 ORDER BY t.id LIMIT :limit

-- name: attempts_without_task
SELECT a.task_id, a.attempt
  FROM attempt a LEFT JOIN task t ON t.id = a.task_id
  JOIN job j ON j.id = a.job_id
 WHERE j.results_cut = 0 AND t.id IS NULL
 ORDER BY a.task_id LIMIT :limit

-- name: attempts_from_nowhere
SELECT a.task_id, a.attempt, t.attempt AS last
  FROM attempt a JOIN task t ON t.id = a.task_id
 WHERE a.attempt > t.attempt OR a.round > t.round
 ORDER BY a.task_id LIMIT :limit

-- name: tasks_miscounting_tries
-- An end that was not the last is a retry or a requeue; a retry is never for a node that was lost.  A loss is a
-- requeue, or the end.
SELECT t.id, t.retry_count, t.requeue_count, t.lost_count, count(a.task_id) AS ended,
       sum(CASE WHEN a.reason IN ('node_lost', 'node_rebooted', 'supervisor_lost') THEN 1 ELSE 0 END) AS lost
  FROM task t
  JOIN job j ON j.id = t.job_id
  LEFT JOIN attempt a ON a.task_id = t.id AND a.round = t.round AND a.finish_no IS NULL
 WHERE j.results_cut = 0
 GROUP BY t.id, t.state, t.reason, t.retry_count, t.requeue_count, t.lost_count
HAVING t.retry_count + t.requeue_count <> count(a.task_id)
    OR t.lost_count > t.requeue_count + CASE WHEN t.state = 'failed' AND t.reason IN
          ('crash_limit', 'node_lost', 'node_rebooted', 'supervisor_lost') THEN 1 ELSE 0 END
    OR t.retry_count > count(a.task_id)
       - sum(CASE WHEN a.reason IN ('node_lost', 'node_rebooted', 'supervisor_lost') THEN 1 ELSE 0 END)
 ORDER BY t.id LIMIT :limit

-- name: jobs_with_gaps
SELECT j.id, count(a.finish_no) AS results, j.finish_seq, j.results_cut + 1 AS first
  FROM job j LEFT JOIN attempt a ON a.job_id = j.id AND a.finish_no IS NOT NULL
 GROUP BY j.id, j.finish_seq, j.results_cut
HAVING count(a.finish_no) <> j.finish_seq - j.results_cut
    OR COALESCE(max(a.finish_no), j.results_cut) <> j.finish_seq
    OR COALESCE(min(a.finish_no), j.results_cut + 1) <> j.results_cut + 1
 ORDER BY j.id LIMIT :limit

-- name: sleeping_lanes
SELECT l.id, l.job_id, count(t.id) AS queued
  FROM lane l JOIN task t ON t.lane_id = l.id AND t.state = 'queued'
 WHERE l.active = 0
 GROUP BY l.id, l.job_id ORDER BY l.id LIMIT :limit

-- name: lanes_ranked_too_low
SELECT l.id, l.job_id, l.priority, max(t.priority) AS highest
  FROM lane l JOIN task t ON t.lane_id = l.id AND t.state = 'queued'
 WHERE l.active = 1
 GROUP BY l.id, l.job_id, l.priority
HAVING max(t.priority) > l.priority
 ORDER BY l.id LIMIT :limit

-- name: tasks_miscounting_parents
SELECT t.id, t.waits_on, count(d.child_id) AS parents
  FROM task t LEFT JOIN dependency d ON d.child_id = t.id AND d.done = 0
 WHERE t.ended_at IS NULL
 GROUP BY t.id, t.waits_on
HAVING count(d.child_id) <> t.waits_on
 ORDER BY t.id LIMIT :limit

-- name: children_of_ended_parents
SELECT t.id, p.id AS parent, p.state
  FROM dependency d JOIN task t ON t.id = d.child_id JOIN task p ON p.id = d.parent_task_id
 WHERE d.done = 0 AND t.ended_at IS NULL AND p.ended_at IS NOT NULL
   AND NOT EXISTS (SELECT 1 FROM freeing f WHERE f.parent_task_id = p.id)
 ORDER BY t.id LIMIT :limit

-- name: tasks_blocked_by_nothing
SELECT id FROM task
 WHERE state = 'blocked' AND waits_on = 0 AND not_before_at IS NULL
 ORDER BY id LIMIT :limit

-- name: wishes_of_nobody
SELECT id, asked, state FROM task WHERE asked IS NOT NULL AND node_id IS NULL ORDER BY id LIMIT :limit

-- name: tasks_on_no_node
SELECT t.id, t.state, t.node_id FROM task t LEFT JOIN node n ON n.id = t.node_id
 WHERE t.node_id IS NOT NULL AND n.id IS NULL
 ORDER BY t.id LIMIT :limit

-- name: started_classes_on_nodes
SELECT t.node_id, c.body, count(*) FROM task t
  JOIN lane l ON l.id = t.lane_id
  JOIN resource_class c ON c.id = l.class_id
 WHERE t.node_id IS NOT NULL AND t.state IN ('running', 'suspended')
 GROUP BY t.node_id, c.id, c.body

-- name: capacities_of_nodes
SELECT id, name, info, cpus, memory_bytes, gpus FROM node ORDER BY id
