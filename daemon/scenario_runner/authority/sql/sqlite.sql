-- Named statements of the SQLite authority. One statement per name; parameters are :named.
--
-- A statement with lines that end in "-- only" is two: NAME without these lines, and NAME_only with them, for the work of
-- one run.

-- name: find_record
SELECT disposition, reason_code, detail, run_id FROM intake_records WHERE record_key = :record_key;

-- name: insert_record
INSERT INTO intake_records (record_key, message_id, kind, run_id, disposition, reason_code, detail, received_us,
                            raw_sha256, raw_size)
VALUES (:record_key, :message_id, :kind, :run_id, :disposition, :reason_code, :detail, :received_us,
        :raw_sha256, :raw_size);

-- name: insert_dead_letter
INSERT INTO dead_letters (record_key, raw) VALUES (:record_key, :raw);

-- name: insert_run
INSERT INTO runs (run_id, run_equivalence_key, fingerprint, intent, inputs, state, admitted_us, deadline_us,
                  updated_us, due_us, event_seq, invoker, strategy, supersedes, supersession)
VALUES (:run_id, :run_equivalence_key, :fingerprint, :intent, :inputs, 'PLANNED', :now, :now + :evidence_wait_us,
        :now, :now, 4, :invoker, :strategy, :supersedes, :supersession)
ON CONFLICT DO NOTHING;

-- name: fingerprint_of
SELECT fingerprint, supersession FROM runs WHERE run_id = :run_id AND run_equivalence_key = :run_equivalence_key;

-- name: state_of
SELECT state FROM runs WHERE run_id = :run_id;

-- name: insert_event
INSERT INTO run_events (run_id, seq, kind, ts_us, details) VALUES (:run_id, :seq, :kind, :ts_us, :details);

-- name: insert_signal
INSERT INTO outbox (message_id, emission, run_id, kind, partition_key, attributes, payload, created_us, needs_seq, due_us,
                    action_key)
VALUES (:message_id, :emission, :run_id, :kind, :partition_key, :attributes, :payload, :created_us, :needs_seq, 0,
        :action_key)
ON CONFLICT (message_id, emission) DO NOTHING;

-- name: claim_due
-- The oldest of the new runs, up to a part of the claim, then the oldest of all; see authority/claims.py. The claim of one
-- run needs the second part only. "+ 0" is the order of the index of new runs, and of no other.
-- "traced_admission" is null for all runs but those whose request brought a trace context: only theirs are parsed.
WITH new_runs AS MATERIALIZED (
  SELECT run_id FROM runs
  WHERE state = 'PLANNED' AND retries = 0 AND due_us + 0 <= :now AND lease_until_us <= :now
    AND FALSE  -- only
  ORDER BY due_us + 0 LIMIT :most_new),
oldest AS MATERIALIZED (
  SELECT run_id FROM runs
  WHERE due_us <= :now AND lease_until_us <= :now AND run_id NOT IN (SELECT run_id FROM new_runs)
    AND run_id = :only  -- only
  ORDER BY due_us LIMIT :limit - (SELECT count(*) FROM new_runs))
UPDATE runs
SET lease_owner = :owner, lease_epoch = lease_epoch + 1, lease_until_us = :now + :lease_us, absent_root = ''
WHERE run_id IN (SELECT run_id FROM new_runs UNION ALL SELECT run_id FROM oldest)
RETURNING run_id, run_equivalence_key, lease_epoch, state, intent, inputs, admitted_us, deadline_us, updated_us,
          wakes, retries, last_error, report_digest, invoker, attempts, supersession,
          (SELECT e.details FROM run_events e
           WHERE e.run_id = runs.run_id AND e.seq = 1
             AND instr(e.details, CAST('"traceparent":' AS BLOB)) > 0) AS traced_admission;

-- name: start_verifying
-- In the transaction that claims the run, so the lease need not be named. A planned run starts with its verification,
-- unless it invokes its engine first.
UPDATE runs
SET state = 'VERIFYING', event_seq = event_seq + 1, updated_us = max(:now, updated_us + 1)
WHERE run_id = :run_id AND state = 'PLANNED' AND strategy <> 'FORCE_INVOKE'
RETURNING event_seq, updated_us;

-- name: renew_leases
UPDATE runs SET lease_until_us = :now + :lease_us
WHERE lease_owner = :owner AND lease_until_us > 0
  AND (run_id, lease_epoch) IN (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:held))
RETURNING run_id, lease_epoch;

