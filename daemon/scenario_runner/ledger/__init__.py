"""SR's own published truth: plan, record, status, facts view, receipts, under one prefix of the object store."""
