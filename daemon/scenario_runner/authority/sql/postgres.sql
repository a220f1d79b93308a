-- Named statements of the PostgreSQL authority. One statement per name, each a transaction of its own; parameters are
-- %(named)b, arrays where a whole batch goes in one round trip.
--
-- Every statement reads the database's clock once. Rows are locked in the order of their keys, so that of two batches one
-- waits and none is ended by a deadlock. After a lost connection the statement is run again: each recognises what it has
-- already done.
--
-- A statement with lines that end in "-- only" is two: NAME without these lines, and NAME_only with them, for the work of
-- one run. Plans are generic, so a parameter that switches such a term off would spoil the plan of both. Signals of a run
-- are found by their ids: the planner might find them among all that are unsent otherwise, as long as it has no statistics.

-- name: begin_session
SELECT set_config('sr.session', %(marker)b, FALSE) AS marker,
       (SELECT count(set_config(s.name, s.value, FALSE)) FROM unnest(%(names)b::text[], %(values)b::text[])
          AS s(name, value)) AS settings,
       (SELECT a.pid || ' since ' || a.backend_start FROM pg_stat_get_activity(pg_backend_pid()) a) AS backend;

-- name: session_facts
SELECT current_setting('sr.session', TRUE) AS marker,
       (SELECT a.pid || ' since ' || a.backend_start FROM pg_stat_get_activity(pg_backend_pid()) a) AS backend,
       EXISTS (SELECT 1 FROM unnest(%(names)b::text[], %(values)b::text[]) AS s(name, value)
               WHERE current_setting(s.name) <> s.value) AS lost,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('server_encoding') AS server_encoding,
       pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' AS read_only;

-- name: dropped_options
SELECT array_agg(s.name ORDER BY s.name) AS dropped FROM pg_settings s
WHERE s.name = ANY (%(names)b::text[]) AND s.source NOT IN ('client', 'session');

-- name: unbound_migrations
SELECT set_config('statement_timeout', '0', TRUE), set_config('lock_timeout', '0', TRUE);

-- name: lock_migrations
SELECT pg_advisory_xact_lock(1397900115, 1);

-- name: any_migrations
SELECT EXISTS (SELECT 1 FROM pg_class
               WHERE relname = 'schema_migrations' AND relkind = 'r' AND pg_table_is_visible(oid)) AS found;

-- name: schema_version
SELECT coalesce(max(number), 0) AS number FROM schema_migrations;

-- name: insert_migration
INSERT INTO schema_migrations (number, name, applied_us) VALUES (%(number)b, %(name)b, sr_now_us());

-- name: now_us
SELECT sr_now_us() AS now;

-- name: admit_records
-- The race: two intakes dispose of one record at the same moment, and their rules differ (an upgrade, another policy).
-- A accepts it and inserts its run, B refuses it. Neither sees the other's row when its statement begins; the unique
-- record_key lets one of the two inserts of the record succeed. When B commits first:
--   With ON CONFLICT DO NOTHING in "accepted", A would skip the record and still commit the run that it inserted in the
--   same statement. The sender is told that the request was refused, and its run goes on to READY.
--   Without it, A's insert fails with a unique violation, which takes the whole statement back, the run included. The
--   caller sends the batch again; this time B's disposition is seen, and is the answer.
-- When A commits first, B may skip the record ("others"): of a refused record there is nothing but what is joined with
-- "new_records" (dead letter, signal), so nothing is left of B's disposition, and its next round finds A's.
-- A run that another intake is inserting just now is skipped as well; such a record becomes NULL here, is not inserted,
-- and is disposed of in the next round, when the other run is seen.
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
given AS MATERIALIZED (
  SELECT g.*, row_number() OVER same_run AS nth, first_value(run_equivalence_key) OVER same_run AS first_key,
         first_value(fingerprint) OVER same_run AS first_fingerprint
  FROM unnest(%(record_key)b::text[], %(message_id)b::text[], %(kind)b::text[], %(run_id)b::text[],
              %(disposition)b::text[], %(reason_code)b::text[], %(detail)b::text[], %(raw)b::bytea[],
              %(raw_sha256)b::text[], %(raw_size)b::bigint[], %(run_equivalence_key)b::text[],
              %(fingerprint)b::text[], %(intent)b::bytea[], %(inputs)b::bytea[], %(evidence_wait_us)b::bigint[],
              %(admitted)b::bytea[], %(planned)b::bytea[], %(invoker)b::text[], %(strategy)b::text[],
              %(signal_id)b::text[], %(signal_kind)b::text[], %(partition_key)b::text[], %(attributes)b::bytea[], %(payload)b::bytea[])
       WITH ORDINALITY AS g(record_key, message_id, kind, run_id, disposition, reason_code, detail, raw, raw_sha256,
                            raw_size, run_equivalence_key, fingerprint, intent, inputs, evidence_wait_us, admitted,
                            planned, invoker, strategy, signal_id, signal_kind, partition_key, attributes, payload,
                            ord)
  WHERE NOT EXISTS (SELECT 1 FROM intake_records r WHERE r.record_key = g.record_key)
  WINDOW same_run AS (PARTITION BY run_id, disposition = '' ORDER BY ord)),
new_runs AS (
  INSERT INTO runs (run_id, run_equivalence_key, fingerprint, intent, inputs, state, admitted_us, deadline_us,
                    updated_us, due_us, event_seq, invoker, strategy)
  SELECT run_id, run_equivalence_key, fingerprint, intent, inputs, 'PLANNED', now, now + evidence_wait_us, now, now, 2,
         invoker, strategy
  FROM given, clock WHERE disposition = '' AND nth = 1 ORDER BY run_id
  ON CONFLICT DO NOTHING
  RETURNING run_id),
