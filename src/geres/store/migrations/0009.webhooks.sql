-- Webhooks: who is told of ends, what waits to be told, and how the last tries went.

-- Of a subscription, `kind` is webhook, `target` its URL, `filter` the states told, parted by commas; NULL: all.
ALTER TABLE subscription ADD COLUMN events TEXT NOT NULL DEFAULT 'task.ended,job.ended';
ALTER TABLE subscription ADD COLUMN job_id INTEGER;                        -- only of this job; NULL: of all
ALTER TABLE subscription ADD COLUMN secret TEXT NOT NULL DEFAULT '';       -- messages are signed with it
ALTER TABLE subscription ADD COLUMN next_try_at INTEGER NOT NULL DEFAULT 0;  -- also the claim of who sends now
ALTER TABLE subscription ADD COLUMN tries INTEGER NOT NULL DEFAULT 0;      -- that failed since the last success
ALTER TABLE subscription ADD COLUMN failing_since INTEGER;
ALTER TABLE subscription ADD COLUMN error TEXT;                            -- the last one
ALTER TABLE subscription ADD COLUMN error_at INTEGER;
ALTER TABLE subscription ADD COLUMN delivered INTEGER NOT NULL DEFAULT 0;  -- messages
ALTER TABLE subscription ADD COLUMN delivered_at INTEGER;                  -- the last one
ALTER TABLE subscription ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0;    -- messages given up
-- count_ends, list_webhooks
CREATE INDEX subscription_of_tenant ON subscription (tenant_id);

-- A message; of a task's end `body` is empty: the results stream has all of it, and keeps it as it was.
ALTER TABLE outbox ADD COLUMN event TEXT NOT NULL DEFAULT 'task.ended';
ALTER TABLE outbox ADD COLUMN job_id INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN finish_no INTEGER;
-- next_messages
CREATE INDEX outbox_of_subscription ON outbox (subscription_id, next_try_at, id);
