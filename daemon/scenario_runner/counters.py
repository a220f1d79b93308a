"""Numbers of what this process did: counts and durations, each by a name and at most one label.

This is the only mechanism. The log line at the end of a daemon shows the counts, a shard worker hands them to its
daemon, and ``/metrics`` shows those that are declared in :mod:`scenario_runner.service.metrics`. Nothing here imports
anything that is slow to import: every command and every shard worker counts.

Counting never fails and never blocks for longer than a change of a dictionary: no run may end otherwise because of it.
"""

import bisect
import functools
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final, ParamSpec

P = ParamSpec("P")
Name = tuple[str, str]
"""A name and its label; an empty label for a name that has none."""

BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
"""Upper bounds of the buckets of every duration, in seconds: from one commit to the longest wait for evidence."""

OTHER: Final = "other"
"""The label that stands for all that are not kept, or not declared."""

#: Labels of one name that are kept: more than any closed list has. Labels beyond are counted as ``other``.
_MOST_LABELS: Final = 200

_counts: dict[Name, float] = {}
_labels: Counter[str] = Counter()
_durations: dict[str, list[float]] = {}
_lock = threading.RLock()
"""Reentrant: a signal handler that interrupts a count may log, and a log line that is dropped is counted."""


def count(name: str, label: str = "", by: float = 1) -> None:
    """Add to a count.

    Args:
        name: What is counted.
        label: One of a closed list.
        by: How much is added.
    """
    with _lock:
        key = (name, label)
        if key not in _counts:
            if label and _labels[name] >= _MOST_LABELS:
                key = (name, OTHER)
            else:
                _labels[name] += 1
        _counts[key] = _counts.get(key, 0) + by


def observe(name: str, seconds: float) -> None:
    """Put a duration into its bucket.

    Args:
        name: What lasted.
        seconds: How long; a clock that was set back makes none below zero.
    """
    seconds = max(0.0, seconds)
    with _lock:
        kept = _durations.setdefault(name, [0.0] * (len(BUCKETS) + 2))
        kept[bisect.bisect_left(BUCKETS, seconds)] += 1
        kept[-1] += seconds


def observing(function: Callable[P, None]) -> Callable[P, None]:
    """Make a function that only counts harmless: what it raises is counted as ``counters.failed`` and goes no further.

    For functions that compute what they count. They run after a commit, and nothing may follow from their failure.
    """

    @functools.wraps(function)
    def harmless(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception:  # noqa: BLE001 - whatever it is, no run depends on a number
            with suppress(Exception):
                count("counters.failed")

    return harmless


def counted() -> dict[str, int]:
    """All counts since the process started, rounded, by name; one with a label as ``name{label}``."""
    return {f"{name}{{{label}}}" if label else name: round(value) for (name, label), value in counts().items()}


def counts() -> dict[Name, float]:
    """All counts since the process started, in the order of their names."""
    with _lock:
        return dict(sorted(_counts.items()))


def durations() -> dict[str, tuple[list[float], float]]:
    """Observed durations by name: how many in each bucket (and above the last one), and their sum in seconds."""
    with _lock:
        return {name: (list(kept[:-1]), kept[-1]) for name, kept in sorted(_durations.items())}
