-- name: lock_nodes
-- Who raises an epoch locks FOR UPDATE, and so waits; who renews a lease does not.
SELECT id, epoch FROM node WHERE id IN ids(:node_ids) ORDER BY id
/* for key share */

-- name: active_lanes
SELECT lane.id, lane.priority, lane.submitted_by, lane.class_id, resource_class.body AS demand,
       job.id AS job_id, job.max_parallel, job.priority AS job_priority, lane.pool_id,
       (SELECT count(*) FROM "limit" q JOIN pool ON pool.tenant_id = q.tenant_id
         WHERE pool.id = :pool_id AND q.scope = 'quota') AS quotas
  FROM lane
  JOIN job ON job.id = lane.job_id
  JOIN resource_class ON resource_class.id = lane.class_id
 WHERE lane.pool_id = :pool_id AND lane.active = 1 AND NOT lane.id IN ids(:left_out) AND job.state IN ('active', 'closing')
   AND (job.reason IS NULL OR job.reason NOT LIKE 'job_cancelled%')
 ORDER BY lane.priority DESC, lane.id
 LIMIT :limit

-- name: tenant_of_pool
SELECT tenant_id FROM pool WHERE id = :pool_id

-- name: lock_limits
SELECT scope, key, most FROM "limit"
 WHERE tenant_id = :tenant_id AND scope = :scope AND key = :key
/* skip locked */

-- name: use_of_job
SELECT count(*) FROM task
 WHERE node_id IS NOT NULL AND lane_id IN (SELECT id FROM lane WHERE job_id = :job_id)

-- name: use_of_label
SELECT count(*) FROM task
 WHERE node_id IS NOT NULL
   AND lane_id IN (SELECT lane.id FROM lane
                     JOIN resource_class ON resource_class.id = lane.class_id
                    WHERE lane.tenant_id = :tenant_id AND resource_class.label = :label)

-- name: use_of_user
SELECT count(*) FROM task
 WHERE node_id IS NOT NULL
   AND lane_id IN (SELECT id FROM lane WHERE tenant_id = :tenant_id AND submitted_by = :subject)

-- name: queued_tasks_of_lane
SELECT id, attempt, spec_id, argv, item, priority, seq, retry_count, requeue_count
  FROM task
 WHERE lane_id = :lane_id AND state = 'queued'
 ORDER BY priority DESC, seq, id
 LIMIT :limit
/* skip locked */

-- name: lock_lanes
SELECT id FROM lane WHERE id IN ids(:lane_ids)
/* skip locked */

-- name: rest_lanes
-- Only lanes that are locked: a submit sets the hint in the transaction that adds the tasks.
UPDATE lane SET active = 0
 WHERE id IN ids(:lane_ids)
   AND NOT EXISTS (SELECT 1 FROM task WHERE task.lane_id = lane.id AND task.state = 'queued')

-- name: assign_tasks
-- They were locked as queued in this transaction; to ask for the state again would tempt a planner that saw few
-- tasks to read all queued ones.
UPDATE task
   SET state = 'assigned', attempt = task.attempt + 1, node_id = CAST(batch.value->>1 AS BIGINT), reason = NULL,
       message = NULL, previous_state = 'queued', previous_since = task.state_since, state_since = :now_us,
       assigned_at = :now_us, started_at = NULL
  FROM json_each(:batch) AS batch
 WHERE task.id = CAST(batch.value->>0 AS BIGINT)
RETURNING task.id, task.attempt

-- name: start_tasks
UPDATE task
   SET state = 'running', previous_state = 'assigned', previous_since = task.state_since, state_since = :now_us,
       -- by the node's clock, which may be wrong
       started_at = CASE WHEN CAST(batch.value->>3 AS BIGINT) > :now_us THEN :now_us
                         WHEN CAST(batch.value->>3 AS BIGINT) < task.assigned_at THEN task.assigned_at
                         ELSE CAST(batch.value->>3 AS BIGINT) END,
       asked = CASE WHEN task.asked = 'hold' THEN NULL ELSE task.asked END
  FROM json_each(:batch) AS batch
 WHERE task.id = CAST(batch.value->>0 AS BIGINT) AND task.attempt = CAST(batch.value->>1 AS BIGINT)
   AND task.node_id = CAST(batch.value->>2 AS BIGINT) AND task.state = 'assigned'
RETURNING task.id

-- name: start_jobs
UPDATE job SET started_at = :now_us WHERE id IN ids(:job_ids) AND started_at IS NULL

