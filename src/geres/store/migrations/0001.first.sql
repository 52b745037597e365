-- The whole of the store.  Times are microseconds since 1970 UTC; cpus are thousandths; JSON is text.

CREATE TABLE tenant (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    name        TEXT NOT NULL UNIQUE,
    weight      INTEGER NOT NULL DEFAULT 1000,
    created_at  INTEGER NOT NULL
);

CREATE TABLE token (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id   INTEGER NOT NULL REFERENCES tenant (id),
    hash        TEXT NOT NULL UNIQUE,            -- SHA-256, hexadecimal
    subject     TEXT NOT NULL,
    role        TEXT NOT NULL CHECK (role IN ('admin', 'operator', 'user', 'viewer', 'node', 'task')),
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER,
    revoked_at  INTEGER
);

CREATE TABLE server (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    url          TEXT NOT NULL,
    version      TEXT NOT NULL,
    started_at   INTEGER NOT NULL,
    lease_until  INTEGER NOT NULL
);

CREATE TABLE pool (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id   INTEGER NOT NULL REFERENCES tenant (id),
    name        TEXT NOT NULL,
    placement   TEXT NOT NULL DEFAULT 'pack' CHECK (placement IN ('pack', 'spread')),
    settings    TEXT NOT NULL DEFAULT '{}',
    version     INTEGER NOT NULL DEFAULT 1,
    created_at  INTEGER NOT NULL,
    UNIQUE (tenant_id, name)
);

CREATE TABLE node (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id         INTEGER NOT NULL REFERENCES tenant (id),
    pool_id           INTEGER NOT NULL REFERENCES pool (id),
    name              TEXT NOT NULL,
    state             TEXT NOT NULL CHECK (state IN ('creating', 'starting', 'idle', 'running', 'draining',
                                                     'offline', 'lost', 'start_failed', 'leaving')),
    state_since       INTEGER NOT NULL,
    previous_state    TEXT,
    previous_since    INTEGER,
    epoch             INTEGER NOT NULL DEFAULT 0,   -- count of its connections
    server_id         INTEGER,                      -- who holds the connection; NULL: nobody
    lease_until       INTEGER,                      -- no index: its update must stay cheap
    heartbeat_at      INTEGER,
    boot_id           TEXT,
    host_id           TEXT,
    cpus              INTEGER NOT NULL DEFAULT 0,
    memory_bytes      INTEGER NOT NULL DEFAULT 0,
    gpus              INTEGER NOT NULL DEFAULT 0,
    info              TEXT NOT NULL DEFAULT '{}',   -- the Hello, as JSON: labels, counts, versions
    draining          INTEGER NOT NULL DEFAULT 0,
    dedicated_job_id  INTEGER,
    reserved_task_id  INTEGER,
    created_at        INTEGER NOT NULL,
    UNIQUE (tenant_id, name)
);

CREATE TABLE node_event (
    node_id  INTEGER NOT NULL REFERENCES node (id) ON DELETE CASCADE,
    at       INTEGER NOT NULL,
    state    TEXT NOT NULL,
    why      TEXT
);
-- show_node
CREATE INDEX node_event_of_node ON node_event (node_id, at);

CREATE TABLE job (
    id                  INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id           INTEGER NOT NULL REFERENCES tenant (id),
    submitted_by        TEXT NOT NULL,
    name                TEXT,
    named               INTEGER NOT NULL DEFAULT 0,   -- 1: a person named it, so the name is unique while it lives
    state               TEXT NOT NULL CHECK (state IN ('active', 'disabled', 'closing', 'completed', 'cancelled')),
    reason              TEXT,
    outcome             TEXT CHECK (outcome IN ('ok', 'some_failed', 'failed')),
    state_since         INTEGER NOT NULL,
    previous_state      TEXT,
    previous_since      INTEGER,
    priority            INTEGER NOT NULL DEFAULT 0 CHECK (priority BETWEEN -1000 AND 1000),
    max_parallel        INTEGER,
    on_all_complete     TEXT NOT NULL DEFAULT 'none' CHECK (on_all_complete IN ('none', 'terminate')),
    on_lost             TEXT,
    time_limit_us       INTEGER,
    meta                TEXT NOT NULL DEFAULT '{}',
    spec                TEXT NOT NULL DEFAULT '{}',   -- the JobSpec without the items
    spec_id             INTEGER,                      -- the specification of an array's tasks
    lane_id             INTEGER,                      -- the lane of an array's tasks
    array_range         TEXT,                         -- JSON [[first, last, step], ...]; NULL: no array
    array_total         INTEGER NOT NULL DEFAULT 0,
    array_done          INTEGER NOT NULL DEFAULT 0,   -- how many have a row
    task_seq            INTEGER NOT NULL DEFAULT 0,   -- the last task number given
    task_count          INTEGER NOT NULL DEFAULT 0,   -- rows
    finish_seq          INTEGER NOT NULL DEFAULT 0,   -- the last finish number given
    succeeded           INTEGER NOT NULL DEFAULT 0,
    failed              INTEGER NOT NULL DEFAULT 0,
    cancelled           INTEGER NOT NULL DEFAULT 0,
    skipped             INTEGER NOT NULL DEFAULT 0,
    results_cut         INTEGER NOT NULL DEFAULT 0,   -- finish numbers up to here are gone
    is_parent           INTEGER NOT NULL DEFAULT 0,   -- 1: some task waits for it
    parent_job_id       INTEGER,
    schedule_id         INTEGER,
    version             INTEGER NOT NULL DEFAULT 1,
    created_at          INTEGER NOT NULL,
    started_at          INTEGER,
    ended_at            INTEGER,
    CHECK ((state IN ('completed', 'cancelled')) = (ended_at IS NOT NULL))
);
-- find_job_by_name; one living job of a name for each submitter
CREATE UNIQUE INDEX job_name ON job (tenant_id, submitted_by, name)
    WHERE named = 1 AND state IN ('active', 'disabled', 'closing');
