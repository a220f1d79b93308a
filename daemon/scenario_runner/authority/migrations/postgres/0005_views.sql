ALTER TABLE runs ADD COLUMN missing text NOT NULL DEFAULT '';
CREATE INDEX runs_by_state ON runs (state, admitted_us, run_id)
    WHERE state IN ('WAITING_EVIDENCE', 'FAILED', 'QUARANTINED');
CREATE INDEX runs_by_reason ON runs (reason_code, admitted_us, run_id) WHERE reason_code <> '';
CREATE INDEX runs_by_deadline ON runs (deadline_us) WHERE state = 'WAITING_EVIDENCE';
CREATE INDEX intake_records_refused ON intake_records (reason_code, record_id)
    WHERE disposition IN ('REJECTED', 'CONFLICT');
