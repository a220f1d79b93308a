-- The whole schema of the PostgreSQL authority, to be read. Databases are made by the migrations, and a test holds both
-- against each other. Times are microseconds since the epoch on the database's clock.
-- Details of an event are stored without its number, which is the column seq.

-- Migrations that have been applied.
CREATE TABLE schema_migrations (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    applied_us bigint NOT NULL
);

-- The one clock: microseconds since the epoch.
CREATE FUNCTION sr_now_us() RETURNS bigint LANGUAGE sql VOLATILE
AS $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

-- The engine run root of a run: of its request, or pinned for it. Declared immutable although a conversion of text is only
-- stable to PostgreSQL: the encoding of a database never changes. A document with an escaped NUL, which no text of PostgreSQL
-- holds, has no root here: a run must be able to wait whatever its row says.
CREATE FUNCTION sr_root_of(intent bytea, inputs bytea) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT CASE WHEN position('\x5c7530303030'::bytea IN intent || inputs) > 0 THEN ''
                  ELSE coalesce(nullif(convert_from(intent, 'UTF8')::json ->> 'engine_run_root', ''),
                                convert_from(inputs, 'UTF8')::json ->> 'engine_run_root', '') END $$;

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
    run_id              text COLLATE "C" PRIMARY KEY,
    run_equivalence_key text COLLATE "C" NOT NULL UNIQUE,
    fingerprint         text NOT NULL,
    intent              bytea NOT NULL,
    inputs              bytea NOT NULL,
    state               text NOT NULL CHECK (state IN ('PLANNED', 'EXECUTING', 'VERIFYING', 'WAITING_EVIDENCE',
                                                       'READY', 'FAILED', 'QUARANTINED')),
    reason_code         text NOT NULL DEFAULT '',
    admitted_us         bigint NOT NULL,
    deadline_us         bigint NOT NULL,
    updated_us          bigint NOT NULL,
    due_us              bigint,
    lease_owner         text NOT NULL DEFAULT '',
    lease_epoch         bigint NOT NULL DEFAULT 0,
    lease_until_us      bigint NOT NULL DEFAULT 0,
    relay_owner         text NOT NULL DEFAULT '',
    relay_until_us      bigint NOT NULL DEFAULT 0,
    wakes               integer NOT NULL DEFAULT 0,
    retries             integer NOT NULL DEFAULT 0,
    last_error          text NOT NULL DEFAULT '',
    report_digest       text NOT NULL DEFAULT '',
    event_seq           bigint NOT NULL,
    projected_seq       bigint NOT NULL DEFAULT 0,
    facts_view_digest   text NOT NULL DEFAULT '',
    settled             text NOT NULL DEFAULT '',
    invoker             text NOT NULL DEFAULT '',
    relay_retries       integer NOT NULL DEFAULT 0,
    relay_error         text NOT NULL DEFAULT '',
    relay_since_us      bigint NOT NULL DEFAULT 0,
    attempts            integer NOT NULL DEFAULT 0,
    strategy            text NOT NULL DEFAULT '',
    missing             text NOT NULL DEFAULT '',
    supersedes          text COLLATE "C" NOT NULL DEFAULT '',
    supersession        text NOT NULL DEFAULT '',
    absent_root         text COLLATE "C" NOT NULL DEFAULT '',
    arrived_us          bigint NOT NULL DEFAULT 0,
    CHECK ((due_us IS NULL) = (state IN ('READY', 'FAILED', 'QUARANTINED')))
);
CREATE INDEX runs_due ON runs (due_us) WHERE due_us IS NOT NULL;
CREATE INDEX runs_new ON runs ((due_us + 0)) WHERE state = 'PLANNED' AND retries = 0;
CREATE INDEX runs_leased ON runs (lease_owner) WHERE lease_owner <> '';
CREATE INDEX runs_put_off ON runs (retries) WHERE state NOT IN ('READY', 'FAILED', 'QUARANTINED') AND retries > 0;
CREATE INDEX runs_behind ON runs (updated_us) WHERE event_seq > projected_seq;
CREATE INDEX runs_admitted ON runs (admitted_us);
CREATE INDEX runs_executing ON runs (run_id) WHERE state = 'EXECUTING';
-- Pages of runs that an engine or an examination is busy with.
CREATE INDEX runs_busy ON runs (due_us, run_id) WHERE state IN ('EXECUTING', 'VERIFYING');
CREATE INDEX runs_superseding ON runs (supersedes) WHERE supersedes <> '';
CREATE INDEX runs_absent_root ON runs (absent_root, state) WHERE state = 'WAITING_EVIDENCE' AND absent_root <> '';
CREATE INDEX runs_scheduled ON runs (due_us) WHERE due_us IS NOT NULL AND absent_root = '';

