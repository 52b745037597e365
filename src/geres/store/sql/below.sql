-- name: make_secret
INSERT INTO secret (name, value, created_at) VALUES (:name, :value, :now_us) ON CONFLICT (name) DO NOTHING

-- name: find_secret
SELECT value FROM secret WHERE name = :name

-- name: task_of_token
SELECT t.attempt, t.node_id, t.submitted_by, n.name AS tenant, u.role,
       CASE WHEN n.disabled_at IS NULL AND u.disabled_at IS NULL THEN 0 ELSE 1 END AS disabled
  FROM task t
  JOIN tenant n ON n.id = t.tenant_id
  LEFT JOIN "user" u ON u.tenant_id = t.tenant_id AND u.name = t.submitted_by
 WHERE t.id = :task_id AND t.tenant_id = :tenant_id

-- name: tasks_reached
-- From each task upwards: few are deep, and a task may have made many.
WITH RECURSIVE up (id, at) AS (
    SELECT id, id FROM task WHERE id IN ids(:task_ids)
    UNION
    SELECT up.id, t.parent_task_id FROM up JOIN task t ON t.id = up.at
     WHERE t.parent_task_id IS NOT NULL AND up.at <> :root)
SELECT id FROM up WHERE at = :root

-- name: tasks_of_subject
SELECT id FROM task WHERE id IN ids(:task_ids) AND submitted_by = :subject

-- name: owner_of_job
SELECT submitted_by FROM job WHERE id = :job_id AND tenant_id = :tenant_id

-- name: job_of_subject
SELECT 1 FROM job WHERE id = :job_id AND submitted_by = :subject

-- name: job_made_by_task
WITH RECURSIVE up (at) AS (
    SELECT parent_task_id FROM job WHERE id = :job_id AND parent_task_id IS NOT NULL
    UNION
    SELECT t.parent_task_id FROM up JOIN task t ON t.id = up.at
     WHERE t.parent_task_id IS NOT NULL AND up.at <> :root)
SELECT 1 FROM up WHERE at = :root

-- name: job_seen_by_task
WITH RECURSIVE below (id) AS (
    SELECT CAST(:root AS BIGINT)
    UNION
    SELECT c.id FROM task c JOIN below b ON c.parent_task_id = b.id)
SELECT CASE WHEN EXISTS (SELECT 1 FROM below b JOIN task c ON c.id = b.id WHERE c.job_id = :job_id AND c.id <> :root)
              OR EXISTS (SELECT 1 FROM below b JOIN job j ON j.parent_task_id = b.id WHERE j.id = :job_id)
            THEN 1 ELSE 0 END
