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
--
-- Lines that end in "-- by" belong to the statement for a record that an operator's act asks for, and write the act.

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

-- name: bound_locks_of_migrations
-- Whoever uses a table waits behind a migration that waits for it: less long than a lock_timeout of a daemon (5 s).
SELECT set_config('lock_timeout', '2s', TRUE);

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
-- A correction names a run that has ended. That is seen in the same statement, and stays so: a run ends once and is never
-- deleted. Why it is refused otherwise, and the payload of its signal, come with the record.
-- A run that another intake is inserting just now is skipped as well; such a record becomes NULL here, is not inserted,
-- and is disposed of in the next round, when the other run is seen.
-- "by" is for one record that an operator's act asks for: a known act violates the unique action_key, which takes the
-- whole statement back too.
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
corrections AS MATERIALIZED (
  SELECT c.record_key, c.supersedes, c.supersession,
         CASE WHEN t.run_id IS NULL THEN c.not_found WHEN t.due_us IS NOT NULL THEN c.not_ended END AS obstacle
  FROM json_to_recordset(%(corrections)b::json)
         AS c(record_key text, supersedes text, supersession text, not_found json, not_ended json)
  LEFT JOIN runs t ON t.run_id = c.supersedes),
given AS MATERIALIZED (
  SELECT g.*, coalesce(c.supersedes, '') AS supersedes, coalesce(c.supersession, '') AS supersession, c.obstacle,
         row_number() OVER same_run AS nth, first_value(run_equivalence_key) OVER same_run AS first_key,
         first_value(fingerprint) OVER same_run AS first_fingerprint,
         first_value(coalesce(c.supersession, '')) OVER same_run AS first_supersession
  FROM unnest(%(record_key)b::text[], %(message_id)b::text[], %(kind)b::text[], %(run_id)b::text[],
              %(disposition)b::text[], %(reason_code)b::text[], %(detail)b::text[], %(raw)b::bytea[],
              %(raw_sha256)b::text[], %(raw_size)b::bigint[], %(run_equivalence_key)b::text[],
              %(fingerprint)b::text[], %(intent)b::bytea[], %(inputs)b::bytea[], %(evidence_wait_us)b::bigint[],
              %(admitted)b::bytea[], %(planned)b::bytea[], %(policy_rev)b::bytea[], %(plan_hash)b::bytea[],
              %(invoker)b::text[], %(strategy)b::text[],
              %(signal_id)b::text[], %(signal_kind)b::text[], %(partition_key)b::text[], %(attributes)b::bytea[], %(payload)b::bytea[])
       WITH ORDINALITY AS g(record_key, message_id, kind, run_id, disposition, reason_code, detail, raw, raw_sha256,
                            raw_size, run_equivalence_key, fingerprint, intent, inputs, evidence_wait_us, admitted,
                            planned, policy_rev, plan_hash, invoker, strategy, signal_id, signal_kind, partition_key, attributes, payload,
                            ord)
  LEFT JOIN corrections c ON c.record_key = g.record_key
  WHERE NOT EXISTS (SELECT 1 FROM intake_records r WHERE r.record_key = g.record_key)
    AND NOT EXISTS (SELECT 1 FROM unfinished_rebuild)
  WINDOW same_run AS (PARTITION BY g.run_id, g.disposition = '' ORDER BY g.ord)),
new_runs AS (
  INSERT INTO runs (run_id, run_equivalence_key, fingerprint, intent, inputs, state, admitted_us, deadline_us,
                    updated_us, due_us, event_seq, invoker, strategy, supersedes, supersession)
  SELECT run_id, run_equivalence_key, fingerprint, intent, inputs, 'PLANNED', now, now + evidence_wait_us, now, now, 4,
         invoker, strategy, supersedes, supersession
  FROM given, clock WHERE disposition = '' AND nth = 1 AND obstacle IS NULL ORDER BY run_id
  ON CONFLICT DO NOTHING
  RETURNING run_id),
decided AS MATERIALIZED (
  SELECT g.*, CASE
      WHEN g.disposition <> '' THEN g.disposition
      WHEN g.run_id IN (SELECT run_id FROM new_runs) THEN CASE
        WHEN g.nth = 1 THEN 'ACCEPTED'
        WHEN g.first_key = g.run_equivalence_key AND g.first_fingerprint = g.fingerprint
          AND g.first_supersession = g.supersession THEN 'DUPLICATE'
        ELSE 'CONFLICT' END
      WHEN r.run_equivalence_key = g.run_equivalence_key AND r.fingerprint = g.fingerprint
        AND r.supersession = g.supersession THEN 'DUPLICATE'
      WHEN r.run_id IS NOT NULL
        OR EXISTS (SELECT 1 FROM runs k WHERE k.run_equivalence_key = g.run_equivalence_key) THEN 'CONFLICT'
      WHEN g.obstacle IS NOT NULL THEN 'REJECTED'
    END AS became
  FROM given g LEFT JOIN runs r ON r.run_id = g.run_id),
dispositions AS MATERIALIZED (
  SELECT record_key, message_id, kind, run_id, became AS disposition,
         CASE WHEN disposition <> '' THEN reason_code WHEN became = 'CONFLICT' THEN %(collision_code)b
              WHEN became = 'REJECTED' THEN obstacle ->> 'reason_code' ELSE '' END AS reason_code,
         CASE WHEN disposition <> '' THEN detail WHEN became = 'CONFLICT' THEN %(collision_detail)b
              WHEN became = 'REJECTED' THEN obstacle ->> 'detail' ELSE '' END AS detail,
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
       LATERAL (VALUES (1, 'RUN_ADMITTED', d.admitted), (2, 'PLAN_COMMITTED', d.planned),
                       (3, 'GOV_POLICY_REV', d.policy_rev), (4, 'GOV_PLAN_HASH', d.plan_hash)) AS e(seq, kind, details)
  WHERE d.became = 'ACCEPTED' AND d.disposition = ''),
refused AS MATERIALIZED (
  SELECT d.* FROM decided d JOIN new_records r ON r.record_key = d.record_key
  WHERE d.became IN ('REJECTED', 'CONFLICT') ORDER BY d.ord),
new_letters AS (INSERT INTO dead_letters (record_key, raw) SELECT record_key, raw FROM refused),
acted AS (  -- by
  INSERT INTO operator_actions (action_key, at, actor, via, action, subject, reason, outcome, detail)  -- by
  SELECT %(by_key)b, now, %(by_actor)b, %(by_via)b, %(by_action)b, %(by_subject)b, %(by_reason)b,  -- by
         coalesce(nullif(reason_code, ''), CASE disposition WHEN 'ACCEPTED' THEN 'ADMITTED' ELSE disposition END),  -- by
         detail FROM new_records, clock),  -- by