-- name: commit_run
-- Every transition of a claimed run. The row must be as the claim has it: under this lease (owner and epoch; giving the
-- lease back clears the owner), in this state, with as many attempts, and not changed since by another
-- transition of the same claim. So an attempt that is given is the next one, or the last one, whose row may be open.
-- A run that goes on waiting, and that was told of an arrival under this lease (tell_runs), is due again then.
UPDATE runs
SET state = :to_state, reason_code = :reason_code,
    due_us = CASE WHEN :to_state = 'WAITING_EVIDENCE' AND due_us > :claimed_us THEN min(:due_us, due_us)
                  ELSE :due_us END,
    lease_owner = CASE WHEN :keep_lease THEN lease_owner ELSE '' END,
    lease_until_us = CASE WHEN :keep_lease THEN lease_until_us ELSE 0 END,
    wakes = :wakes, retries = :retries, last_error = :last_error, report_digest = :report_digest,
    facts_view_digest = :facts_view_digest, event_seq = event_seq + :count, updated_us = :at_us, settled = :token,
    deadline_us = coalesce(:deadline_us, deadline_us), attempts = attempts + :launches,
    missing = CASE WHEN :to_state = 'WAITING_EVIDENCE' THEN coalesce(:missing, missing) ELSE '' END,
    absent_root = :absent_root
WHERE run_id = :run_id AND lease_owner = :owner AND lease_epoch = :epoch AND state = :from_state
  AND updated_us = :from_us AND attempts = :attempts
RETURNING event_seq;

-- name: put_attempt
-- In the transaction of commit_run, and only when that has found its row.
INSERT INTO engine_attempts (run_id, attempt_no, attempt_id, epoch, invoker, handle, launched_us, timeout_us, ended_us,
                             outcome, reason_code, exit_code, stop_code, another_attempt, duration_ms, detail,
                             stderr_tail)
VALUES (:run_id, :attempt_no, :attempt_id, :epoch, :invoker, :handle, :launched_us, :timeout_us, :ended_us, :outcome,
        :reason_code, :exit_code, :stop_code, :another_attempt, :duration_ms, :detail, :stderr_tail)
ON CONFLICT (run_id, attempt_no) DO UPDATE
SET invoker = excluded.invoker, handle = excluded.handle, launched_us = excluded.launched_us,
    timeout_us = excluded.timeout_us, ended_us = excluded.ended_us, outcome = excluded.outcome,
    reason_code = excluded.reason_code, exit_code = excluded.exit_code, stop_code = excluded.stop_code,
    another_attempt = excluded.another_attempt, duration_ms = excluded.duration_ms, detail = excluded.detail,
    stderr_tail = excluded.stderr_tail
WHERE ended_us IS NULL;

-- name: find_superseded_by
-- Whether the record of a run tells already which run supersedes it: it may come from a ledger that was ahead.
SELECT 1 FROM run_events
WHERE run_id = :old_run_id AND kind = 'SUPERSEDED_BY'
  AND json_extract(CAST(details AS TEXT), '$.superseded_by.new_run_id') = :run_id;

-- name: find_committed
SELECT run_id FROM runs WHERE run_id = :run_id AND lease_epoch = :epoch AND settled = :token;

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
UPDATE runs SET due_us = :now WHERE state = 'WAITING_EVIDENCE' AND due_us > :now;

-- name: absent_roots
-- A page of the roots that are looked at in rounds, each once however many runs wait for it.
SELECT DISTINCT absent_root FROM runs
WHERE state = 'WAITING_EVIDENCE' AND absent_root <> '' AND absent_root > :after
  AND run_id = :only  -- only
ORDER BY absent_root LIMIT :limit;

-- name: wake_waiting_for_roots
UPDATE runs SET due_us = min(due_us, :now), absent_root = ''
WHERE run_id IN (SELECT run_id FROM runs
                 WHERE state = 'WAITING_EVIDENCE' AND absent_root <> ''
                   AND absent_root IN (SELECT value FROM json_each(:roots))
                   AND run_id = :only  -- only
                 LIMIT :limit);

-- name: wake_run
-- In the transaction that has decided it.
UPDATE runs SET due_us = :now WHERE run_id = :run_id;

-- name: awaited_roots
-- Roots where a run waits for evidence.
SELECT g.value AS root FROM json_each(:roots) AS g
WHERE EXISTS (SELECT 1 FROM runs r
              WHERE r.state = 'WAITING_EVIDENCE'
                AND coalesce(nullif(json_extract(CAST(r.intent AS TEXT), '$.engine_run_root'), ''),
                             json_extract(CAST(r.inputs AS TEXT), '$.engine_run_root'), '') = g.value);