decided AS MATERIALIZED (
  SELECT g.*, CASE
      WHEN g.disposition <> '' THEN g.disposition
      WHEN g.run_id IN (SELECT run_id FROM new_runs) THEN CASE
        WHEN g.nth = 1 THEN 'ACCEPTED'
        WHEN g.first_key = g.run_equivalence_key AND g.first_fingerprint = g.fingerprint THEN 'DUPLICATE'
        ELSE 'CONFLICT' END
      WHEN r.run_equivalence_key = g.run_equivalence_key AND r.fingerprint = g.fingerprint THEN 'DUPLICATE'
      WHEN r.run_id IS NOT NULL
        OR EXISTS (SELECT 1 FROM runs k WHERE k.run_equivalence_key = g.run_equivalence_key) THEN 'CONFLICT'
    END AS became
  FROM given g LEFT JOIN runs r ON r.run_id = g.run_id),
dispositions AS MATERIALIZED (
  SELECT record_key, message_id, kind, run_id, became AS disposition,
         CASE WHEN disposition = '' AND became = 'CONFLICT' THEN %(collision_code)b ELSE reason_code END AS reason_code,
         CASE WHEN disposition = '' AND became = 'CONFLICT' THEN %(collision_detail)b ELSE detail END AS detail,
         now AS received_us, raw_sha256, raw_size, ord
  FROM decided, clock WHERE became IS NOT NULL),
accepted AS (
  INSERT INTO intake_records (record_key, message_id, kind, run_id, disposition, reason_code, detail, received_us,
                              raw_sha256, raw_size)
  SELECT record_key, message_id, kind, run_id, disposition, reason_code, detail, received_us, raw_sha256, raw_size
  FROM dispositions WHERE disposition = 'ACCEPTED' ORDER BY ord
  RETURNING record_key, disposition, reason_code, detail, run_id),
others AS (
  INSERT INTO intake_records (record_key, message_id, kind, run_id, disposition, reason_code, detail, received_us,
                              raw_sha256, raw_size)
  SELECT record_key, message_id, kind, run_id, disposition, reason_code, detail, received_us, raw_sha256, raw_size
  FROM dispositions WHERE disposition <> 'ACCEPTED' ORDER BY ord
  ON CONFLICT DO NOTHING
  RETURNING record_key, disposition, reason_code, detail, run_id),
new_records AS (SELECT * FROM accepted UNION ALL SELECT * FROM others),
new_events AS (
  INSERT INTO run_events (run_id, seq, kind, ts_us, details)
  SELECT d.run_id, e.seq, e.kind, c.now, e.details
  FROM decided d, clock c,
       LATERAL (VALUES (1, 'RUN_ADMITTED', d.admitted), (2, 'PLAN_COMMITTED', d.planned)) AS e(seq, kind, details)
  WHERE d.became = 'ACCEPTED'),
refused AS MATERIALIZED (
  SELECT d.* FROM decided d JOIN new_records r ON r.record_key = d.record_key
  WHERE d.became IN ('REJECTED', 'CONFLICT') ORDER BY d.ord),
new_letters AS (INSERT INTO dead_letters (record_key, raw) SELECT record_key, raw FROM refused),
new_signals AS (
  INSERT INTO outbox (message_id, run_id, kind, partition_key, attributes, payload, created_us, needs_seq)
  SELECT signal_id, run_id, signal_kind, partition_key, attributes, payload, now, 0
  FROM refused, clock WHERE signal_id IS NOT NULL ORDER BY ord
  ON CONFLICT (message_id, emission) DO NOTHING)
SELECT record_key, disposition, reason_code, detail, run_id, FALSE AS repeated FROM new_records
UNION ALL
SELECT record_key, disposition, reason_code, detail, run_id, TRUE FROM intake_records
WHERE record_key = ANY (%(record_key)b::text[]);

-- name: claim_runs
-- A planned run starts with its verification, unless it invokes its engine first.
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
due AS MATERIALIZED (
  SELECT run_id, state = 'PLANNED' AND strategy <> 'FORCE_INVOKE' AS starts FROM runs
  WHERE due_us <= (SELECT now FROM clock) AND lease_until_us <= (SELECT now FROM clock)
    AND run_id = %(only)b  -- only
  ORDER BY due_us LIMIT %(limit)b FOR UPDATE SKIP LOCKED),
claimed AS (
  UPDATE runs r
  SET lease_owner = %(owner)b, lease_epoch = r.lease_epoch + 1, lease_until_us = c.now + %(lease_us)b::bigint,
      state = CASE WHEN d.starts THEN 'VERIFYING' ELSE r.state END,
      event_seq = r.event_seq + CASE WHEN d.starts THEN 1 ELSE 0 END,
      updated_us = CASE WHEN d.starts THEN greatest(c.now, r.updated_us + 1) ELSE r.updated_us END
  FROM due d, clock c
  WHERE r.run_id = d.run_id
  RETURNING r.run_id, r.run_equivalence_key, r.lease_epoch, r.state, r.intent, r.inputs, r.admitted_us, r.deadline_us,
            r.updated_us, r.wakes, r.retries, r.last_error, r.report_digest, r.event_seq, r.invoker, r.attempts, d.starts,
            c.now),
started AS (
  INSERT INTO run_events (run_id, seq, kind, ts_us, details)
  SELECT run_id, event_seq, 'VERIFICATION_STARTED', updated_us, %(started)b FROM claimed WHERE starts)
SELECT run_id, run_equivalence_key, lease_epoch, state, intent, inputs, admitted_us, deadline_us, updated_us, wakes,
       retries, last_error, report_digest, invoker, attempts, now
FROM claimed ORDER BY admitted_us;

-- name: renew_leases
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
held AS MATERIALIZED (
  SELECT r.run_id FROM runs r
  JOIN unnest(%(run_id)b::text[], %(epoch)b::bigint[]) AS g(run_id, epoch) ON g.run_id = r.run_id
  WHERE r.lease_epoch = g.epoch AND r.lease_owner = %(owner)b AND r.lease_until_us > 0
  ORDER BY r.run_id FOR UPDATE OF r)
