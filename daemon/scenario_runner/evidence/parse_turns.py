"""Parsing large JSON documents of many runs: one at a time, and never for long without a pause.

Parsing holds the interpreter's lock for tens of milliseconds at a stretch and takes some forty times the document's
size in memory. Threads that need the lock hundreds of times for a small run would wait for it every time.
"""

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from scenario_runner.artifacts.budget import ReadBudget

T = TypeVar("T")
#: Smaller documents are parsed in a few milliseconds.
_LARGE_BYTES: Final = 128 * 1024
#: How often a thread that waits for its turn reports that it is alive, so that it ends with its lease.
_BEAT_SECONDS: Final = 0.5
_TURN: Final = threading.Lock()


def parse_in_turn(budget: ReadBudget, size: int, parse: Callable[[], T]) -> T:
    """Parse a document: a large one while no other is parsed, then leaving the process to others for as long.

    Args:
        budget: Of the examination. One that is not patient does not wait: what it may parse is bounded already.
        size: Of the document in bytes.
        parse: Parses it.
    """
    if size < _LARGE_BYTES or not budget.share.patient:
        return parse()
    while not _TURN.acquire(timeout=_BEAT_SECONDS):
        budget.beat()
    began = time.monotonic()
    try:
        return parse()
    except Exception as error:
        # The next thread parses as soon as the turn is given away: this document must be gone by then.
        drop_frames(error)
        raise
    finally:
        time.sleep(time.monotonic() - began)
        _TURN.release()


def drop_frames(error: BaseException) -> None:
    """Take the tracebacks from an error and its causes: their frames keep what was being parsed in memory."""
    found: BaseException | None = error
    while found is not None:
        found.__traceback__ = None
        found = found.__cause__ or found.__context__
