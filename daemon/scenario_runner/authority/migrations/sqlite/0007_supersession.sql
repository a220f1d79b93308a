ALTER TABLE runs ADD COLUMN supersedes TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN supersession TEXT NOT NULL DEFAULT '';
CREATE INDEX runs_superseding ON runs (supersedes) WHERE supersedes <> '';
