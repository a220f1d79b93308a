-- Runs that no runner has claimed yet, so that a claim finds them behind thousands of waiting runs that are due at once; see
-- ADR 0042. A run leaves the index with its first claim, or when its engine cannot be launched.
CREATE INDEX runs_new ON runs ((due_us + 0)) WHERE state = 'PLANNED' AND retries = 0;
