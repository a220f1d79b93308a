"""A line of the log about the runs that wait for evidence: at most one a minute, and none while no run waits."""

from collections.abc import Callable
from typing import Final

import structlog

from scenario_runner.authority.base import Authority
from scenario_runner.contracts.times import MICROS, format_micros
from scenario_runner.counters import counted
from scenario_runner.runs.absent_roots import LOOKED_AT
from scenario_runner.runs.batch import NOTHING_NEW

#: Seconds between two lines: often enough to see that examinations go on, and 1,440 lines a day.
_SUMMARY_SECONDS: Final = 60.0
_log = structlog.get_logger("runs")


class WaitingSummary:
    """Logs how many runs wait, how often they were examined in vain or their roots looked at, and what comes next.

    Args:
        authority: Whose runs wait. Other daemons that share it log the same runs, and their own examinations.
        monotonic: Seconds.
    """

    def __init__(self, authority: Authority, monotonic: Callable[[], float]) -> None:
        self._authority, self._monotonic = authority, monotonic
        self._next = monotonic() + _SUMMARY_SECONDS
        self._examined = self._looked_at = 0

    def step(self) -> int:
        """Log the line when a minute is over; returns how many runs wait, or 0.

        Raises:
            Unavailable: the authority does not answer.
        """
        if self._monotonic() < self._next:
            return 0
        waiting = self._authority.waiting_runs()
        self._next = self._monotonic() + _SUMMARY_SECONDS
        counts = counted()
        examined, looked_at = counts.get(NOTHING_NEW, 0), counts.get(LOOKED_AT, 0)
        if waiting.count:
            oldest = max(0, self._authority.now_us() - waiting.oldest_us) // MICROS
            _log.info(
                "runs wait for evidence", waiting=waiting.count, examined_in_vain=examined - self._examined,
                roots_looked_at=looked_at - self._looked_at, oldest_seconds=oldest,
                next_deadline_utc=format_micros(waiting.next_deadline_us),
            )  # fmt: skip
        self._examined, self._looked_at = examined, looked_at
        return waiting.count
