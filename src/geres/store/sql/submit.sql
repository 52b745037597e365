-- name: find_tenant
SELECT id FROM tenant WHERE name = :name

-- name: create_tenant
INSERT INTO tenant (name, created_at) VALUES (:name, :now_us)
ON CONFLICT (name) DO UPDATE SET name = excluded.name
RETURNING id

-- name: find_pool
SELECT id FROM pool WHERE tenant_id = :tenant_id AND name = :name

-- name: create_pool
INSERT INTO pool (tenant_id, name, created_at) VALUES (:tenant_id, :name, :now_us)
ON CONFLICT (tenant_id, name) DO UPDATE SET name = excluded.name
RETURNING id

-- name: find_job_by_name
-- The latest one of that name; the caller's own living one first, then the caller's others.
SELECT id FROM job
 WHERE tenant_id = :tenant_id AND name = :name
 ORDER BY CASE WHEN submitted_by = :subject AND named = 1 AND state IN ('active', 'disabled', 'closing')
               THEN 0 WHEN submitted_by = :subject THEN 1 ELSE 2 END, id DESC
 LIMIT 1

-- name: living_job_of_name
SELECT id FROM job
 WHERE tenant_id = :tenant_id AND submitted_by = :subject AND name = :name AND named = 1
   AND state IN ('active', 'disabled', 'closing')

-- name: create_job
INSERT INTO job (tenant_id, submitted_by, name, named, state, state_since, priority, max_parallel, on_all_complete,
                 on_lost, time_limit_us, meta, spec, array_range, array_total, parent_job_id, parent_task_id,
                 created_at)
VALUES (:tenant_id, :subject, :name, :named, 'active', :now_us, :priority, :max_parallel, :on_all_complete,
        :on_lost, :time_limit_us, :meta, :spec, :array_range, :array_total, :parent_job_id, :parent_task_id, :now_us)
ON CONFLICT DO NOTHING
RETURNING id

-- name: set_array
-- Its numbers are taken from the start: other tasks may join while it is unfolded.
UPDATE job SET spec_id = :spec_id, lane_id = :lane_id, task_seq = :last WHERE id = :job_id

-- name: lock_job
SELECT * FROM job WHERE id = :job_id AND tenant_id = :tenant_id
/* for update */

-- name: show_job_to_submit
SELECT state, priority, spec FROM job WHERE id = :job_id AND tenant_id = :tenant_id

-- name: take_numbers
-- No row back: the job takes no more tasks.
UPDATE job SET task_seq = task_seq + :n, task_count = task_count + :n
 WHERE id = :job_id AND tenant_id = :tenant_id AND state IN ('active', 'disabled')
RETURNING task_seq - :n AS before, priority, spec, submitted_by,
          (SELECT count(*) FROM "limit" q WHERE q.tenant_id = :tenant_id AND q.scope = 'quota') AS quotas

-- name: find_shared
-- The way to the database costs more than looking up four things at once.
SELECT (SELECT id FROM spec WHERE job_id = :job_id AND hash = :spec_hash) AS spec_id,
       (SELECT lane.id
          FROM lane
          JOIN pool ON pool.id = lane.pool_id
          JOIN resource_class ON resource_class.id = lane.class_id
         WHERE lane.job_id = :job_id AND lane.submitted_by = :subject AND pool.tenant_id = :tenant_id
           AND pool.name = :pool AND resource_class.hash = :class_hash) AS lane_id

-- name: find_class
SELECT id FROM resource_class WHERE hash = :hash

-- name: create_class
INSERT INTO resource_class (hash, label, body) VALUES (:hash, :label, :body)
ON CONFLICT (hash) DO UPDATE SET hash = excluded.hash
RETURNING id

-- name: find_lane
SELECT id FROM lane
 WHERE job_id = :job_id AND submitted_by = :subject AND pool_id = :pool_id AND class_id = :class_id

-- name: create_lane
INSERT INTO lane (tenant_id, pool_id, job_id, submitted_by, class_id)
VALUES (:tenant_id, :pool_id, :job_id, :subject, :class_id)
ON CONFLICT (job_id, submitted_by, pool_id, class_id) DO UPDATE SET class_id = excluded.class_id
RETURNING id

-- name: lock_lane
-- Held to the end: a turn that finds the lane empty must not clear the hint before what is added can be seen.
SELECT active, priority FROM lane WHERE id = :lane_id
/* for update */