-- jobs_to_unfold
CREATE INDEX job_unfolding ON job (id) WHERE array_done < array_total;
-- jobs_to_end, jobs_over_time
CREATE INDEX job_open ON job (id) WHERE state IN ('active', 'disabled', 'closing');

CREATE TABLE resource_class (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    hash  TEXT NOT NULL UNIQUE,
    label TEXT,                                    -- whose limit it counts against
    body  TEXT NOT NULL                            -- a Demand, as JSON
);

CREATE TABLE lane (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id     INTEGER NOT NULL,
    pool_id       INTEGER NOT NULL REFERENCES pool (id),
    job_id        INTEGER NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    submitted_by  TEXT NOT NULL,
    class_id      INTEGER NOT NULL REFERENCES resource_class (id),
    active        INTEGER NOT NULL DEFAULT 0,      -- a hint: 1 where tasks may be queued
    priority      INTEGER NOT NULL DEFAULT 0,      -- a hint: the highest of its queued tasks, or higher
    UNIQUE (job_id, submitted_by, pool_id, class_id)
);
-- active_lanes
CREATE INDEX lane_active ON lane (pool_id, priority DESC, id) WHERE active = 1;

CREATE TABLE spec (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id  INTEGER NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    hash    TEXT NOT NULL,
    body    TEXT NOT NULL,                         -- a TaskSpec, as JSON
    meta    TEXT NOT NULL DEFAULT '{}',
    UNIQUE (job_id, hash)
);

