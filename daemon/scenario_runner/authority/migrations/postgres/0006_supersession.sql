ALTER TABLE runs ADD COLUMN supersedes text COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN supersession text NOT NULL DEFAULT '';
CREATE INDEX runs_superseding ON runs (supersedes) WHERE supersedes <> '';
