"""Rebuilding an empty authority from the ledger: what the documents of a run say, and whether that holds together."""
