CREATE TABLE schema_migrations (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    applied_us bigint NOT NULL
);

CREATE FUNCTION sr_now_us() RETURNS bigint LANGUAGE sql VOLATILE
AS $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

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
    CHECK ((due_us IS NULL) = (state IN ('READY', 'FAILED', 'QUARANTINED')))
);
CREATE INDEX runs_due ON runs (due_us) WHERE due_us IS NOT NULL;
CREATE INDEX runs_behind ON runs (updated_us) WHERE event_seq > projected_seq;
CREATE INDEX runs_admitted ON runs (admitted_us);

CREATE TABLE run_events (
    run_id  text COLLATE "C" NOT NULL,
    seq     bigint NOT NULL,
    kind    text NOT NULL,
    ts_us   bigint NOT NULL,
    details bytea NOT NULL,
    PRIMARY KEY (run_id, seq)
);

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
    raw_size    bigint NOT NULL
);
CREATE INDEX intake_records_run ON intake_records (run_id) WHERE run_id <> '';

CREATE TABLE dead_letters (
    record_key text COLLATE "C" PRIMARY KEY,
    raw        bytea NOT NULL
);

CREATE TABLE outbox (
    outbox_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id     text COLLATE "C" NOT NULL UNIQUE,
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
    sent_us        bigint
);
CREATE INDEX outbox_unsent ON outbox (outbox_id) WHERE sent_us IS NULL;
CREATE INDEX outbox_run ON outbox (run_id);

CREATE TABLE digest_reuse (
    digest_key text COLLATE "C" PRIMARY KEY,
    digests    bytea NOT NULL,
    kept_us    bigint NOT NULL
);
