"""How far a long command has come: one line on stderr that is written over, on a terminal only."""

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from scenario_runner.cli.clock import duration
from scenario_runner.cli.text import is_terminal

#: Between two showings: often enough to see that it goes on.
_SECONDS: Final = 0.5
_CLEAR: Final = "\r\x1b[K"
#: Decimal, as the sizes and the rates of disks and networks are stated.
_GB: Final = 1e9


class Progress:
    """A context manager; the line is gone at its end.

    Args:
        verb: What was done to the bytes, e.g. ``verified``.
    """

    def __init__(self, verb: str) -> None:
        self._verb, self._began = verb, time.monotonic()
        self._shows, self._shown = is_terminal(sys.stderr), False
        self._next = self._began + _SECONDS

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the line away."""
        if self._shown:
            self._write(_CLEAR)

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is, when it is time to; from any thread.

        Args:
            done: Bytes so far.
            total: Bytes in all; 0 when nobody knows.
        """
        if not self._shows:
            return
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SECONDS
        self._shown = True
        self._write(_CLEAR + self._line(done, total, now - self._began))

    def _line(self, done: int, total: int, seconds: float) -> str:
        rate = done / seconds
        whole = f" of {total / _GB:.2f} GB, {100 * done // total} %" if total else " GB"
        left = f", {duration((total - done) / rate)} left" if total >= done > 0 and rate else ""
        return f"{self._verb} {done / _GB:.2f}{whole} ({rate / _GB:.2f} GB/s{left})"

    @staticmethod
    def _write(text: str) -> None:
        with suppress(OSError, ValueError):  # no result depends on it
            sys.stderr.write(text)
            sys.stderr.flush()
