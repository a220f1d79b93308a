"""What each loop of a daemon does, one thread each; a runner may have two.

======================  =====================================================================================
intake                  takes requests from the control bus and admits them as runs
runner                  claims due runs and drives them in batches, two at a time where evidence lies on S3; costly
                        examinations go to the bulk pool, engines to the engine lane
roots                   looks in rounds at the roots that waiting runs lack; in every process with a runner
arrivals                tells waiting runs what a queue of S3 events says; only where the profile names one
folders                 tells waiting runs what comes into their folders; only where engine roots are folders
relay                   delivers documents and signals that the authority's rows ask for
renewal                 renews the leases that this process holds
housekeeping            expires leases of killed processes, mends times after a clock step, removes leftovers
======================  =====================================================================================

Each can be killed at any instant, or repeat itself. A loop whose infrastructure does not answer waits for it. Which of
them a process runs, and in which order they stop, is decided by :mod:`~scenario_runner.service.supervisor`.
"""

import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from functools import partial
from typing import Final

import structlog

from scenario_runner import __version__
from scenario_runner.artifacts.budget import BATCH_SHARE, Share
from scenario_runner.authority.acts import Arrival
from scenario_runner.authority.arrivals import count_told, root_of
from scenario_runner.authority.observed import DaemonRow
from scenario_runner.authority.values import Claim
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.times import MICROS
from scenario_runner.intake.evidence_queue import EvidenceQueue
from scenario_runner.intake.folder_watch import FolderWatch
from scenario_runner.retry import RetryPolicy, with_retries
from scenario_runner.runs.batch import Deferred
from scenario_runner.service.batch_size import BatchSize
from scenario_runner.service.bulk_pool import BulkPool
from scenario_runner.service.compose import Daemon
from scenario_runner.service.engine_lane import EngineLane
from scenario_runner.service.heartbeats import Heartbeats
from scenario_runner.service.mending import expire_dead_owners, pull_in_times
from scenario_runner.service.waiting_summary import WaitingSummary

#: While infrastructure does not answer: a loop asks at least every two seconds, and not all daemons at once.
_RETRY: Final = RetryPolicy(first_seconds=0.5, most_seconds=2.0, jitter=True)
#: For the queue of S3 events, which only saves time: one that is denied, or gone, is asked and logged again within a
#: minute, after half of one on average.
RETRY_QUEUE: Final = RetryPolicy(first_seconds=1.0, most_seconds=60.0, jitter=True)
#: For duties that come round by themselves: their next round is the retry, and one must not keep the others waiting.
_TRY_ONCE: Final = RetryPolicy(first_seconds=0.0, most_seconds=0.0, most_tries=1)
#: How often a relay worker claims without asking first. The question leaves out runs that are being driven, whose
#: documents are mostly written once at the end; a claim also takes those that have been quiet for two seconds.
_RELAY_SWEEP_SECONDS: Final = 1.0
#: How often a daemon reports itself. A row that is four times as old tells that it hangs or was killed.
_REPORT_SECONDS: Final = 15.0
#: For how long the row of a killed daemon is kept: whoever looks on the next morning still sees it.
_KEEP_DAEMONS_US: Final = 24 * 3600 * MICROS
_log = structlog.get_logger("service")


class Role(StrEnum):
    """What a process does; ``all`` does everything."""

    ALL = "all"
    INTAKE = "intake"
    RUNNER = "runner"
    RELAY = "relay"
    HOUSEKEEPING = "housekeeping"


