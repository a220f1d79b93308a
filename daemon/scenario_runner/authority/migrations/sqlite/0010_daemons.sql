CREATE TABLE daemons (
    owner      TEXT PRIMARY KEY,
    role       TEXT NOT NULL,
    version    TEXT NOT NULL,
    host       TEXT NOT NULL,
    started_us INTEGER NOT NULL,
    seen_us    INTEGER NOT NULL
);
CREATE INDEX daemons_seen ON daemons (seen_us);
