"""Audit: verify a published run and explain any run. Read-only; only the commands use it."""