UPDATE runs r SET lease_until_us = c.now + %(lease_us)b::bigint FROM held h, clock c
WHERE r.run_id = h.run_id
RETURNING r.run_id, r.lease_epoch;

-- name: commit_runs
-- The one statement that changes claimed runs. A row must be as the claim has it: under this lease (owner and epoch;
-- giving the lease back clears the owner), in this state, with as many attempts, and not changed since by another
-- transition of the same claim. So an attempt that is given is the next one, or the last one, whose row may be open.
-- Rows are locked before they are compared, so a first try that is still at work is waited for, and its token is seen.
-- Attempts come as one text, since most commits have none, and sixteen empty arrays cost more than the rest of the CTE.
WITH given AS MATERIALIZED (
  SELECT * FROM unnest(%(run_id)b::text[], %(owner)b::text[], %(epoch)b::bigint[], %(from_state)b::text[],
                       %(from_us)b::bigint[], %(to_state)b::text[], %(at_us)b::bigint[], %(due_us)b::bigint[],
                       %(keep_lease)b::boolean[], %(wakes)b::bigint[], %(retries)b::bigint[], %(last_error)b::text[],
                       %(report_digest)b::text[], %(reason_code)b::text[], %(facts_view_digest)b::text[],
                       %(count)b::bigint[], %(token)b::text[], %(signal_id)b::text[], %(signal_kind)b::text[],
                       %(partition_key)b::text[], %(attributes)b::bytea[], %(payload)b::bytea[],
                       %(deadline_us)b::bigint[], %(attempts)b::bigint[], %(launches)b::bigint[],
                       %(missing)b::text[])
       WITH ORDINALITY
    AS g(run_id, owner, epoch, from_state, from_us, to_state, at_us, due_us, keep_lease, wakes, retries, last_error,
         report_digest, reason_code, facts_view_digest, count, token, signal_id, signal_kind, partition_key, attributes,
         payload, deadline_us, attempts, launches, missing, ord)),
held AS MATERIALIZED (
  SELECT r.run_id, r.lease_epoch, r.settled FROM runs r JOIN given g ON g.run_id = r.run_id
  ORDER BY r.run_id FOR UPDATE OF r),
changed AS (
  UPDATE runs r
  SET state = g.to_state, reason_code = g.reason_code, due_us = g.due_us,
      lease_owner = CASE WHEN g.keep_lease THEN r.lease_owner ELSE '' END,
      lease_until_us = CASE WHEN g.keep_lease THEN r.lease_until_us ELSE 0 END,
      wakes = g.wakes, retries = g.retries, last_error = g.last_error, report_digest = g.report_digest,
      facts_view_digest = g.facts_view_digest, event_seq = r.event_seq + g.count, updated_us = g.at_us,
      settled = g.token, deadline_us = coalesce(g.deadline_us, r.deadline_us), attempts = r.attempts + g.launches,
      missing = CASE WHEN g.to_state = 'WAITING_EVIDENCE' THEN coalesce(g.missing, r.missing) ELSE '' END
  FROM given g JOIN held h ON h.run_id = g.run_id
  WHERE r.run_id = g.run_id AND r.lease_owner = g.owner AND r.lease_epoch = g.epoch AND r.state = g.from_state
    AND r.updated_us = g.from_us AND r.attempts = g.attempts
  RETURNING r.run_id, r.lease_epoch, r.event_seq, r.event_seq - g.count AS before, g.at_us),
added AS (
  INSERT INTO run_events (run_id, seq, kind, ts_us, details)
  SELECT c.run_id, c.before + e.nth, e.kind, c.at_us, e.details
  FROM unnest(%(event_run_id)b::text[], %(event_nth)b::bigint[], %(event_kind)b::text[], %(event_details)b::bytea[])
         AS e(run_id, nth, kind, details)
  JOIN changed c ON c.run_id = e.run_id),
tried AS (
  INSERT INTO engine_attempts AS t (run_id, attempt_no, attempt_id, epoch, invoker, handle, launched_us, timeout_us,
                                    ended_us, outcome, reason_code, exit_code, stop_code, another_attempt, duration_ms,
                                    detail, stderr_tail)
  SELECT a.run_id, a.attempt_no, a.attempt_id, c.lease_epoch, a.invoker, a.handle, a.launched_us, a.timeout_us,
         a.ended_us, a.outcome, a.reason_code, a.exit_code, a.stop_code, a.another_attempt, a.duration_ms, a.detail,
         a.stderr_tail
  FROM json_populate_recordset(NULL::engine_attempts, %(tried)b::json) AS a
  JOIN changed c ON c.run_id = a.run_id
  ON CONFLICT (run_id, attempt_no) DO UPDATE
  SET invoker = excluded.invoker, handle = excluded.handle, launched_us = excluded.launched_us,
      timeout_us = excluded.timeout_us, ended_us = excluded.ended_us, outcome = excluded.outcome,
      reason_code = excluded.reason_code, exit_code = excluded.exit_code, stop_code = excluded.stop_code,
      another_attempt = excluded.another_attempt, duration_ms = excluded.duration_ms, detail = excluded.detail,
      stderr_tail = excluded.stderr_tail
  WHERE t.ended_us IS NULL),
signals AS (
  INSERT INTO outbox (message_id, run_id, kind, partition_key, attributes, payload, created_us, needs_seq)
  SELECT g.signal_id, g.run_id, g.signal_kind, g.partition_key, g.attributes, g.payload, g.at_us, c.event_seq
  FROM given g JOIN changed c ON c.run_id = g.run_id WHERE g.signal_id IS NOT NULL ORDER BY g.ord
  ON CONFLICT (message_id, emission) DO NOTHING)
