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
ALTER TABLE runs ADD COLUMN attempts integer NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN strategy text NOT NULL DEFAULT '';
CREATE INDEX runs_executing ON runs (run_id) WHERE state = 'EXECUTING';
