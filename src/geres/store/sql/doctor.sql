-- name: ping
SELECT 1

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
HAVING count(t.id) <> j.succeeded + j.failed + j.cancelled + j.skipped
 ORDER BY j.id LIMIT :limit

-- name: tasks_without_one_result
SELECT t.id, count(a.finish_no) AS results
  FROM task t
  JOIN job j ON j.id = t.job_id
  LEFT JOIN attempt a ON a.task_id = t.id AND a.round = t.round AND a.finish_no IS NOT NULL
 WHERE j.results_cut = 0
 GROUP BY t.id, t.ended_at
HAVING count(a.finish_no) <> CASE WHEN t.ended_at IS NULL THEN 0 ELSE 1 END
 ORDER BY t.id LIMIT :limit

-- name: jobs_with_gaps
SELECT j.id, count(a.finish_no) AS results, j.finish_seq, j.results_cut
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

-- name: tasks_miscounting_parents
SELECT t.id, t.waits_on, count(d.child_id) AS parents
  FROM task t LEFT JOIN dependency d ON d.child_id = t.id AND d.done = 0
 WHERE t.ended_at IS NULL
 GROUP BY t.id, t.waits_on
HAVING count(d.child_id) <> t.waits_on
 ORDER BY t.id LIMIT :limit

-- name: started_classes_on_nodes
SELECT t.node_id, c.body, count(*) FROM task t
  JOIN lane l ON l.id = t.lane_id
  JOIN resource_class c ON c.id = l.class_id
 WHERE t.node_id IS NOT NULL AND t.state = 'running'
 GROUP BY t.node_id, c.id, c.body

-- name: capacities_of_nodes
SELECT id, name, cpus, memory_bytes, gpus FROM node ORDER BY id

-- name: asked_long_ago
SELECT t.id, t.asked, t.asked_at, n.name FROM task t JOIN node n ON n.id = t.node_id
 WHERE t.asked IS NOT NULL AND t.asked_at <= :before_us
 ORDER BY t.asked_at LIMIT :limit
