"""Waiting for something with a bound."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class LateError(AssertionError):
    """Something did not become true in time."""


def until(found: Callable[[], T], what: str, seconds: float = 60.0, pause: float = 0.1) -> T:
    """Ask again and again until the answer is true.

    Args:
        found: What to ask.
        what: What is waited for, for the error.
        seconds: After so many it is too late.
        pause: Seconds between two questions.

    Returns:
        The first true answer.

    Raises:
        LateError: There was none in time.
    """
    deadline = time.monotonic() + seconds
    while not (answer := found()):
        if time.monotonic() >= deadline:
            raise LateError(f"not within {seconds} s: {what}")
        time.sleep(pause)
    return answer