-- Runs that wait for evidence, by the engine run root where they wait for it. A row of the index must fit into a page, so
-- it holds the begin of the root.
CREATE INDEX runs_waiting_at ON runs ((left(sr_root_of(intent, inputs), 600) COLLATE "C"), run_id)
    WHERE state = 'WAITING_EVIDENCE';

-- For people who look at runs (authority/views). They hold what a person looks for, which is a small part of all runs.
CREATE INDEX runs_by_state ON runs (state, admitted_us, run_id)
    WHERE state IN ('WAITING_EVIDENCE', 'FAILED', 'QUARANTINED');
CREATE INDEX runs_by_reason ON runs (reason_code, admitted_us, run_id) WHERE reason_code <> '';
CREATE INDEX runs_by_deadline ON runs (deadline_us) WHERE state = 'WAITING_EVIDENCE';

-- The record of each run, numbered without gaps.
CREATE TABLE run_events (
    run_id  text COLLATE "C" NOT NULL,
    seq     bigint NOT NULL,
    kind    text NOT NULL,
    ts_us   bigint NOT NULL,
    details bytea NOT NULL,
    PRIMARY KEY (run_id, seq)
);

-- Every attempt of a run's engine. A row is inserted, and counted in runs.attempts, in the transaction before the launch:
-- after a crash the attempt is found again, so it is monitored or ended and never launched twice. epoch is the epoch of
-- the lease under which the row was inserted. A row changes only while ended_us is null.
CREATE TABLE engine_attempts (
    run_id          text COLLATE "C" NOT NULL,
    attempt_no      integer NOT NULL CHECK (attempt_no > 0),
    attempt_id      text COLLATE "C" NOT NULL UNIQUE,
    epoch           bigint NOT NULL,
    invoker         text NOT NULL,
    handle          text NOT NULL,
    launched_us     bigint NOT NULL,
    timeout_us      bigint NOT NULL,
    ended_us        bigint,
    outcome         text NOT NULL CHECK (outcome IN ('', 'SUCCEEDED', 'FAILED')),
    reason_code     text NOT NULL,
    exit_code       bigint,
    stop_code       text NOT NULL,
    another_attempt boolean NOT NULL,
    duration_ms     bigint NOT NULL,
    detail          text NOT NULL,
    stderr_tail     text NOT NULL,
    PRIMARY KEY (run_id, attempt_no),
    CHECK ((ended_us IS NULL) = (outcome = ''))
);

-- Every record of the control bus that was disposed of, once. Retention may remove rows whose disposition is no refusal.
-- raw_removed_us is when it removed the bytes of a refused record from dead_letters.
CREATE TABLE intake_records (
    record_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    record_key  text COLLATE "C" NOT NULL UNIQUE,
    message_id  text NOT NULL,
    kind        text NOT NULL,
    run_id      text COLLATE "C" NOT NULL,
    disposition text NOT NULL CHECK (disposition IN ('ACCEPTED', 'DUPLICATE', 'CONFLICT', 'REJECTED', 'IGNORED')),
    reason_code text NOT NULL,
    detail      text NOT NULL,
    received_us bigint NOT NULL,
    raw_sha256  text NOT NULL,
    raw_size    bigint NOT NULL,
    raw_removed_us bigint
);
CREATE INDEX intake_records_run ON intake_records (run_id) WHERE run_id <> '';
CREATE INDEX intake_records_refused ON intake_records (reason_code, record_id)
    WHERE disposition IN ('REJECTED', 'CONFLICT');
