"""The relay: writes the documents of runs to the ledger, then publishes the signals whose documents are written.

Every step may be repeated: documents are only ever replaced by later ones, and signals keep their id and bytes. Any
number of relays may run.

What cannot be delivered is tried again, later each time, and delays nothing else. An outage is waited for without end.
What an operator must put right (a foreign object in the place of one of ours) is tried for a day, and then again when a
daemon starts.
"""

from collections.abc import Callable, Sequence
from typing import Final

import structlog

from scenario_runner.authority.base import Authority
from scenario_runner.authority.reemits import sent
from scenario_runner.authority.values import (
    UNTIL_RESTART,
    OutboxRow,
    ProjectionFailure,
    ProjectionTask,
    ReemitEnd,
)
from scenario_runner.bus.base import PublishResult, SignalPublisher
from scenario_runner.contracts.errors import LedgerDrift, Unavailable
from scenario_runner.contracts.states import EventKind, RunState, SignalKind
from scenario_runner.contracts.times import MICROS
from scenario_runner.counters import count
from scenario_runner.ledger.documents import ending
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.relay.spans import trace_published
from scenario_runner.retry import RetryPolicy
from scenario_runner.tracing import now_ns

#: Runs whose documents are written together. On a distant S3 a batch takes three round trips and little more, and the
#: relay bounds the rate. It is far less than a lease of work, also where every document has to be read and replaced one
#: by one.
_DOCUMENT_BATCH: Final = 128
#: Signals that are published together: a signal is one write, a run has three documents.
_SIGNAL_BATCH: Final = 128

#: Full batches of documents before signals are published, and of signals before documents are written again: each waits
#: for the other for about a second at most.
_BATCHES_IN_A_ROW: Final = 4
#: For how long a batch is claimed. A relay that is killed in a batch delays what it had claimed by no more.
_LEASE_US: Final = 30 * MICROS
#: While the ledger's store is away. The longest pause is a lease, so little is late when the store is back.
_STORE_RETRY: Final = RetryPolicy(first_seconds=5, most_seconds=30)
#: While the control bus is away.
_BUS_RETRY: Final = RetryPolicy(first_seconds=2, most_seconds=60)
#: Where an operator must act: seldom enough to cost nothing, often enough that the remedy is soon noticed.
_DRIFT_RETRY: Final = RetryPolicy(first_seconds=5, most_seconds=15 * 60)
#: How long drift is tried without a restart: within a day whoever is on call has seen it, or will not see it.
_DRIFT_TRIED_US: Final = 24 * 3600 * MICROS

_log = structlog.get_logger("relay")


