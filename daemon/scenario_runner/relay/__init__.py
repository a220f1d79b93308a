"""Delivering what the authority says is owed: documents to the ledger first, then signals to the control bus."""