-- name: activate_lane
UPDATE lane SET priority = :priority, active = 1 WHERE id = :lane_id

-- name: find_spec
SELECT id FROM spec WHERE job_id = :job_id AND hash = :hash

-- name: create_spec
INSERT INTO spec (job_id, hash, body, meta, on_disconnect) VALUES (:job_id, :hash, :body, :meta, :on_disconnect)
ON CONFLICT (job_id, hash) DO UPDATE SET hash = excluded.hash
RETURNING id

-- name: insert_like_tasks
-- SQLite alone: PostgreSQL takes them by COPY.
INSERT INTO task (id, argv, own_id, name, job_id, tenant_id, submitted_by, lane_id, spec_id, state, state_since,
                  priority, seq, not_before_at, waits_on, parent_task_id, created_at)
SELECT value->>0, value->>1, value->>2, value->>3, :job_id, :tenant_id, :submitted_by, :lane_id, :spec_id, :state,
       :state_since, :priority, :seq, :not_before_at, :waits_on, :parent_task_id, :created_at
  FROM json_each(:rows)

-- name: living_task_of_own_id
SELECT id FROM task
 WHERE job_id = :job_id AND own_id = :own_id
   AND state IN ('blocked', 'queued', 'held', 'assigned', 'running', 'suspended')

-- name: most_of_cap
SELECT most FROM "limit" WHERE tenant_id = :tenant_id AND scope = :scope AND key = :key

-- name: set_cap
INSERT INTO "limit" (tenant_id, scope, key, most) VALUES (:tenant_id, :scope, :key, :most)
ON CONFLICT (tenant_id, scope, key) DO UPDATE SET most = excluded.most

-- name: drop_cap
DELETE FROM "limit" WHERE tenant_id = :tenant_id AND scope = :scope AND key = :key

-- name: add_array_piece
INSERT INTO array_piece (job_id, first, items) VALUES (:job_id, :first, :items)

-- name: jobs_to_unfold
-- Of an array that waits for others only the first piece has rows until they have ended: then one turn frees few.
SELECT id FROM job
 WHERE array_done < array_total AND state IN ('active', 'disabled', 'closing')
   AND (array_done = 0 OR NOT EXISTS
        (SELECT 1 FROM dependency d
          WHERE d.done = 0
            AND d.child_id = (SELECT MIN(t.id) FROM task t
                               WHERE t.id >= job.id * 4294967296 AND t.id < (job.id + 1) * 4294967296)))
 ORDER BY id LIMIT :limit

-- name: spec_of_array
SELECT tenant_id, submitted_by, spec FROM job WHERE id = :job_id AND array_done < array_total

-- name: depend_tasks
-- Each new task on each parent (task, job, done); the new ones come back, as often as they have parents.
INSERT INTO dependency (child_id, parent_task_id, parent_job_id, how, done)
SELECT t.id, CAST(parent.value->>0 AS BIGINT), CAST(parent.value->>1 AS BIGINT), 'success',
       CAST(parent.value->>2 AS BIGINT)
  FROM task t CROSS JOIN json_each(:parents) AS parent
 WHERE t.id BETWEEN :first AND :last AND NOT EXISTS (SELECT 1 FROM dependency d WHERE d.child_id = t.id)
RETURNING child_id

-- name: lock_array
-- Of those that another server unfolds at this moment there is nothing to do.
SELECT id, tenant_id, submitted_by, spec_id, lane_id, priority, array_range, array_total, array_done, spec,
       parent_task_id
  FROM job
 WHERE id = :job_id AND array_done < array_total AND state IN ('active', 'disabled', 'closing')
/* skip locked */

-- name: array_piece_at
SELECT first, items FROM array_piece WHERE job_id = :job_id AND first = :first

-- name: unfold_range
INSERT INTO task (id, job_id, tenant_id, submitted_by, lane_id, spec_id, state, state_since, priority, seq, created_at,
                  waits_on, parent_task_id, name)
WITH RECURSIVE number (n) AS (
    SELECT :first UNION ALL SELECT n + :step FROM number WHERE n + :step <= :last)
SELECT :base + n, :job_id, :tenant_id, :subject, :lane_id, :spec_id, :state, :now_us, :priority, :seq, :seq,
       :waits_on, :parent_task_id, :name
  FROM number

