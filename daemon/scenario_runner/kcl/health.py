"""Decides from the statuses of shards when a JVM must be replaced, and logs when nothing has happened for long."""

import time
from collections.abc import Mapping
from typing import Final

import structlog

from scenario_runner.kcl.shard_status import ProcessorState, ShardStatus
from scenario_runner.procfs import start_time

#: Statuses are files: read a few times a second they cost nothing, and a dead processor is noticed at once.
_READ_SECONDS: Final = 0.25
#: KCL calls a record processor at least every few seconds, also with no records.
_SILENT_SECONDS: Final = 60.0
#: Longer than any transaction of the authority may take: only a processor that hangs is silent for so long.
_HUNG_SECONDS: Final = 300.0
_log = structlog.get_logger("kcl")


class HealthCheck:
    """The health of one JVM, from its start on."""

    def __init__(self) -> None:
        self._began = self._last_check = self._last_warning = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to read the statuses again."""
        now = time.monotonic()
        if now - self._last_check < _READ_SECONDS:
            return False
        self._last_check = now
        return True

    def must_restart(self, statuses: Mapping[str, ShardStatus]) -> bool:
        """Whether a record processor died or hangs, so that only a new JVM helps."""
        return _any_died(statuses) or self._any_hangs(statuses)

    def _any_hangs(self, statuses: Mapping[str, ShardStatus]) -> bool:
        now = time.monotonic()
        for status in statuses.values():
            silent = now - status.at
            if status.state is ProcessorState.ENDED or silent < _SILENT_SECONDS:
                continue
            if status.state is ProcessorState.ADMITTING and silent > _HUNG_SECONDS:
                _log.error("a record processor hangs; KCL is restarted", shard_id=status.shard_id, pid=status.pid,
                           silent_seconds=int(silent))  # fmt: skip
                return True
            self._warn(now, "KCL has not called a record processor for long; is the stream reachable?",
                       shard_id=status.shard_id, doing=status.state, silent_seconds=int(silent))  # fmt: skip
        if not statuses and now - self._began > _SILENT_SECONDS:
            self._warn(now, "no shard has been assigned to this worker yet; another worker may hold them all",
                       running_seconds=int(now - self._began))  # fmt: skip
        return False

    def _warn(self, now: float, event: str, **facts: object) -> None:
        """Log a warning, at most once in a while."""
        if now - self._last_warning > _SILENT_SECONDS:
            self._last_warning = now
            _log.warning(event, **facts)


def _any_died(statuses: Mapping[str, ShardStatus]) -> bool:
    """Whether a record processor ended without having announced its end.

    KCL ends then too, but only after it has waited in vain for that very processor to finish.
    """
    for status in statuses.values():
        if status.state is not ProcessorState.ENDED and not start_time(status.pid):
            _log.error("a record processor died; KCL is restarted", shard_id=status.shard_id, pid=status.pid)
            return True
    return False
