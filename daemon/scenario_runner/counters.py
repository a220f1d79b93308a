"""What this process asked of the world, counted by name: requests to S3, statements, log lines dropped."""

import threading
from collections import Counter

_counts: Counter[str] = Counter()
_lock = threading.RLock()
"""Reentrant: a signal handler that interrupts a count may log, and a line that is dropped is counted."""


def count(name: str) -> None:
    """Count one more."""
    with _lock:
        _counts[name] += 1


def counted() -> dict[str, int]:
    """All counts so far."""
    with _lock:
        return dict(sorted(_counts.items()))
