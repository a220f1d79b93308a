"""The relay: one lane brings documents up to their rows, another publishes the signals whose documents are written.

Every step may be repeated: projections move forward only, signals keep id and bytes. Any number of lanes may run.
"""

from abc import ABC, abstractmethod
from typing import Final

import structlog

from scenario_runner.authority.base import Authority
from scenario_runner.bus.base import SignalPublisher
from scenario_runner.contracts.errors import LedgerDrift, Unavailable
from scenario_runner.contracts.times import MICROS
from scenario_runner.ledger.ledger import Ledger

_PROJECTED: Final = 64
_PUBLISHED: Final = 128
"""A batch takes far less than a lease, also where every document of it has to be read and replaced one by one."""

_LEASE_US: Final = 30 * MICROS
_MAX_BACKOFF_SECONDS: Final = 60
_PROJECTION_PAUSE_SECONDS: Final = 5
_log = structlog.get_logger("relay")


def _report(run_id: str, failure: LedgerDrift | Unavailable) -> None:
    if isinstance(failure, LedgerDrift):
        _log.error(
            "the ledger was changed by somebody else; nothing is published for this run until it is restored",
            run_id=run_id, reason_code=failure.reason, detail=failure.detail,
        )  # fmt: skip
    else:
        _log.warning("documents could not be written; they stay owed", run_id=run_id, detail=failure.detail)


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
        failed = [item.run.run_id for item, failure in results if failure is not None]
        if failed:
            until_us = self._authority.now_us() + _PROJECTION_PAUSE_SECONDS * MICROS
            self._authority.postpone_projections(failed, until_us)
        for item, failure in results:
            if failure is not None:
                _report(item.run.run_id, failure)
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
        failed = [result for result in results if result.error]
        if failed:
            attempts = max(row.attempts for row in rows)
            pause = min(_MAX_BACKOFF_SECONDS, 2 ** min(attempts, 10))
            _log.warning("signals could not be published; they stay owed", count=len(failed), detail=failed[0].error)
            self._authority.postpone_signals(
                [result.outbox_id for result in failed], self._authority.now_us() + pause * MICROS
            )
        return len(sent)
