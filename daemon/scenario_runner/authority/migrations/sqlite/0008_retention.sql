ALTER TABLE intake_records ADD COLUMN raw_removed_us INTEGER;
ALTER TABLE outbox ADD COLUMN removed_emission INTEGER NOT NULL DEFAULT 0;
CREATE INDEX intake_records_with_raw ON intake_records (record_id)
    WHERE disposition IN ('REJECTED', 'CONFLICT') AND raw_removed_us IS NULL;
CREATE INDEX outbox_removable ON outbox (sent_us, outbox_id)
    WHERE sent_us IS NOT NULL AND kind IN ('READY_REEMIT', 'TERMINAL_REEMIT', 'REQUEST_REJECTED');
CREATE INDEX digest_reuse_kept ON digest_reuse (kept_us);