-- name: answer_asked
-- A node has carried out suspend or resume.  What was asked since, and not carried out yet, stays.
UPDATE task
   SET state = CAST(batch.value->>3 AS TEXT),
       previous_state = CASE WHEN task.state <> CAST(batch.value->>3 AS TEXT)
                             THEN task.state ELSE task.previous_state END,
       previous_since = CASE WHEN task.state <> CAST(batch.value->>3 AS TEXT)
                             THEN task.state_since ELSE task.previous_since END,
       state_since = CASE WHEN task.state <> CAST(batch.value->>3 AS TEXT) THEN :now_us ELSE task.state_since END,
       asked = CASE WHEN task.asked = 'suspend' AND CAST(batch.value->>3 AS TEXT) = 'suspended'
                      OR task.asked = 'resume' AND CAST(batch.value->>3 AS TEXT) = 'running'
                    THEN NULL ELSE task.asked END
  FROM json_each(:batch) AS batch
 WHERE task.id = CAST(batch.value->>0 AS BIGINT) AND task.attempt = CAST(batch.value->>1 AS BIGINT)
   AND task.node_id = CAST(batch.value->>2 AS BIGINT) AND task.state IN ('running', 'suspended')
RETURNING task.id

-- name: forget_asked
-- A node has sent a signal; a wish to end the task that came meanwhile stays.
UPDATE task SET asked = NULL, asked_at = NULL
  FROM json_each(:batch) AS batch
 WHERE task.id = CAST(batch.value->>0 AS BIGINT) AND task.attempt = CAST(batch.value->>1 AS BIGINT)
   AND task.node_id = CAST(batch.value->>2 AS BIGINT) AND task.asked LIKE 'signal:%'

-- name: lock_reported_tasks
SELECT id, attempt, node_id, state, asked, lane_id, spec_id, retry_count, requeue_count, lost_count, round,
       is_parent, assigned_at, started_at, message
  FROM task WHERE id IN ids(:task_ids) ORDER BY id
/* for update */

-- name: forget_kills
DELETE FROM kill
 WHERE (node_id, task_id, attempt) IN
       (SELECT CAST(batch.value->>0 AS BIGINT), CAST(batch.value->>1 AS BIGINT), CAST(batch.value->>2 AS BIGINT)
          FROM json_each(:batch) AS batch)

-- name: forget_kills_of_node
DELETE FROM kill WHERE node_id = :node_id

-- name: on_lost_of_jobs
SELECT id, on_lost FROM job WHERE id IN ids(:job_ids) AND on_lost IS NOT NULL

-- name: specs_by_id
SELECT id, body FROM spec WHERE id IN ids(:spec_ids)

-- name: requeue_tasks
-- Take tasks off their nodes: queued again at their old place, or blocked until a time, or held.
UPDATE task
   SET state = CAST(batch.value->>1 AS TEXT), reason = CAST(batch.value->>2 AS TEXT),
       message = CAST(batch.value->>3 AS TEXT), not_before_at = CAST(batch.value->>4 AS BIGINT),
       retry_count = task.retry_count + CAST(batch.value->>5 AS BIGINT),
       requeue_count = task.requeue_count + CAST(batch.value->>6 AS BIGINT),
       lost_count = task.lost_count + CAST(batch.value->>7 AS BIGINT),
       previous_state = task.state, previous_since = task.state_since, state_since = :now_us,
       node_id = NULL, asked = NULL, asked_at = NULL, assigned_at = NULL, started_at = NULL
  FROM json_each(:batch) AS batch
 WHERE task.id = CAST(batch.value->>0 AS BIGINT)

-- name: count_losses
-- Of tasks that are about to fail for it.
UPDATE task SET lost_count = lost_count + 1 WHERE id IN ids(:task_ids)

-- name: wake_lanes_of_tasks
UPDATE lane
   SET active = 1,
       priority = (SELECT max(task.priority) FROM task
                    WHERE task.lane_id = lane.id AND (task.state = 'queued'))
 WHERE id IN (SELECT lane_id FROM task WHERE id IN ids(:task_ids) AND state = 'queued')

-- name: wake_lanes_of_tasks @postgres
-- Locked in order, as several servers wake the same lanes.
WITH woken AS MATERIALIZED (
    SELECT id FROM lane
     WHERE id IN (SELECT lane_id FROM task WHERE id IN ids(:task_ids) AND state = 'queued')
     ORDER BY id FOR UPDATE)
