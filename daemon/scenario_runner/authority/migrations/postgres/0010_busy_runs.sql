-- Pages of runs that an engine or an examination is busy with. They are few among the many that are due later: to find none
-- among 40,000 took 0.2 s.
CREATE INDEX runs_busy ON runs (due_us, run_id) WHERE state IN ('EXECUTING', 'VERIFYING');