new_signals AS (
  INSERT INTO outbox (message_id, run_id, kind, partition_key, attributes, payload, created_us, needs_seq)
  SELECT signal_id, run_id, signal_kind, partition_key, attributes,
         CASE WHEN disposition = '' AND became = 'REJECTED' THEN convert_to(obstacle ->> 'payload', 'UTF8') ELSE payload END,
         now, 0
  FROM refused, clock WHERE signal_id IS NOT NULL ORDER BY ord
  ON CONFLICT (message_id, emission) DO NOTHING)
SELECT record_key, disposition, reason_code, detail, run_id, FALSE AS repeated FROM new_records
UNION ALL
SELECT record_key, disposition, reason_code, detail, run_id, TRUE FROM intake_records
WHERE record_key = ANY (%(record_key)b::text[]);

-- name: claim_runs
-- The oldest of the new runs, up to a part of the claim, then the oldest of all; see authority/claims.py. The claim of one
-- run needs the second part only: the planner, which counts on few new runs, might read all of them for it. "+ 0" is the
-- order of the index of new runs and of no other: where all due runs were new, the planner takes both for equal, and would
-- read a herd that is woken later to pass it over.
-- An array is made once. A subquery would be run again for a row that somebody changes meanwhile, and lock other rows.
-- A planned run starts with its verification, unless it invokes its engine first. "traced_admission" is null for all runs
-- but those whose request brought a trace context: only theirs are sent and parsed.
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
new_runs AS MATERIALIZED (
  SELECT run_id, strategy <> 'FORCE_INVOKE' AS starts FROM runs
  WHERE state = 'PLANNED' AND retries = 0
    AND due_us + 0 <= (SELECT now FROM clock) AND lease_until_us <= (SELECT now FROM clock)
    AND NOT EXISTS (SELECT 1 FROM unfinished_rebuild)
    AND FALSE  -- only
  ORDER BY due_us + 0 LIMIT %(most_new)b FOR UPDATE SKIP LOCKED),
oldest AS MATERIALIZED (
  SELECT run_id, state = 'PLANNED' AND strategy <> 'FORCE_INVOKE' AS starts FROM runs
  WHERE due_us <= (SELECT now FROM clock) AND lease_until_us <= (SELECT now FROM clock)
    AND run_id <> ALL (ARRAY (SELECT run_id FROM new_runs))
    AND NOT EXISTS (SELECT 1 FROM unfinished_rebuild)
    AND run_id = %(only)b  -- only
  ORDER BY due_us LIMIT %(limit)b - (SELECT count(*) FROM new_runs) FOR UPDATE SKIP LOCKED),
due AS (SELECT run_id, starts FROM new_runs UNION ALL SELECT run_id, starts FROM oldest),
claimed AS (
  UPDATE runs r
  SET lease_owner = %(owner)b, lease_epoch = r.lease_epoch + 1, lease_until_us = c.now + %(lease_us)b::bigint,
      state = CASE WHEN d.starts THEN 'VERIFYING' ELSE r.state END,
      event_seq = r.event_seq + CASE WHEN d.starts THEN 1 ELSE 0 END,
      updated_us = CASE WHEN d.starts THEN greatest(c.now, r.updated_us + 1) ELSE r.updated_us END,
      absent_root = ''
  FROM due d, clock c
  WHERE r.run_id = d.run_id
  RETURNING r.run_id, r.run_equivalence_key, r.lease_epoch, r.state, r.intent, r.inputs, r.admitted_us, r.deadline_us,
            r.updated_us, r.wakes, r.retries, r.last_error, r.report_digest, r.event_seq, r.invoker, r.attempts,
            r.supersession, d.starts, c.now),
started AS (
  INSERT INTO run_events (run_id, seq, kind, ts_us, details)
  SELECT run_id, event_seq, 'VERIFICATION_STARTED', updated_us, %(started)b FROM claimed WHERE starts)
SELECT run_id, run_equivalence_key, lease_epoch, state, intent, inputs, admitted_us, deadline_us, updated_us, wakes,
       retries, last_error, report_digest, invoker, attempts, supersession,
       (SELECT e.details FROM run_events e
        WHERE e.run_id = claimed.run_id AND e.seq = 1
          AND position('"traceparent":'::bytea IN e.details) > 0) AS traced_admission, now
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
-- A correction that becomes READY also grows the record of the run that it supersedes, which has ended and has no lease.
-- That row is locked with the others, in one order, so of two corrections of one run the second appends after the first.
-- A record that tells of the supersession already, since it comes from a ledger that was ahead, stays as it is ("untold").
-- A run that goes on waiting, and that was told of an arrival under this lease (tell_runs), is due again then.
-- Attempts come as one text, since most commits have none, and sixteen empty arrays cost more than the rest of the CTE.
WITH given AS MATERIALIZED (
  SELECT * FROM unnest(%(run_id)b::text[], %(owner)b::text[], %(epoch)b::bigint[], %(from_state)b::text[],
                       %(from_us)b::bigint[], %(to_state)b::text[], %(at_us)b::bigint[], %(due_us)b::bigint[],
                       %(keep_lease)b::boolean[], %(wakes)b::bigint[], %(retries)b::bigint[], %(last_error)b::text[],
                       %(report_digest)b::text[], %(reason_code)b::text[], %(facts_view_digest)b::text[],
                       %(count)b::bigint[], %(token)b::text[], %(signal_id)b::text[], %(signal_kind)b::text[],
                       %(partition_key)b::text[], %(attributes)b::bytea[], %(payload)b::bytea[],
                       %(deadline_us)b::bigint[], %(attempts)b::bigint[], %(launches)b::bigint[],
                       %(missing)b::text[], %(absent_root)b::text[], %(claimed_us)b::bigint[])
       WITH ORDINALITY
    AS g(run_id, owner, epoch, from_state, from_us, to_state, at_us, due_us, keep_lease, wakes, retries, last_error,
         report_digest, reason_code, facts_view_digest, count, token, signal_id, signal_kind, partition_key, attributes,
         payload, deadline_us, attempts, launches, missing, absent_root, claimed_us, ord)),
superseding AS MATERIALIZED (
  SELECT * FROM json_to_recordset(%(superseding)b::json)
    AS s(run_id text, old_run_id text, details text, signal_id text, partition_key text, attributes text, payload text)),
held AS MATERIALIZED (
  SELECT r.run_id, r.lease_epoch, r.settled FROM runs r
  JOIN (SELECT run_id FROM given UNION SELECT old_run_id FROM superseding) n ON n.run_id = r.run_id
  ORDER BY r.run_id FOR UPDATE OF r),