-- name: waiting_roots
SELECT DISTINCT coalesce(nullif(json_extract(CAST(intent AS TEXT), '$.engine_run_root'), ''),
                         json_extract(CAST(inputs AS TEXT), '$.engine_run_root'), '') AS root
FROM (SELECT intent, inputs FROM runs WHERE state = 'WAITING_EVIDENCE' ORDER BY deadline_us DESC LIMIT :most) AS page;

-- name: waiting_at
SELECT run_id FROM runs
WHERE state = 'WAITING_EVIDENCE' AND run_id > :after
  AND coalesce(nullif(json_extract(CAST(intent AS TEXT), '$.engine_run_root'), ''),
               json_extract(CAST(inputs AS TEXT), '$.engine_run_root'), '') = :root
  AND run_id = :only  -- only
ORDER BY run_id LIMIT :limit;

-- name: tell_runs
-- A run is told once a second at most; see authority/arrivals.py. A clock that was set back puts nothing off for longer.
UPDATE runs
SET due_us = max(:now, min(arrived_us, :now) + 1000000), arrived_us = max(:now, min(arrived_us, :now) + 1000000)
WHERE run_id IN (SELECT value FROM json_each(:run_ids)) AND state = 'WAITING_EVIDENCE'
  AND (lease_until_us > :now OR due_us > max(:now, min(arrived_us, :now) + 1000000));

-- name: claim_unprojected
-- Documents of one run are also those of the run that it supersedes: the record of that one grows with its READY.
UPDATE runs
SET relay_owner = :owner, relay_until_us = :now + :lease_us
WHERE run_id IN (SELECT run_id FROM runs
                 WHERE event_seq > projected_seq AND relay_until_us <= :now
                   AND (due_us IS NULL OR state = 'WAITING_EVIDENCE'
                        OR (lease_until_us > :now AND updated_us <= :now - :quiet_us))
                   AND run_id IN (:only, (SELECT n.supersedes FROM runs n WHERE n.run_id = :only))  -- only
                 ORDER BY updated_us LIMIT :limit)
RETURNING *;

-- name: mark_projected
-- In a database that was rebuilt, or restored from a backup, the run may have other events, and fewer.
UPDATE runs
SET projected_seq = max(projected_seq, min(:seq, event_seq)), relay_owner = '', relay_until_us = 0, relay_retries = 0,
    relay_error = '', relay_since_us = 0
WHERE run_id = :run_id AND relay_owner = :owner;

-- name: postpone_projection
UPDATE runs
SET relay_owner = '', relay_until_us = :until_us, relay_retries = relay_retries + 1, relay_error = :error,
    relay_since_us = CASE WHEN relay_retries = 0 THEN :now ELSE relay_since_us END
WHERE run_id = :run_id AND relay_owner = :owner;

-- name: resume_runs
UPDATE runs SET relay_until_us = 0, relay_retries = 0
WHERE event_seq > projected_seq AND relay_owner = '' AND relay_until_us > :now;

-- name: resume_signals
UPDATE outbox SET due_us = 0 WHERE sent_us IS NULL AND due_us > :now;

-- name: claim_signals
-- Emissions of one message go out in their order: a signal that is repeated has been published before. A correction
-- supersedes after its READY is published.
UPDATE outbox
SET lease_owner = :owner, lease_until_us = :now + :lease_us, attempts = attempts + 1
WHERE outbox_id IN (SELECT o.outbox_id FROM outbox o LEFT JOIN runs r ON r.run_id = o.run_id
                    WHERE o.sent_us IS NULL AND o.lease_until_us <= :now AND o.due_us <= :now
                      AND (o.needs_seq = 0 OR r.projected_seq >= o.needs_seq)
                      AND (o.emission = 0
                           OR NOT EXISTS (SELECT 1 FROM outbox p WHERE p.message_id = o.message_id
                                                                   AND p.emission < o.emission AND p.sent_us IS NULL))
                      AND (o.kind <> 'RUN_SUPERSEDES'
                           OR NOT EXISTS (SELECT 1 FROM outbox p WHERE p.run_id = o.run_id AND p.kind = 'READY'
                                                                   AND p.sent_us IS NULL))
                      AND o.run_id = :only  -- only
                    ORDER BY o.outbox_id LIMIT :limit)
RETURNING outbox_id, message_id, run_id, kind, partition_key, attributes, payload, created_us, attempts, emission,
          action_key, lease_owner;

