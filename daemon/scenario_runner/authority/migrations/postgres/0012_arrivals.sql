-- Runs that wait for evidence, by the engine run root where they wait for it: of the request, or pinned for it. The index
-- holds waiting runs only, so a run that never waits does not pay for it. Declared immutable although a conversion of
-- text is only stable to PostgreSQL: the encoding of a database never changes.
ALTER TABLE runs ADD COLUMN arrived_us bigint NOT NULL DEFAULT 0;
CREATE FUNCTION sr_root_of(intent bytea, inputs bytea) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT coalesce(nullif(convert_from(intent, 'UTF8')::json ->> 'engine_run_root', ''),
                      convert_from(inputs, 'UTF8')::json ->> 'engine_run_root', '') $$;
CREATE INDEX runs_waiting_at ON runs ((left(sr_root_of(intent, inputs), 600) COLLATE "C"), run_id)
    WHERE state = 'WAITING_EVIDENCE';
