"""Scenario Runner: run authority and join-surface publisher, fail-closed and by reference."""

__version__ = "0.1.0"
