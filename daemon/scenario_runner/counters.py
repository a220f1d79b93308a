"""Counts of what this process did, by name: requests to S3, statements, failed deliveries, log lines dropped."""

import threading
from collections import Counter

_counts: Counter[str] = Counter()
_lock = threading.RLock()
"""Reentrant: a signal handler that interrupts a count may log, and a log line that is dropped is counted."""


def count(name: str) -> None:
    """Add one to a count."""
    with _lock:
        _counts[name] += 1


def counted() -> dict[str, int]:
    """All counts since the process started, by name."""
    with _lock:
        return dict(sorted(_counts.items()))
