"""The relay: one lane brings documents up to their rows, another publishes the signals whose documents are written.

Every step may be repeated: projections move forward only, signals keep id and bytes. Any number of lanes may run.

What cannot be delivered is tried again, later each time, and delays nothing else. An outage is waited for without end.
What somebody must put right (an object that is not ours in the place of one of ours) is tried for a day, and then again
when a daemon starts.
"""

from abc import ABC, abstractmethod
from typing import Final

import structlog

from scenario_runner.authority.base import UNTIL_RESTART, Authority, OutboxRow, ProjectionFailure, ProjectionTask
from scenario_runner.bus.base import Published, SignalPublisher
from scenario_runner.contracts.errors import LedgerDrift, Unavailable
from scenario_runner.contracts.times import MICROS
from scenario_runner.counters import count
from scenario_runner.ledger.ledger import Ledger

_PROJECTED: Final = 64
_PUBLISHED: Final = 128
"""A batch takes far less than a lease, also where every document of it has to be read and replaced one by one."""

_LEASE_US: Final = 30 * MICROS
_FIRST_PAUSE_SECONDS: Final = 5
_OUTAGE_PAUSE_SECONDS: Final = 30
"""Longest pause between tries while the store is away: about a lease, so that little is late when it is back."""

_DRIFT_PAUSE_SECONDS: Final = 15 * 60
"""Longest pause between tries where somebody must act: seldom enough to cost nothing, soon enough to be noticed."""

_SIGNAL_PAUSE_SECONDS: Final = 60
_DRIFT_TRIED_US: Final = 24 * 3600 * MICROS
"""How long drift is tried by itself: a day, in which whoever is on call has seen it, or will not."""

_log = structlog.get_logger("relay")


def _doubled(retries: int, most_seconds: int) -> int:
    """Microseconds to wait after so many earlier failures."""
    return min(most_seconds, _FIRST_PAUSE_SECONDS << min(retries, 10)) * MICROS


def _drift_until(retries: int, since_us: int, now_us: int) -> int:
    """When something that a person must put right is tried again."""
    if now_us - since_us > _DRIFT_TRIED_US:
        return UNTIL_RESTART
    return now_us + _doubled(retries, _DRIFT_PAUSE_SECONDS)


def _failed(owed: ProjectionTask, failure: LedgerDrift | Unavailable, now_us: int) -> ProjectionFailure:
    """Count and report why documents were not written, and say when they are tried again."""
    run = owed.run
    log = _log.bind(run_id=run.run_id, tries=run.relay_retries + 1, detail=failure.detail)
    if isinstance(failure, LedgerDrift):
        count("relay.drift")
        until_us = _drift_until(run.relay_retries, run.relay_since_us if run.relay_retries else now_us, now_us)
        log.error(
            "something else lies in the place of this run's documents; nothing is published for it until that is moved "
            "away",
            reason_code=failure.reason, tried_again=until_us != UNTIL_RESTART,
        )  # fmt: skip
    else:
        count("relay.unavailable")
        until_us = now_us + _doubled(run.relay_retries, _OUTAGE_PAUSE_SECONDS)
        log.warning("documents could not be written; they stay owed")
    return ProjectionFailure(run.run_id, until_us, f"{failure.reason}: {failure.detail}")


class Lane(ABC):
    """A lane of the relay: delivers what it claims.

    Args:
        authority: What is owed.
        owner: Name of this lane as an owner, of nothing else: what is leased to it is in flight here, or abandoned.
    """

    def __init__(self, authority: Authority, owner: str) -> None:
        self._authority, self._owner = authority, owner
        self._abandoned = False

    def step(self) -> int:
        """Deliver one batch; returns how many documents or signals were delivered.

        What an earlier pass claimed and left, because it was broken off or never heard the answer, is given back first:
        between two passes nothing is in flight.

        Raises:
            Unavailable: the authority does not answer.
        """
        if self._abandoned:
            self._authority.expire_owner(self._owner)
        self._abandoned = True
        delivered = self._deliver()
        self._abandoned = not delivered and self.owed()
        return delivered

    @abstractmethod
    def owed(self) -> bool:
        """True when there is something to deliver, by this lane or another."""

    @abstractmethod
    def _deliver(self) -> int: ...


class Projections(Lane):
    """Brings documents up to their rows.

    Args:
        ledger: Where documents go.
    """

    def __init__(self, authority: Authority, ledger: Ledger, owner: str) -> None:
        super().__init__(authority, owner)
        self._ledger = ledger

    def owed(self) -> bool:
        """See :meth:`Lane.owed`."""
        return self._authority.pending().projections

    def _deliver(self) -> int:
        owed = self._authority.claim_projections(self._owner, _PROJECTED, _LEASE_US)
        if not owed:
            return 0
        results = list(zip(owed, self._ledger.project_many(owed), strict=True))
        done = [(item.run.run_id, item.run.event_seq) for item, failure in results if failure is None]
        if done:
            self._authority.mark_projected(done)
        failed = [(item, failure) for item, failure in results if failure is not None]
        if failed:
            now_us = self._authority.now_us()
            self._authority.postpone_projections([_failed(item, failure, now_us) for item, failure in failed])
        return len(done)


class Publications(Lane):
    """Publishes signals.

    Args:
        publisher: Where signals go.
    """

    def __init__(self, authority: Authority, publisher: SignalPublisher, owner: str) -> None:
        super().__init__(authority, owner)
        self._publisher = publisher

    def owed(self) -> bool:
        """See :meth:`Lane.owed`."""
        return self._authority.pending().signals

    def _deliver(self) -> int:
        rows = self._authority.claim_signals(self._owner, _PUBLISHED, _LEASE_US)
        if not rows:
            return 0
        results = self._publisher.publish(rows)
        sent = [result.outbox_id for result in results if not result.error]
        if sent:
            self._authority.mark_sent(sent)
        failed = [(row, result) for row, result in zip(rows, results, strict=True) if result.error]
        if failed:
            self._postpone(failed)
        return len(sent)

    def _postpone(self, failed: list[tuple[OutboxRow, Published]]) -> None:
        """Put signals off, each by how often it failed."""
        _log.warning("signals could not be published; they stay owed", count=len(failed), detail=failed[0][1].error)
        now_us = self._authority.now_us()
        due: dict[int, list[int]] = {}
        for row, result in failed:
            count("relay.signal_drift" if result.lasting else "relay.signal_unavailable")
            until_us = now_us + min(_SIGNAL_PAUSE_SECONDS, 2 ** min(row.attempts, 10)) * MICROS
            if result.lasting:
                until_us = _drift_until(row.attempts - 1, row.created_us, now_us)
            due.setdefault(until_us, []).append(row.outbox_id)
        for until_us, outbox_ids in due.items():
            self._authority.postpone_signals(outbox_ids, until_us)
