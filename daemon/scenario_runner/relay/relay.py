"""One pass of the relay. Every step may be repeated: projections move forward only, signals keep id and bytes."""

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog

from scenario_runner.authority.base import Authority, Owed
from scenario_runner.bus.base import SignalPublisher
from scenario_runner.contracts.errors import Refusal, Unavailable
from scenario_runner.contracts.times import MICROS
from scenario_runner.ledger.ledger import Ledger

BATCH: Final = 64
_LEASE_US: Final = 30 * MICROS
_MAX_BACKOFF_SECONDS: Final = 60
_PROJECTION_PAUSE_SECONDS: Final = 5
_log = structlog.get_logger("relay")


class Relay:
    """Projects runs and publishes signals.

    Args:
        authority: What is owed.
        ledger: Where documents go.
        publisher: Where signals go.
        owner: Name of this process as an owner.
        pool: Threads that write documents.
    """

    def __init__(
        self,
        authority: Authority,
        ledger: Ledger,
        publisher: SignalPublisher,
        owner: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._authority, self._ledger, self._publisher = authority, ledger, publisher
        self._owner, self._pool = owner, pool

    def step(self) -> int:
        """Deliver one batch; returns how many documents and signals were delivered.

        Raises:
            Unavailable: the authority does not answer.
        """
        return self._project() + self._publish()

    def _project(self) -> int:
        owed = self._authority.claim_projections(self._owner, BATCH, _LEASE_US)
        if not owed:
            return 0
        results = list(zip(owed, self._pool.map(self._project_one, owed), strict=True))
        done = [(item.run.run_id, item.run.event_seq) for item, ok in results if ok]
        if done:
            self._authority.mark_projected(done)
        failed = [item.run.run_id for item, ok in results if not ok]
        if failed:
            until_us = self._authority.now_us() + _PROJECTION_PAUSE_SECONDS * MICROS
            self._authority.postpone_projections(failed, until_us)
        return len(done)

    def _project_one(self, owed: Owed) -> bool:
        log = _log.bind(run_id=owed.run.run_id)
        try:
            self._ledger.project(owed)
        except Refusal as refusal:
            log.error("the ledger was changed by somebody else; nothing is published for this run until it is restored",
                      reason_code=refusal.reason, detail=refusal.detail)  # fmt: skip
            return False
        except Unavailable as error:
            log.warning("documents could not be written; they stay owed", detail=error.detail)
            return False
        return True

    def _publish(self) -> int:
        rows = self._authority.claim_signals(self._owner, BATCH, _LEASE_US)
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