SELECT g.run_id FROM given g LEFT JOIN changed c ON c.run_id = g.run_id LEFT JOIN held h ON h.run_id = g.run_id
WHERE c.run_id IS NOT NULL OR (h.lease_epoch = g.epoch AND h.settled = g.token);

-- name: make_waiting_due
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
waiting AS MATERIALIZED (
  SELECT run_id FROM runs
  WHERE state = 'WAITING_EVIDENCE' AND due_us > (SELECT now FROM clock)
  ORDER BY run_id FOR UPDATE SKIP LOCKED)
UPDATE runs r SET due_us = c.now FROM waiting w, clock c WHERE r.run_id = w.run_id RETURNING r.run_id;

-- name: claim_unprojected
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
behind AS MATERIALIZED (
  SELECT run_id FROM runs
  WHERE event_seq > projected_seq AND relay_until_us <= (SELECT now FROM clock)
    AND (due_us IS NULL OR state = 'WAITING_EVIDENCE'
         OR (lease_until_us > (SELECT now FROM clock)
             AND updated_us <= (SELECT now FROM clock) - %(quiet_us)b::bigint))
    AND run_id = %(only)b  -- only
  ORDER BY updated_us LIMIT %(limit)b FOR UPDATE SKIP LOCKED)
UPDATE runs r SET relay_owner = %(owner)b, relay_until_us = c.now + %(lease_us)b::bigint
FROM behind b, clock c WHERE r.run_id = b.run_id
RETURNING r.run_id, r.run_equivalence_key, r.state, r.reason_code, r.intent, r.inputs, r.admitted_us, r.deadline_us,
          r.updated_us, r.due_us, r.lease_owner, r.lease_epoch, r.lease_until_us, r.wakes, r.retries, r.last_error,
          r.event_seq, r.projected_seq, r.facts_view_digest, r.relay_retries, r.relay_error, r.relay_since_us,
          r.relay_until_us;

-- name: mark_projected
WITH done AS MATERIALIZED (
  SELECT r.run_id, g.seq FROM runs r
  JOIN unnest(%(run_id)b::text[], %(seq)b::bigint[]) AS g(run_id, seq) ON g.run_id = r.run_id
  ORDER BY r.run_id FOR UPDATE OF r)
UPDATE runs r
SET projected_seq = greatest(r.projected_seq, d.seq), relay_owner = '', relay_until_us = 0, relay_retries = 0,
    relay_error = '', relay_since_us = 0
FROM done d WHERE r.run_id = d.run_id;

-- name: postpone_projections
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
failed AS MATERIALIZED (
  SELECT r.run_id, g.until_us, g.error FROM runs r
  JOIN unnest(%(run_id)b::text[], %(until_us)b::bigint[], %(error)b::text[]) AS g(run_id, until_us, error)
    ON g.run_id = r.run_id
  ORDER BY r.run_id FOR UPDATE OF r)
UPDATE runs r
SET relay_owner = '', relay_until_us = f.until_us, relay_retries = r.relay_retries + 1, relay_error = f.error,
    relay_since_us = CASE WHEN r.relay_retries = 0 THEN c.now ELSE r.relay_since_us END
FROM failed f, clock c WHERE r.run_id = f.run_id;

-- name: resume_deliveries
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
behind AS MATERIALIZED (
  SELECT run_id FROM runs
  WHERE event_seq > projected_seq AND relay_owner = '' AND relay_until_us > (SELECT now FROM clock)
  ORDER BY run_id FOR UPDATE SKIP LOCKED),
unsent AS MATERIALIZED (
  SELECT outbox_id FROM outbox WHERE sent_us IS NULL AND due_us > (SELECT now FROM clock)
  ORDER BY outbox_id FOR UPDATE SKIP LOCKED),
runs_resumed AS (
  UPDATE runs r SET relay_until_us = 0, relay_retries = 0 FROM behind b WHERE r.run_id = b.run_id
  RETURNING r.run_id AS name),
signals_resumed AS (
  UPDATE outbox o SET due_us = 0 FROM unsent u WHERE o.outbox_id = u.outbox_id RETURNING o.message_id AS name)
SELECT name FROM runs_resumed UNION ALL SELECT name FROM signals_resumed;

-- name: claim_signals
-- Emissions of one message go out in their order: a signal that is repeated has been published before.
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
owed AS MATERIALIZED (
  SELECT o.outbox_id FROM outbox o LEFT JOIN runs r ON r.run_id = o.run_id
  WHERE o.sent_us IS NULL AND o.lease_until_us <= (SELECT now FROM clock) AND o.due_us <= (SELECT now FROM clock)
    AND (o.needs_seq = 0 OR r.projected_seq >= o.needs_seq)
    AND (o.emission = 0
         OR NOT EXISTS (SELECT 1 FROM outbox p WHERE p.message_id = o.message_id
                                                 AND p.emission < o.emission AND p.sent_us IS NULL))
    AND o.outbox_id = ANY (ARRAY (SELECT outbox_id FROM outbox WHERE run_id = %(only)b))  -- only
  ORDER BY o.outbox_id LIMIT %(limit)b FOR UPDATE OF o SKIP LOCKED),
claimed AS (
  UPDATE outbox o
  SET lease_owner = %(owner)b, lease_until_us = c.now + %(lease_us)b::bigint, attempts = o.attempts + 1
  FROM owed w, clock c WHERE o.outbox_id = w.outbox_id
  RETURNING o.outbox_id, o.message_id, o.run_id, o.kind, o.partition_key, o.attributes, o.payload, o.created_us,
            o.attempts, o.emission, o.action_key)
SELECT outbox_id, message_id, run_id, kind, partition_key, attributes, payload, created_us, attempts, emission,
       action_key
FROM claimed ORDER BY outbox_id;

