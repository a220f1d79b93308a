-- A rebuild from the ledger that has begun and not ended: one row, which is deleted in the transaction of its last batch.
CREATE TABLE unfinished_rebuild (
    only_row integer PRIMARY KEY CHECK (only_row = 1),
    began_us bigint NOT NULL,
    epoch    bigint NOT NULL,
    actor    text NOT NULL,
    terms    text NOT NULL
);
