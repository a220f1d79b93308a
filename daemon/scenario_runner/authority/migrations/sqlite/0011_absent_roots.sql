-- A waiting run whose root is absent is due at its deadline, and its root is looked at in rounds; see ADR 0039. The other
-- runs on their way have an index of their own: what asks for their leases and times would read 100,000 waiting runs.
ALTER TABLE runs ADD COLUMN absent_root TEXT NOT NULL DEFAULT '';
CREATE INDEX runs_absent_root ON runs (absent_root, state) WHERE state = 'WAITING_EVIDENCE' AND absent_root <> '';
CREATE INDEX runs_scheduled ON runs (due_us) WHERE due_us IS NOT NULL AND absent_root = '';
