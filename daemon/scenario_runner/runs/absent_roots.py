"""Rounds over the roots that waiting runs lack: one look for all runs of a root, and no write while it is absent.

A run that waits for its root is due at its deadline (:mod:`~scenario_runner.runs.waits`). Until then this looks at
the root, which costs one request for as many roots as lie together, and makes the run due when something stands there.
An examination then decides as ever: nothing of a verdict is decided here. The pace is bounded, whatever number of runs
waits; see ADR 0039.
"""

from collections.abc import Callable
from typing import Final

import structlog

from scenario_runner.artifacts.base import Artifacts
from scenario_runner.authority.base import Authority
from scenario_runner.contracts.times import MICROS
from scenario_runner.counters import count

LOOKED_AT: Final = "roots.looked_at"
"""Counter of absent roots that were looked at."""
#: From the beginning of a round to that of the next: a root that comes is noticed a minute later at most, as long as
#: the pace allows it.
_ROUND_SECONDS: Final = 60.0
#: Between two looks, each of about one request to the store: eight in a second, of all daemons together.
_STEP_SECONDS: Final = 0.125
#: A daemon that reported itself within this makes rounds too: it does so every 15 s.
_SEEN_US: Final = 60 * MICROS
#: Roles of daemons that make rounds.
_ROLES: Final = ("all", "runner")
#: How often it is asked whether the next round begins.
_BETWEEN_ROUNDS_SECONDS: Final = 1.0
#: Roots of one page: as many as one page of keys of S3 may answer for.
_PAGE: Final = 1000
#: Runs that one statement wakes: a larger one would keep SQLite's write lock for too long.
_WOKEN_AT_A_TIME: Final = 1000
_log = structlog.get_logger("runs")


class AbsentRoots:
    """Looks at absent roots, a page after the other.

    Args:
        authority: Whose runs wait.
        artifacts: Looks at roots.
        monotonic: Seconds.
        only: The only run whose root is looked at, and that is made due; empty for all.
    """

    def __init__(
        self, authority: Authority, artifacts: Artifacts, monotonic: Callable[[], float], only: str = ""
    ) -> None:
        self._authority, self._artifacts, self._monotonic, self._only = authority, artifacts, monotonic, only
        #: Roots of the page that have no answer yet, and the last root of the page; empty between two rounds.
        self._page: list[str] = []
        self._after = ""
        self._next_round_at = monotonic()
        self._warned = False  # of roots that cannot be looked at: once a round
        self._daemons_looking = 1

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next step."""
        return _STEP_SECONDS * self._daemons_looking if self._after else _BETWEEN_ROUNDS_SECONDS

    def step(self) -> int:
        """Look once, unless the round is over and the next one has not begun; returns how many runs were made due.

        Raises:
            Unavailable: the authority does not answer.
        """
        if not self._after and self._monotonic() < self._next_round_at:
            return 0
        if not self._page:
            self._turn_page()
        return self._look() if self._page else 0

    def _turn_page(self) -> None:
        began, begins = self._monotonic(), not self._after
        if begins:
            looking = sum(daemon.role in _ROLES for daemon in self._authority.daemons_seen(_SEEN_US))
            self._daemons_looking = max(1, looking)
        self._page = self._authority.absent_roots(self._after, _PAGE, self._only)
        self._after = self._page[-1] if self._page else ""
        if begins:  # last: a round that an outage kept from beginning is tried again, not left out
            self._next_round_at, self._warned = began + _ROUND_SECONDS, False

    def _look(self) -> int:
        seen = self._artifacts.look(self._page)
        woken = self._wake(seen.there)
        count(LOOKED_AT, by=len(seen.there) + len(seen.absent))
        if seen.unknown and not self._warned:
            self._warned = True
            root, detail = next(iter(seen.unknown.items()))
            _log.warning("roots that runs wait for cannot be looked at", engine_run_root=root, detail=detail)
        answered = seen.there | seen.absent | seen.unknown.keys()
        self._page = [root for root in self._page if root not in answered]
        return woken

    def _wake(self, roots: frozenset[str]) -> int:
        woken = 0
        while roots and (more := self._authority.wake_waiting_for_roots(roots, _WOKEN_AT_A_TIME, self._only)):
            woken += more
        if woken:
            _log.info("roots that runs waited for have come", roots=len(roots), runs=woken)
        return woken
