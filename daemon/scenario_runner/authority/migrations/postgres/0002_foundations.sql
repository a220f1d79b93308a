CREATE TABLE store_identities (
    name     text COLLATE "C" PRIMARY KEY,
    identity text NOT NULL,
    noted_us bigint NOT NULL
);
ALTER TABLE runs ADD COLUMN invoker text NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN relay_retries integer NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN relay_error text NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN relay_since_us bigint NOT NULL DEFAULT 0;
