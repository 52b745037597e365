-- Who may do what: users, tokens that people manage, the secrets of the servers, an audit log that can be asked.

ALTER TABLE tenant ADD COLUMN disabled_at INTEGER;           -- NULL: its tokens are good

CREATE TABLE "user" (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id    INTEGER NOT NULL REFERENCES tenant (id),
    name         TEXT NOT NULL,
    role         TEXT NOT NULL CHECK (role IN ('admin', 'operator', 'user', 'viewer')),
    created_at   INTEGER NOT NULL,
    disabled_at  INTEGER,                                    -- NULL: its tokens are good
    UNIQUE (tenant_id, name)
);

ALTER TABLE token ADD COLUMN name TEXT;
ALTER TABLE token ADD COLUMN prefix TEXT;                    -- its first characters, to know it by
ALTER TABLE token ADD COLUMN created_by TEXT;
ALTER TABLE token ADD COLUMN last_used_at INTEGER;           -- to the minute
ALTER TABLE token ADD COLUMN own_role INTEGER NOT NULL DEFAULT 0;  -- 1: keeps its role when its user's rises
-- list_tokens
CREATE INDEX token_of_subject ON token (tenant_id, subject);

-- What all servers of a store share and nobody else knows.
CREATE TABLE secret (
    name        TEXT PRIMARY KEY,
    value       TEXT NOT NULL,
    created_at  INTEGER NOT NULL
);

ALTER TABLE audit ADD COLUMN role TEXT;
ALTER TABLE audit ADD COLUMN address TEXT;
ALTER TABLE audit ADD COLUMN result TEXT NOT NULL DEFAULT 'ok';   -- ok, or the code of the refusal
-- list_audit
CREATE INDEX audit_newest ON audit (tenant_id, id);
-- forget_audit
CREATE INDEX audit_age ON audit (at);

ALTER TABLE job ADD COLUMN parent_task_id INTEGER;           -- the task that made it
-- jobs_below_task
CREATE INDEX job_parent ON job (parent_task_id) WHERE parent_task_id IS NOT NULL;
-- tasks_below_task
CREATE INDEX task_parent ON task (parent_task_id) WHERE parent_task_id IS NOT NULL;
