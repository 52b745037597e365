-- name: job_totals
-- Tasks by state, summed over the jobs' own counts; what waits or runs is counted by the two statements below.
SELECT COALESCE(SUM(task_count), 0) AS rows, COALESCE(SUM(array_total - array_done), 0) AS not_yet,
       COALESCE(SUM(succeeded), 0) AS succeeded, COALESCE(SUM(failed), 0) AS failed,
       COALESCE(SUM(cancelled), 0) AS cancelled, COALESCE(SUM(skipped), 0) AS skipped
  FROM job WHERE tenant_id = :tenant_id

-- name: waiting_totals
SELECT state, count(*) AS n FROM task
 WHERE state IN ('blocked', 'held') AND tenant_id = :tenant_id
 GROUP BY state

-- name: on_node_totals
SELECT state, count(*) AS n FROM task
 WHERE node_id IS NOT NULL AND tenant_id = :tenant_id
 GROUP BY state

-- name: waiting_of_jobs
SELECT job_id, state, count(*) AS n FROM task
 WHERE state IN ('blocked', 'held') AND job_id IN ids(:job_ids)
 GROUP BY job_id, state

-- name: on_node_of_jobs
SELECT job_id, state, count(*) AS n FROM task
 WHERE node_id IS NOT NULL AND job_id IN ids(:job_ids)
 GROUP BY job_id, state

-- name: counts_of_jobs
SELECT id, task_count, array_total - array_done AS not_yet, succeeded, failed, cancelled, skipped
  FROM job WHERE id IN ids(:job_ids)

-- name: select_job_ids
-- A template, like select_task_ids.
SELECT j.id FROM job j WHERE j.tenant_id = :tenant_id /* where */ ORDER BY j.id DESC LIMIT :limit

-- name: count_job_ids
SELECT count(*) AS n FROM job j WHERE j.tenant_id = :tenant_id /* where */

-- name: show_jobs
SELECT j.*, e.name AS tenant FROM job j JOIN tenant e ON e.id = j.tenant_id WHERE j.id IN ids(:job_ids)

-- name: job_state
SELECT state, version, task_count + array_total - array_done - succeeded - failed - cancelled - skipped AS open,
       finish_seq, results_cut
  FROM job WHERE id = :job_id AND tenant_id = :tenant_id

-- name: results_after
SELECT a.task_id, a.attempt, a.finish_no, a.state, a.reason, a.message, a.exit_code, a.signal, a.assigned_at,
       a.started_at, a.ended_at, a.wall_us, a.user_us, a.system_us, a.max_rss_bytes, a.minor_faults,
       a.major_faults, a.blocks_in, a.blocks_out, a.voluntary_switches, a.involuntary_switches,
       a.stdout_bytes, a.stderr_bytes, n.name AS node, t.name AS name, t.item AS item
  FROM attempt a
  JOIN task t ON t.id = a.task_id
  LEFT JOIN node n ON n.id = a.node_id
 WHERE a.job_id = :job_id AND a.finish_no > :after
 ORDER BY a.finish_no
 LIMIT :limit

-- name: edit_job
UPDATE job
   SET priority = :priority, max_parallel = :max_parallel, meta = :meta, on_all_complete = :on_all_complete,
       version = version + 1
 WHERE id = :job_id AND version = :version

-- name: reprioritize_tasks
-- Tasks that took the job's old priority, a piece at a time.
UPDATE task SET priority = :priority
 WHERE id IN (SELECT id FROM task
               WHERE id >= :first AND id <= :last AND priority = :before
                 AND state IN ('blocked', 'queued', 'held')
               ORDER BY id LIMIT :limit)

-- name: set_job_state
UPDATE job
   SET state = :state, reason = :reason, previous_state = state, previous_since = state_since, state_since = :now_us
 WHERE id = :job_id AND state = :before

-- name: forget_unmade_tasks
-- A cancelled array makes no more rows.
UPDATE job SET array_total = array_done WHERE id = :job_id AND array_total > array_done

-- name: drop_array_pieces
DELETE FROM array_piece WHERE job_id = :job_id

-- name: wake_lanes_of_job
UPDATE lane SET active = 1
 WHERE job_id = :job_id AND EXISTS (SELECT 1 FROM task WHERE task.lane_id = lane.id AND task.state = 'queued')

-- name: jobs_being_cancelled
-- With something to do: those that only wait for nodes to answer must not hide the others.
SELECT id, tenant_id FROM job
 WHERE state IN ('active', 'disabled', 'closing') AND state = 'closing' AND reason LIKE 'job_cancelled%'
   AND (task_count + array_total - array_done = succeeded + failed + cancelled + skipped
        OR EXISTS (SELECT 1 FROM task WHERE task.job_id = job.id AND task.state IN ('blocked', 'held'))
        OR EXISTS (SELECT 1 FROM lane JOIN task ON task.lane_id = lane.id
                    WHERE lane.job_id = job.id AND task.state = 'queued')
        OR EXISTS (SELECT 1 FROM lane JOIN task ON task.lane_id = lane.id
                    WHERE lane.job_id = job.id AND task.node_id IS NOT NULL
                      AND (task.asked IS NULL OR task.asked <> 'cancel')))
 ORDER BY id LIMIT :limit