-- name: mark_sent
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
sent AS MATERIALIZED (
  SELECT o.outbox_id, g.receipt FROM outbox o
  JOIN unnest(%(outbox_id)b::bigint[], %(receipt)b::text[]) AS g(outbox_id, receipt) ON g.outbox_id = o.outbox_id
  WHERE o.sent_us IS NULL ORDER BY o.outbox_id FOR UPDATE OF o)
UPDATE outbox o SET sent_us = c.now, receipt = s.receipt, lease_owner = '', lease_until_us = 0
FROM sent s, clock c WHERE o.outbox_id = s.outbox_id;

-- name: find_actions
SELECT action_key, at, actor, via, action, subject, reason, outcome, detail
FROM operator_actions WHERE action_key = ANY (%(action_keys)b::text[]);

-- name: list_actions
SELECT action_key, at, actor, via, action, subject, reason, outcome, detail
FROM operator_actions WHERE subject = %(subject)b ORDER BY at, action_id;

-- name: insert_action
INSERT INTO operator_actions (action_key, at, actor, via, action, subject, reason, outcome, detail)
VALUES (%(action_key)b, sr_now_us(), %(actor)b, %(via)b, %(action)b, %(subject)b, %(reason)b, %(outcome)b, %(detail)b)
ON CONFLICT (action_key) DO NOTHING RETURNING action_key;

-- name: end_action
UPDATE operator_actions SET outcome = %(outcome)b, detail = %(detail)b WHERE action_key = %(action_key)b;

-- name: find_records
SELECT record_key, disposition, reason_code, detail, run_id FROM intake_records
WHERE record_key = ANY (%(record_keys)b::text[]);

-- name: reemit_facts
-- What re-emits are decided on. commit_reemits writes nothing of one whose event_seq has moved on since.
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now)
SELECT g.ord, c.now, k.outcome, k.detail, r.state, r.event_seq, e.ts_us AS last_event_us, o.message_id,
       o.kind, o.partition_key, o.attributes, o.payload, o.needs_seq,
       (SELECT max(n.emission) + 1 FROM outbox n WHERE n.message_id = o.message_id) AS emissions,
       (SELECT count(*) FROM operator_actions a
        WHERE a.subject = g.run_id AND a.at > c.now - g.window_us AND a.action = %(action)b
          AND a.outcome <> ALL (%(uncounted)b::text[])) AS attempts,
       (SELECT count(*) FROM operator_actions a
        WHERE a.subject = g.run_id AND a.at > c.now - g.window_us AND a.action = %(action)b
          AND a.outcome = 'REEMIT_RATE_LIMIT') AS limited
FROM unnest(%(action_key)b::text[], %(run_id)b::text[], %(window_us)b::bigint[])
       WITH ORDINALITY AS g(action_key, run_id, window_us, ord)
CROSS JOIN clock c
LEFT JOIN operator_actions k ON k.action_key = g.action_key
LEFT JOIN runs r ON r.run_id = g.run_id
LEFT JOIN run_events e ON e.run_id = r.run_id AND e.seq = r.event_seq
LEFT JOIN outbox o ON o.run_id = r.run_id AND o.emission = 0 AND o.kind IN ('READY', 'TERMINAL')
ORDER BY g.ord;

-- name: commit_reemits
-- Writes acts of different runs, each with all its effects or not at all. One that adds events names the event_seq that
-- it was decided on: the row is locked before they are compared, so of two acts on one run the second finds that it
-- has moved on, is not written, and is decided again. An act of a known key violates the unique action_key, and a record
-- that was disposed of its record_key: that takes the whole statement back, and the caller asks for the facts again.
WITH given AS MATERIALIZED (
  SELECT * FROM unnest(%(action_key)b::text[], %(run_id)b::text[], %(actor)b::text[], %(via)b::text[],
                       %(reason)b::text[], %(outcome)b::text[], %(detail)b::text[], %(at_us)b::bigint[],
                       %(from_seq)b::bigint[], %(count)b::bigint[], %(emission)b::integer[], %(needs_seq)b::bigint[],
                       %(signal_id)b::text[], %(signal_kind)b::text[], %(partition_key)b::text[],
                       %(attributes)b::bytea[], %(payload)b::bytea[], %(record_key)b::text[], %(message_id)b::text[],
                       %(kind)b::text[], %(disposition)b::text[], %(reason_code)b::text[], %(raw)b::bytea[],
                       %(raw_sha256)b::text[], %(raw_size)b::bigint[])
       WITH ORDINALITY
    AS g(action_key, run_id, actor, via, reason, outcome, detail, at_us, from_seq, count, emission, needs_seq, signal_id,
         signal_kind, partition_key, attributes, payload, record_key, message_id, kind, disposition, reason_code, raw,
         raw_sha256, raw_size, ord)),
held AS MATERIALIZED (
  SELECT r.run_id FROM runs r JOIN given g ON g.run_id = r.run_id WHERE g.count > 0
  ORDER BY r.run_id FOR UPDATE OF r),
changed AS (
  UPDATE runs r SET event_seq = r.event_seq + g.count
  FROM given g JOIN held h ON h.run_id = g.run_id
  WHERE r.run_id = g.run_id AND r.event_seq = g.from_seq AND g.count > 0
  RETURNING r.run_id, r.event_seq - g.count AS before),
done AS MATERIALIZED (
  SELECT g.*, c.before FROM given g LEFT JOIN changed c ON c.run_id = g.run_id
  WHERE g.count = 0 OR c.run_id IS NOT NULL),
acted AS (
  INSERT INTO operator_actions (action_key, at, actor, via, action, subject, reason, outcome, detail)
  SELECT action_key, at_us, actor, via, %(action)b, run_id, reason, outcome, detail FROM done ORDER BY ord),
