"""What this process asked of the world, counted by name: requests to S3, statements to a database."""

import threading
from collections import Counter

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def count(name: str) -> None:
    """Count one more."""
    with _lock:
        _counts[name] += 1


def counted() -> dict[str, int]:
    """All counts so far."""
    with _lock:
        return dict(sorted(_counts.items()))
