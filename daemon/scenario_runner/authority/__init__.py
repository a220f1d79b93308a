"""The authority: rows that decide. Admissions, leases with fencing epochs, verdicts, outbox."""