-- name: jobs_to_end
-- Closed, or wanting to end by themselves, with no task left to end.
SELECT id FROM job
 WHERE state IN ('active', 'disabled', 'closing')
   AND (state = 'closing' OR (on_all_complete = 'terminate' AND task_count + array_total > 0))
   AND task_count + array_total - array_done = succeeded + failed + cancelled + skipped
 ORDER BY id LIMIT :limit

-- name: jobs_over_time
SELECT id, tenant_id FROM job
 WHERE state IN ('active', 'disabled', 'closing') AND time_limit_us IS NOT NULL AND started_at IS NOT NULL
   AND started_at + time_limit_us <= :now_us AND (reason IS NULL OR reason NOT LIKE 'job_cancelled%')
 ORDER BY id LIMIT :limit

-- name: raise_lanes_of_job
UPDATE lane SET priority = :priority WHERE job_id = :job_id AND active = 1 AND priority < :priority

-- name: job_to_cancel
-- Not locked: its tasks are locked first, as turns do.
SELECT id, tenant_id, reason FROM job
 WHERE id = :job_id AND state = 'closing' AND reason LIKE 'job_cancelled%'

-- name: tasks_to_cancel
-- Those that wait, and those on a node that have not been asked yet; each by its own index, so that nothing
-- is read of the many that have ended.
SELECT id FROM (
    SELECT id FROM task
     WHERE lane_id IN (SELECT lane.id FROM lane WHERE lane.job_id = :job_id) AND state = 'queued'
    UNION ALL
    SELECT id FROM task WHERE job_id = :job_id AND state IN ('blocked', 'held')
    UNION ALL
    SELECT id FROM task
     WHERE lane_id IN (SELECT lane.id FROM lane WHERE lane.job_id = :job_id) AND node_id IS NOT NULL
       AND (asked IS NULL OR asked <> 'cancel')
) AS open LIMIT :limit

-- name: stop_disabled
UPDATE job SET stop = CAST(:stop AS TEXT) WHERE id = :job_id AND state = 'disabled'

-- name: stop_of_job
SELECT stop FROM job WHERE id = :job_id AND state = 'disabled'

-- name: jobs_to_stop
SELECT job.id FROM job
 WHERE job.state IN ('active', 'disabled', 'closing') AND job.state = 'disabled' AND job.stop IS NOT NULL
   AND EXISTS (SELECT 1 FROM task
                WHERE task.lane_id IN (SELECT lane.id FROM lane WHERE lane.job_id = job.id)
                  AND task.node_id IS NOT NULL
                  AND (task.asked IS NULL OR task.asked NOT IN ('cancel', 'requeue')))
 ORDER BY job.id LIMIT :limit

-- name: tasks_to_stop
SELECT id, node_id FROM task
 WHERE lane_id IN (SELECT lane.id FROM lane WHERE lane.job_id = :job_id) AND node_id IS NOT NULL
   AND (asked IS NULL OR asked NOT IN ('cancel', 'requeue'))
 ORDER BY id + 0 LIMIT :limit
/* for update */

-- name: job_to_end
SELECT id, state, reason, on_all_complete, succeeded, failed, cancelled, skipped,
       (SELECT count(*) FROM subscription s WHERE s.tenant_id = job.tenant_id) AS webhooks
  FROM job
 WHERE id = :job_id AND state IN ('active', 'disabled', 'closing')
   AND (state = 'closing' OR (on_all_complete = 'terminate' AND task_count + array_total > 0))
   AND task_count + array_total - array_done = succeeded + failed + cancelled + skipped
/* for update */

-- name: usage_of_job
-- Reads every attempt of the job.
SELECT max(max_rss_bytes) AS max_rss_bytes,
       CAST(COALESCE(sum(wall_us), 0) AS BIGINT) AS wall_us,
       CAST(COALESCE(sum(user_us), 0) AS BIGINT) AS user_us,
       CAST(COALESCE(sum(system_us), 0) AS BIGINT) AS system_us,
       CAST(COALESCE(sum(minor_faults), 0) AS BIGINT) AS minor_faults,
       CAST(COALESCE(sum(major_faults), 0) AS BIGINT) AS major_faults,
       CAST(COALESCE(sum(blocks_in), 0) AS BIGINT) AS blocks_in,
       CAST(COALESCE(sum(blocks_out), 0) AS BIGINT) AS blocks_out,
       CAST(COALESCE(sum(voluntary_switches), 0) AS BIGINT) AS voluntary_switches,
       CAST(COALESCE(sum(involuntary_switches), 0) AS BIGINT) AS involuntary_switches
  FROM attempt WHERE task_id >= :first AND task_id <= :last
