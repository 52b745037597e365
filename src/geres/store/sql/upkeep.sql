-- name: store_time
-- SQLite has no clock of its own.
SELECT 0

-- name: store_time @postgres
SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)

-- name: forget_idempotency
DELETE FROM idempotency
 WHERE (tenant_id, subject, key) IN
       (SELECT tenant_id, subject, key FROM idempotency
         WHERE created_at < :before_us ORDER BY created_at LIMIT :limit /* skip locked */)

-- name: jobs_to_cut
-- Jobs whose oldest kept result is old enough.
SELECT j.id, j.results_cut FROM job j
  JOIN attempt a ON a.job_id = j.id AND a.finish_no = j.results_cut + 1
 WHERE a.ended_at < :before_us
 ORDER BY j.id LIMIT :limit

-- name: first_kept_result
SELECT min(finish_no) FROM attempt
 WHERE job_id = :job_id AND finish_no IS NOT NULL AND ended_at >= :before_us

-- name: last_result_to_cut
SELECT max(finish_no) FROM
       (SELECT finish_no FROM attempt
         WHERE job_id = :job_id AND finish_no > :after
           AND (CAST(:before AS BIGINT) IS NULL OR finish_no < CAST(:before AS BIGINT))
         ORDER BY finish_no LIMIT :limit) AS piece

-- name: blobs_to_cut
SELECT o.stdout_blob, o.stderr_blob FROM attempt o
 WHERE o.task_id IN (SELECT task_id FROM attempt WHERE job_id = :job_id AND finish_no > :after AND finish_no <= :last)
   AND o.job_id = :job_id AND (o.finish_no IS NULL OR o.finish_no <= :last)
   AND (o.stdout_blob IS NOT NULL OR o.stderr_blob IS NOT NULL)

-- name: cut_results
UPDATE job SET results_cut = :last WHERE id = :job_id AND results_cut = :before

-- name: tasks_to_forget
-- Tasks of this piece whose last word is in it.
SELECT t.id FROM task t
 WHERE t.id IN (SELECT task_id FROM attempt WHERE job_id = :job_id AND finish_no > :after AND finish_no <= :last)
   AND t.ended_at IS NOT NULL
   AND NOT EXISTS (SELECT 1 FROM attempt a WHERE a.task_id = t.id AND a.finish_no > :last)
   AND NOT EXISTS (SELECT 1 FROM dependency d WHERE d.parent_task_id = t.id AND d.done = 0)
 ORDER BY t.id
/* for update */

-- name: count_by_state
SELECT state, count(*) FROM task WHERE id IN ids(:task_ids) GROUP BY state

-- name: drop_attempts
DELETE FROM attempt WHERE job_id = :job_id AND finish_no <= :last

-- name: drop_dependencies
DELETE FROM dependency WHERE child_id IN ids(:task_ids) OR parent_task_id IN ids(:task_ids)

-- name: drop_attempts_of_tasks
-- Those without a number too: of retries, of lost nodes.
DELETE FROM attempt WHERE task_id IN ids(:task_ids)

-- name: drop_tasks
DELETE FROM task WHERE id IN ids(:task_ids)

-- name: uncount_tasks
UPDATE job
   SET task_count = task_count - :n, succeeded = succeeded - :succeeded, failed = failed - :failed,
       cancelled = cancelled - :cancelled, skipped = skipped - :skipped
 WHERE id = :job_id

-- name: jobs_to_forget
SELECT j.id FROM job j
 WHERE j.ended_at < :before_us AND j.task_count = 0
   AND NOT EXISTS (SELECT 1 FROM dependency d WHERE d.parent_job_id = j.id AND d.done = 0)
 ORDER BY j.id LIMIT :limit

-- name: drop_lanes
DELETE FROM lane WHERE job_id IN ids(:job_ids)

-- name: drop_specs
DELETE FROM spec WHERE job_id IN ids(:job_ids)

-- name: drop_jobs
DELETE FROM job WHERE id IN ids(:job_ids)

-- name: drop_limits_of_jobs
DELETE FROM "limit" WHERE scope = 'job' AND key IN words(:keys)

-- name: store_began
SELECT COALESCE(min(created_at), 0) FROM tenant

-- name: attempts_on_nodes
SELECT id, attempt FROM task WHERE id IN ids(:task_ids) AND node_id IS NOT NULL

-- name: blobs_of_tasks
SELECT stdout_blob, stderr_blob FROM attempt
 WHERE task_id IN ids(:task_ids) AND (stdout_blob IS NOT NULL OR stderr_blob IS NOT NULL)