CREATE INDEX intake_records_with_raw ON intake_records (record_id)
    WHERE disposition IN ('REJECTED', 'CONFLICT') AND raw_removed_us IS NULL;

-- The bytes of refused records; empty where intake_records.raw_removed_us says that they were removed.
CREATE TABLE dead_letters (
    record_key text COLLATE "C" PRIMARY KEY,
    raw        bytea NOT NULL
);

-- Signals owed to the control bus; one goes out when its run's documents are in the ledger up to needs_seq. A signal that
-- is published once more is another row of the same message: emission counts them from 0, action_key names the act that
-- asked for it, and none goes out before the one before it. receipt is what the bus answered, as JSON. Retention may remove
-- rows that were sent, except the first one of READY and TERMINAL: there removed_emission is the highest number whose row
-- was removed, so that no number is used twice.
CREATE TABLE outbox (
    outbox_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id     text COLLATE "C" NOT NULL,
    run_id         text COLLATE "C" NOT NULL,
    kind           text NOT NULL,
    partition_key  text NOT NULL,
    attributes     bytea NOT NULL,
    payload        bytea NOT NULL,
    created_us     bigint NOT NULL,
    needs_seq      bigint NOT NULL,
    due_us         bigint NOT NULL DEFAULT 0,
    lease_owner    text NOT NULL DEFAULT '',
    lease_until_us bigint NOT NULL DEFAULT 0,
    attempts       integer NOT NULL DEFAULT 0,
    sent_us        bigint,
    emission       integer NOT NULL DEFAULT 0,
    receipt        text NOT NULL DEFAULT '',
    action_key     text NOT NULL DEFAULT '',
    removed_emission integer NOT NULL DEFAULT 0,
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
    action_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    action_key text COLLATE "C" NOT NULL UNIQUE,
    at         bigint NOT NULL,
    actor      text NOT NULL,
    via        text NOT NULL,
    action     text NOT NULL,
    subject    text COLLATE "C" NOT NULL,
    reason     text NOT NULL,
    outcome    text NOT NULL,
    detail     text NOT NULL
);
CREATE INDEX operator_actions_subject ON operator_actions (subject, at);

-- Digests of engine outputs by identity of their files.
CREATE TABLE digest_reuse (
    digest_key text COLLATE "C" PRIMARY KEY,
    digests    bytea NOT NULL,
    kept_us    bigint NOT NULL
);
CREATE INDEX digest_reuse_kept ON digest_reuse (kept_us);

-- What the daemons stand on: the object store, the spool, the stream, each by a name and the identity found there first.
CREATE TABLE store_identities (
    name     text COLLATE "C" PRIMARY KEY,
    identity text NOT NULL,
    noted_us bigint NOT NULL
);

-- A rebuild from the ledger that has begun and not ended: one row, which is deleted in the transaction of its last batch.
CREATE TABLE unfinished_rebuild (
    only_row integer PRIMARY KEY CHECK (only_row = 1),
    began_us bigint NOT NULL,
    epoch    bigint NOT NULL,
    actor    text NOT NULL,
    terms    text NOT NULL
);

-- The processes of serve, as they report themselves twice a minute at least. A process that stops in order removes its
-- row; that of a killed one is removed a day later. A rebuild begins only where none of them is young.
CREATE TABLE daemons (
    owner      text COLLATE "C" PRIMARY KEY,
    role       text NOT NULL,
    version    text NOT NULL,
    host       text NOT NULL,
    started_us bigint NOT NULL,
    seen_us    bigint NOT NULL
);
CREATE INDEX daemons_seen ON daemons (seen_us);