-- name: mark_sent
-- In a database that was rebuilt, or restored from a backup, the same outbox_id may be another message's: here, and
-- wherever else a claimed signal is named, it is found with its message. Elsewhere under its lease too: but that a message
-- was published is so whoever holds the lease by now, and two relays on a slow bus would undo each other's work for ever.
UPDATE outbox SET sent_us = :now, receipt = :receipt, lease_owner = '', lease_until_us = 0
WHERE outbox_id = :outbox_id AND message_id = :message_id AND emission = :emission
  AND sent_us IS NULL
RETURNING run_id;

-- name: find_actions
SELECT action_key, at, actor, via, action, subject, reason, outcome, detail
FROM operator_actions WHERE action_key IN (SELECT value FROM json_each(:action_keys));

-- name: list_actions
SELECT action_key, at, actor, via, action, subject, reason, outcome, detail
FROM operator_actions WHERE subject = :subject ORDER BY at, action_id;

-- name: insert_action
INSERT INTO operator_actions (action_key, at, actor, via, action, subject, reason, outcome, detail)
VALUES (:action_key, :at, :actor, :via, :action, :subject, :reason, :outcome, :detail)
ON CONFLICT (action_key) DO NOTHING;

-- name: replace_detail
UPDATE operator_actions SET detail = :detail WHERE action_key = :action_key AND detail = :before;

-- name: end_action
UPDATE operator_actions SET outcome = :outcome, detail = :detail WHERE action_key = :action_key;

-- name: reemit_facts
-- What a re-emit is decided on, in the transaction that writes it.
SELECT r.state, r.event_seq, e.ts_us AS last_event_us, o.message_id, o.kind, o.partition_key, o.attributes, o.payload,
       o.needs_seq, (SELECT max(max(n.emission, n.removed_emission)) + 1 FROM outbox n
                    WHERE n.message_id = o.message_id) AS emissions,
       (SELECT count(*) FROM operator_actions a
        WHERE a.subject = r.run_id AND a.at > :since_us AND a.action = :action
          AND a.outcome NOT IN (SELECT value FROM json_each(:uncounted))) AS attempts,
       (SELECT count(*) FROM operator_actions a
        WHERE a.subject = r.run_id AND a.at > :since_us AND a.action = :action
          AND a.outcome = 'REEMIT_RATE_LIMIT') AS limited
FROM runs r
JOIN run_events e ON e.run_id = r.run_id AND e.seq = r.event_seq
LEFT JOIN outbox o ON o.run_id = r.run_id AND o.emission = 0 AND o.kind IN ('READY', 'TERMINAL')
WHERE r.run_id = :run_id;

-- name: grow_record
-- In the transaction that appends events to the record of a run that has ended; nothing else of the run changes.
UPDATE runs SET event_seq = event_seq + :count WHERE run_id = :run_id RETURNING event_seq;

-- name: last_event_us
SELECT max(ts_us) FROM run_events WHERE run_id = :run_id;

-- name: drop_reemit
DELETE FROM outbox
WHERE outbox_id = :outbox_id AND message_id = :message_id AND emission = :emission AND lease_owner = :owner
  AND emission > 0 AND sent_us IS NULL
RETURNING run_id;

-- name: published_signals
SELECT o.run_id, o.message_id, o.kind, o.sent_us, o.outbox_id
FROM outbox o JOIN runs r ON r.run_id = o.run_id
WHERE o.emission = 0 AND o.sent_us IS NOT NULL AND (o.sent_us, o.outbox_id) > (:after_us, :after_id)
  AND o.sent_us < :until_us AND o.kind IN ('READY', 'TERMINAL') AND r.state = :state
ORDER BY o.sent_us, o.outbox_id LIMIT :limit;

-- name: postpone_signal
UPDATE outbox SET due_us = :due_us, lease_owner = '', lease_until_us = 0
WHERE outbox_id = :outbox_id AND message_id = :message_id AND emission = :emission AND lease_owner = :owner;

-- name: any_ahead
SELECT EXISTS (SELECT 1 FROM runs WHERE due_us > :run_bound AND absent_root = '')
    OR EXISTS (SELECT 1 FROM runs WHERE lease_owner <> '' AND lease_until_us > :lease_bound)
    OR EXISTS (SELECT 1 FROM runs WHERE event_seq > projected_seq AND relay_until_us > :relay_bound
                                    AND relay_until_us < :until_restart)
    OR EXISTS (SELECT 1 FROM outbox WHERE sent_us IS NULL
                                      AND ((due_us > :relay_bound AND due_us < :until_restart)
                                           OR lease_until_us > :relay_bound));

