-- Runs that wait for evidence, by the engine run root where they wait for it: of the request, or pinned for it. The index
-- holds waiting runs only, so a run that never waits does not pay for it. Declared immutable although a conversion of
-- text is only stable to PostgreSQL: the encoding of a database never changes. A document with an escaped NUL, which no
-- text of PostgreSQL holds, has no root here: a run must be able to wait whatever its row says.
ALTER TABLE runs ADD COLUMN arrived_us bigint NOT NULL DEFAULT 0;
CREATE FUNCTION sr_root_of(intent bytea, inputs bytea) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT CASE WHEN position('\x5c7530303030'::bytea IN intent || inputs) > 0 THEN ''
                  ELSE coalesce(nullif(convert_from(intent, 'UTF8')::json ->> 'engine_run_root', ''),
                                convert_from(inputs, 'UTF8')::json ->> 'engine_run_root', '') END $$;
CREATE INDEX runs_waiting_at ON runs ((left(sr_root_of(intent, inputs), 600) COLLATE "C"), run_id)
    WHERE state = 'WAITING_EVIDENCE';