added AS (
  INSERT INTO run_events (run_id, seq, kind, ts_us, details)
  SELECT d.run_id, d.before + e.nth, e.kind, d.at_us, e.details
  FROM unnest(%(event_run_id)b::text[], %(event_nth)b::bigint[], %(event_kind)b::text[], %(event_details)b::bytea[])
         AS e(run_id, nth, kind, details)
  JOIN done d ON d.run_id = e.run_id AND d.count > 0),
signals AS (
  INSERT INTO outbox (message_id, emission, run_id, kind, partition_key, attributes, payload, created_us, needs_seq,
                      action_key)
  SELECT signal_id, emission, run_id, signal_kind, partition_key, attributes, payload, at_us, needs_seq,
         CASE WHEN emission > 0 THEN action_key ELSE '' END
  FROM done WHERE signal_id IS NOT NULL ORDER BY ord
  ON CONFLICT (message_id, emission) DO NOTHING),
records AS (
  INSERT INTO intake_records (record_key, message_id, kind, run_id, disposition, reason_code, detail, received_us,
                              raw_sha256, raw_size)
  SELECT record_key, message_id, kind, run_id, disposition, reason_code, detail, at_us, raw_sha256, raw_size
  FROM done WHERE record_key IS NOT NULL ORDER BY ord),
letters AS (
  INSERT INTO dead_letters (record_key, raw)
  SELECT record_key, raw FROM done WHERE disposition = 'REJECTED' ORDER BY ord)
SELECT action_key FROM done;

-- name: end_reemits
-- Locks outbox rows and then runs; whoever locks a run first only adds rows to the outbox, so nobody waits in a circle.
-- The clock is read after the run was locked: the times in a record do not go back.
WITH given AS MATERIALIZED (
  SELECT * FROM unnest(%(outbox_id)b::bigint[], %(published)b::boolean[], %(receipt)b::text[], %(kind)b::text[],
                       %(details)b::bytea[], %(outcome)b::text[], %(detail)b::text[])
    AS g(outbox_id, published, receipt, kind, details, outcome, detail)),
owed AS MATERIALIZED (
  SELECT o.outbox_id, o.run_id, o.action_key, g.published, g.receipt, g.kind, g.details, g.outcome, g.detail
  FROM outbox o JOIN given g ON g.outbox_id = o.outbox_id
  WHERE o.emission > 0 AND o.sent_us IS NULL ORDER BY o.outbox_id FOR UPDATE OF o),
held AS MATERIALIZED (
  SELECT r.run_id FROM runs r JOIN owed w ON w.run_id = r.run_id ORDER BY r.run_id FOR UPDATE OF r),
changed AS (
  UPDATE runs r SET event_seq = r.event_seq + 1 FROM held h WHERE r.run_id = h.run_id
  RETURNING r.run_id, r.event_seq, sr_now_us() AS now),
marked AS (
  UPDATE outbox o SET sent_us = c.now, receipt = w.receipt, lease_owner = '', lease_until_us = 0
  FROM owed w JOIN changed c ON c.run_id = w.run_id WHERE o.outbox_id = w.outbox_id AND w.published),
dropped AS (
  DELETE FROM outbox o USING owed w WHERE o.outbox_id = w.outbox_id AND NOT w.published),
added AS (
  INSERT INTO run_events (run_id, seq, kind, ts_us, details)
  SELECT c.run_id, c.event_seq, w.kind,
         greatest(c.now, (SELECT max(e.ts_us) FROM run_events e WHERE e.run_id = c.run_id)), w.details
  FROM changed c JOIN owed w ON w.run_id = c.run_id)
UPDATE operator_actions a SET outcome = w.outcome, detail = w.detail FROM owed w WHERE a.action_key = w.action_key;

-- name: published_signals
SELECT o.run_id, o.message_id, o.kind, o.sent_us, o.outbox_id
FROM outbox o JOIN runs r ON r.run_id = o.run_id
WHERE o.emission = 0 AND o.sent_us IS NOT NULL AND (o.sent_us, o.outbox_id) > (%(after_us)b::bigint, %(after_id)b::bigint)
  AND o.sent_us < %(until_us)b AND o.kind IN ('READY', 'TERMINAL') AND r.state = %(state)b
ORDER BY o.sent_us, o.outbox_id LIMIT %(limit)b;

-- name: postpone_signals
WITH failed AS MATERIALIZED (
  SELECT outbox_id FROM outbox WHERE outbox_id = ANY (%(outbox_id)b::bigint[])
  ORDER BY outbox_id FOR UPDATE)
UPDATE outbox o SET due_us = %(due_us)b, lease_owner = '', lease_until_us = 0
FROM failed f WHERE o.outbox_id = f.outbox_id;

-- name: pull_in_times
WITH bound AS MATERIALIZED (
  SELECT now, now + %(run_horizon_us)b::bigint AS run, now + %(lease_horizon_us)b::bigint AS lease,
         now + %(relay_horizon_us)b::bigint AS relay, %(until_restart)b::bigint AS never
  FROM (SELECT sr_now_us() AS now) AS clock),
ahead AS MATERIALIZED (
  SELECT run_id FROM runs WHERE due_us > (SELECT run FROM bound)
  UNION SELECT run_id FROM runs WHERE due_us IS NOT NULL AND lease_until_us > (SELECT lease FROM bound)
  UNION SELECT run_id FROM runs WHERE event_seq > projected_seq AND relay_until_us > (SELECT relay FROM bound)
                               AND relay_until_us < (SELECT never FROM bound)),
held AS MATERIALIZED (
  SELECT r.run_id FROM runs r JOIN ahead a ON a.run_id = r.run_id ORDER BY r.run_id FOR UPDATE OF r SKIP LOCKED),
