-- The whole schema of the SQLite authority, to be read. Databases are made by the migrations, and a test holds both
-- against each other. Times are microseconds since the epoch on the database's clock.
-- The version is PRAGMA user_version.

-- One row for each run. A run is due when due_us has come and its lease has run out; a finished one is never due. The
-- epoch grows with every claim and is named by every write. A run is behind while projected_seq < event_seq: its ledger
-- documents are owed, under a lease of the relay; relay_retries, relay_error and relay_since_us tell why they still are.
-- settled holds the token of the transition that was committed last. attempts counts the run's rows of engine_attempts, so
-- that a claim reads those of runs that have some. strategy is that of the plan, empty for runs of releases without
-- attempts: a claim leaves a run in state PLANNED that invokes its engine first (FORCE_INVOKE). missing holds the paths that
-- a waiting run waits for, each after a line feed, so that people can search them; empty where they are too many, and for
-- runs that wait since an older release: then the newest event EVIDENCE_MISSING tells them. supersedes is the run that a
-- correction corrects, empty for every other run; supersession holds what its request said of it, as canonical JSON.
-- absent_root is the root of a run that waits for nothing less: it is due at its deadline, and its root is looked at in
-- rounds until then. It is empty under lease, and of every other run.
-- arrived_us is when a run is or was due because somebody said that its evidence has come; 0 when nobody did.
CREATE TABLE runs (
    run_id              TEXT PRIMARY KEY,
    run_equivalence_key TEXT NOT NULL UNIQUE,
    fingerprint         TEXT NOT NULL,
    intent              BLOB NOT NULL,
    inputs              BLOB NOT NULL,
    state               TEXT NOT NULL CHECK (state IN ('PLANNED', 'EXECUTING', 'VERIFYING', 'WAITING_EVIDENCE',
                                                       'READY', 'FAILED', 'QUARANTINED')),
    reason_code         TEXT NOT NULL DEFAULT '',
    admitted_us         INTEGER NOT NULL,
    deadline_us         INTEGER NOT NULL,
    updated_us          INTEGER NOT NULL,
    due_us              INTEGER,
    lease_owner         TEXT NOT NULL DEFAULT '',
    lease_epoch         INTEGER NOT NULL DEFAULT 0,
    lease_until_us      INTEGER NOT NULL DEFAULT 0,
    relay_owner         TEXT NOT NULL DEFAULT '',
    relay_until_us      INTEGER NOT NULL DEFAULT 0,
    wakes               INTEGER NOT NULL DEFAULT 0,
    retries             INTEGER NOT NULL DEFAULT 0,
    last_error          TEXT NOT NULL DEFAULT '',
    report_digest       TEXT NOT NULL DEFAULT '',
    event_seq           INTEGER NOT NULL,
    projected_seq       INTEGER NOT NULL DEFAULT 0,
    facts_view_digest   TEXT NOT NULL DEFAULT '',
    settled             TEXT NOT NULL DEFAULT '',
    invoker             TEXT NOT NULL DEFAULT '',
    relay_retries       INTEGER NOT NULL DEFAULT 0,
    relay_error         TEXT NOT NULL DEFAULT '',
    relay_since_us      INTEGER NOT NULL DEFAULT 0,
    attempts            INTEGER NOT NULL DEFAULT 0,
    strategy            TEXT NOT NULL DEFAULT '',
    missing             TEXT NOT NULL DEFAULT '',
    supersedes          TEXT NOT NULL DEFAULT '',
    supersession        TEXT NOT NULL DEFAULT '',
    absent_root         TEXT NOT NULL DEFAULT '',
    arrived_us          INTEGER NOT NULL DEFAULT 0,
    CHECK ((due_us IS NULL) = (state IN ('READY', 'FAILED', 'QUARANTINED')))
);
CREATE INDEX runs_due ON runs (due_us) WHERE due_us IS NOT NULL;
CREATE INDEX runs_new ON runs ((due_us + 0)) WHERE state = 'PLANNED' AND retries = 0;
CREATE INDEX runs_leased ON runs (lease_owner) WHERE lease_owner <> '';
CREATE INDEX runs_put_off ON runs (retries) WHERE state NOT IN ('READY', 'FAILED', 'QUARANTINED') AND retries > 0;
CREATE INDEX runs_behind ON runs (updated_us) WHERE event_seq > projected_seq;
CREATE INDEX runs_admitted ON runs (admitted_us);
CREATE INDEX runs_executing ON runs (run_id) WHERE state = 'EXECUTING';
CREATE INDEX runs_superseding ON runs (supersedes) WHERE supersedes <> '';
CREATE INDEX runs_absent_root ON runs (absent_root, state) WHERE state = 'WAITING_EVIDENCE' AND absent_root <> '';
CREATE INDEX runs_scheduled ON runs (due_us) WHERE due_us IS NOT NULL AND absent_root = '';

