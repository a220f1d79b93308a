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
ALTER TABLE runs ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN strategy TEXT NOT NULL DEFAULT '';
CREATE INDEX runs_executing ON runs (run_id) WHERE state = 'EXECUTING';