class Relay:
    """Delivers documents and signals.

    Args:
        authority: Whose rows ask for them.
        ledger: Where documents go.
        publisher: Where signals go.
        owner: Lease owner of this relay and of nothing else. A step delivers, or gives back, all that it has leased. So
            a lease that is still held when the next step begins belongs to a step that failed, and may be given back.
        only: The only run to deliver for; empty for every run.
    """

    def __init__(
        self, authority: Authority, ledger: Ledger, publisher: SignalPublisher, owner: str, only: str = ""
    ) -> None:
        self._authority, self._ledger, self._publisher, self._owner = authority, ledger, publisher, owner
        self._only = only
        self._may_hold_leases = False
        self._full_batches = 0

    def has_pending(self) -> bool:
        """Whether there is a document or a signal to deliver, by this relay or another.

        Raises:
            Unavailable: The authority does not answer.
        """
        pending = self._authority.pending(only=self._only)
        return pending.projections or pending.signals

    def check_bus(self) -> None:
        """Check that the control bus takes signals; see :meth:`SignalPublisher.check`."""
        self._publisher.check()

    def step(self) -> int:
        """Deliver a batch of documents and a batch of signals.

        What an earlier step claimed and did not deliver is claimed again without waiting for its lease to end: it may
        have been broken off, or the answer to its claim may have been lost.

        Returns:
            How many were delivered; 0 means that there is nothing to deliver at the moment.

        Raises:
            Unavailable: The authority does not answer.
        """
        return self._leasing(self._deliver)

    def publish(self) -> int:
        """Like :meth:`step`, signals only.

        A signal that is repeated needs no document but those of the first time, and its run's record grows once more
        when it is published. So whoever repeats many publishes first, and has each record written once.
        """
        return self._leasing(self._publish_signals)

    def _leasing(self, deliver: Callable[[], int]) -> int:
        if self._may_hold_leases:
            self._authority.expire_owner(self._owner)
        self._may_hold_leases = True
        delivered = deliver()
        # When the answer to a claim is lost, the claim is repeated and finds nothing: all is leased to us already. From
        # here that looks like leases of another relay. So our leases are expired whenever nothing could be delivered of
        # what is pending.
        self._may_hold_leases = not delivered and self.has_pending()
        return delivered

    def _deliver(self) -> int:
        written = self._write_documents()
        self._full_batches = self._full_batches + 1 if written == _DOCUMENT_BATCH else 0
        if 0 < self._full_batches < _BATCHES_IN_A_ROW:
            # There may be more. They go first, so that a control bus that is away, each call to which takes seconds,
            # delays many documents and not each batch of them. But not for ever: signals must not starve.
            return written
        self._full_batches = 0
        return written + self._publish_signals()

    # --- documents

    def _write_documents(self) -> int:
        tasks = self._authority.claim_projections(self._owner, _DOCUMENT_BATCH, _LEASE_US, only=self._only)
        superseded = [task for task in tasks if _corrections_named(task)]
        written = self._project([task for task in tasks if not _corrections_named(task)])
        # The record of a superseded run follows the documents of its correction, which may be of this batch: no ledger
        # holds a run that names a correction which is not READY there.
        return written + self._project(superseded)

    def _project(self, tasks: Sequence[ProjectionTask]) -> int:
        """Write documents; returns of how many runs they were written."""
        if not tasks:
            return 0
        waits = [self._correction_owed(task) for task in tasks]
        writable = [task for task, wait in zip(tasks, waits, strict=True) if wait is None]
        results = list(zip(writable, self._ledger.project_many(writable), strict=True))
        results += [(task, wait) for task, wait in zip(tasks, waits, strict=True) if wait is not None]
        done = [(task.run.run_id, task.run.event_seq) for task, failure in results if failure is None]
        if done:
            self._authority.mark_projected(self._owner, done)
        failed = [(task, failure) for task, failure in results if failure is not None]
        if failed:
            now_us = self._authority.now_us()
            self._authority.postpone_projections(
                self._owner, [_postponed(task, failure, now_us) for task, failure in failed]
            )
        return len(done)

    def _correction_owed(self, task: ProjectionTask) -> Unavailable | None:
        """Why a record cannot be written yet that tells of a correction; None when it can."""
        for run_id in _corrections_named(task):
            run = self._authority.run(run_id)
            if run is not None and run.state is RunState.READY and run.event_seq > run.projected_seq:
                return Unavailable(f"the documents of its correction {run_id} are written first, and they are owed")
        return None

    # --- signals

    def _publish_signals(self) -> int:
        """Publish as many batches of signals as batches of documents may have come before them."""
        published = 0
        for _ in range(_BATCHES_IN_A_ROW):
            sent = self._publish_batch()
            published += sent
            if sent < _SIGNAL_BATCH:
                break
        return published

    def _publish_batch(self) -> int:
        rows = self._authority.claim_signals(self._owner, _SIGNAL_BATCH, _LEASE_US, only=self._only)
        refused, unread = self._check_facts_views(rows)
        if refused:
            self._end_refused(refused)
        held_back = {row.outbox_id for row, _ in (*refused, *unread)}
        publishable = [row for row in rows if row.outbox_id not in held_back]
        began_ns = now_ns()
        results = list(zip(publishable, self._publisher.publish(publishable), strict=True)) if publishable else []
        published, ended_ns = [(row, result) for row, result in results if not result.error], now_ns()
        self._mark(published)
        trace_published([row for row, _ in published], began_ns, ended_ns)
        failed = [*unread, *((row, result) for row, result in results if result.error)]
        if failed:
            self._postpone_signals(failed)
        return len(rows) - len(failed)

    def _mark(self, published: Sequence[tuple[OutboxRow, PublishResult]]) -> None:
        first = [sent(row, result.receipt) for row, result in published if not row.emission]
        if first:
            self._authority.mark_sent(first)
        repeated = [ReemitEnd(row, result.receipt) for row, result in published if row.emission]
        if repeated:
            self._authority.end_reemits(repeated)

    # --- re-emits

    def _check_facts_views(
        self, rows: Sequence[OutboxRow]
    ) -> tuple[list[tuple[OutboxRow, LedgerDrift]], list[tuple[OutboxRow, PublishResult]]]:
        """Compare the facts views of READYs that are repeated with what the authority announced, before they go out.

        That is done here, and not where the re-emit is asked for: intake must not wait for a store, and whatever
        happens to the facts view in between is still noticed.

        Returns:
            The rows whose facts view is missing or another one, and those for which the store did not say.
        """
        ready = [row for row in rows if row.kind is SignalKind.READY_REEMIT]
        if not ready:
            return [], []
        refused: list[tuple[OutboxRow, LedgerDrift]] = []
        unread: list[tuple[OutboxRow, PublishResult]] = []
        expected = [(row.run_id, row.attributes["facts_view_digest"]) for row in ready]
        for row, failure in zip(ready, self._ledger.compare_facts_views(expected), strict=True):
            if isinstance(failure, LedgerDrift):
                refused.append((row, failure))
            elif failure is not None:
                unread.append((row, PublishResult(row.outbox_id, failure.detail)))
        return refused, unread

    def _end_refused(self, refused: Sequence[tuple[OutboxRow, LedgerDrift]]) -> None:
        for row, failure in refused:
            count("relay.reemit_refused")
            _log.error("a signal is not published again", run_id=row.run_id, reason_code=failure.reason.value,
                       detail=failure.detail)  # fmt: skip
        self._authority.end_reemits([ReemitEnd(row, failure=failure) for row, failure in refused])

    # --- failures

    def _postpone_signals(self, failed: Sequence[tuple[OutboxRow, PublishResult]]) -> None:
        """Postpone signals, each by how often it failed."""
        detail = failed[0][1].error
        _log.warning("signals could not be published; they are tried again", count=len(failed), detail=detail)
        now_us = self._authority.now_us()
        by_time: dict[int, list[OutboxRow]] = {}
        for row, result in failed:
            count("relay.signal_drift" if result.permanent else "relay.signal_unavailable")
            if row.kind is SignalKind.READY:
                count("sr_ready_publish_failures_total")
            if result.permanent:
                until_us = _after_drift(row.attempts, row.created_us, now_us)
            else:
                until_us = now_us + _BUS_RETRY.pause_us(row.attempts)
            by_time.setdefault(until_us, []).append(row)
        for until_us, rows in by_time.items():
            self._authority.postpone_signals(rows, until_us)