-- Runs that wait for evidence, by the engine run root where they wait for it: of the request, or pinned for it.
CREATE INDEX runs_waiting_at ON runs (
    coalesce(nullif(json_extract(CAST(intent AS TEXT), '$.engine_run_root'), ''),
             json_extract(CAST(inputs AS TEXT), '$.engine_run_root'), ''), run_id) WHERE state = 'WAITING_EVIDENCE';

-- For people who look at runs (authority/views). They hold what a person looks for, which is a small part of all runs.
CREATE INDEX runs_by_state ON runs (state, admitted_us, run_id)
    WHERE state IN ('WAITING_EVIDENCE', 'FAILED', 'QUARANTINED');
CREATE INDEX runs_by_reason ON runs (reason_code, admitted_us, run_id) WHERE reason_code <> '';
CREATE INDEX runs_by_deadline ON runs (deadline_us) WHERE state = 'WAITING_EVIDENCE';

-- The record of each run, numbered without gaps.
CREATE TABLE run_events (
    run_id  TEXT NOT NULL,
    seq     INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    ts_us   INTEGER NOT NULL,
    details BLOB NOT NULL,
    PRIMARY KEY (run_id, seq)
) WITHOUT ROWID;

-- Every attempt of a run's engine. A row is inserted, and counted in runs.attempts, in the transaction before the launch:
-- after a crash the attempt is found again, so it is monitored or ended and never launched twice. epoch is the epoch of
-- the lease under which the row was inserted. A row changes only while ended_us is null.
CREATE TABLE engine_attempts (
    run_id          TEXT NOT NULL,
    attempt_no      INTEGER NOT NULL CHECK (attempt_no > 0),
    attempt_id      TEXT NOT NULL UNIQUE,
    epoch           INTEGER NOT NULL,
    invoker         TEXT NOT NULL,
    handle          TEXT NOT NULL,
    launched_us     INTEGER NOT NULL,
    timeout_us      INTEGER NOT NULL,
    ended_us        INTEGER,
    outcome         TEXT NOT NULL CHECK (outcome IN ('', 'SUCCEEDED', 'FAILED')),
    reason_code     TEXT NOT NULL,
    exit_code       INTEGER,
    stop_code       TEXT NOT NULL,
    another_attempt INTEGER NOT NULL,
    duration_ms     INTEGER NOT NULL,
    detail          TEXT NOT NULL,
    stderr_tail     TEXT NOT NULL,
    PRIMARY KEY (run_id, attempt_no),
    CHECK ((ended_us IS NULL) = (outcome = ''))
) WITHOUT ROWID;

