"""File locks with bounded waiting: every process that may open a lock file can hold its lock for ever."""

import time
from collections.abc import Callable
from typing import Final

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.counters import count
from scenario_runner.posix import fcntl

#: A process of ours holds a lock while it reads, writes and fsyncs one object, which takes milliseconds.
_WAIT_SECONDS: Final = 3.0
#: After a wait in vain, locks are only tried for this time, so that many objects do not cost many waits.
_TRY_ONLY_SECONDS: Final = 30.0
#: About the time that a holder of ours needs; ``flock`` itself cannot wait for a bounded time.
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
            Unavailable: another process holds it for too long.
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
