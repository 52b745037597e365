-- name: queue_task_messages
INSERT INTO outbox (subscription_id, event, job_id, finish_no, body, next_try_at, created_at)
SELECT s.id, 'task.ended', a.job_id, a.finish_no, '', 0, :now_us
  FROM job j
  JOIN attempt a ON a.job_id = j.id
  JOIN subscription s ON s.tenant_id = j.tenant_id
 WHERE j.id = :job_id AND a.finish_no > :before AND a.finish_no <= :last
   AND (s.job_id IS NULL OR s.job_id = j.id) AND s.events LIKE '%task.ended%'
   AND (s.filter IS NULL OR ',' || s.filter || ',' LIKE '%,' || a.state || ',%')
 ORDER BY s.id, a.finish_no

-- name: queue_job_message
INSERT INTO outbox (subscription_id, event, job_id, body, next_try_at, created_at)
SELECT s.id, 'job.ended', j.id, :body, 0, :now_us
  FROM job j
  JOIN subscription s ON s.tenant_id = j.tenant_id
 WHERE j.id = :job_id
   AND (s.job_id IS NULL OR s.job_id = j.id) AND s.events LIKE '%job.ended%'
   AND (s.filter IS NULL OR ',' || s.filter || ',' LIKE '%,' || j.state || ',%'
        OR ',' || s.filter || ',' LIKE '%,' || j.outcome || ',%')

-- name: job_of_message
SELECT j.id, j.name, j.submitted_by, j.state, j.outcome, j.reason, j.meta, j.ended_at,
       j.succeeded, j.failed, j.cancelled, j.skipped, e.name AS tenant
  FROM job j JOIN tenant e ON e.id = j.tenant_id
 WHERE j.id = :job_id

-- name: list_webhooks
SELECT s.id, s.target, s.events, s.filter, s.job_id, s.submitted_by, s.created_at, s.secret, s.next_try_at, s.tries,
       s.failing_since, s.error, s.error_at, s.delivered, s.delivered_at, s.dropped, e.name AS tenant,
       (SELECT count(*) FROM outbox o WHERE o.subscription_id = s.id) AS waiting
  FROM subscription s JOIN tenant e ON e.id = s.tenant_id
 WHERE s.tenant_id = :tenant_id AND s.kind = 'webhook'
   AND (CAST(:webhook_id AS BIGINT) IS NULL OR s.id = CAST(:webhook_id AS BIGINT))
 ORDER BY s.id

-- name: count_webhooks
SELECT count(*) FROM subscription WHERE tenant_id = :tenant_id

-- name: create_webhook
INSERT INTO subscription (tenant_id, submitted_by, kind, target, filter, events, job_id, secret, created_at)
VALUES (:tenant_id, :subject, 'webhook', :url, :states, :events, :job_id, :secret, :now_us)
RETURNING id

-- name: remove_webhook
DELETE FROM subscription WHERE id = :webhook_id AND tenant_id = :tenant_id

-- name: due_webhook
SELECT s.id FROM subscription s
 WHERE s.next_try_at <= :now_us
   AND EXISTS (SELECT 1 FROM outbox o WHERE o.subscription_id = s.id AND o.next_try_at <= :now_us)
 LIMIT 1

-- name: claim_webhook
-- Who was not sent to for the longest time comes first.  The claim is over by itself.
UPDATE subscription SET next_try_at = :until_us
 WHERE id = (SELECT s.id FROM subscription s
              WHERE s.next_try_at <= :now_us
                AND EXISTS (SELECT 1 FROM outbox o WHERE o.subscription_id = s.id AND o.next_try_at <= :now_us)
              ORDER BY s.next_try_at, s.id LIMIT 1
              /* skip locked */)
   AND next_try_at <= :now_us
RETURNING id, target, secret, tries, failing_since

-- name: next_messages
-- What was not tried yet, in order; then what failed by itself.
SELECT o.id, o.event, o.body, o.created_at, o.tries, o.job_id, o.finish_no,
       a.task_id, a.attempt, a.state, a.reason, a.message, a.exit_code, a.signal, a.started_at, a.ended_at,
       a.wall_us, a.user_us, a.system_us, a.max_rss_bytes, a.minor_faults, a.major_faults, a.blocks_in,
       a.blocks_out, a.voluntary_switches, a.involuntary_switches,
       t.name, t.own_id, t.item, t.submitted_by, p.meta, n.name AS node, j.name AS job_name, e.name AS tenant
  FROM (SELECT id, event, body, created_at, tries, job_id, finish_no, next_try_at FROM outbox
         WHERE subscription_id = :webhook_id AND next_try_at <= :now_us
         ORDER BY next_try_at, id LIMIT :limit) AS o
  LEFT JOIN attempt a ON a.job_id = o.job_id AND a.finish_no = o.finish_no
  LEFT JOIN task t ON t.id = a.task_id
  LEFT JOIN spec p ON p.id = t.spec_id
  LEFT JOIN node n ON n.id = a.node_id
  LEFT JOIN job j ON j.id = o.job_id
  LEFT JOIN tenant e ON e.id = j.tenant_id
 ORDER BY o.next_try_at, o.id

-- name: drop_messages
DELETE FROM outbox WHERE id IN ids(:message_ids)

-- name: put_off_messages
UPDATE outbox SET tries = outbox.tries + 1, next_try_at = CAST(batch.value->>1 AS BIGINT)
  FROM json_each(:batch) AS batch
 WHERE outbox.id = CAST(batch.value->>0 AS BIGINT)

-- name: settle_webhook
-- Only by who holds the claim.
UPDATE subscription
   SET next_try_at = :next_try_at, tries = :tries, failing_since = CAST(:failing_since AS BIGINT),
       error = COALESCE(CAST(:error AS TEXT), error),
       error_at = CASE WHEN CAST(:error AS TEXT) IS NULL THEN error_at ELSE :now_us END,
       delivered = delivered + :delivered,
       delivered_at = CASE WHEN :delivered > 0 THEN :now_us ELSE delivered_at END,
       dropped = dropped + :dropped
 WHERE id = :webhook_id AND next_try_at = :until_us

-- name: count_messages
SELECT subscription_id, count(*) FROM outbox GROUP BY subscription_id

-- name: all_webhooks
SELECT id FROM subscription

-- name: oldest_messages
SELECT id, subscription_id, created_at FROM outbox ORDER BY id LIMIT :limit

-- name: message_before_the_newest
SELECT id FROM outbox WHERE subscription_id = :webhook_id ORDER BY id DESC LIMIT 1 OFFSET :most

-- name: drop_oldest_messages
DELETE FROM outbox
 WHERE id IN (SELECT id FROM outbox WHERE subscription_id = :webhook_id AND id <= :last
               ORDER BY id LIMIT :limit /* skip locked */)

-- name: count_dropped
UPDATE subscription SET dropped = dropped + :dropped WHERE id = :webhook_id

-- name: webhooks_of_no_job
SELECT s.id FROM subscription s
 WHERE s.job_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM job j WHERE j.id = s.job_id)

-- name: drop_webhooks
DELETE FROM subscription WHERE id IN ids(:webhook_ids)

-- name: failing_webhooks
SELECT s.id, s.target, s.failing_since, s.error, e.name AS tenant,
       (SELECT count(*) FROM outbox o WHERE o.subscription_id = s.id) AS waiting
  FROM subscription s JOIN tenant e ON e.id = s.tenant_id
 WHERE s.failing_since IS NOT NULL
 ORDER BY s.id LIMIT :limit
