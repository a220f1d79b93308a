"""Delivers what the authority's rows ask for: documents to the ledger first, then signals to the control bus."""