-- name: pull_in_runs
UPDATE runs
SET due_us = CASE WHEN due_us > :run_bound AND absent_root = '' THEN :now ELSE due_us END,
    lease_until_us = CASE WHEN lease_until_us > :lease_bound THEN :now ELSE lease_until_us END,
    relay_until_us = CASE WHEN relay_until_us > :relay_bound AND relay_until_us < :until_restart THEN :now
                          ELSE relay_until_us END
WHERE run_id IN (SELECT run_id FROM runs WHERE due_us > :run_bound AND absent_root = ''
                 UNION SELECT run_id FROM runs WHERE lease_owner <> '' AND lease_until_us > :lease_bound
                 UNION SELECT run_id FROM runs WHERE event_seq > projected_seq AND relay_until_us > :relay_bound
                                               AND relay_until_us < :until_restart);

-- name: pull_in_signals
UPDATE outbox
SET due_us = CASE WHEN due_us > :relay_bound AND due_us < :until_restart THEN :now ELSE due_us END,
    lease_until_us = CASE WHEN lease_until_us > :relay_bound THEN :now ELSE lease_until_us END
WHERE sent_us IS NULL AND ((due_us > :relay_bound AND due_us < :until_restart) OR lease_until_us > :relay_bound);

-- name: live_owners
SELECT lease_owner FROM runs WHERE lease_owner <> '' AND lease_until_us > :now
UNION SELECT relay_owner FROM runs WHERE event_seq > projected_seq AND relay_until_us > :now
UNION SELECT lease_owner FROM outbox WHERE sent_us IS NULL AND lease_until_us > :now;

-- name: expire_runs_of
UPDATE runs SET lease_until_us = 0 WHERE lease_owner <> '' AND lease_owner = :owner;

-- name: expire_relays_of
UPDATE runs SET relay_until_us = 0 WHERE event_seq > projected_seq AND relay_owner = :owner;

-- name: expire_signals_of
UPDATE outbox SET lease_until_us = 0 WHERE sent_us IS NULL AND lease_owner = :owner;

-- name: any_due
SELECT EXISTS (SELECT 1 FROM runs
               WHERE due_us <= :now
                 AND run_id = :only  -- only
              );

-- name: any_unprojected
SELECT EXISTS (SELECT 1 FROM runs
               WHERE event_seq > projected_seq
                 AND run_id IN (:only, (SELECT n.supersedes FROM runs n WHERE n.run_id = :only))  -- only
              ) AS owed;

-- name: any_unsent
SELECT EXISTS (SELECT 1 FROM outbox
               WHERE sent_us IS NULL AND due_us <= :now
                 AND run_id = :only  -- only
              ) AS owed;

-- name: any_pending
SELECT EXISTS (SELECT 1 FROM runs
               WHERE due_us <= :now
                 AND run_id = :only  -- only
              )
       -- Between two attempts of its engine a run is not due yet, and it will be within a minute.
       OR EXISTS (SELECT 1 FROM runs
                  WHERE state = 'EXECUTING' AND lease_until_us <= :now
                    AND run_id = :only  -- only
                 ),
       EXISTS (SELECT 1 FROM runs
               WHERE event_seq > projected_seq AND (due_us IS NULL OR state = 'WAITING_EVIDENCE')
                 AND (relay_until_us <= :now OR relay_owner <> '')
                 AND run_id IN (:only, (SELECT n.supersedes FROM runs n WHERE n.run_id = :only))  -- only
              ),
       EXISTS (SELECT 1 FROM outbox o LEFT JOIN runs r ON r.run_id = o.run_id
               WHERE o.sent_us IS NULL AND o.due_us <= :now
                 AND (o.needs_seq = 0 OR r.projected_seq >= o.needs_seq)
                 AND (o.emission = 0
                      OR NOT EXISTS (SELECT 1 FROM outbox p WHERE p.message_id = o.message_id
                                                              AND p.emission < o.emission AND p.sent_us IS NULL))
                 AND (o.kind <> 'RUN_SUPERSEDES'
                      OR NOT EXISTS (SELECT 1 FROM outbox p WHERE p.run_id = o.run_id AND p.kind = 'READY'
                                                              AND p.sent_us IS NULL))
                 AND o.run_id = :only  -- only
              ),
       EXISTS (SELECT 1 FROM runs
               WHERE event_seq > projected_seq AND due_us IS NULL
                 AND run_id IN (:only, (SELECT n.supersedes FROM runs n WHERE n.run_id = :only))  -- only
              )
       OR EXISTS (SELECT 1 FROM outbox
                  WHERE sent_us IS NULL
                    AND run_id = :only  -- only
                 ),
       EXISTS (SELECT 1 FROM runs
               WHERE state NOT IN ('READY', 'FAILED', 'QUARANTINED') AND retries > 0
                 AND run_id = :only  -- only
              );