changed AS (
  UPDATE runs r
  SET state = g.to_state, reason_code = g.reason_code,
      due_us = CASE WHEN g.to_state = 'WAITING_EVIDENCE' AND r.due_us > g.claimed_us THEN least(g.due_us, r.due_us)
                    ELSE g.due_us END,
      lease_owner = CASE WHEN g.keep_lease THEN r.lease_owner ELSE '' END,
      lease_until_us = CASE WHEN g.keep_lease THEN r.lease_until_us ELSE 0 END,
      wakes = g.wakes, retries = g.retries, last_error = g.last_error, report_digest = g.report_digest,
      facts_view_digest = g.facts_view_digest, event_seq = r.event_seq + g.count, updated_us = g.at_us,
      settled = g.token, deadline_us = coalesce(g.deadline_us, r.deadline_us), attempts = r.attempts + g.launches,
      missing = CASE WHEN g.to_state = 'WAITING_EVIDENCE' THEN coalesce(g.missing, r.missing) ELSE '' END,
      absent_root = g.absent_root
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
untold AS MATERIALIZED (
  SELECT s.run_id, s.old_run_id, s.details FROM superseding s JOIN changed c ON c.run_id = s.run_id
  WHERE NOT EXISTS (
    SELECT 1 FROM run_events e
    WHERE e.run_id = s.old_run_id AND e.kind = 'SUPERSEDED_BY'
      AND convert_from(e.details, 'UTF8')::json #>> '{superseded_by,new_run_id}' = s.run_id)),
grown AS (
  UPDATE runs o SET event_seq = o.event_seq + k.count
  FROM (SELECT old_run_id, count(*) AS count FROM untold GROUP BY old_run_id) k
  JOIN held h ON h.run_id = k.old_run_id
  WHERE o.run_id = k.old_run_id
  RETURNING o.run_id, o.event_seq - k.count AS before, sr_now_us() AS now),
superseded AS (
  INSERT INTO run_events (run_id, seq, kind, ts_us, details)
  SELECT n.run_id, n.before + row_number() OVER (PARTITION BY n.run_id ORDER BY s.run_id), 'SUPERSEDED_BY',
         greatest(n.now, (SELECT max(e.ts_us) FROM run_events e WHERE e.run_id = n.run_id)),
         convert_to(s.details, 'UTF8')
  FROM grown n JOIN untold s ON s.old_run_id = n.run_id),
signals AS (
  INSERT INTO outbox (message_id, run_id, kind, partition_key, attributes, payload, created_us, needs_seq)
  SELECT o.signal_id, o.run_id, o.signal_kind, o.partition_key, o.attributes, o.payload, c.at_us, c.event_seq
  FROM (SELECT signal_id, run_id, signal_kind, partition_key, attributes, payload, 1 AS nth FROM given
        WHERE signal_id IS NOT NULL
        UNION ALL
        SELECT signal_id, run_id, 'RUN_SUPERSEDES', partition_key, convert_to(attributes, 'UTF8'),
               convert_to(payload, 'UTF8'), 2 FROM superseding) o
  JOIN changed c ON c.run_id = o.run_id ORDER BY o.nth, o.run_id
  ON CONFLICT (message_id, emission) DO NOTHING)
SELECT g.run_id FROM given g LEFT JOIN changed c ON c.run_id = g.run_id LEFT JOIN held h ON h.run_id = g.run_id
WHERE c.run_id IS NOT NULL OR (h.lease_epoch = g.epoch AND h.settled = g.token);

-- name: waiting_runs
-- Each figure from an index that has it: from the rows themselves a page would be read for each. The oldest is found in the
-- order of (state, admitted_us), where WAITING_EVIDENCE is last: by its admission alone the planner might search all runs.
SELECT (SELECT count(*) FROM runs
        WHERE state IN ('WAITING_EVIDENCE', 'FAILED', 'QUARANTINED') AND state = 'WAITING_EVIDENCE') AS count,
       (SELECT admitted_us FROM runs
        WHERE state IN ('WAITING_EVIDENCE', 'FAILED', 'QUARANTINED') AND (state, admitted_us) >= ('WAITING_EVIDENCE', 0)
        ORDER BY state, admitted_us LIMIT 1) AS oldest_us,
       (SELECT deadline_us FROM runs WHERE state = 'WAITING_EVIDENCE' ORDER BY deadline_us LIMIT 1) AS next_deadline_us;

-- name: make_waiting_due
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
waiting AS MATERIALIZED (
  SELECT run_id FROM runs
  WHERE state = 'WAITING_EVIDENCE' AND due_us > (SELECT now FROM clock)
  ORDER BY run_id FOR UPDATE SKIP LOCKED)
UPDATE runs r SET due_us = c.now FROM waiting w, clock c WHERE r.run_id = w.run_id RETURNING r.run_id;

-- name: absent_roots
-- A page of the roots that are looked at in rounds, each once however many runs wait for it.
SELECT DISTINCT absent_root FROM runs
WHERE state = 'WAITING_EVIDENCE' AND absent_root <> '' AND absent_root > %(after)b
  AND run_id = %(only)b  -- only
ORDER BY absent_root LIMIT %(limit)b;

-- name: wake_waiting_for_roots
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
waiting AS MATERIALIZED (
  SELECT run_id FROM runs
  WHERE state = 'WAITING_EVIDENCE' AND absent_root <> '' AND absent_root = ANY (%(roots)b::text[])
    AND run_id = %(only)b  -- only
  LIMIT %(limit)b FOR UPDATE SKIP LOCKED)
UPDATE runs r SET due_us = least(r.due_us, c.now), absent_root = '' FROM waiting w, clock c
WHERE r.run_id = w.run_id RETURNING r.run_id;

-- name: wake_runs
-- Rows are locked before they are compared: a claim that is at work is waited for, and its lease is seen. An act of a known
-- key is not carried out again; of two at the same moment the second violates the unique action_key.
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
given AS MATERIALIZED (
  SELECT g.* FROM unnest(%(action_key)b::text[], %(run_id)b::text[], %(actor)b::text[], %(reason)b::text[])
    WITH ORDINALITY AS g(action_key, run_id, actor, reason, ord)
  WHERE NOT EXISTS (SELECT 1 FROM operator_actions k WHERE k.action_key = g.action_key)),
held AS MATERIALIZED (
  SELECT r.run_id, r.state, r.due_us, r.lease_until_us FROM runs r JOIN given g ON g.run_id = r.run_id
  ORDER BY r.run_id FOR UPDATE OF r),
decided AS MATERIALIZED (
  SELECT h.run_id, CASE WHEN h.state <> 'WAITING_EVIDENCE' THEN 'RUN_NOT_WAITING'
                        WHEN h.lease_until_us > c.now THEN 'BEING_EXAMINED'
                        WHEN h.due_us <= c.now THEN 'DUE_ALREADY' ELSE 'WOKEN' END AS outcome
  FROM held h, clock c),
woken AS (
  UPDATE runs r SET due_us = c.now FROM decided d, clock c WHERE r.run_id = d.run_id AND d.outcome = 'WOKEN'),
acted AS (
  INSERT INTO operator_actions (action_key, at, actor, via, action, subject, reason, outcome, detail)
  SELECT g.action_key, c.now, g.actor, 'cli', %(action)b, g.run_id, g.reason, d.outcome,
         %(details)b::json ->> d.outcome
  FROM given g JOIN decided d ON d.run_id = g.run_id, clock c ORDER BY g.ord)
SELECT run_id, outcome FROM decided
UNION ALL
SELECT subject, outcome FROM operator_actions WHERE action_key = ANY (%(action_key)b::text[]);

-- name: awaited_roots
-- Roots where a run waits for evidence. The index holds the begin of a root: a row of it must fit into a page. Each root is
-- looked for by itself (LATERAL), not joined with all runs that wait.
SELECT g.root FROM unnest(%(roots)b::text[]) AS g(root)
CROSS JOIN LATERAL (SELECT r.run_id FROM runs r
                    WHERE r.state = 'WAITING_EVIDENCE' AND sr_root_of(r.intent, r.inputs) = g.root
                      AND left(sr_root_of(r.intent, r.inputs), 600) COLLATE "C" = left(g.root, 600)
                    ORDER BY r.run_id LIMIT 1) AS waiting;

-- name: waiting_roots
-- In the order of the index of waiting runs: by their admission the planner might search among all runs.
SELECT DISTINCT root FROM (SELECT sr_root_of(intent, inputs) AS root FROM runs WHERE state = 'WAITING_EVIDENCE'
                           ORDER BY deadline_us DESC LIMIT %(most)b) AS page;

-- name: waiting_at
SELECT run_id FROM runs
WHERE state = 'WAITING_EVIDENCE' AND sr_root_of(intent, inputs) = %(root)b AND run_id > %(after)b
  AND left(sr_root_of(intent, inputs), 600) COLLATE "C" = left(%(root)b, 600)
  AND run_id = %(only)b  -- only
ORDER BY run_id LIMIT %(limit)b;

-- name: tell_runs
-- Rows are locked before they are compared: a claim that is at work is waited for, and its lease is seen. A run is told
-- once a second at most; see authority/arrivals.py. A clock that was set back puts nothing off for longer.
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
held AS MATERIALIZED (
  SELECT r.run_id, r.due_us, r.lease_until_us, greatest(c.now, least(r.arrived_us, c.now) + 1000000) AS soonest
  FROM runs r, clock c WHERE r.run_id = ANY (%(run_ids)b::text[]) AND r.state = 'WAITING_EVIDENCE'
  ORDER BY r.run_id FOR UPDATE OF r)
UPDATE runs r SET due_us = h.soonest, arrived_us = h.soonest
FROM held h, clock c
WHERE r.run_id = h.run_id AND (h.lease_until_us > c.now OR h.due_us > h.soonest);

-- name: claim_unprojected
-- Documents of one run are also those of the run that it supersedes: the record of that one grows with its READY.
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
behind AS MATERIALIZED (
  SELECT run_id FROM runs
  WHERE event_seq > projected_seq AND relay_until_us <= (SELECT now FROM clock)
    AND (due_us IS NULL OR state = 'WAITING_EVIDENCE'
         OR (lease_until_us > (SELECT now FROM clock)
             AND updated_us <= (SELECT now FROM clock) - %(quiet_us)b::bigint))
    AND NOT EXISTS (SELECT 1 FROM unfinished_rebuild)
    AND run_id IN (%(only)b, (SELECT n.supersedes FROM runs n WHERE n.run_id = %(only)b))  -- only
  ORDER BY updated_us LIMIT %(limit)b FOR UPDATE SKIP LOCKED)
UPDATE runs r SET relay_owner = %(owner)b, relay_until_us = c.now + %(lease_us)b::bigint
FROM behind b, clock c WHERE r.run_id = b.run_id
RETURNING r.run_id, r.run_equivalence_key, r.state, r.reason_code, r.intent, r.inputs, r.admitted_us, r.deadline_us,
          r.updated_us, r.due_us, r.lease_owner, r.lease_epoch, r.lease_until_us, r.wakes, r.retries, r.last_error,
          r.event_seq, r.projected_seq, r.facts_view_digest, r.relay_retries, r.relay_error, r.relay_since_us,
          r.relay_until_us, r.absent_root;

-- name: mark_projected
-- In a database that was rebuilt, or restored from a backup, the run may have other events, and fewer.
WITH done AS MATERIALIZED (
  SELECT r.run_id, g.seq FROM runs r
  JOIN unnest(%(run_id)b::text[], %(seq)b::bigint[]) AS g(run_id, seq) ON g.run_id = r.run_id
  WHERE r.relay_owner = %(owner)b
  ORDER BY r.run_id FOR UPDATE OF r)
UPDATE runs r
SET projected_seq = greatest(r.projected_seq, least(d.seq, r.event_seq)), relay_owner = '', relay_until_us = 0, relay_retries = 0,
    relay_error = '', relay_since_us = 0
FROM done d WHERE r.run_id = d.run_id;

-- name: postpone_projections
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
failed AS MATERIALIZED (
  SELECT r.run_id, g.until_us, g.error FROM runs r
  JOIN unnest(%(run_id)b::text[], %(until_us)b::bigint[], %(error)b::text[]) AS g(run_id, until_us, error)
    ON g.run_id = r.run_id
  WHERE r.relay_owner = %(owner)b
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
-- Emissions of one message go out in their order: a signal that is repeated has been published before. A correction
-- supersedes after its READY is published.
WITH clock AS MATERIALIZED (SELECT sr_now_us() AS now),
owed AS MATERIALIZED (
  SELECT o.outbox_id FROM outbox o LEFT JOIN runs r ON r.run_id = o.run_id
  WHERE o.sent_us IS NULL AND o.lease_until_us <= (SELECT now FROM clock) AND o.due_us <= (SELECT now FROM clock)
    AND (o.needs_seq = 0 OR r.projected_seq >= o.needs_seq)
    AND (o.emission = 0
         OR NOT EXISTS (SELECT 1 FROM outbox p WHERE p.message_id = o.message_id
                                                 AND p.emission < o.emission AND p.sent_us IS NULL))
    AND (o.kind <> 'RUN_SUPERSEDES'
         OR NOT EXISTS (SELECT 1 FROM outbox p WHERE p.run_id = o.run_id AND p.kind = 'READY' AND p.sent_us IS NULL))
    AND o.outbox_id = ANY (ARRAY (SELECT outbox_id FROM outbox WHERE run_id = %(only)b))  -- only
  ORDER BY o.outbox_id LIMIT %(limit)b FOR UPDATE OF o SKIP LOCKED),
claimed AS (
  UPDATE outbox o
  SET lease_owner = %(owner)b, lease_until_us = c.now + %(lease_us)b::bigint, attempts = o.attempts + 1
  FROM owed w, clock c WHERE o.outbox_id = w.outbox_id
  RETURNING o.outbox_id, o.message_id, o.run_id, o.kind, o.partition_key, o.attributes, o.payload, o.created_us,
            o.attempts, o.emission, o.action_key, o.lease_owner)
SELECT outbox_id, message_id, run_id, kind, partition_key, attributes, payload, created_us, attempts, emission,
       action_key, lease_owner
FROM claimed ORDER BY outbox_id;

-- name: mark_sent
-- A signal with details is the READY of its run, whose record says where it lies; see end_reemits for locks and clock.
-- In a database that was rebuilt, or restored from a backup, the same outbox_id may be another message's: here, and
-- wherever else a claimed signal is named, it is found with its message. Elsewhere under its lease too: but that a message
-- was published is so whoever holds the lease by now, and two relays on a slow bus would undo each other's work for ever.
WITH sent AS MATERIALIZED (
  SELECT o.outbox_id, o.run_id, g.receipt, g.details FROM outbox o
  JOIN unnest(%(outbox_id)b::bigint[], %(message_id)b::text[], %(emission)b::bigint[], %(receipt)b::text[],
              %(details)b::bytea[])
         AS g(outbox_id, message_id, emission, receipt, details) ON g.outbox_id = o.outbox_id
  WHERE o.message_id = g.message_id AND o.emission = g.emission
    AND o.sent_us IS NULL ORDER BY o.outbox_id FOR UPDATE OF o),
held AS MATERIALIZED (
  SELECT r.run_id FROM runs r JOIN sent s ON s.run_id = r.run_id WHERE s.details IS NOT NULL
  ORDER BY r.run_id FOR UPDATE OF r),
clock AS MATERIALIZED (SELECT sr_now_us() AS now FROM (SELECT count(*) FROM held) AS locked),
grown AS (
  UPDATE runs r SET event_seq = r.event_seq + 1 FROM held h WHERE r.run_id = h.run_id RETURNING r.run_id, r.event_seq),
added AS (
  INSERT INTO run_events (run_id, seq, kind, ts_us, details)
  SELECT n.run_id, n.event_seq, 'READY_PUBLISHED',
         greatest(c.now, (SELECT max(e.ts_us) FROM run_events e WHERE e.run_id = n.run_id)), s.details
  FROM clock c, grown n JOIN sent s ON s.run_id = n.run_id AND s.details IS NOT NULL)
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

-- name: replace_detail
UPDATE operator_actions SET detail = %(detail)b
WHERE action_key = %(action_key)b AND detail = %(before)b RETURNING action_key;

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
       (SELECT max(greatest(n.emission, n.removed_emission))::bigint + 1 FROM outbox n
        WHERE n.message_id = o.message_id) AS emissions,
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
         raw_sha256, raw_size, ord)
  WHERE NOT EXISTS (SELECT 1 FROM unfinished_rebuild)),
held AS MATERIALIZED (
  SELECT r.run_id FROM runs r JOIN given g ON g.run_id = r.run_id WHERE g.count > 0
  ORDER BY r.run_id FOR UPDATE OF r),
changed AS (
  UPDATE runs r SET event_seq = r.event_seq + g.count
  FROM given g JOIN held h ON h.run_id = g.run_id
  WHERE r.run_id = g.run_id AND r.event_seq = g.from_seq
  RETURNING r.run_id, r.event_seq - g.count AS before),
done AS MATERIALIZED (
  SELECT g.*, c.before FROM given g LEFT JOIN changed c ON c.run_id = g.run_id
  WHERE g.count = 0 OR c.run_id IS NOT NULL),
acted AS (
  INSERT INTO operator_actions (action_key, at, actor, via, action, subject, reason, outcome, detail)
  SELECT action_key, at_us, actor, via, %(action)b, run_id, reason, outcome, detail FROM done ORDER BY ord),
acted_for AS (  -- by
  INSERT INTO operator_actions (action_key, at, actor, via, action, subject, reason, outcome, detail)  -- by
  SELECT %(by_key)b, at_us, %(by_actor)b, %(by_via)b, %(by_action)b, %(by_subject)b, %(by_reason)b,  -- by
         coalesce(nullif(reason_code, ''), CASE disposition WHEN 'ACCEPTED' THEN 'ADMITTED' ELSE disposition END),  -- by
         detail FROM done),  -- by
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
  SELECT * FROM unnest(%(outbox_id)b::bigint[], %(message_id)b::text[], %(emission)b::bigint[], %(owner)b::text[],
                       %(published)b::boolean[], %(receipt)b::text[], %(kind)b::text[],
                       %(details)b::bytea[], %(outcome)b::text[], %(detail)b::text[])
    AS g(outbox_id, message_id, emission, owner, published, receipt, kind, details, outcome, detail)),
owed AS MATERIALIZED (
  SELECT o.outbox_id, o.run_id, o.action_key, g.published, g.receipt, g.kind, g.details, g.outcome, g.detail
  FROM outbox o JOIN given g ON g.outbox_id = o.outbox_id
  WHERE o.message_id = g.message_id AND o.emission = g.emission AND (g.published OR o.lease_owner = g.owner)
    AND o.emission > 0 AND o.sent_us IS NULL ORDER BY o.outbox_id FOR UPDATE OF o),
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
  SELECT o.outbox_id FROM outbox o
  JOIN unnest(%(outbox_id)b::bigint[], %(message_id)b::text[], %(emission)b::bigint[], %(owner)b::text[])
         AS g(outbox_id, message_id, emission, owner) ON g.outbox_id = o.outbox_id
  WHERE o.message_id = g.message_id AND o.emission = g.emission AND o.lease_owner = g.owner
  ORDER BY o.outbox_id FOR UPDATE OF o)
