-- Runs under lease, which housekeeping looks for again and again: beside them it would read every run that waits. A run
-- leaves the index when its lease is given back. A renewal does not change the index.
CREATE INDEX runs_leased ON runs (lease_owner) WHERE lease_owner <> '';