-- name: get_run
SELECT * FROM runs WHERE run_id = :run_id;

-- name: list_runs
SELECT * FROM runs WHERE :state IS NULL OR state = :state ORDER BY admitted_us DESC LIMIT :limit;

-- name: list_events
SELECT seq, kind, ts_us, details FROM run_events WHERE run_id = :run_id ORDER BY seq;

-- name: events_of_runs
SELECT run_id, seq, kind, ts_us, details FROM run_events
WHERE run_id IN (SELECT value FROM json_each(:run_ids)) ORDER BY run_id, seq;

-- name: list_attempts
SELECT * FROM engine_attempts WHERE run_id = :run_id ORDER BY attempt_no;

-- name: attempts_of_runs
SELECT * FROM engine_attempts
WHERE run_id IN (SELECT value FROM json_each(:run_ids)) ORDER BY run_id, attempt_no;

-- name: list_records
SELECT record_key, message_id, kind, disposition, reason_code, detail, received_us, raw_sha256, raw_size
FROM intake_records WHERE run_id = :run_id AND run_id <> '' ORDER BY record_id;

-- name: supersessions
SELECT run_id, state, supersession, admitted_us FROM runs WHERE run_id = :run_id AND supersedes <> ''
UNION ALL
SELECT run_id, state, supersession, admitted_us FROM runs WHERE supersedes = :run_id AND supersedes <> ''
ORDER BY admitted_us, run_id;

-- name: list_signals
SELECT message_id, kind, sent_us, emission, receipt, action_key FROM outbox WHERE run_id = :run_id ORDER BY outbox_id;

-- name: find_digests
SELECT digests FROM digest_reuse WHERE digest_key = :digest_key;

-- name: keep_digests
INSERT INTO digest_reuse (digest_key, digests, kept_us) VALUES (:digest_key, :digests, :now)
ON CONFLICT (digest_key) DO NOTHING;

-- name: note_identity
INSERT INTO store_identities (name, identity, noted_us) VALUES (:name, :identity, :now) ON CONFLICT (name) DO NOTHING;

-- name: adopt_identity
INSERT INTO store_identities (name, identity, noted_us) VALUES (:name, :identity, :now)
ON CONFLICT (name) DO UPDATE SET identity = excluded.identity, noted_us = excluded.noted_us;

-- name: get_identity
SELECT identity FROM store_identities WHERE name = :name;

-- name: expired_intake_records
-- A page of retention, read without the write lock: "older" of the rows "taken" have expired, "ids" of them are removed.
-- Rows of refused records stay, and those of redrives. Records of a stream that is not the profile's have a time of
-- their own. Rows that stay are read again by every retention: no index has to be written for each admission.
SELECT count(*) AS examined, count(*) AS taken, coalesce(sum(older), 0) AS older, max(record_id) AS last,
       json_group_array(record_id) FILTER (WHERE older AND removable) AS ids
FROM (SELECT record_id,
             received_us < :before_us AS older,
             disposition IN ('ACCEPTED', 'DUPLICATE', 'IGNORED')
               AND NOT (record_key >= 'redrive/' AND record_key < 'redrive0')
               AND (received_us < :others_before_us OR record_key < 'kinesis/' OR record_key >= 'kinesis0'
                    OR (:stream <> '' AND substr(record_key, 1, length(:stream)) = :stream)) AS removable
      FROM intake_records WHERE record_id > :after ORDER BY record_id LIMIT :limit) AS page;

-- name: remove_intake_records
DELETE FROM intake_records WHERE record_id IN (SELECT value FROM json_each(:ids));

-- name: expired_dead_letter_raw
-- At most 4 MiB in a batch, however many rows: freeing a row's bytes takes time for each of its pages.
SELECT count(*) AS examined, coalesce(sum(bytes_before < 4194304), 0) AS taken,
       coalesce(sum(older AND bytes_before < 4194304), 0) AS older,
       max(record_id) FILTER (WHERE bytes_before < 4194304) AS last,
       json_group_array(record_id) FILTER (WHERE older AND bytes_before < 4194304) AS ids
