-- Runs under lease, and runs that infrastructure put off: a daemon asks for them again and again, and would read every run
-- that is examined again and again beside them. A run leaves the first index when its lease is given back; a renewal does
-- not change it.
CREATE INDEX runs_leased ON runs (lease_owner) WHERE lease_owner <> '';
CREATE INDEX runs_put_off ON runs (retries) WHERE state NOT IN ('READY', 'FAILED', 'QUARANTINED') AND retries > 0;
