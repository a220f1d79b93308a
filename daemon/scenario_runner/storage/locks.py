"""File locks whose waiting is bounded: whoever may open a lock file can keep it, for a moment or for ever."""

import time
from collections.abc import Callable
from typing import Final

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.counters import count
from scenario_runner.posix import fcntl

#: A holder of ours reads, writes and fsyncs one object; nobody who keeps a lock for longer is one of us at work.
_WAIT_SECONDS: Final = 3.0
#: For how long after a wait in vain locks are only tried: many objects together must not cost many waits.
_TRY_ONLY_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.005


class BoundedLocks:
    """Takes locks of one store.

    Args:
        monotonic: Seconds, never going back.
        sleep: Waits some seconds.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._monotonic, self._sleep = monotonic, sleep
        self._try_only_until = 0.0

    def acquire(self, fd: int, path: str) -> None:
        """Lock an open file exclusively; closing it gives the lock back.

        Raises:
            Unavailable: somebody kept it for longer than anybody needs it.
        """
        now = self._monotonic()
        deadline = now if now < self._try_only_until else now + _WAIT_SECONDS
        while not _try(fd):
            if self._monotonic() >= deadline:
                self._try_only_until = max(self._try_only_until, now + _TRY_ONLY_SECONDS)
                count("locks.kept_by_others")
                raise Unavailable(
                    f"the lock {path} is kept by another process; end that process (lslocks or fuser shows it), and "
                    "let nobody but the daemon's user open the file"
                )
            self._sleep(_POLL_SECONDS)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
