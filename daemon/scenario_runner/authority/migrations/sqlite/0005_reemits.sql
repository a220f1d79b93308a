CREATE TABLE operator_actions (
    action_id  INTEGER PRIMARY KEY,
    action_key TEXT NOT NULL UNIQUE,
    at         INTEGER NOT NULL,
    actor      TEXT NOT NULL,
    via        TEXT NOT NULL,
    action     TEXT NOT NULL,
    subject    TEXT NOT NULL,
    reason     TEXT NOT NULL,
    outcome    TEXT NOT NULL,
    detail     TEXT NOT NULL
);
CREATE INDEX operator_actions_subject ON operator_actions (subject, at);
DROP INDEX outbox_unsent;
DROP INDEX outbox_run;
ALTER TABLE outbox RENAME TO outbox_before;
CREATE TABLE outbox (
    outbox_id      INTEGER PRIMARY KEY,
    message_id     TEXT NOT NULL,
    emission       INTEGER NOT NULL DEFAULT 0,
    run_id         TEXT NOT NULL,
    kind           TEXT NOT NULL,
    partition_key  TEXT NOT NULL,
    attributes     BLOB NOT NULL,
    payload        BLOB NOT NULL,
    created_us     INTEGER NOT NULL,
    needs_seq      INTEGER NOT NULL,
    due_us         INTEGER NOT NULL,
    lease_owner    TEXT NOT NULL DEFAULT '',
    lease_until_us INTEGER NOT NULL DEFAULT 0,
    attempts       INTEGER NOT NULL DEFAULT 0,
    sent_us        INTEGER,
    receipt        TEXT NOT NULL DEFAULT '',
    action_key     TEXT NOT NULL DEFAULT '',
    UNIQUE (message_id, emission)
);
INSERT INTO outbox (outbox_id, message_id, run_id, kind, partition_key, attributes, payload, created_us, needs_seq, due_us,
                    lease_owner, lease_until_us, attempts, sent_us)
SELECT outbox_id, message_id, run_id, kind, partition_key, attributes, payload, created_us, needs_seq, due_us,
       lease_owner, lease_until_us, attempts, sent_us
FROM outbox_before;
DROP TABLE outbox_before;
CREATE INDEX outbox_unsent ON outbox (outbox_id) WHERE sent_us IS NULL;
CREATE INDEX outbox_run ON outbox (run_id);
CREATE INDEX outbox_published ON outbox (sent_us, outbox_id) WHERE emission = 0 AND sent_us IS NOT NULL;