def _corrections_named(task: ProjectionTask) -> tuple[str, ...]:
    """Corrections of which a record tells that is to be written, where nothing else of its run is.

    A run whose own end is not in the ledger yet waits for no other run: its signal waits for its documents.
    """
    if task.run.projected_seq < ending(task.events).seq:
        return ()
    return tuple(
        str(event.details["superseded_by"]["new_run_id"])
        for event in task.events
        if event.kind == EventKind.SUPERSEDED_BY and event.seq > task.run.projected_seq
    )


def _postponed(task: ProjectionTask, failure: LedgerDrift | Unavailable, now_us: int) -> ProjectionFailure:
    """Count and log why documents could not be written, and say when they are tried again."""
    run, failures = task.run, task.run.relay_retries + 1
    log = _log.bind(run_id=run.run_id, tries=failures, detail=failure.detail)
    if isinstance(failure, LedgerDrift):
        count("relay.drift")
        first_failure_us = run.relay_since_us if run.relay_retries else now_us
        until_us = _after_drift(failures, first_failure_us, now_us)
        log.error(
            "a foreign object lies in the place of a document of this run; nothing is published for it until that "
            "object is moved away",
            reason_code=failure.reason, tried_again=until_us != UNTIL_RESTART,
        )  # fmt: skip
    else:
        count("relay.unavailable")
        until_us = now_us + _STORE_RETRY.pause_us(failures)
        log.warning("documents could not be written; they are tried again")
    return ProjectionFailure(run.run_id, until_us, f"{failure.reason}: {failure.detail}")


def _after_drift(failures: int, since_us: int, now_us: int) -> int:
    """When what an operator must put right is tried again.

    Args:
        failures: How often it failed.
        since_us: Since when, in microseconds since the epoch.
        now_us: The time of the authority.
    """
    return UNTIL_RESTART if now_us - since_us > _DRIFT_TRIED_US else now_us + _DRIFT_RETRY.pause_us(failures)
