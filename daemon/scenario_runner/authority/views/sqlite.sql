-- Named statements of the SQLite views: reading only. A line that ends in "-- if TERM" belongs to the statement when the
-- term is asked for. A predicate of a partial index stands in the statement literally, or the index is not used.
-- A column with a plus before it is compared and never searched: the other index is the one that holds the order.
-- Pages: "after" names the last row of the page before; the caller narrows the range to begin with that row.

-- name: runs_by_admission
SELECT run_id, run_equivalence_key, state, reason_code, admitted_us, deadline_us, updated_us, due_us, absent_root
FROM runs
WHERE admitted_us >= :since AND admitted_us < :until
  AND (admitted_us < :after_us OR run_id < :after)  -- if after
  AND state = :state  -- if state
ORDER BY admitted_us DESC, run_id DESC LIMIT :limit;

-- name: runs_by_state
SELECT run_id, run_equivalence_key, state, reason_code, admitted_us, deadline_us, updated_us, due_us, absent_root
FROM runs
WHERE state IN ('WAITING_EVIDENCE', 'FAILED', 'QUARANTINED') AND state = :state
  AND admitted_us >= :since AND admitted_us < :until
  AND (admitted_us < :after_us OR run_id < :after)  -- if after
  AND +run_equivalence_key >= :key AND +run_equivalence_key < :key_end  -- if key
  AND CASE WHEN missing <> '' THEN instr(missing, :path)  -- if missing
           ELSE instr((SELECT e.details FROM run_events e WHERE e.run_id = runs.run_id  -- if missing
                       AND e.kind = 'EVIDENCE_MISSING' ORDER BY e.seq DESC LIMIT 1), :missing) END > 0  -- if missing
  AND (SELECT count(*) FROM operator_actions a WHERE a.action_key = 'quarantine_ack/' || runs.run_id) = :acked  -- if acked
ORDER BY admitted_us DESC, run_id DESC LIMIT :limit;

-- name: runs_by_reason
SELECT run_id, run_equivalence_key, state, reason_code, admitted_us, deadline_us, updated_us, due_us, absent_root
FROM runs
WHERE reason_code <> '' AND reason_code = :reason
  AND admitted_us >= :since AND admitted_us < :until
  AND (admitted_us < :after_us OR run_id < :after)  -- if after
  AND +state = :state  -- if state
  AND +run_equivalence_key >= :key AND +run_equivalence_key < :key_end  -- if key
  AND (SELECT count(*) FROM operator_actions a WHERE a.action_key = 'quarantine_ack/' || runs.run_id) = :acked  -- if acked
ORDER BY admitted_us DESC, run_id DESC LIMIT :limit;

-- name: runs_by_deadline
SELECT run_id, run_equivalence_key, state, reason_code, admitted_us, deadline_us, updated_us, due_us, absent_root
FROM runs
WHERE state = 'WAITING_EVIDENCE' AND deadline_us >= :from_us
  AND (deadline_us > :after_us OR run_id > :after)  -- if after
  AND +admitted_us >= :since AND +admitted_us < :until  -- if admitted
  AND +run_equivalence_key >= :key AND +run_equivalence_key < :key_end  -- if key
  AND CASE WHEN missing <> '' THEN instr(missing, :path)  -- if missing
           ELSE instr((SELECT e.details FROM run_events e WHERE e.run_id = runs.run_id  -- if missing
                       AND e.kind = 'EVIDENCE_MISSING' ORDER BY e.seq DESC LIMIT 1), :missing) END > 0  -- if missing
ORDER BY deadline_us, run_id LIMIT :limit;

-- name: runs_by_due
-- Runs on their way, in the order in which runners claim them.
SELECT run_id, run_equivalence_key, state, reason_code, admitted_us, deadline_us, updated_us, due_us, absent_root
FROM runs
WHERE due_us IS NOT NULL AND due_us >= :from_us AND +state = :state
  AND +state IN ('EXECUTING', 'VERIFYING')  -- if busy
  AND (due_us > :after_us OR run_id > :after)  -- if after
  AND +admitted_us >= :since AND +admitted_us < :until  -- if admitted
  AND +run_equivalence_key >= :key AND +run_equivalence_key < :key_end  -- if key
ORDER BY due_us, run_id LIMIT :limit;

