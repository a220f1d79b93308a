-- A rebuild from the ledger that has begun and not ended: one row, which is deleted in the transaction of its last batch.
CREATE TABLE unfinished_rebuild (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    began_us INTEGER NOT NULL,
    epoch    INTEGER NOT NULL,
    actor    TEXT NOT NULL,
    terms    TEXT NOT NULL
);