-- No foreign keys here and on attempt: checking them took half the time of an insert.
CREATE TABLE task (
    id              INTEGER NOT NULL PRIMARY KEY,  -- job << 32 | number
    job_id          INTEGER NOT NULL,
    tenant_id       INTEGER NOT NULL,
    submitted_by    TEXT NOT NULL,
    lane_id         INTEGER NOT NULL,
    spec_id         INTEGER NOT NULL,
    argv            TEXT,                          -- JSON list, instead of the command of the specification
    item            TEXT,
    own_id          TEXT,
    name            TEXT,
    -- OR, not IN: for a list SQLite builds a table on every row that it checks, which doubled the time of an insert
    state           TEXT NOT NULL CHECK (state = 'queued' OR state = 'assigned' OR state = 'running'
                                         OR state = 'succeeded' OR state = 'failed' OR state = 'cancelled'
                                         OR state = 'skipped' OR state = 'blocked' OR state = 'held'
                                         OR state = 'suspended'),
    reason          TEXT,
    message         TEXT,
    state_since     INTEGER NOT NULL,
    previous_state  TEXT,
    previous_since  INTEGER,
    priority        INTEGER NOT NULL CHECK (priority BETWEEN -1000 AND 1000),
    seq             INTEGER NOT NULL,              -- order in its lane: the time of submission
    attempt         INTEGER NOT NULL DEFAULT 0,    -- the fence
    node_id         INTEGER,
    asked           TEXT,                          -- cancel, suspend, resume, requeue: asked for, not confirmed
    asked_at        INTEGER,
    not_before_at   INTEGER,
    waits_on        INTEGER NOT NULL DEFAULT 0,    -- parents that have not ended
    is_parent       INTEGER NOT NULL DEFAULT 0,    -- 1: some task waits for it
    retry_count     INTEGER NOT NULL DEFAULT 0,
    requeue_count   INTEGER NOT NULL DEFAULT 0,
    lost_count      INTEGER NOT NULL DEFAULT 0,
    round           INTEGER NOT NULL DEFAULT 0,    -- reruns
    parent_task_id  INTEGER,                       -- the task that submitted it
    parked          INTEGER NOT NULL DEFAULT 0,    -- 1: waits for a task of its own, its room given back
    gang_id         INTEGER,
    rank            INTEGER,
    created_at      INTEGER NOT NULL,
    assigned_at     INTEGER,
    started_at      INTEGER,
    ended_at        INTEGER,
    exit_code       INTEGER,
    signal          INTEGER,
    version         INTEGER NOT NULL DEFAULT 1,
    CHECK ((state = 'assigned' OR state = 'running' OR state = 'suspended') = (node_id IS NOT NULL)),
    CHECK ((state = 'succeeded' OR state = 'failed' OR state = 'cancelled' OR state = 'skipped')
           = (ended_at IS NOT NULL))
);
-- queued_tasks_of_lane
CREATE INDEX task_queue ON task (lane_id, priority DESC, seq, id) WHERE state = 'queued';
-- attempts_of_node
CREATE INDEX task_on_node ON task (node_id) WHERE node_id IS NOT NULL;
-- use_of_limit: what counts against a cap
CREATE INDEX task_on_node_of_lane ON task (lane_id) WHERE node_id IS NOT NULL;
-- asked_of_nodes
CREATE INDEX task_asked ON task (node_id) WHERE asked IS NOT NULL;
-- tasks_to_wake
CREATE INDEX task_to_wake ON task (not_before_at) WHERE state = 'blocked' AND waits_on = 0;
-- count_waiting
CREATE INDEX task_waiting ON task (job_id, state) WHERE state IN ('blocked', 'held');
-- find_task_by_own_id; the name is free again after the end
CREATE UNIQUE INDEX task_own_id ON task (job_id, own_id)
    WHERE own_id IS NOT NULL AND state IN ('blocked', 'queued', 'held', 'assigned', 'running', 'suspended');