-- name: runs_by_key
SELECT run_id, run_equivalence_key, state, reason_code, admitted_us, deadline_us, updated_us, due_us, absent_root
FROM runs
WHERE run_equivalence_key >= :key AND run_equivalence_key < :key_end
  AND +admitted_us >= :since AND +admitted_us < :until  -- if admitted
  AND +state = :state  -- if state
ORDER BY run_equivalence_key DESC LIMIT :limit;

-- name: run_summary
SELECT run_id, run_equivalence_key, state, reason_code, admitted_us, deadline_us, updated_us, due_us, absent_root
FROM runs
WHERE run_id = :run_id;

-- name: run_summaries
SELECT run_id, run_equivalence_key, state, reason_code, admitted_us, deadline_us, updated_us, due_us, absent_root
FROM runs
WHERE run_id IN (SELECT value FROM json_each(:run_ids));

-- name: supersessions_of
-- Both ends of some runs: the corrections among them, and the READY corrections of them.
SELECT run_id, supersedes FROM runs
WHERE run_id IN (SELECT value FROM json_each(:run_ids)) AND supersedes <> ''
UNION ALL
SELECT run_id, supersedes FROM runs
WHERE supersedes IN (SELECT value FROM json_each(:run_ids)) AND supersedes <> '' AND state = 'READY';

-- name: run_ids
SELECT run_id, run_equivalence_key FROM runs
WHERE run_id >= :prefix AND run_id < :prefix_end ORDER BY run_id LIMIT :limit;

-- name: run_keys
SELECT run_id, run_equivalence_key FROM runs
WHERE run_equivalence_key >= :prefix AND run_equivalence_key < :prefix_end ORDER BY run_equivalence_key LIMIT :limit;

-- name: recorded_run_ids
-- Ids that records name, also those of refused requests, which have no run.
SELECT DISTINCT run_id FROM intake_records
WHERE run_id <> '' AND run_id >= :prefix AND run_id < :prefix_end ORDER BY run_id LIMIT :limit;

-- name: run_of_signal
SELECT run_id FROM outbox WHERE message_id = :message_id;

-- name: run_of_message
-- Message ids of records have no index: of the newest records they are found by reading them.
SELECT run_id FROM (SELECT run_id, message_id FROM intake_records ORDER BY record_id DESC LIMIT :most)
WHERE message_id = :message_id AND run_id <> '' LIMIT 1;

-- name: refused_reasons
-- The reason codes of refused records: each is found after the one before it, by one step into the index.
WITH RECURSIVE reasons (code) AS (
  SELECT min(reason_code) FROM intake_records WHERE disposition IN ('REJECTED', 'CONFLICT')
  UNION ALL
  SELECT (SELECT min(reason_code) FROM intake_records
          WHERE disposition IN ('REJECTED', 'CONFLICT') AND reason_code > reasons.code)
  FROM reasons WHERE code IS NOT NULL)
SELECT code FROM reasons WHERE code IS NOT NULL;

-- name: letters_by_reason
SELECT record_id, record_key, message_id, kind, run_id, disposition, reason_code, detail, received_us, raw_sha256, raw_size,
       raw_removed_us
FROM intake_records
WHERE disposition IN ('REJECTED', 'CONFLICT') AND reason_code = :reason AND record_id < :before
  AND received_us >= :since AND received_us < :until  -- if received
ORDER BY record_id DESC LIMIT :limit;

-- name: letters_by_key
SELECT i.record_id, i.record_key, i.message_id, i.kind, i.run_id, i.disposition, i.reason_code, i.detail, i.received_us,
       i.raw_sha256, i.raw_size, i.raw_removed_us
FROM dead_letters d CROSS JOIN intake_records i ON i.record_key = d.record_key
WHERE d.record_key >= :key AND d.record_key < :key_end
  AND +i.reason_code = :reason  -- if reason
  AND i.received_us >= :since AND i.received_us < :until  -- if received
ORDER BY d.record_key DESC LIMIT :limit;

-- name: letter_with_key
SELECT i.record_id, i.record_key, i.message_id, i.kind, i.run_id, i.disposition, i.reason_code, i.detail, i.received_us,
       i.raw_sha256, i.raw_size, i.raw_removed_us,
       CASE WHEN i.raw_removed_us IS NULL THEN d.raw END AS raw