-- name: unfold_range @postgres
INSERT INTO task (id, job_id, tenant_id, submitted_by, lane_id, spec_id, state, state_since, priority, seq, created_at,
                  waits_on, parent_task_id, name)
SELECT :base + n, :job_id, :tenant_id, :subject, :lane_id, :spec_id, :state, :now_us, :priority, :seq, :seq,
       :waits_on, :parent_task_id, CAST(:name AS TEXT)
  FROM generate_series(CAST(:first AS BIGINT), CAST(:last AS BIGINT), CAST(:step AS BIGINT)) AS n

-- name: unfold_items
INSERT INTO task (id, job_id, tenant_id, submitted_by, lane_id, spec_id, item, state, state_since, priority, seq,
                  created_at, waits_on, parent_task_id, name)
SELECT :base + :first + key, :job_id, :tenant_id, :subject, :lane_id, :spec_id, value, :state, :now_us,
       :priority, :seq, :seq, :waits_on, :parent_task_id, :name
  FROM json_each(:items)

-- name: unfold_items @postgres
INSERT INTO task (id, job_id, tenant_id, submitted_by, lane_id, spec_id, item, state, state_since, priority, seq,
                  created_at, waits_on, parent_task_id, name)
SELECT :base + :first + ordinality - 1, :job_id, :tenant_id, :subject, :lane_id, :spec_id, value, :state, :now_us,
       :priority, :seq, :seq, :waits_on, :parent_task_id, CAST(:name AS TEXT)
  FROM json_array_elements_text(CAST(:items AS JSON)) WITH ORDINALITY

-- name: array_unfolded
UPDATE job
   SET array_done = array_done + :n, task_count = task_count + :n,
       task_seq = CASE WHEN task_seq > :last THEN task_seq ELSE :last END
 WHERE id = :job_id

-- name: drop_array_piece
DELETE FROM array_piece WHERE job_id = :job_id AND first = :first

-- name: start_idempotency
-- No row changed: the key was used before.
INSERT INTO idempotency (tenant_id, subject, key, body_hash, answer, created_at)
VALUES (:tenant_id, :subject, :key, :body_hash, '', :now_us)
ON CONFLICT (tenant_id, subject, key) DO NOTHING

-- name: find_idempotency
SELECT body_hash, answer FROM idempotency WHERE tenant_id = :tenant_id AND subject = :subject AND key = :key

-- name: end_idempotency
UPDATE idempotency SET answer = :answer WHERE tenant_id = :tenant_id AND subject = :subject AND key = :key

-- name: lock_parent_tasks
SELECT id, tenant_id, state, reason FROM task WHERE id IN ids(:task_ids) ORDER BY id
/* for update */

-- name: mark_parent_tasks
UPDATE task SET is_parent = 1 WHERE id IN ids(:task_ids) AND is_parent = 0

-- name: lock_parent_jobs
SELECT id, tenant_id, state, task_count, array_total - array_done AS not_yet,
       succeeded, failed, cancelled, skipped
  FROM job WHERE id IN ids(:job_ids) ORDER BY id
/* for update */

-- name: mark_parent_jobs
UPDATE job SET is_parent = 1 WHERE id IN ids(:job_ids) AND is_parent = 0

-- name: set_not_before
UPDATE task SET not_before_at = :not_before_at
 WHERE id >= :job_id * 4294967296 AND id < (:job_id + 1) * 4294967296 AND state = 'blocked' AND not_before_at IS NULL

-- name: job_is_parent
SELECT is_parent FROM job WHERE id = :job_id

-- name: waits_for_job
-- Everything that is waited for, from `first` on: tasks, and all tasks of jobs, as ranges of keys.
WITH RECURSIVE waited (low, high) AS (
    SELECT CAST(batch.value->>0 AS BIGINT), CAST(batch.value->>1 AS BIGINT) FROM json_each(:first) AS batch
    UNION
    SELECT COALESCE(d.parent_task_id, d.parent_job_id * 4294967296),
           COALESCE(d.parent_task_id, d.parent_job_id * 4294967296 + 4294967295)
      FROM waited JOIN dependency d ON d.child_id >= waited.low AND d.child_id <= waited.high
     WHERE d.done = 0)
SELECT 1 FROM waited WHERE low = :wanted LIMIT 1