-- latest_task_by_own_id
CREATE INDEX task_own_id_ever ON task (own_id, id) WHERE own_id IS NOT NULL;
-- lists, the newest first
CREATE INDEX task_newest ON task (created_at, id);
-- history, retention
CREATE INDEX task_ended ON task (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE dependency (
    child_id        INTEGER NOT NULL REFERENCES task (id) ON DELETE CASCADE,
    parent_task_id  INTEGER,
    parent_job_id   INTEGER,
    how             TEXT NOT NULL DEFAULT 'success' CHECK (how IN ('success', 'any')),
    done            INTEGER NOT NULL DEFAULT 0,
    CHECK ((parent_task_id IS NULL) <> (parent_job_id IS NULL))
);
-- children_of_tasks
CREATE INDEX dependency_on_task ON dependency (parent_task_id, child_id) WHERE parent_task_id IS NOT NULL;
-- children_of_jobs
CREATE INDEX dependency_on_job ON dependency (parent_job_id, child_id) WHERE parent_job_id IS NOT NULL;
-- parents_of_task
CREATE INDEX dependency_of_child ON dependency (child_id);

CREATE TABLE attempt (
    task_id               INTEGER NOT NULL,
    attempt               INTEGER NOT NULL,        -- 0: ended without ever running
    round                 INTEGER NOT NULL DEFAULT 0,
    job_id                INTEGER NOT NULL,
    finish_no             INTEGER,                 -- place in the job's results stream
    node_id               INTEGER,
    state                 TEXT NOT NULL,
    reason                TEXT,
    message               TEXT,
    exit_code             INTEGER,
    signal                INTEGER,
    assigned_at           INTEGER,
    started_at            INTEGER,
    ended_at              INTEGER NOT NULL,
    wall_us               INTEGER NOT NULL DEFAULT 0,
    user_us               INTEGER NOT NULL DEFAULT 0,
    system_us             INTEGER NOT NULL DEFAULT 0,
    max_rss_bytes         INTEGER,
    minor_faults          INTEGER NOT NULL DEFAULT 0,
    major_faults          INTEGER NOT NULL DEFAULT 0,
    blocks_in             INTEGER NOT NULL DEFAULT 0,
    blocks_out            INTEGER NOT NULL DEFAULT 0,
    voluntary_switches    INTEGER NOT NULL DEFAULT 0,
    involuntary_switches  INTEGER NOT NULL DEFAULT 0,
    stdout                BLOB,                    -- all of it where small, else its last part
    stderr                BLOB,
    stdout_bytes          INTEGER NOT NULL DEFAULT 0,
    stderr_bytes          INTEGER NOT NULL DEFAULT 0,
    stdout_blob           TEXT,                    -- key of the whole where it is larger
    stderr_blob           TEXT,
    value                 BLOB,
    folder                TEXT                     -- where the node keeps what the task left
);
-- attempts_of_task; one end for each attempt (a rerun of a task that never ran has a second attempt 0)
CREATE UNIQUE INDEX attempt_of_task ON attempt (task_id, attempt, round);
-- results_after
CREATE UNIQUE INDEX attempt_result ON attempt (job_id, finish_no) WHERE finish_no IS NOT NULL;

CREATE TABLE "limit" (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id  INTEGER NOT NULL,
    scope      TEXT NOT NULL CHECK (scope IN ('job', 'user', 'label', 'quota')),
    key        TEXT NOT NULL,
    most       INTEGER NOT NULL CHECK (most >= 0),
    in_use     INTEGER NOT NULL DEFAULT 0,
    UNIQUE (tenant_id, scope, key)
);

CREATE TABLE schedule (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id       INTEGER NOT NULL,
    submitted_by    TEXT NOT NULL,
    name            TEXT NOT NULL,
    state           TEXT NOT NULL,
    state_since     INTEGER NOT NULL,
    previous_state  TEXT,
    previous_since  INTEGER,
    spec            TEXT NOT NULL,
    next_run_at     INTEGER,
    run_count       INTEGER NOT NULL DEFAULT 0,
    version         INTEGER NOT NULL DEFAULT 1,
    created_at      INTEGER NOT NULL,
    UNIQUE (tenant_id, name)
);

CREATE TABLE package (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id     INTEGER NOT NULL,
    submitted_by  TEXT NOT NULL,
    name          TEXT NOT NULL,
    version_name  TEXT NOT NULL,
    blob          TEXT NOT NULL,
    is_default    INTEGER NOT NULL DEFAULT 0,
    locked        INTEGER NOT NULL DEFAULT 0,
    created_at    INTEGER NOT NULL,
    UNIQUE (tenant_id, name, version_name)
);

CREATE TABLE subscription (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id     INTEGER NOT NULL,
    submitted_by  TEXT NOT NULL,
    kind          TEXT NOT NULL,
    target        TEXT NOT NULL,
    filter        TEXT,
    created_at    INTEGER NOT NULL
);

CREATE TABLE outbox (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    subscription_id  INTEGER NOT NULL,
    body             TEXT NOT NULL,
    tries            INTEGER NOT NULL DEFAULT 0,
    next_try_at      INTEGER NOT NULL,
    created_at       INTEGER NOT NULL
);

CREATE TABLE usage (
    tenant_id     INTEGER NOT NULL,
    pool_id       INTEGER NOT NULL,
    job_id        INTEGER NOT NULL,
    submitted_by  TEXT NOT NULL,
    hour_at       INTEGER NOT NULL,
    cpu_us        INTEGER NOT NULL DEFAULT 0,      -- reserved cpus times wall
    used_us       INTEGER NOT NULL DEFAULT 0,      -- user and system time
    requeued_us   INTEGER NOT NULL DEFAULT 0,
    tasks         INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, pool_id, job_id, submitted_by, hour_at)
);

CREATE TABLE idempotency (
    tenant_id   INTEGER NOT NULL,
    subject     TEXT NOT NULL,
    key         TEXT NOT NULL,
    body_hash   TEXT NOT NULL,
    answer      TEXT NOT NULL,                     -- JSON, as it was sent
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, subject, key)
);
-- forget_idempotency
CREATE INDEX idempotency_age ON idempotency (created_at);

CREATE TABLE audit (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id  INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    subject    TEXT NOT NULL,
    action     TEXT NOT NULL,
    target     TEXT,
    facts      TEXT NOT NULL DEFAULT '{}'
);

CREATE TABLE quarantine (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    at        INTEGER NOT NULL,
    kind      TEXT NOT NULL,                       -- ended, task, submit, ...
    key       TEXT NOT NULL,
    body      TEXT NOT NULL,
    error     TEXT NOT NULL
);

-- The items of an array that have no task row yet, in pieces: tasks first, first + 1, ...
CREATE TABLE array_piece (
    job_id  INTEGER NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    first   INTEGER NOT NULL,
    items   TEXT NOT NULL,                         -- JSON list of strings
    PRIMARY KEY (job_id, first)
);