changed AS (
  UPDATE runs r
  SET due_us = CASE WHEN r.due_us > b.run THEN b.now ELSE r.due_us END,
      lease_until_us = CASE WHEN r.lease_until_us > b.lease THEN b.now ELSE r.lease_until_us END,
      relay_until_us = CASE WHEN r.relay_until_us > b.relay AND r.relay_until_us < b.never THEN b.now
                            ELSE r.relay_until_us END
  FROM held h, bound b WHERE r.run_id = h.run_id
  RETURNING 1),
unsent AS MATERIALIZED (
  SELECT outbox_id FROM outbox, bound b
  WHERE sent_us IS NULL AND ((due_us > b.relay AND due_us < b.never) OR lease_until_us > b.relay)
  ORDER BY outbox_id FOR UPDATE OF outbox SKIP LOCKED),
signals AS (
  UPDATE outbox o
  SET due_us = CASE WHEN o.due_us > b.relay AND o.due_us < b.never THEN b.now ELSE o.due_us END,
      lease_until_us = CASE WHEN o.lease_until_us > b.relay THEN b.now ELSE o.lease_until_us END
  FROM unsent u, bound b WHERE o.outbox_id = u.outbox_id
  RETURNING 1)
SELECT (SELECT count(*) FROM changed) + (SELECT count(*) FROM signals) AS corrected;

-- name: live_owners
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now)
SELECT lease_owner AS owner FROM runs WHERE due_us IS NOT NULL AND lease_until_us > (SELECT now FROM clock)
UNION
SELECT relay_owner FROM runs WHERE event_seq > projected_seq AND relay_until_us > (SELECT now FROM clock)
UNION
SELECT lease_owner FROM outbox WHERE sent_us IS NULL AND lease_until_us > (SELECT now FROM clock);

-- name: expire_owner
WITH dead_runs AS (
  UPDATE runs
  SET lease_until_us = CASE WHEN lease_owner = %(owner)b THEN 0 ELSE lease_until_us END,
      relay_until_us = CASE WHEN relay_owner = %(owner)b THEN 0 ELSE relay_until_us END
  WHERE run_id = ANY (ARRAY (SELECT run_id FROM runs WHERE due_us IS NOT NULL AND lease_owner = %(owner)b
                             UNION
                             SELECT run_id FROM runs WHERE event_seq > projected_seq AND relay_owner = %(owner)b
                             ORDER BY run_id)))
UPDATE outbox SET lease_until_us = 0 WHERE sent_us IS NULL AND lease_owner = %(owner)b;

-- name: any_pending
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now)
SELECT EXISTS (SELECT 1 FROM runs
               WHERE due_us <= now
                 AND run_id = %(only)b  -- only
              )
       -- Between two attempts of its engine a run is not due yet, and it will be within a minute.
       OR EXISTS (SELECT 1 FROM runs
                  WHERE state = 'EXECUTING' AND lease_until_us <= now
                    AND run_id = %(only)b  -- only
                 ) AS runs,
       EXISTS (SELECT 1 FROM runs
               WHERE event_seq > projected_seq AND (due_us IS NULL OR state = 'WAITING_EVIDENCE')
                 AND (relay_until_us <= now OR relay_owner <> '')
                 AND run_id = %(only)b  -- only
              ) AS projections,
       EXISTS (SELECT 1 FROM outbox o LEFT JOIN runs r ON r.run_id = o.run_id
               WHERE o.sent_us IS NULL AND o.due_us <= now
                 AND (o.needs_seq = 0 OR r.projected_seq >= o.needs_seq)
                 AND (o.emission = 0
                      OR NOT EXISTS (SELECT 1 FROM outbox p WHERE p.message_id = o.message_id
                                                              AND p.emission < o.emission AND p.sent_us IS NULL))
                 AND o.outbox_id = ANY (ARRAY (SELECT outbox_id FROM outbox WHERE run_id = %(only)b))  -- only
              ) AS signals,
       EXISTS (SELECT 1 FROM runs
               WHERE event_seq > projected_seq AND due_us IS NULL
                 AND run_id = %(only)b  -- only
              )
       OR EXISTS (SELECT 1 FROM outbox
                  WHERE sent_us IS NULL
                    AND outbox_id = ANY (ARRAY (SELECT outbox_id FROM outbox WHERE run_id = %(only)b))  -- only
                 ) AS undelivered,
       EXISTS (SELECT 1 FROM runs
               WHERE due_us IS NOT NULL AND retries > 0
                 AND run_id = %(only)b  -- only
              ) AS postponed
FROM clock;

-- name: get_run
SELECT run_id, run_equivalence_key, state, reason_code, intent, inputs, admitted_us, deadline_us, updated_us, due_us,
       lease_owner, lease_epoch, lease_until_us, wakes, retries, last_error, event_seq, projected_seq,
       facts_view_digest, relay_retries, relay_error, relay_since_us, relay_until_us
FROM runs WHERE run_id = %(run_id)b;

-- name: list_runs
SELECT run_id, run_equivalence_key, state, reason_code, intent, inputs, admitted_us, deadline_us, updated_us, due_us,
       lease_owner, lease_epoch, lease_until_us, wakes, retries, last_error, event_seq, projected_seq,
       facts_view_digest, relay_retries, relay_error, relay_since_us, relay_until_us
FROM runs WHERE %(state)b::text IS NULL OR state = %(state)b ORDER BY admitted_us DESC LIMIT %(limit)b;

-- name: list_events
SELECT seq, kind, ts_us, details FROM run_events WHERE run_id = %(run_id)b ORDER BY seq;

-- name: events_of_runs
SELECT run_id, seq, kind, ts_us, details FROM run_events
WHERE run_id = ANY (%(run_ids)b::text[]) ORDER BY run_id, seq;

-- name: list_attempts
SELECT attempt_no, attempt_id, invoker, handle, launched_us, timeout_us, ended_us, outcome, reason_code, exit_code,
       stop_code, another_attempt, duration_ms, detail, stderr_tail
