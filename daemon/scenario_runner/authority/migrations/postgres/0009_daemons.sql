CREATE TABLE daemons (
    owner      text COLLATE "C" PRIMARY KEY,
    role       text NOT NULL,
    version    text NOT NULL,
    host       text NOT NULL,
    started_us bigint NOT NULL,
    seen_us    bigint NOT NULL
);
CREATE INDEX daemons_seen ON daemons (seen_us);