FROM (SELECT record_id, received_us < :before_us AS older,
             sum(raw_size) OVER (ORDER BY record_id) - raw_size AS bytes_before
      FROM (SELECT record_id, received_us, raw_size FROM intake_records
            WHERE disposition IN ('REJECTED', 'CONFLICT') AND raw_removed_us IS NULL AND record_id > :after
            ORDER BY record_id LIMIT :limit) AS page) AS page;

-- name: empty_dead_letters
UPDATE dead_letters SET raw = x''
WHERE record_key IN (SELECT record_key FROM intake_records
                     WHERE record_id IN (SELECT value FROM json_each(:ids)));

-- name: note_emptied_records
UPDATE intake_records SET raw_removed_us = :now
WHERE record_id IN (SELECT value FROM json_each(:ids)) AND raw_removed_us IS NULL;

-- name: expired_outbox_sent
SELECT count(*) AS examined, count(*) AS taken, count(*) AS older, 0 AS last, json_group_array(outbox_id) AS ids
FROM (SELECT outbox_id FROM outbox
      WHERE sent_us IS NOT NULL AND kind IN ('READY_REEMIT', 'TERMINAL_REEMIT', 'REQUEST_REJECTED')
        AND sent_us < :before_us
      ORDER BY sent_us, outbox_id LIMIT :limit) AS page;

-- name: keep_emission_numbers
-- The first row of a message keeps the highest number of the rows that are removed.
UPDATE outbox SET removed_emission = max(removed_emission, gone.emission)
FROM (SELECT message_id, max(emission) AS emission FROM outbox
      WHERE outbox_id IN (SELECT value FROM json_each(:ids)) AND emission > 0 GROUP BY message_id) AS gone
WHERE outbox.message_id = gone.message_id AND outbox.emission = 0;

-- name: remove_outbox_sent
DELETE FROM outbox WHERE outbox_id IN (SELECT value FROM json_each(:ids));

-- name: expired_digest_reuse
SELECT count(*) AS examined, count(*) AS taken, count(*) AS older, 0 AS last, json_group_array(digest_key) AS ids
FROM (SELECT digest_key FROM digest_reuse WHERE kept_us < :before_us ORDER BY kept_us LIMIT :limit) AS page;

-- name: remove_digest_reuse
DELETE FROM digest_reuse WHERE digest_key IN (SELECT value FROM json_each(:ids));

-- name: add_to_action
-- The detail of such an act begins with a count.
UPDATE operator_actions SET detail = (CAST(detail AS INTEGER) + :removed) || substr(detail, instr(detail, ' '))
WHERE action_key = :action_key;

-- name: begin_rebuild
-- Only in an authority that knows of no run and no record, and that no daemon works on.
INSERT INTO unfinished_rebuild (only_row, began_us, epoch, actor, terms)
SELECT 1, :now, :now, :actor, :terms
WHERE NOT EXISTS (SELECT 1 FROM runs) AND NOT EXISTS (SELECT 1 FROM intake_records)
  AND NOT EXISTS (SELECT 1 FROM outbox)
  AND NOT EXISTS (SELECT 1 FROM daemons WHERE seen_us >= :now - :within_us)
ON CONFLICT (only_row) DO NOTHING;

-- name: get_rebuild
SELECT began_us, epoch, actor, terms FROM unfinished_rebuild WHERE only_row = 1;

-- name: end_rebuild
DELETE FROM unfinished_rebuild;

-- name: restore_run
INSERT INTO runs (run_id, run_equivalence_key, fingerprint, intent, inputs, state, reason_code, admitted_us, deadline_us,
                  updated_us, due_us, lease_epoch, report_digest, event_seq, projected_seq, facts_view_digest, invoker,
                  attempts, strategy, missing, supersedes, supersession)
VALUES (:run_id, :run_equivalence_key, :fingerprint, :intent, :inputs, :state, :reason_code, :admitted_us, :deadline_us,
        :updated_us, :due_us, :epoch, :report_digest, :event_seq, :projected_seq, :facts_view_digest, :invoker,
        :attempts, :strategy, :missing, :supersedes, :supersession);

-- name: known_runs
SELECT run_id FROM runs WHERE run_id IN (SELECT value FROM json_each(:run_ids));

-- name: restored_runs
SELECT run_id FROM runs WHERE run_id IN (SELECT value FROM json_each(:run_ids)) AND lease_epoch >= :epoch;

-- name: restore_signal
INSERT INTO outbox (message_id, emission, run_id, kind, partition_key, attributes, payload, created_us, needs_seq, due_us,
                    sent_us, receipt, action_key, removed_emission)
VALUES (:message_id, :emission, :run_id, :kind, :partition_key, :attributes, :payload, :created_us, :needs_seq, 0,
        :sent_us, :receipt, :action_key, :removed_emission)