class Loops:
    """The loops of one process, and what they have in common: who is woken, what is handed to whom, when they end.

    Args:
        daemon: The composed objects.
        role: Which loops the process runs.
        until_idle: The process ends when nothing is left that it can do now: it does not wait for infrastructure.
        only: The only run of a process for one run; empty for every run.
        fail: Called with a defect, or with what else ended a loop: the daemon stops.

    Attributes:
        bulk: Drives runs whose examinations are costly.
        engines: Drives runs whose engine is next; None where there is none.
        stop_by: When the relay gives up delivering, on the monotonic clock.
    """

    def __init__(
        self, daemon: Daemon, role: Role, fail: Callable[..., None], *, until_idle: bool = False, only: str = ""
    ) -> None:
        self.heartbeats = Heartbeats(daemon.wiring.health_stuck_seconds)
        self._daemon, self._role, self._fail, self._until_idle, self._only = daemon, role, fail, until_idle, only
        self._stopping = daemon.stopping
        self._runs_wanted, self._relay_wanted = threading.Event(), threading.Event()
        self._last_delivery, self._delivered = threading.Event(), threading.Event()
        self.stop_by = math.inf
        self._poll = daemon.wiring.poll_seconds
        self._row = DaemonRow(daemon.owner, role.value, __version__, socket.gethostname())
        self._waiting_summary = WaitingSummary(daemon.authority, time.monotonic)
        self.bulk = BulkPool(daemon.wiring.runner_workers, self._drive_bulk, self.heartbeats)
        self.engines = self._engine_lane()

    def _engine_lane(self) -> EngineLane | None:
        engine = self._daemon.open_engine() if self.has(Role.RUNNER) else None
        if engine is None:
            return None
        daemon = self._daemon
        return EngineLane(
            daemon.driver, engine, daemon.leases, self._poll, self._on_change, self._fail, heartbeats=self.heartbeats,
            attempt_ended=self._tell_of_end,
        )  # fmt: skip

    def _on_change(self) -> None:
        """A run of the engine lane was committed: it may be due, or its documents may be owed."""
        self._runs_wanted.set()
        self._wake_relay()

    def _tell_of_end(self, claim: Claim) -> None:
        """Tell other runs that wait at the engine run root of a run whose engine has ended."""
        if self._only:
            return  # no other run is touched
        try:
            (runs,) = self._daemon.authority.tell([Arrival(root_of(claim.intent, claim.inputs))])
        except Unavailable as error:  # they are examined by their schedule
            _log.warning("runs that wait for an engine are not told of its end", detail=error.detail)
            return
        count_told("engine", runs)

    def has(self, role: Role) -> bool:
        """Whether this process runs the loops of a role."""
        if self._only and role is Role.INTAKE:
            return False
        return self._role in (Role.ALL, role)

    # --- waking, and the end

    def take_no_more(self) -> None:
        """Wake the loops that take work, after ``stopping`` was set, so that they end."""
        self._runs_wanted.set()

    def deliver_for_the_last_time(self) -> None:
        """Let the relay deliver what is owed now, and end."""
        self._last_delivery.set()
        self._relay_wanted.set()

    def end_upkeep(self) -> None:
        """Let the loops end that go on for as long as any other one works."""
        self._delivered.set()

    # --- the loops

    def _with_retries(self, step: Callable[[], int], policy: RetryPolicy = _RETRY) -> int:
        """One step of a loop, tried again while infrastructure does not answer; 0 when it was stopped or given up.

        Raises:
            Unavailable: infrastructure does not answer, and the daemon only runs until it is idle.
        """

        def attempt() -> int:
            self.heartbeats.beat()  # a loop that waits for infrastructure is not stuck
            try:
                return step()
            except Unavailable as error:
                _log.warning("waiting for infrastructure", detail=error.detail)
                raise

        try:
            return with_retries(attempt, policy, self._is_waited_for, wait=self._stopping.wait)
        except Unavailable:
            if self._until_idle:
                raise
            return 0

    def _is_waited_for(self, error: BaseException) -> bool:
        return isinstance(error, Unavailable) and not self._until_idle

    def take_requests(self) -> None:
        """Admit what the control bus brings."""
        try:
            while not self._stopping.is_set():
                if self._with_retries(self._daemon.intake.step):
                    self._runs_wanted.set()
                    self._wake_relay()
                else:
                    self._stopping.wait(self._poll)
        finally:
            self._daemon.intake.close()

    def take_events(self, queue: EvidenceQueue) -> None:
        """Tell waiting runs what the queue says. While it does not answer, they are examined by their schedule."""
        while not self._stopping.is_set():
            if self._with_retries(queue.step, RETRY_QUEUE):
                self._runs_wanted.set()
            else:
                self._stopping.wait(self._poll)

    def watch_folders(self, watch: FolderWatch) -> None:
        """Tell waiting runs what comes into their folders."""
        try:
            while not self._stopping.is_set():
                if self._with_retries(watch.step):
                    self._runs_wanted.set()
        finally:
            watch.close()

    def drive_runs(self) -> None:
        """Drive due runs, batch after batch."""
        size = BatchSize()
        while not self._stopping.is_set():
            # Cleared before the claim: a request that is admitted after the claim sets it again, and is not waited for.
            self._runs_wanted.clear()
            if self._with_retries(partial(self._drive_batch, size)):
                self._wake_relay()
            else:
                self._runs_wanted.wait(self._poll)

    def look_at_roots(self) -> None:
        """Look at the roots that waiting runs lack, apart from the runner: a slow store keeps no new run waiting."""
        while not self._stopping.is_set():
            if self._with_retries(self._daemon.absent_roots.step):
                self._runs_wanted.set()
            self._stopping.wait(self._daemon.absent_roots.pause_seconds)

    def _drive_batch(self, size: BatchSize) -> int:
        """Drive one batch; costly examinations go to the bulk pool, which this thread never waits for."""
        claims, began = self._daemon.leases.claim(size.runs), time.monotonic()
        if claims:
            self.bulk.add(self._daemon.driver.drive(claims, BATCH_SHARE))
            size.drove(len(claims), time.monotonic() - began)
        return len(claims)

    def _drive_bulk(self, claims: Sequence[Claim], share: Share) -> list[Deferred]:
        """Drive runs with the same evidence in a thread of the bulk pool; returns those that need another turn."""
        try:
            return self._daemon.driver.drive(claims, share)
        except Unavailable as error:
            _log.warning("waiting for infrastructure", run_id=claims[0].run_id, detail=error.detail)
        except BaseException as error:  # noqa: BLE001 - a defect: stop; the leases run out and nothing is decided
            self._fail(error, run_id=claims[0].run_id)
        finally:
            self._wake_relay()
        return []

    def _wake_relay(self) -> None:
        self._relay_wanted.set()

    def deliver(self) -> None:
        """Deliver what is owed, batch after batch. Asking whether there is any costs less than a claim."""
        swept_at = time.monotonic()
        while True:
            # Read before the claim: what was written before it was set is then in the claims of the last round.
            last = self._last_delivery.is_set()
            self._relay_wanted.clear()
            sweep = last or time.monotonic() - swept_at >= _RELAY_SWEEP_SECONDS
            if sweep or self._with_retries(self._daemon.relay.has_pending):
                while self._with_retries(self._daemon.relay.step) and time.monotonic() < self.stop_by:
                    pass
                swept_at = time.monotonic()
            if last:
                return
            self._relay_wanted.wait(self._poll)

    def renew_leases(self) -> None:
        """Renew the leases that are held; not in housekeeping, which may wait for a store longer than a lease."""
        while not self._delivered.wait(self.renewal_seconds):
            self.heartbeats.beat()
            kept = self._daemon.leases.renew()
            if self.engines is not None:
                self.engines.renew(kept)

    def keep_house(self) -> None:
        """Report this daemon, mend what killed processes and wrong clocks left, and remove leftovers."""
        reported_at = time.monotonic()
        while not self._delivered.wait(self.housekeeping_seconds):
            if time.monotonic() - reported_at >= _REPORT_SECONDS:
                reported_at = time.monotonic()
                self._with_retries(self.report, _TRY_ONCE)
            if not self._stopping.is_set():
                self._with_retries(partial(expire_dead_owners, self._daemon.authority), _TRY_ONCE)
                self._with_retries(partial(pull_in_times, self._daemon.authority), _TRY_ONCE)
                if self.has(Role.RUNNER) and not self._only:
                    self._with_retries(self._waiting_summary.step, _TRY_ONCE)
                self._with_retries(self._daemon.store.sweep, _TRY_ONCE)
                self._with_retries(self._daemon.intake.sweep, _TRY_ONCE)

    @property
    def renewal_seconds(self) -> float:
        """How often leases are renewed: three times a lease, so that two that fail lose none."""
        return self._daemon.leases.seconds / 3

    @property
    def housekeeping_seconds(self) -> float:
        """How often the house is kept: as leases are renewed, but no daemon reports itself more seldom than is due."""
        return min(self.renewal_seconds, _REPORT_SECONDS)

    def report(self) -> int:
        """Report this daemon to the authority, so that one that is idle can be seen."""
        if not self._only:
            self._daemon.authority.report_daemon(self._row, _KEEP_DAEMONS_US)
        return 0

    def forget_daemon(self) -> None:
        """Remove the row of this daemon, which has stopped; if that fails, housekeeping of another one does."""
        with suppress(Unavailable):
            self._daemon.authority.remove_daemon(self._row.owner)