UPDATE outbox o SET due_us = %(due_us)b, lease_owner = '', lease_until_us = 0
FROM failed f WHERE o.outbox_id = f.outbox_id;

-- name: pull_in_times
WITH bound AS MATERIALIZED (
  SELECT now, now + %(run_horizon_us)b::bigint AS run, now + %(lease_horizon_us)b::bigint AS lease,
         now + %(relay_horizon_us)b::bigint AS relay, %(until_restart)b::bigint AS never
  FROM (SELECT sr_now_us() AS now) AS clock),
ahead AS MATERIALIZED (
  SELECT run_id FROM runs WHERE due_us > (SELECT run FROM bound) AND absent_root = ''
  UNION SELECT run_id FROM runs WHERE lease_owner <> '' AND lease_until_us > (SELECT lease FROM bound)
  UNION SELECT run_id FROM runs WHERE event_seq > projected_seq AND relay_until_us > (SELECT relay FROM bound)
                               AND relay_until_us < (SELECT never FROM bound)),
held AS MATERIALIZED (
  SELECT r.run_id FROM runs r JOIN ahead a ON a.run_id = r.run_id ORDER BY r.run_id FOR UPDATE OF r SKIP LOCKED),
changed AS (
  UPDATE runs r
  SET due_us = CASE WHEN r.due_us > b.run AND r.absent_root = '' THEN b.now ELSE r.due_us END,
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
SELECT lease_owner AS owner FROM runs WHERE lease_owner <> '' AND lease_until_us > (SELECT now FROM clock)
UNION
SELECT relay_owner FROM runs WHERE event_seq > projected_seq AND relay_until_us > (SELECT now FROM clock)
UNION
SELECT lease_owner FROM outbox WHERE sent_us IS NULL AND lease_until_us > (SELECT now FROM clock);

-- name: expire_owner
WITH dead_runs AS (
  UPDATE runs
  SET lease_until_us = CASE WHEN lease_owner = %(owner)b THEN 0 ELSE lease_until_us END,
      relay_until_us = CASE WHEN relay_owner = %(owner)b THEN 0 ELSE relay_until_us END
  WHERE run_id = ANY (ARRAY (SELECT run_id FROM runs
                             WHERE lease_owner <> '' AND lease_owner = %(owner)b
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
                 AND run_id IN (%(only)b, (SELECT n.supersedes FROM runs n WHERE n.run_id = %(only)b))  -- only
              ) AS projections,
       EXISTS (SELECT 1 FROM outbox o LEFT JOIN runs r ON r.run_id = o.run_id
               WHERE o.sent_us IS NULL AND o.due_us <= now
                 AND (o.needs_seq = 0 OR r.projected_seq >= o.needs_seq)
                 AND (o.emission = 0
                      OR NOT EXISTS (SELECT 1 FROM outbox p WHERE p.message_id = o.message_id
                                                              AND p.emission < o.emission AND p.sent_us IS NULL))
                 AND (o.kind <> 'RUN_SUPERSEDES'
                      OR NOT EXISTS (SELECT 1 FROM outbox p WHERE p.run_id = o.run_id AND p.kind = 'READY'
                                                              AND p.sent_us IS NULL))
                 AND o.outbox_id = ANY (ARRAY (SELECT outbox_id FROM outbox WHERE run_id = %(only)b))  -- only
              ) AS signals,
       EXISTS (SELECT 1 FROM runs
               WHERE event_seq > projected_seq AND due_us IS NULL
                 AND run_id IN (%(only)b, (SELECT n.supersedes FROM runs n WHERE n.run_id = %(only)b))  -- only
              )
       OR EXISTS (SELECT 1 FROM outbox
                  WHERE sent_us IS NULL
                    AND outbox_id = ANY (ARRAY (SELECT outbox_id FROM outbox WHERE run_id = %(only)b))  -- only
                 ) AS undelivered,
       EXISTS (SELECT 1 FROM runs
               WHERE state NOT IN ('READY', 'FAILED', 'QUARANTINED') AND retries > 0
                 AND run_id = %(only)b  -- only
              ) AS postponed
FROM clock;

-- name: get_run
SELECT run_id, run_equivalence_key, state, reason_code, intent, inputs, admitted_us, deadline_us, updated_us, due_us,
       lease_owner, lease_epoch, lease_until_us, wakes, retries, last_error, event_seq, projected_seq,
       facts_view_digest, relay_retries, relay_error, relay_since_us, relay_until_us, absent_root
FROM runs WHERE run_id = %(run_id)b;

-- name: list_runs
SELECT run_id, run_equivalence_key, state, reason_code, intent, inputs, admitted_us, deadline_us, updated_us, due_us,
       lease_owner, lease_epoch, lease_until_us, wakes, retries, last_error, event_seq, projected_seq,
       facts_view_digest, relay_retries, relay_error, relay_since_us, relay_until_us, absent_root
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
-- Its few rows are gathered first: a planner that avoids sorting would read the whole table in the order of record_id.
WITH its AS MATERIALIZED (
  SELECT record_id, record_key, message_id, kind, disposition, reason_code, detail, received_us, raw_sha256, raw_size
  FROM intake_records WHERE run_id = %(run_id)b AND run_id <> '')
SELECT record_key, message_id, kind, disposition, reason_code, detail, received_us, raw_sha256, raw_size
FROM its ORDER BY record_id;

-- name: supersessions
SELECT run_id, state, supersession, admitted_us FROM runs WHERE run_id = %(run_id)b AND supersedes <> ''
UNION ALL
SELECT run_id, state, supersession, admitted_us FROM runs WHERE supersedes = %(run_id)b AND supersedes <> ''
ORDER BY admitted_us, run_id;

-- name: list_signals
-- Its few rows are gathered first, as those of list_records.
WITH its AS MATERIALIZED (
  SELECT outbox_id, message_id, kind, sent_us, emission, receipt, action_key FROM outbox WHERE run_id = %(run_id)b)
SELECT message_id, kind, sent_us, emission, receipt, action_key FROM its ORDER BY outbox_id;

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

-- name: remove_intake_records
-- A batch of retention: "older" of the rows "taken" have expired. Rows of refused records stay, and those of redrives.
-- Records of a stream that is not the profile's have a time of their own. Rows that stay are read again by every
-- retention: no index has to be written for each admission.
WITH page AS MATERIALIZED (
  SELECT record_id,
         received_us < %(before_us)b::bigint AS older,
         disposition IN ('ACCEPTED', 'DUPLICATE', 'IGNORED')
           AND NOT (record_key >= 'redrive/' AND record_key < 'redrive0')
           AND (received_us < %(others_before_us)b::bigint OR record_key < 'kinesis/' OR record_key >= 'kinesis0'
                OR (%(stream)b::text <> '' AND left(record_key, length(%(stream)b::text)) = %(stream)b::text)) AS removable
  FROM intake_records WHERE record_id > %(after)b::bigint ORDER BY record_id LIMIT %(limit)b::bigint),
held AS MATERIALIZED (
  SELECT record_id FROM intake_records
  WHERE record_id = ANY (ARRAY (SELECT record_id FROM page WHERE older AND removable))
  ORDER BY record_id FOR UPDATE SKIP LOCKED),
removed AS (DELETE FROM intake_records r USING held h WHERE r.record_id = h.record_id RETURNING 1),
noted AS (
  UPDATE operator_actions SET detail = (split_part(detail, ' ', 1)::bigint + n.removed) || substr(detail, strpos(detail, ' '))
  FROM (SELECT count(*) AS removed FROM removed) n WHERE n.removed > 0 AND action_key = %(action_key)b)
SELECT count(*) AS examined, count(*) AS taken, count(*) FILTER (WHERE older) AS older, max(record_id) AS last,
       (SELECT count(*) FROM removed) AS removed
FROM page;

-- name: remove_dead_letter_raw
-- At most 4 MiB in a batch, however many rows: whatever frees their bytes takes time for each of their pages.
WITH page AS MATERIALIZED (
  SELECT record_id, record_key, received_us < %(before_us)b::bigint AS older,
         sum(raw_size) OVER (ORDER BY record_id) - raw_size < 4194304 AS fits
  FROM (SELECT record_id, record_key, received_us, raw_size FROM intake_records
        WHERE disposition IN ('REJECTED', 'CONFLICT') AND raw_removed_us IS NULL AND record_id > %(after)b::bigint
        ORDER BY record_id LIMIT %(limit)b::bigint) AS first),
held AS MATERIALIZED (
  SELECT record_id, record_key FROM intake_records
  WHERE record_id = ANY (ARRAY (SELECT record_id FROM page WHERE older AND fits)) AND raw_removed_us IS NULL
  ORDER BY record_id FOR UPDATE SKIP LOCKED),
emptied AS (UPDATE dead_letters d SET raw = ''::bytea FROM held h WHERE d.record_key = h.record_key),
removed AS (
  UPDATE intake_records r SET raw_removed_us = sr_now_us() FROM held h WHERE r.record_id = h.record_id RETURNING 1),
noted AS (
  UPDATE operator_actions SET detail = (split_part(detail, ' ', 1)::bigint + n.removed) || substr(detail, strpos(detail, ' '))
  FROM (SELECT count(*) AS removed FROM removed) n WHERE n.removed > 0 AND action_key = %(action_key)b)
SELECT count(*) AS examined, count(*) FILTER (WHERE fits) AS taken, count(*) FILTER (WHERE older AND fits) AS older,
       max(record_id) FILTER (WHERE fits) AS last, (SELECT count(*) FROM removed) AS removed
FROM page;

-- name: remove_outbox_sent
-- The first row of a message keeps the highest number of the rows that are removed. Those first rows are locked in order;
-- the removed ones are skipped when they are locked, so of two retentions none waits in a circle.
WITH held AS MATERIALIZED (
  SELECT outbox_id, message_id, emission FROM outbox
  WHERE sent_us IS NOT NULL AND kind IN ('READY_REEMIT', 'TERMINAL_REEMIT', 'REQUEST_REJECTED')
    AND sent_us < %(before_us)b::bigint
  ORDER BY sent_us, outbox_id LIMIT %(limit)b::bigint FOR UPDATE SKIP LOCKED),
firsts AS MATERIALIZED (
  SELECT outbox_id, message_id FROM outbox
  WHERE emission = 0 AND message_id = ANY (ARRAY (SELECT message_id FROM held WHERE emission > 0))
  ORDER BY outbox_id FOR UPDATE),
kept AS (
  UPDATE outbox o SET removed_emission = greatest(o.removed_emission, g.emission)
  FROM firsts f JOIN (SELECT message_id, max(emission) AS emission FROM held GROUP BY message_id) g
    ON g.message_id = f.message_id
  WHERE o.outbox_id = f.outbox_id),
removed AS (DELETE FROM outbox o USING held h WHERE o.outbox_id = h.outbox_id RETURNING 1),
noted AS (
  UPDATE operator_actions SET detail = (split_part(detail, ' ', 1)::bigint + n.removed) || substr(detail, strpos(detail, ' '))
  FROM (SELECT count(*) AS removed FROM removed) n WHERE n.removed > 0 AND action_key = %(action_key)b)
SELECT count(*) AS examined, count(*) AS taken, count(*) AS older, 0::bigint AS last,
       (SELECT count(*) FROM removed) AS removed
FROM held;

-- name: remove_digest_reuse
WITH held AS MATERIALIZED (
  SELECT digest_key FROM digest_reuse WHERE kept_us < %(before_us)b::bigint
  ORDER BY kept_us LIMIT %(limit)b::bigint FOR UPDATE SKIP LOCKED),
removed AS (DELETE FROM digest_reuse d USING held h WHERE d.digest_key = h.digest_key RETURNING 1),
noted AS (
  UPDATE operator_actions SET detail = (split_part(detail, ' ', 1)::bigint + n.removed) || substr(detail, strpos(detail, ' '))
  FROM (SELECT count(*) AS removed FROM removed) n WHERE n.removed > 0 AND action_key = %(action_key)b)
SELECT count(*) AS examined, count(*) AS taken, count(*) AS older, 0::bigint AS last,
       (SELECT count(*) FROM removed) AS removed
FROM held;

-- name: lock_admissions
-- Waits for statements that admit, and for reports of daemons: each names one of these tables, and sees the mark of a
-- rebuild if it begins after this one.
LOCK TABLE runs, daemons IN SHARE MODE;

-- name: begin_rebuild
-- Only in an authority that knows of no run and no record, and that no daemon works on.
INSERT INTO unfinished_rebuild (only_row, began_us, epoch, actor, terms)
SELECT 1, now, now, %(actor)b, %(terms)b FROM (SELECT sr_now_us() AS now) AS clock
WHERE NOT EXISTS (SELECT 1 FROM runs) AND NOT EXISTS (SELECT 1 FROM intake_records)
  AND NOT EXISTS (SELECT 1 FROM outbox)
  AND NOT EXISTS (SELECT 1 FROM daemons WHERE seen_us >= now - %(within_us)b::bigint)
ON CONFLICT (only_row) DO NOTHING;

-- name: get_rebuild
SELECT began_us, epoch, actor, terms FROM unfinished_rebuild WHERE only_row = 1;

-- name: restore_runs
-- A batch of runs with all their rows, and with the last batch the end of the rebuild. A run that is there stays as it is,
-- with all its rows: a rebuild that was interrupted is begun again, and a statement whose answer was lost is sent again.
-- Nothing is written once the rebuild has ended: the lock lets the statement of a slow one see that another ended it.
WITH held AS MATERIALIZED (
  SELECT 1 FROM unfinished_rebuild WHERE epoch = %(epoch)b FOR UPDATE),
given AS MATERIALIZED (
  SELECT * FROM unnest(%(run_id)b::text[], %(run_equivalence_key)b::text[], %(fingerprint)b::text[], %(intent)b::bytea[],
                       %(inputs)b::bytea[], %(state)b::text[], %(reason_code)b::text[], %(admitted_us)b::bigint[],
                       %(deadline_us)b::bigint[], %(updated_us)b::bigint[], %(due_us)b::bigint[], %(report_digest)b::text[],
                       %(event_seq)b::bigint[], %(projected_seq)b::bigint[], %(facts_view_digest)b::text[],
                       %(invoker)b::text[], %(attempts)b::integer[], %(strategy)b::text[], %(missing)b::text[],
                       %(supersedes)b::text[], %(supersession)b::text[])
    AS g(run_id, run_equivalence_key, fingerprint, intent, inputs, state, reason_code, admitted_us, deadline_us,
         updated_us, due_us, report_digest, event_seq, projected_seq, facts_view_digest, invoker, attempts, strategy,
         missing, supersedes, supersession)),
new_runs AS (
  INSERT INTO runs (run_id, run_equivalence_key, fingerprint, intent, inputs, state, reason_code, admitted_us,
                    deadline_us, updated_us, due_us, lease_epoch, report_digest, event_seq, projected_seq,
                    facts_view_digest, invoker, attempts, strategy, missing, supersedes, supersession)
  SELECT run_id, run_equivalence_key, fingerprint, intent, inputs, state, reason_code, admitted_us, deadline_us,
         updated_us, due_us, %(epoch)b, report_digest, event_seq, projected_seq, facts_view_digest, invoker, attempts,
         strategy, missing, supersedes, supersession
  FROM given WHERE EXISTS (SELECT 1 FROM held) ORDER BY run_id
  ON CONFLICT DO NOTHING
  RETURNING run_id),
added AS (
  INSERT INTO run_events (run_id, seq, kind, ts_us, details)
  SELECT e.run_id, e.seq, e.kind, e.ts_us, e.details
  FROM unnest(%(event_run_id)b::text[], %(event_seqs)b::bigint[], %(event_kind)b::text[], %(event_ts_us)b::bigint[],
              %(event_details)b::bytea[]) AS e(run_id, seq, kind, ts_us, details)
  JOIN new_runs n ON n.run_id = e.run_id),
tried AS (
  INSERT INTO engine_attempts (run_id, attempt_no, attempt_id, epoch, invoker, handle, launched_us, timeout_us, ended_us,
                               outcome, reason_code, exit_code, stop_code, another_attempt, duration_ms, detail,
                               stderr_tail)
  SELECT a.run_id, a.attempt_no, a.attempt_id, %(epoch)b, a.invoker, a.handle, a.launched_us, a.timeout_us, a.ended_us,
         a.outcome, a.reason_code, a.exit_code, a.stop_code, a.another_attempt, a.duration_ms, a.detail, a.stderr_tail
  FROM json_populate_recordset(NULL::engine_attempts, %(tried)b::json) AS a JOIN new_runs n ON n.run_id = a.run_id),
signals AS (
  INSERT INTO outbox (message_id, emission, run_id, kind, partition_key, attributes, payload, created_us, needs_seq,
                      sent_us, receipt, action_key, removed_emission)
  SELECT s.message_id, s.emission, s.run_id, s.kind, s.partition_key, s.attributes, s.payload, s.created_us, s.needs_seq,
         s.sent_us, s.receipt, s.action_key, s.removed_emission
  FROM unnest(%(signal_run_id)b::text[], %(message_id)b::text[], %(emission)b::integer[], %(signal_kind)b::text[],
              %(partition_key)b::text[], %(attributes)b::bytea[], %(payload)b::bytea[], %(created_us)b::bigint[],
              %(needs_seq)b::bigint[], %(sent_us)b::bigint[], %(receipt)b::text[], %(signal_action_key)b::text[],
              %(removed_emission)b::integer[]) WITH ORDINALITY
    AS s(run_id, message_id, emission, kind, partition_key, attributes, payload, created_us, needs_seq, sent_us, receipt,
         action_key, removed_emission, ord)
  JOIN new_runs n ON n.run_id = s.run_id ORDER BY s.ord
  ON CONFLICT (message_id, emission) DO NOTHING),
acted AS (
  INSERT INTO operator_actions (action_key, at, actor, via, action, subject, reason, outcome, detail)
  SELECT * FROM unnest(%(action_key)b::text[], %(action_at)b::bigint[], %(actor)b::text[], %(via)b::text[],
                       %(action)b::text[], %(subject)b::text[], %(reason)b::text[], %(outcome)b::text[],
                       %(detail)b::text[])
  WHERE EXISTS (SELECT 1 FROM held)
  ON CONFLICT (action_key) DO NOTHING),
ended AS (
  DELETE FROM unfinished_rebuild WHERE %(ends)b AND EXISTS (SELECT 1 FROM held)),
known AS (
  INSERT INTO store_identities (name, identity, noted_us)
  SELECT name, identity, sr_now_us() FROM unnest(%(store_name)b::text[], %(identity)b::text[]) AS s(name, identity)
  WHERE EXISTS (SELECT 1 FROM held)
  ON CONFLICT (name) DO UPDATE SET identity = excluded.identity, noted_us = excluded.noted_us)
SELECT run_id FROM new_runs;

-- name: restored_runs
-- Which runs a rebuild has restored. A statement of its own: restore_runs may have waited for that of another process, and
-- does not see what that one has inserted meanwhile.
SELECT run_id FROM runs WHERE run_id = ANY (%(run_ids)b::text[]) AND lease_epoch >= %(epoch)b;

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
       -- The newest ones, without those that a person has acknowledged (acts.py): old ones stay QUARANTINED for ever.
       (SELECT count(*) FROM (SELECT run_id FROM runs
                              WHERE state IN ('WAITING_EVIDENCE', 'FAILED', 'QUARANTINED') AND state = 'QUARANTINED'
                              ORDER BY admitted_us DESC LIMIT %(most)b) AS q
        WHERE (SELECT count(*) FROM operator_actions a WHERE a.action_key = 'quarantine_ack/' || q.run_id) = 0) AS quarantined,
       (SELECT count(*) FROM (SELECT 1 FROM intake_records
                              WHERE disposition IN ('REJECTED', 'CONFLICT') AND raw_removed_us IS NULL
                              ORDER BY record_id LIMIT %(most)b) AS d) AS dead_letters,
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
WHERE NOT EXISTS (SELECT 1 FROM unfinished_rebuild)
ON CONFLICT (owner) DO UPDATE SET seen_us = excluded.seen_us
RETURNING owner;

-- name: daemons_seen
SELECT owner, role, version, host, started_us, seen_us, clock.now
FROM (SELECT sr_now_us() AS now) AS clock, daemons
WHERE seen_us >= clock.now - %(within_us)b::bigint ORDER BY owner;

-- name: remove_daemon
DELETE FROM daemons WHERE owner = %(owner)b;