ON CONFLICT (message_id, emission) DO NOTHING;

-- name: backlog
-- How much waits, for /metrics: every count ends at a number of rows, and reads them in the order of a partial index.
SELECT :now AS now,
       (SELECT count(*) FROM (SELECT 1 FROM runs WHERE state = 'WAITING_EVIDENCE' AND deadline_us < :now
                              ORDER BY deadline_us LIMIT :most) AS w) AS waiting_overdue,
       (SELECT count(*) FROM (SELECT 1 FROM runs WHERE state = 'WAITING_EVIDENCE' AND deadline_us >= :now AND deadline_us < :now + 300000000
                              ORDER BY deadline_us LIMIT :most) AS w) AS waiting_5m,
       (SELECT count(*) FROM (SELECT 1 FROM runs WHERE state = 'WAITING_EVIDENCE' AND deadline_us >= :now + 300000000 AND deadline_us < :now + 3600000000
                              ORDER BY deadline_us LIMIT :most) AS w) AS waiting_1h,
       (SELECT count(*) FROM (SELECT 1 FROM runs WHERE state = 'WAITING_EVIDENCE' AND deadline_us >= :now + 3600000000 AND deadline_us < :now + 21600000000
                              ORDER BY deadline_us LIMIT :most) AS w) AS waiting_6h,
       (SELECT count(*) FROM (SELECT 1 FROM runs WHERE state = 'WAITING_EVIDENCE' AND deadline_us >= :now + 21600000000 AND deadline_us < :now + 86400000000
                              ORDER BY deadline_us LIMIT :most) AS w) AS waiting_1d,
       (SELECT count(*) FROM (SELECT 1 FROM runs WHERE state = 'WAITING_EVIDENCE' AND deadline_us >= :now + 86400000000
                              ORDER BY deadline_us LIMIT :most) AS w) AS waiting_later,
       -- The newest ones, without those that a person has acknowledged (acts.py): old ones stay QUARANTINED for ever.
       (SELECT count(*) FROM (SELECT run_id FROM runs
                              WHERE state IN ('WAITING_EVIDENCE', 'FAILED', 'QUARANTINED') AND state = 'QUARANTINED'
                              ORDER BY admitted_us DESC LIMIT :most) AS q
        WHERE (SELECT count(*) FROM operator_actions a WHERE a.action_key = 'quarantine_ack/' || q.run_id) = 0) AS quarantined,
       (SELECT count(*) FROM (SELECT 1 FROM intake_records
                              WHERE disposition IN ('REJECTED', 'CONFLICT') AND raw_removed_us IS NULL
                              ORDER BY record_id LIMIT :most) AS d) AS dead_letters,
       (SELECT count(*) FROM (SELECT 1 FROM outbox WHERE sent_us IS NULL
                              ORDER BY outbox_id LIMIT :most) AS u) AS unsent,
       (SELECT created_us FROM outbox WHERE sent_us IS NULL ORDER BY outbox_id LIMIT 1) AS unsent_since_us,
       (SELECT count(*) FROM (SELECT 1 FROM runs
                              WHERE event_seq > projected_seq AND (due_us IS NULL OR state = 'WAITING_EVIDENCE')
                              ORDER BY updated_us LIMIT :most) AS p) AS unprojected,
       (SELECT updated_us FROM runs
        WHERE event_seq > projected_seq AND (due_us IS NULL OR state = 'WAITING_EVIDENCE')
        ORDER BY updated_us LIMIT 1) AS unprojected_since_us,
       -- As a claim finds it: the runs that are passed over are under lease.
       (SELECT due_us FROM runs WHERE due_us IS NOT NULL AND due_us <= :now AND lease_until_us <= :now
        ORDER BY due_us LIMIT 1) AS due_since_us,
       (SELECT count(*) FROM daemons WHERE seen_us >= :now - 60000000) AS daemons;

-- name: report_daemon
INSERT INTO daemons (owner, role, version, host, started_us, seen_us)
VALUES (:owner, :role, :version, :host, :now, :now)
ON CONFLICT (owner) DO UPDATE SET seen_us = excluded.seen_us;

-- name: daemons_seen
SELECT owner, role, version, host, started_us, seen_us, :now AS now FROM daemons
WHERE seen_us >= :now - :within_us ORDER BY owner;

-- name: forget_daemons
DELETE FROM daemons WHERE seen_us < :now - :keep_us;

-- name: remove_daemon
DELETE FROM daemons WHERE owner = :owner;