UPDATE lane
   SET active = 1,
       priority = (SELECT max(task.priority) FROM task
                    WHERE task.lane_id = lane.id AND (task.state = 'queued'))
  FROM woken WHERE lane.id = woken.id

-- name: count_ends
-- The job's row is locked from here to the commit, so that finish numbers have no gaps.
UPDATE job
   SET finish_seq = finish_seq + :n, succeeded = succeeded + :succeeded, failed = failed + :failed,
       cancelled = cancelled + :cancelled, skipped = skipped + :skipped,
       started_at = COALESCE(started_at, CAST(:started_at AS BIGINT))
 WHERE id = :job_id
RETURNING finish_seq - :n AS before, state, reason, on_all_complete, is_parent,
          task_count + array_total - array_done - succeeded - failed - cancelled - skipped AS open,
          task_count, succeeded, failed, cancelled, skipped,
          (SELECT count(*) FROM subscription s WHERE s.tenant_id = job.tenant_id) AS webhooks

-- name: end_tasks
UPDATE task
   SET state = CAST(batch.value->>1 AS TEXT), reason = CAST(batch.value->>2 AS TEXT),
       message = CAST(batch.value->>3 AS TEXT), exit_code = CAST(batch.value->>4 AS BIGINT),
       signal = CAST(batch.value->>5 AS BIGINT), started_at = CAST(batch.value->>6 AS BIGINT),
       ended_at = CAST(batch.value->>7 AS BIGINT),
       previous_state = task.state, previous_since = task.state_since, state_since = :now_us,
       node_id = NULL, asked = NULL, asked_at = NULL, waits_on = 0
  FROM json_each(:batch) AS batch
 WHERE task.id = CAST(batch.value->>0 AS BIGINT)

-- name: lock_waiting
SELECT id, is_parent FROM task
 WHERE id IN ids(:task_ids) AND state IN ('blocked', 'queued', 'held') AND node_id IS NULL ORDER BY id
/* for update */

-- name: add_ends_without_attempt
INSERT INTO attempt (task_id, attempt, round, job_id, finish_no, state, reason, message, ended_at)
SELECT id, 0, round, job_id, :before + row_number() OVER (ORDER BY id), :state, :reason, :message, :now_us
  FROM task WHERE id IN ids(:task_ids)

-- name: end_waiting
UPDATE task
   SET state = :state, reason = :reason, message = CAST(:message AS TEXT), exit_code = NULL, signal = NULL,
       started_at = NULL, ended_at = :now_us,
       previous_state = state, previous_since = state_since, state_since = :now_us, waits_on = 0
 WHERE id IN ids(:task_ids)

-- name: end_job
UPDATE job
   SET state = :state, reason = :reason, outcome = :outcome, previous_state = state, previous_since = state_since,
       state_since = :now_us, ended_at = :now_us
 WHERE id = :job_id AND state IN ('active', 'disabled', 'closing')

-- name: count_open_children
SELECT parent_task_id, count(*) FROM dependency
 WHERE parent_task_id IN ids(:task_ids) AND done = 0
 GROUP BY parent_task_id

-- name: free_later
INSERT INTO freeing (parent_task_id) SELECT id FROM task WHERE id IN ids(:task_ids)
ON CONFLICT (parent_task_id) DO NOTHING

-- name: parents_to_free
SELECT parent_task_id FROM freeing ORDER BY parent_task_id LIMIT :limit

-- name: forget_freeing
DELETE FROM freeing WHERE parent_task_id = :task_id

-- name: some_children_of_task
SELECT child_id FROM dependency WHERE parent_task_id = :task_id AND done = 0 ORDER BY child_id LIMIT :limit

-- name: some_children_of_job
SELECT child_id FROM dependency WHERE parent_job_id = :job_id AND done = 0 ORDER BY child_id LIMIT :limit

-- name: done_dependencies_of_children
-- Of these children, on one task.
UPDATE dependency SET done = 1
 WHERE parent_task_id = :task_id AND child_id IN ids(:child_ids) AND done = 0
RETURNING child_id, how

-- name: done_dependencies_on_tasks
UPDATE dependency SET done = 1
 WHERE parent_task_id IN ids(:task_ids) AND done = 0
RETURNING child_id, parent_task_id, how

-- name: done_dependencies_on_job
UPDATE dependency SET done = 1
 WHERE parent_job_id = :job_id AND child_id IN ids(:child_ids) AND done = 0
