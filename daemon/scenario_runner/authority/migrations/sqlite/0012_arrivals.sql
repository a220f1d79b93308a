-- Runs that wait for evidence, by the engine run root where they wait for it: of the request, or pinned for it. The index
-- holds waiting runs only, so a run that never waits does not pay for it.
ALTER TABLE runs ADD COLUMN arrived_us INTEGER NOT NULL DEFAULT 0;
CREATE INDEX runs_waiting_at ON runs (
    coalesce(nullif(json_extract(CAST(intent AS TEXT), '$.engine_run_root'), ''),
             json_extract(CAST(inputs AS TEXT), '$.engine_run_root'), ''), run_id) WHERE state = 'WAITING_EVIDENCE';
