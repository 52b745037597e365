-- name: spec_and_lane
SELECT s.body, l.pool_id, l.class_id FROM spec s JOIN lane l ON l.id = :lane_id WHERE s.id = :spec_id

-- name: edit_task
UPDATE task
   SET spec_id = :spec_id, lane_id = :lane_id, priority = :priority,
       not_before_at = CAST(:not_before_at AS BIGINT), version = version + 1
 WHERE id = :task_id AND state IN ('blocked', 'queued', 'held')

-- name: block_until_time
UPDATE task
   SET state = 'blocked', previous_state = state, previous_since = state_since, state_since = :now_us
 WHERE id IN ids(:task_ids) AND state = 'queued' AND not_before_at > :now_us

-- name: queue_at_once
UPDATE task
   SET state = 'queued', previous_state = state, previous_since = state_since, state_since = :now_us
 WHERE id IN ids(:task_ids) AND state = 'blocked' AND waits_on = 0
   AND (not_before_at IS NULL OR not_before_at <= :now_us)

-- name: rerun_tasks
UPDATE task
   SET state = 'queued', reason = NULL, message = NULL, previous_state = state, previous_since = state_since,
       state_since = :now_us, seq = :now_us, asked = NULL, asked_at = NULL, not_before_at = NULL, waits_on = 0,
       retry_count = 0, requeue_count = 0, lost_count = 0, round = round + 1, assigned_at = NULL,
       started_at = NULL, ended_at = NULL, exit_code = NULL, signal = NULL
 WHERE id IN ids(:task_ids) AND ended_at IS NOT NULL

-- name: block_again
UPDATE task
   SET state = 'blocked', reason = NULL, message = NULL, previous_state = state, previous_since = state_since,
       state_since = :now_us, asked = NULL, asked_at = NULL, round = round + 1, assigned_at = NULL,
       started_at = NULL, ended_at = NULL
 WHERE id IN ids(:task_ids) AND state = 'skipped'

-- name: skipped_children
SELECT t.id, t.job_id, t.state, t.own_id FROM task t
 WHERE t.id IN (SELECT child_id FROM dependency WHERE parent_task_id IN ids(:task_ids))
   AND t.state = 'skipped' AND t.reason = 'parent_failed'
 ORDER BY t.id
/* for update */

-- name: skipped_children_of_jobs
SELECT t.id, t.job_id, t.state, t.own_id FROM task t
 WHERE t.id IN (SELECT child_id FROM dependency WHERE parent_job_id IN ids(:job_ids))
   AND t.state = 'skipped' AND t.reason = 'parent_failed'
 ORDER BY t.id
/* for update */

-- name: count_children
SELECT parent_task_id, count(*) FROM dependency WHERE parent_task_id IN ids(:task_ids) GROUP BY parent_task_id

-- name: count_children_of_jobs
SELECT parent_job_id, count(*) FROM dependency WHERE parent_job_id IN ids(:job_ids) GROUP BY parent_job_id

-- name: revive_later
INSERT INTO reviving (parent_key, after_child_id)
SELECT CAST(batch.value->>0 AS BIGINT), 0 FROM json_each(:batch) AS batch WHERE 0 = 0
ON CONFLICT (parent_key) DO UPDATE SET after_child_id = 0

-- name: reviving
SELECT parent_key FROM reviving ORDER BY parent_key LIMIT :limit

-- name: parents_to_revive
SELECT parent_key, after_child_id FROM reviving ORDER BY parent_key LIMIT :limit
/* skip locked */

-- name: revived_up_to
UPDATE reviving SET after_child_id = :after WHERE parent_key = :parent_key

-- name: forget_reviving
DELETE FROM reviving WHERE parent_key = :parent_key

-- name: some_skipped_children
-- Of a task, or of a job; the other one is 0.
SELECT t.id, t.job_id, t.state, t.own_id FROM dependency d JOIN task t ON t.id = d.child_id
 WHERE d.parent_task_id = :task_id AND d.child_id > :after
   AND t.state = 'skipped' AND t.reason = 'parent_failed'
 ORDER BY d.child_id LIMIT :limit
/* for update */

-- name: some_skipped_children_of_job
SELECT t.id, t.job_id, t.state, t.own_id FROM dependency d JOIN task t ON t.id = d.child_id
 WHERE d.parent_job_id = :job_id AND d.child_id > :after
   AND t.state = 'skipped' AND t.reason = 'parent_failed'
 ORDER BY d.child_id LIMIT :limit
/* for update */

-- name: bad_parents_of
SELECT d.child_id, d.parent_task_id FROM dependency d JOIN task p ON p.id = d.parent_task_id
 WHERE d.child_id IN ids(:task_ids) AND d.how = 'success'
   AND (p.state IN ('failed', 'cancelled') OR (p.state = 'skipped' AND p.reason = 'parent_failed'))

-- name: undo_dependencies
-- Of these children: a parent that has not ended is waited for.
UPDATE dependency
   SET done = CASE WHEN parent_job_id IS NOT NULL THEN 0
                   WHEN (SELECT ended_at FROM task WHERE task.id = dependency.parent_task_id) IS NULL THEN 0
                   ELSE 1 END
 WHERE child_id IN ids(:task_ids)

-- name: count_parents
UPDATE task
   SET waits_on = (SELECT count(*) FROM dependency WHERE dependency.child_id = task.id AND dependency.done = 0)
 WHERE id IN ids(:task_ids)

-- name: lock_parents_of
SELECT id FROM task
 WHERE id IN (SELECT parent_task_id FROM dependency WHERE child_id IN ids(:task_ids))
 ORDER BY id
/* for update */

-- name: wait_for_open_parents
-- Of tasks that were asked for again: parents that are open count anew, those that have ended do not.
UPDATE dependency
   SET done = CASE WHEN EXISTS (SELECT 1 FROM task
                                 WHERE task.id = dependency.parent_task_id AND task.ended_at IS NULL)
                     OR EXISTS (SELECT 1 FROM job
                                 WHERE job.id = dependency.parent_job_id
                                   AND job.task_count + job.array_total - job.array_done
                                       > job.succeeded + job.failed + job.cancelled + job.skipped)
                   THEN 0 ELSE 1 END
 WHERE child_id IN ids(:task_ids)

-- name: block_with_parents
UPDATE task SET state = 'blocked' WHERE id IN ids(:task_ids) AND state = 'queued' AND waits_on > 0

-- name: uncount_ends
UPDATE job
   SET succeeded = succeeded - :succeeded, failed = failed - :failed, cancelled = cancelled - :cancelled,
       skipped = skipped - :skipped
 WHERE id = :job_id
RETURNING state, tenant_id, submitted_by, name, named

-- name: reopen_job
-- One that was closed by a person takes no more tasks, and ends again with those that it has.
UPDATE job
   SET state = CASE WHEN on_all_complete = 'terminate' THEN 'active' ELSE 'closing' END, reason = NULL, outcome = NULL, previous_state = state, previous_since = state_since,
       state_since = :now_us, started_at = NULL, ended_at = NULL, named = :named
 WHERE id = :job_id AND state IN ('completed', 'cancelled')