RETURNING child_id, how

-- name: lock_children
SELECT id, job_id, state, waits_on, not_before_at, round, attempt, is_parent
  FROM task WHERE id IN ids(:task_ids) ORDER BY id
/* for update */

-- name: free_children
UPDATE task
   SET waits_on = task.waits_on - CAST(batch.value->>1 AS BIGINT),
       state = CASE WHEN task.state = 'blocked' AND task.waits_on <= CAST(batch.value->>1 AS BIGINT)
                     AND (task.not_before_at IS NULL OR task.not_before_at <= :now_us)
                    THEN 'queued' ELSE task.state END,
       previous_state = CASE WHEN task.state = 'blocked' AND task.waits_on <= CAST(batch.value->>1 AS BIGINT)
                              AND (task.not_before_at IS NULL OR task.not_before_at <= :now_us)
                             THEN task.state ELSE task.previous_state END,
       previous_since = CASE WHEN task.state = 'blocked' AND task.waits_on <= CAST(batch.value->>1 AS BIGINT)
                              AND (task.not_before_at IS NULL OR task.not_before_at <= :now_us)
                             THEN task.state_since ELSE task.previous_since END,
       state_since = CASE WHEN task.state = 'blocked' AND task.waits_on <= CAST(batch.value->>1 AS BIGINT)
                           AND (task.not_before_at IS NULL OR task.not_before_at <= :now_us)
                          THEN :now_us ELSE task.state_since END
  FROM json_each(:batch) AS batch
 WHERE task.id = CAST(batch.value->>0 AS BIGINT)
RETURNING task.id, task.state

-- name: tasks_to_wake
SELECT id FROM task
 WHERE state = 'blocked' AND waits_on = 0 AND not_before_at <= :now_us
 ORDER BY not_before_at LIMIT :limit
/* skip locked */

-- name: wake_tasks
UPDATE task
   SET state = 'queued', previous_state = 'blocked', previous_since = state_since, state_since = :now_us
 WHERE id IN ids(:task_ids) AND state = 'blocked' AND waits_on = 0 AND not_before_at <= :now_us

-- name: retries_from_a_time_to_come
-- Tasks that wait for a retry since a time that has not come, or after an attempt that ends only then: a clock was
-- set back meanwhile.
SELECT id FROM task
 WHERE state IN ('blocked', 'held') AND attempt > 0 AND not_before_at > :now_us
   AND (state_since > :now_us OR previous_since > :now_us
        OR EXISTS (SELECT 1 FROM attempt
                    WHERE attempt.task_id = task.id AND attempt.attempt = task.attempt
                      AND attempt.ended_at > :now_us))
 ORDER BY id LIMIT :limit
/* skip locked */

-- name: retry_now
UPDATE task SET not_before_at = :now_us WHERE id IN ids(:task_ids) AND state IN ('blocked', 'held')

-- name: next_wake
SELECT min(not_before_at) FROM task WHERE state = 'blocked' AND waits_on = 0

-- name: jobs_with_done_children
SELECT DISTINCT job.id FROM job JOIN dependency ON dependency.parent_job_id = job.id
 WHERE dependency.done = 0 AND job.is_parent = 1
   AND job.task_count + job.array_total - job.array_done
       = job.succeeded + job.failed + job.cancelled + job.skipped
 ORDER BY job.id LIMIT :limit

-- name: lock_ended_job
-- No row back: a task of it is run again, or has been added.
SELECT id FROM job
 WHERE id = :job_id AND task_count + array_total - array_done = succeeded + failed + cancelled + skipped
/* for update */

-- name: outcome_of_job
-- How many of its tasks did not succeed; of those that were skipped for a parent one is enough.
SELECT job.failed + job.cancelled
       + CASE WHEN job.skipped > 0 AND EXISTS
                   (SELECT 1 FROM task
                     WHERE task.id >= :job_id * 4294967296 AND task.id < (:job_id + 1) * 4294967296
                       AND task.state = 'skipped' AND task.reason = 'parent_failed')
              THEN 1 ELSE 0 END AS bad
  FROM job WHERE job.id = :job_id

-- name: skipped_for_parents
SELECT count(*) FROM task
 WHERE id >= :job_id * 4294967296 AND id < (:job_id + 1) * 4294967296
   AND state = 'skipped' AND reason = 'parent_failed'

-- name: quarantine
INSERT INTO quarantine (at, kind, key, body, error) VALUES (:now_us, :kind, :key, :body, :error)