FROM engine_attempts WHERE run_id = %(run_id)b ORDER BY attempt_no;

-- name: attempts_of_runs
SELECT run_id, attempt_no, attempt_id, invoker, handle, launched_us, timeout_us, ended_us, outcome, reason_code,
       exit_code, stop_code, another_attempt, duration_ms, detail, stderr_tail
FROM engine_attempts WHERE run_id = ANY (%(run_ids)b::text[]) ORDER BY run_id, attempt_no;

-- name: list_records
SELECT record_key, message_id, kind, disposition, reason_code, detail, received_us, raw_sha256, raw_size
FROM intake_records WHERE run_id = %(run_id)b AND run_id <> '' ORDER BY record_id;

-- name: list_signals
SELECT message_id, kind, sent_us, emission, receipt, action_key FROM outbox
WHERE run_id = %(run_id)b ORDER BY outbox_id;

-- name: find_digests
SELECT digests FROM digest_reuse WHERE digest_key = %(digest_key)b;

-- name: keep_digests
INSERT INTO digest_reuse (digest_key, digests, kept_us) VALUES (%(digest_key)b, %(digests)b, sr_now_us())
ON CONFLICT (digest_key) DO NOTHING;

-- name: note_identity
INSERT INTO store_identities (name, identity, noted_us) VALUES (%(name)b, %(identity)b, sr_now_us())
ON CONFLICT (name) DO NOTHING;

-- name: adopt_identity
INSERT INTO store_identities (name, identity, noted_us) VALUES (%(name)b, %(identity)b, sr_now_us())
ON CONFLICT (name) DO UPDATE SET identity = excluded.identity, noted_us = excluded.noted_us;

-- name: get_identity
SELECT identity FROM store_identities WHERE name = %(name)b;

-- name: backlog
-- How much waits, for /metrics: every count ends at a number of rows, and reads them in the order of a partial index.
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now)
SELECT now AS now,
       (SELECT count(*) FROM (SELECT 1 FROM runs WHERE state = 'WAITING_EVIDENCE' AND deadline_us < now
                              ORDER BY deadline_us LIMIT %(most)b) AS w) AS waiting_overdue,
       (SELECT count(*) FROM (SELECT 1 FROM runs WHERE state = 'WAITING_EVIDENCE' AND deadline_us >= now AND deadline_us < now + 300000000
                              ORDER BY deadline_us LIMIT %(most)b) AS w) AS waiting_5m,
       (SELECT count(*) FROM (SELECT 1 FROM runs WHERE state = 'WAITING_EVIDENCE' AND deadline_us >= now + 300000000 AND deadline_us < now + 3600000000
                              ORDER BY deadline_us LIMIT %(most)b) AS w) AS waiting_1h,
       (SELECT count(*) FROM (SELECT 1 FROM runs WHERE state = 'WAITING_EVIDENCE' AND deadline_us >= now + 3600000000 AND deadline_us < now + 21600000000
                              ORDER BY deadline_us LIMIT %(most)b) AS w) AS waiting_6h,
       (SELECT count(*) FROM (SELECT 1 FROM runs WHERE state = 'WAITING_EVIDENCE' AND deadline_us >= now + 21600000000 AND deadline_us < now + 86400000000
                              ORDER BY deadline_us LIMIT %(most)b) AS w) AS waiting_1d,
       (SELECT count(*) FROM (SELECT 1 FROM runs WHERE state = 'WAITING_EVIDENCE' AND deadline_us >= now + 86400000000
                              ORDER BY deadline_us LIMIT %(most)b) AS w) AS waiting_later,
       (SELECT count(*) FROM (SELECT 1 FROM runs
                              WHERE state IN ('WAITING_EVIDENCE', 'FAILED', 'QUARANTINED') AND state = 'QUARANTINED'
                              ORDER BY admitted_us LIMIT %(most)b) AS q) AS quarantined,
       (SELECT count(*) FROM (SELECT 1 FROM intake_records WHERE disposition IN ('REJECTED', 'CONFLICT')
                              ORDER BY reason_code, record_id LIMIT %(most)b) AS d) AS dead_letters,
       (SELECT count(*) FROM (SELECT 1 FROM outbox WHERE sent_us IS NULL
                              ORDER BY outbox_id LIMIT %(most)b) AS u) AS unsent,
       (SELECT created_us FROM outbox WHERE sent_us IS NULL ORDER BY outbox_id LIMIT 1) AS unsent_since_us,
       (SELECT count(*) FROM (SELECT 1 FROM runs
                              WHERE event_seq > projected_seq AND (due_us IS NULL OR state = 'WAITING_EVIDENCE')
                              ORDER BY updated_us LIMIT %(most)b) AS p) AS unprojected,
       (SELECT updated_us FROM runs
        WHERE event_seq > projected_seq AND (due_us IS NULL OR state = 'WAITING_EVIDENCE')
        ORDER BY updated_us LIMIT 1) AS unprojected_since_us,
       -- As a claim finds it: the runs that are passed over are under lease.
       (SELECT due_us FROM runs WHERE due_us IS NOT NULL AND due_us <= now AND lease_until_us <= now
        ORDER BY due_us LIMIT 1) AS due_since_us,
       (SELECT count(*) FROM daemons WHERE seen_us >= now - 60000000) AS daemons
FROM clock;

-- name: report_daemon
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
forgotten AS (
  DELETE FROM daemons d USING clock WHERE d.seen_us < clock.now - %(keep_us)b AND d.owner <> %(owner)b)
INSERT INTO daemons (owner, role, version, host, started_us, seen_us)
SELECT %(owner)b, %(role)b, %(version)b, %(host)b, now, now FROM clock
ON CONFLICT (owner) DO UPDATE SET seen_us = excluded.seen_us;

-- name: remove_daemon
DELETE FROM daemons WHERE owner = %(owner)b;