FROM intake_records i LEFT JOIN dead_letters d ON d.record_key = i.record_key
WHERE i.record_key = :record_key AND i.disposition IN ('REJECTED', 'CONFLICT');

-- name: letter_with_number
SELECT i.record_id, i.record_key, i.message_id, i.kind, i.run_id, i.disposition, i.reason_code, i.detail, i.received_us,
       i.raw_sha256, i.raw_size, i.raw_removed_us,
       CASE WHEN i.raw_removed_us IS NULL THEN d.raw END AS raw
FROM intake_records i LEFT JOIN dead_letters d ON d.record_key = i.record_key
WHERE i.record_id = :record_id AND i.disposition IN ('REJECTED', 'CONFLICT');

-- name: receipts_of_others
-- Runs that may hold a receipt of the same scope: of those admitted before, the newest with the same manifest.
SELECT r.run_id, (SELECT e.details FROM run_events e WHERE e.run_id = r.run_id AND e.kind = 'RECEIPTS_COMMITTED'
                  ORDER BY e.seq DESC LIMIT 1) AS details
FROM (SELECT run_id, intent, state FROM runs WHERE admitted_us <= :until ORDER BY admitted_us DESC LIMIT :most) r
WHERE r.run_id <> :run_id AND r.state = 'READY' AND instr(r.intent, :manifest) > 0 LIMIT :limit;

-- name: expired_of_intake_records
-- What retention would remove, as far as so many rows show; the same terms as where it is removed.
SELECT count(*) AS examined, count(*) FILTER (WHERE older) AS older, count(*) FILTER (WHERE older AND removable) AS expired,
       min(received_us) FILTER (WHERE older AND removable) AS oldest_us
FROM (SELECT received_us,
             received_us < :before_us AS older,
             disposition IN ('ACCEPTED', 'DUPLICATE', 'IGNORED')
               AND NOT (record_key >= 'redrive/' AND record_key < 'redrive0')
               AND (received_us < :others_before_us OR record_key < 'kinesis/' OR record_key >= 'kinesis0'
                    OR (:stream <> '' AND substr(record_key, 1, length(:stream)) = :stream)) AS removable
      FROM intake_records WHERE record_id > 0 ORDER BY record_id LIMIT :most) AS first;

-- name: expired_of_dead_letter_raw
SELECT count(*) AS examined, count(*) FILTER (WHERE older) AS older, count(*) FILTER (WHERE older) AS expired,
       min(received_us) FILTER (WHERE older) AS oldest_us
FROM (SELECT received_us, received_us < :before_us AS older FROM intake_records
      WHERE disposition IN ('REJECTED', 'CONFLICT') AND raw_removed_us IS NULL
      ORDER BY record_id LIMIT :most) AS first;

-- name: expired_of_outbox_sent
SELECT count(*) AS examined, count(*) AS older, count(*) AS expired, min(sent_us) AS oldest_us
FROM (SELECT sent_us FROM outbox
      WHERE sent_us IS NOT NULL AND kind IN ('READY_REEMIT', 'TERMINAL_REEMIT', 'REQUEST_REJECTED')
        AND sent_us < :before_us
      ORDER BY sent_us, outbox_id LIMIT :most) AS first;

-- name: expired_of_digest_reuse
SELECT count(*) AS examined, count(*) AS older, count(*) AS expired, min(kept_us) AS oldest_us
FROM (SELECT kept_us FROM digest_reuse WHERE kept_us < :before_us
      ORDER BY kept_us LIMIT :most) AS first;

-- name: runs_by_id
SELECT run_id, run_equivalence_key, state, reason_code, intent, inputs, admitted_us, deadline_us, updated_us, due_us,
       lease_owner, lease_epoch, lease_until_us, wakes, retries, last_error, event_seq, projected_seq,
       facts_view_digest, relay_retries, relay_error, relay_since_us, relay_until_us, absent_root
FROM runs WHERE run_id > :after
  AND admitted_us >= :since  -- if admitted
ORDER BY run_id LIMIT :limit;

-- name: daemons
SELECT owner, role, version, host, started_us, seen_us,
       CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) AS now
FROM daemons WHERE seen_us >= 0 ORDER BY seen_us DESC LIMIT :limit;
