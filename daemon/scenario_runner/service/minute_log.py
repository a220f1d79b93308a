"""A line of the log each minute with the metrics of a daemon, and one for each thing that it cannot use.

For alarms that see the log and no ``/metrics``: filters of CloudWatch make metrics of these lines
(``infra/aws/service.yaml``). Its thread asks what the observer has found already, and makes no probe of its own: it
goes on where a probe hangs.
"""

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Protocol

import structlog

from scenario_runner.service.metrics import totals, worst_of

#: Alarms count in minutes. At this pace an outage of a day is 1,440 lines for each thing that is away.
_EVERY_SECONDS: Final = 60.0
_log = structlog.get_logger("service")


class Observed(Protocol):
    """A daemon, as its observer knows it."""

    def failing(self) -> Mapping[str, tuple[str, float]]:
        """What it cannot use, by name: why, and for how many seconds."""
        ...

    def gauges(self) -> Mapping[tuple[str, str], float]:
        """The values of all gauges."""
        ...


class MinuteLog:
    """Logs what an observer knows.

    Args:
        observed: The daemon.
    """

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._totals = totals()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="minute-log", daemon=True)

    def start(self) -> None:
        """Begin to log; the first lines come after a minute."""
        self._thread.start()

    def stop(self) -> None:
        """Log no more."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(_EVERY_SECONDS):
            with suppress(Exception):  # a minute without a line is one that an alarm sees
                self.step()

    def step(self) -> None:
        """Log the lines of one minute. A gauge that is not known is left out."""
        for name, (detail, seconds) in sorted(self._observed.failing().items()):
            _log.warning("a probe failed; the daemon is not ready", check=name, detail=detail, seconds=round(seconds))
        before, self._totals = self._totals, totals()
        gauges = {name: round(value, 3) for name, value in worst_of(self._observed.gauges()).items()}
        counts = {name: round(value - before[name], 3) for name, value in self._totals.items()}
        _log.info("metrics of the last minute", gauges=gauges, counts=counts)