-- Every record of the control bus that was disposed of, once. Retention may remove rows whose disposition is no refusal.
-- raw_removed_us is when it removed the bytes of a refused record from dead_letters.
CREATE TABLE intake_records (
    record_id   INTEGER PRIMARY KEY,
    record_key  TEXT NOT NULL UNIQUE,
    message_id  TEXT NOT NULL,
    kind        TEXT NOT NULL,
    run_id      TEXT NOT NULL,
    disposition TEXT NOT NULL CHECK (disposition IN ('ACCEPTED', 'DUPLICATE', 'CONFLICT', 'REJECTED', 'IGNORED')),
    reason_code TEXT NOT NULL,
    detail      TEXT NOT NULL,
    received_us INTEGER NOT NULL,
    raw_sha256  TEXT NOT NULL,
    raw_size    INTEGER NOT NULL,
    raw_removed_us INTEGER
);
CREATE INDEX intake_records_run ON intake_records (run_id) WHERE run_id <> '';
CREATE INDEX intake_records_refused ON intake_records (reason_code, record_id)
    WHERE disposition IN ('REJECTED', 'CONFLICT');
CREATE INDEX intake_records_with_raw ON intake_records (record_id)
    WHERE disposition IN ('REJECTED', 'CONFLICT') AND raw_removed_us IS NULL;

-- The bytes of refused records; empty where intake_records.raw_removed_us says that they were removed.
CREATE TABLE dead_letters (
    record_key TEXT PRIMARY KEY,
    raw        BLOB NOT NULL
);

-- Signals owed to the control bus; one goes out when its run's documents are in the ledger up to needs_seq. A signal that
-- is published once more is another row of the same message: emission counts them from 0, action_key names the act that
-- asked for it, and none goes out before the one before it. receipt is what the bus answered, as JSON. Retention may remove
-- rows that were sent, except the first one of READY and TERMINAL: there removed_emission is the highest number whose row
-- was removed, so that no number is used twice.
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
    removed_emission INTEGER NOT NULL DEFAULT 0,
    UNIQUE (message_id, emission)
);
CREATE INDEX outbox_unsent ON outbox (outbox_id) WHERE sent_us IS NULL;
CREATE INDEX outbox_run ON outbox (run_id);
CREATE INDEX outbox_published ON outbox (sent_us, outbox_id) WHERE emission = 0 AND sent_us IS NOT NULL;
CREATE INDEX outbox_removable ON outbox (sent_us, outbox_id)
    WHERE sent_us IS NOT NULL AND kind IN ('READY_REEMIT', 'TERMINAL_REEMIT', 'REQUEST_REJECTED');

-- What operators did: who did what to what, when, why, and what came of it. A row is written in the transaction of the
-- act's effect. action_key is the act's identity: an act that is sent again is not carried out again.
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

-- Digests of engine outputs by identity of their files.
CREATE TABLE digest_reuse (
    digest_key TEXT PRIMARY KEY,
    digests    BLOB NOT NULL,
    kept_us    INTEGER NOT NULL
);
CREATE INDEX digest_reuse_kept ON digest_reuse (kept_us);

-- What the daemons stand on: the object store, the spool, the stream, each by a name and the identity found there first.
CREATE TABLE store_identities (
    name     TEXT PRIMARY KEY,
    identity TEXT NOT NULL,
    noted_us INTEGER NOT NULL
);

-- A rebuild from the ledger that has begun and not ended: one row, which is deleted in the transaction of its last batch.
CREATE TABLE unfinished_rebuild (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    began_us INTEGER NOT NULL,
    epoch    INTEGER NOT NULL,
    actor    TEXT NOT NULL,
    terms    TEXT NOT NULL
);

-- The processes of serve, as they report themselves twice a minute at least. A process that stops in order removes its
-- row; that of a killed one is removed a day later. A rebuild begins only where none of them is young.
CREATE TABLE daemons (
    owner      TEXT PRIMARY KEY,
    role       TEXT NOT NULL,
    version    TEXT NOT NULL,
    host       TEXT NOT NULL,
    started_us INTEGER NOT NULL,
    seen_us    INTEGER NOT NULL
);
CREATE INDEX daemons_seen ON daemons (seen_us);
