-- name: unreadable_specs
SELECT id, 'of job ' || job_id AS about, body || ' ' || meta AS body FROM spec
 WHERE NOT (json_valid(body) AND json_valid(meta))

-- name: unreadable_specs @postgres
SELECT id, 'of job ' || job_id AS about, body || ' ' || meta AS body FROM spec
 WHERE NOT (body ~ '^\{.*\}$' AND meta ~ '^\{.*\}$')

-- name: unreadable_classes
SELECT id, '' AS about, body FROM resource_class WHERE NOT json_valid(body)

-- name: unreadable_classes @postgres
SELECT id, '' AS about, body FROM resource_class WHERE NOT body ~ '^\{.*\}$'

-- name: unreadable_jobs
SELECT id, '' AS about, spec || ' ' || meta AS body FROM job WHERE NOT (json_valid(spec) AND json_valid(meta))

-- name: unreadable_jobs @postgres
SELECT id, '' AS about, spec || ' ' || meta AS body FROM job
 WHERE NOT (spec ~ '^\{.*\}$' AND meta ~ '^\{.*\}$')

-- name: unreadable_tasks
-- A task of an array has no words of its own; for none older SQLites say that they are not valid.
SELECT task.id, '' AS about, task.argv AS body
  FROM lane JOIN task ON task.lane_id = lane.id AND task.state = 'queued'
 WHERE lane.active = 1 AND task.argv IS NOT NULL AND NOT json_valid(task.argv)
 UNION ALL
SELECT task.id, '', task.argv
  FROM job JOIN task ON task.job_id = job.id AND task.state IN ('blocked', 'held')
 WHERE task.argv IS NOT NULL AND NOT json_valid(task.argv)

-- name: unreadable_tasks @postgres
SELECT task.id, '' AS about, task.argv AS body
  FROM lane JOIN task ON task.lane_id = lane.id AND task.state = 'queued'
 WHERE lane.active = 1 AND NOT task.argv ~ '^(\[.*\]|".*")$'
 UNION ALL
SELECT task.id, '', task.argv
  FROM job JOIN task ON task.job_id = job.id AND task.state IN ('blocked', 'held')
 WHERE NOT task.argv ~ '^(\[.*\]|".*")$'

-- name: tasks_waiting_on_spec
SELECT id FROM task WHERE spec_id = :id AND state IN ('blocked', 'queued', 'held') ORDER BY id

-- name: tasks_waiting_on_class
SELECT id FROM task
 WHERE lane_id IN (SELECT id FROM lane WHERE class_id = :id) AND state IN ('blocked', 'queued', 'held')
 ORDER BY id

-- The new hashes keep a later submit from sharing what stands in for the record.

-- name: replace_spec
UPDATE spec SET body = '{"handler":"(unreadable)"}', meta = '{}', hash = 'unreadable ' || id WHERE id = :id

-- name: replace_class
UPDATE resource_class SET body = '{"cpus_milli":1000}', hash = 'unreadable ' || id WHERE id = :id

-- name: replace_job
UPDATE job SET spec = '{}', meta = '{}' WHERE id = :id

-- name: replace_argv
UPDATE task SET argv = '["(unreadable)"]' WHERE id = :id

-- What can be read is only known to who reads it: the newest, a piece at a time.

-- name: newest_specs
SELECT id, 'of job ' || job_id AS about, body, meta FROM spec ORDER BY id DESC LIMIT :limit OFFSET :offset

-- name: newest_classes
SELECT id, '' AS about, body FROM resource_class ORDER BY id DESC LIMIT :limit OFFSET :offset

-- name: newest_jobs
SELECT id, '' AS about, spec, meta FROM job ORDER BY id DESC LIMIT :limit OFFSET :offset

-- name: newest_tasks
-- Those that have ended are shown as unreadable and need nothing.
SELECT id, '' AS about, CASE WHEN argv IS NULL OR ended_at IS NOT NULL THEN '[]' ELSE argv END
  FROM task ORDER BY created_at DESC, id DESC LIMIT :limit OFFSET :offset
