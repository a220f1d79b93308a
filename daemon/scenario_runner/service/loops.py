"""The loops of a daemon, one thread each; a runner may have two. Each can be killed at any instant, or repeat itself.

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

A loop that fails with a defect stops the daemon: the others would go on with half of the work undone, and nobody would
notice. A loop whose infrastructure does not answer waits for it.
"""

import math
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
from scenario_runner.contracts.errors import ConfigurationError, ScenarioRunnerError, Unavailable
from scenario_runner.contracts.states import FINAL_STATES
from scenario_runner.contracts.times import MICROS
from scenario_runner.counters import counted
from scenario_runner.intake.evidence_queue import WAIT_SECONDS, EvidenceQueue
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
#: For the queue of S3 events, which only saves time: one that is denied, or gone, is logged once a minute at most.
_RETRY_QUEUE: Final = RetryPolicy(first_seconds=1.0, most_seconds=60.0, jitter=True)
#: For duties that come round by themselves: their next round is the retry, and one must not keep the others waiting.
_TRY_ONCE: Final = RetryPolicy(first_seconds=0.0, most_seconds=0.0, most_tries=1)
#: How often a relay worker claims without asking first. The question leaves out runs that are being driven, whose
#: documents are mostly written once at the end; a claim also takes those that have been quiet for two seconds.
_RELAY_SWEEP_SECONDS: Final = 1.0
#: How often `--until-idle` asks whether anything is left: five statements, and the wait that a drained daemon adds.
_IDLE_POLL_SECONDS: Final = 0.05
#: How often a serving daemon wakes up its main thread, so that a signal handler runs also where waits are not
#: interrupted.
_SERVING_POLL_SECONDS: Final = 1.0
#: What is left of ``shutdown_seconds``, after examinations were broken off, for delivering what is owed. What is not
#: delivered by then is left to the next daemon: another one under load would keep this relay busy for ever.
_STOP_MARGIN_SECONDS: Final = 2.0
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


@dataclass(frozen=True)
class _Threads:
    """The threads of the loops, in the order in which they are stopped."""

    sources: list[threading.Thread]
    relay: list[threading.Thread]
    upkeep: list[threading.Thread]
    notice: list[threading.Thread]


def _join(threads: Iterable[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


class Supervisor:
    """Runs the loops of a role until it is stopped, or until nothing is left to do.

    Args:
        daemon: The composed objects.
        role: Which loops to run.
        until_idle: Stop when nothing is left that can be done now.
        only: The only run that the daemon was composed for: stop when it has ended and is delivered. Nothing is taken
            from the control bus.
    """

    def __init__(self, daemon: Daemon, role: Role, *, until_idle: bool = False, only: str = "") -> None:
        self.heartbeats = Heartbeats(daemon.wiring.health_stuck_seconds)
        self._daemon, self._role, self._until_idle, self._only = daemon, role, until_idle, only
        self._stopping = daemon.stopping
        self._failure: BaseException | None = None
        self._runs_wanted = threading.Event()
        self._relay_wanted = threading.Event()
        self._last_delivery = threading.Event()
        self._delivered = threading.Event()
        self._stop_by = math.inf
        self._poll = daemon.wiring.poll_seconds
        self._row = DaemonRow(daemon.owner, role.value, __version__, socket.gethostname())
        self._bulk = BulkPool(daemon.wiring.runner_workers, self._drive_bulk, self.heartbeats)
        self._engines = self._engine_lane()
        # Before any thread runs: what is wrong with it refuses the start.
        self._queue = daemon.open_evidence_queue() if self._listens else None
        self._waiting_summary = WaitingSummary(daemon.authority, time.monotonic)

    def _engine_lane(self) -> EngineLane | None:
        engine = self._daemon.open_engine() if self._has(Role.RUNNER) else None
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

    def run(self, seconds: float | None = None) -> bool:
        """Run until stopped or done, then finish what is in progress; true when the daemon became idle.

        Args:
            seconds: Stop after so long; None for no bound.

        Raises:
            BaseException: whatever ended a loop.
        """
        self.heartbeats.begin("main", _SERVING_POLL_SECONDS)
        self._prepare()
        threads = self._start()
        self._daemon.started.set()
        _log.info("started", role=self._role, owner=self._daemon.owner)
        idle = self._wait(math.inf if seconds is None else time.monotonic() + seconds)
        self._stop(threads)
        if self._failure is not None:
            raise self._failure
        _log.info("stopped", role=self._role, idle=idle, counts=counted())
        return idle

    @property
    def failure(self) -> BaseException | None:
        """The error that ended a loop; None when none did."""
        return self._failure

    def _has(self, role: Role) -> bool:
        if self._only and role is Role.INTAKE:
            return False
        return self._role in (Role.ALL, role)

    @property
    def _ends_by_itself(self) -> bool:
        return self._until_idle or bool(self._only)

    @property
    def _listens(self) -> bool:
        """Whether it hears of evidence that comes. One that ends by itself examines waiting runs at its start."""
        return self._has(Role.RUNNER) and not self._ends_by_itself

    # --- start

    def _prepare(self) -> None:
        """Mend what an earlier process left, before any loop takes work."""
        expire_dead_owners(self._daemon.authority)
        pull_in_times(self._daemon.authority)
        if self._has(Role.RELAY) and not self._only:
            self._daemon.authority.resume_deliveries()
        if self._until_idle and self._has(Role.RUNNER):
            self._daemon.authority.make_waiting_due()
        if self._has(Role.INTAKE):
            self._daemon.intake.open()
        with suppress(Unavailable):  # a row for people ends no start; housekeeping writes it again
            self._report()  # last: a daemon that could not start is none

    def _start(self) -> _Threads:
        sources = list[threading.Thread]()
        if self._has(Role.INTAKE):
            sources.append(self._thread("intake", self._take_requests, self._poll))
        if self._has(Role.RUNNER):
            self._bulk.start()
            if self._engines is not None:
                self._engines.start()
            sources.append(self._thread("runner", self._drive_runs, self._poll))
            sources += [
                self._thread(f"runner:{number}", self._drive_runs, self._poll)
                for number in range(2, self._daemon.batches + 1)
            ]
        relay = [self._thread("relay", self._deliver, self._poll)] if self._has(Role.RELAY) else []
        # In every role, since most hold leases.
        upkeep = [
            self._thread("renewal", self._renew_leases, self._renewal_seconds),
            self._thread("housekeeping", self._keep_house, self._housekeeping_seconds),
        ]
        return _Threads(sources, relay, upkeep, self._notice_evidence())

    def _notice_evidence(self) -> list[threading.Thread]:
        """Start the loops that notice evidence which comes, by rounds and by what the profile names beside the bus."""
        loops = []
        if self._has(Role.RUNNER):
            loops.append(self._thread("roots", self._look_at_roots, self._poll, may_be_left=True))
        if self._queue is not None:
            pause = _RETRY_QUEUE.most_seconds + WAIT_SECONDS  # a queue that is away is no reason to be unhealthy
            take = partial(self._take_events, self._queue)
            loops.append(self._thread("arrivals", take, pause, may_be_left=True))
        if self._listens and (watch := self._daemon.open_folder_watch()) is not None:
            loops.append(self._thread("folders", partial(self._watch_folders, watch), self._poll, may_be_left=True))
        return loops

    def _thread(
        self, name: str, loop: Callable[[], None], pause_seconds: float, *, may_be_left: bool = False
    ) -> threading.Thread:
        arguments = (name, loop, pause_seconds)
        thread = threading.Thread(target=self._supervise, args=arguments, name=name, daemon=may_be_left)
        thread.start()
        return thread

    def _supervise(self, name: str, loop: Callable[[], None], pause_seconds: float) -> None:
        self.heartbeats.begin(name, pause_seconds)
        try:
            loop()
        except BaseException as error:  # noqa: BLE001 - any end of a loop stops the daemon
            self._fail(error, loop=name)
        finally:
            self.heartbeats.end()

    def _fail(self, error: BaseException, **facts: str) -> None:
        self._failure = self._failure or error
        self._stopping.set()  # before the log line: a log that cannot be written must not delay the stop
        if isinstance(error, ConfigurationError | Unavailable):  # for a person, who needs no stack: no defect
            _log.error("a loop died; the daemon stops", reason_code=error.reason.value, detail=error.detail, **facts)
        else:
            _log.critical("a loop died; the daemon stops", exc_info=error, **facts)

    def _wait(self, until: float) -> bool:
        """Wait until the daemon is stopped, or its time is over, or it has ended by itself, which is true."""
        idle = False
        pause = _IDLE_POLL_SECONDS if self._ends_by_itself else _SERVING_POLL_SECONDS
        while not idle and time.monotonic() < until and not self._stopping.wait(pause):
            self.heartbeats.beat()
            idle = self._ends_by_itself and self._is_idle()
        return idle

    # --- stop

    def _stop(self, threads: _Threads) -> None:
        """Stop the loops in the order in which work flows, so that each finds the work of the one before it done.

        1. Nothing new is taken: intake and the runner finish their batch and end.
        2. Engines of this process are ended. They have a grace of their own, so examinations go on meanwhile.
        3. Examinations in progress end, or are broken off undecided when their time is over.
        4. The leases of what was not finished are given back, so that another process need not wait for their end.
        5. The relay delivers what all these left, documents before the signals that need them, until the time is over.
        6. Housekeeping ends: leases are renewed for as long as anything above is in progress.
        7. The loops that notice evidence end last. They decide nothing and hold no lease, and nothing above needs what
           they find. One that waits for its queue has some seconds; one that hangs in a dead mount is left behind.
        """
        seconds = float(self._daemon.wiring.shutdown_seconds)
        self._stop_by = time.monotonic() + seconds
        self.heartbeats.end()  # of the main thread: from here on it waits for the others
        self._daemon.leases.end_in(seconds - min(_STOP_MARGIN_SECONDS, seconds / 4))
        self._stopping.set()
        self._runs_wanted.set()
        _join(threads.sources)
        self._bulk.stop(0.0)  # no examination begins any more
        if self._engines is not None:
            self._engines.stop(max(1.0, self._stop_by - time.monotonic()))
        if not self._bulk.stop(max(1.0, self._stop_by - time.monotonic())):
            _log.error("an examination does not end; it is left behind, and its lease runs out")
        self._daemon.leases.give_back()
        self._last_delivery.set()
        self._relay_wanted.set()
        _join(threads.relay)
        self._delivered.set()
        _join(threads.upkeep)
        for thread in threads.notice:
            thread.join(max(0.0, self._stop_by - time.monotonic()))
            if thread.is_alive():
                _log.error("a loop that notices evidence does not end; it is left behind", loop=thread.name)
        with suppress(Unavailable):  # then the row tells of a daemon that was not seen for long, and goes within a day
            self._daemon.authority.remove_daemon(self._row.owner)

    # --- loops

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

    def _take_requests(self) -> None:
        try:
            while not self._stopping.is_set():
                if self._with_retries(self._daemon.intake.step):
                    self._runs_wanted.set()
                    self._wake_relay()
                else:
                    self._stopping.wait(self._poll)
        finally:
            self._daemon.intake.close()

    def _take_events(self, queue: EvidenceQueue) -> None:
        """Tell waiting runs what the queue says. While it does not answer, they are examined by their schedule."""
        while not self._stopping.is_set():
            if self._with_retries(queue.step, _RETRY_QUEUE):
                self._runs_wanted.set()
            else:
                self._stopping.wait(self._poll)

    def _watch_folders(self, watch: FolderWatch) -> None:
        """Tell waiting runs what comes into their folders."""
        try:
            while not self._stopping.is_set():
                if self._with_retries(watch.step):
                    self._runs_wanted.set()
        finally:
            watch.close()

    def _drive_runs(self) -> None:
        size = BatchSize()
        while not self._stopping.is_set():
            # Cleared before the claim: a request that is admitted after the claim sets it again, and is not waited for.
            self._runs_wanted.clear()
            if self._with_retries(partial(self._drive_batch, size)):
                self._wake_relay()
            else:
                self._runs_wanted.wait(self._poll)

    def _look_at_roots(self) -> None:
        """Look at the roots that waiting runs lack, apart from the runner: a slow store keeps no new run waiting."""
        while not self._stopping.is_set():
            if self._with_retries(self._daemon.absent_roots.step):
                self._runs_wanted.set()
            self._stopping.wait(self._daemon.absent_roots.pause_seconds)

    def _drive_batch(self, size: BatchSize) -> int:
        """Drive one batch; costly examinations go to the bulk pool, which this thread never waits for."""
        claims, began = self._daemon.leases.claim(size.runs), time.monotonic()
        if claims:
            self._bulk.add(self._daemon.driver.drive(claims, BATCH_SHARE))
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

    def _deliver(self) -> None:
        """Deliver what is owed, batch after batch. Asking whether there is any costs less than a claim."""
        swept_at = time.monotonic()
        while True:
            # Read before the claim: what was written before it was set is then in the claims of the last round.
            last = self._last_delivery.is_set()
            self._relay_wanted.clear()
            sweep = last or time.monotonic() - swept_at >= _RELAY_SWEEP_SECONDS
            if sweep or self._with_retries(self._daemon.relay.has_pending):
                while self._with_retries(self._daemon.relay.step) and time.monotonic() < self._stop_by:
                    pass
                swept_at = time.monotonic()
            if last:
                return
            self._relay_wanted.wait(self._poll)

    def _renew_leases(self) -> None:
        """Renew the leases that are held; not in housekeeping, which may wait for a store longer than a lease."""
        while not self._delivered.wait(self._renewal_seconds):
            self.heartbeats.beat()
            kept = self._daemon.leases.renew()
            if self._engines is not None:
                self._engines.renew(kept)

    def _keep_house(self) -> None:
        reported_at = time.monotonic()
        while not self._delivered.wait(self._housekeeping_seconds):
            if time.monotonic() - reported_at >= _REPORT_SECONDS:
                reported_at = time.monotonic()
                self._with_retries(self._report, _TRY_ONCE)
            if not self._stopping.is_set():
                self._with_retries(partial(expire_dead_owners, self._daemon.authority), _TRY_ONCE)
                self._with_retries(partial(pull_in_times, self._daemon.authority), _TRY_ONCE)
                if self._has(Role.RUNNER) and not self._only:
                    self._with_retries(self._waiting_summary.step, _TRY_ONCE)
                self._with_retries(self._daemon.store.sweep, _TRY_ONCE)
                self._with_retries(self._daemon.intake.sweep, _TRY_ONCE)

    @property
    def _renewal_seconds(self) -> float:
        return self._daemon.leases.seconds / 3

    @property
    def _housekeeping_seconds(self) -> float:
        return min(self._renewal_seconds, _REPORT_SECONDS)

    def _report(self) -> int:
        """Report this daemon to the authority, so that one that is idle can be seen."""
        if not self._only:
            self._daemon.authority.report_daemon(self._row, _KEEP_DAEMONS_US)
        return 0

    # --- idle

    def _is_idle(self) -> bool:
        """True when idle. When infrastructure cannot say, the daemon stops and reports that."""
        try:
            return not self._has_work()
        except ScenarioRunnerError as error:
            self._failure = self._failure or error
            self._stopping.set()
            return False

    def _has_work(self) -> bool:
        """True when something is left that this role could do now."""
        if self._only:
            return not self._is_delivered(self._only)
        if self._has(Role.INTAKE) and not self._daemon.intake.empty():
            return True
        if self._has(Role.RUNNER) and self._daemon.leases.held:
            return True
        pending = self._daemon.authority.pending()
        # The leases once more: a run that was claimed between the two readings above is not due any more, but held.
        if self._has(Role.RUNNER) and (pending.runs or self._daemon.leases.held):
            return True
        return self._has(Role.RELAY) and (pending.projections or pending.signals)

    def _is_delivered(self, run_id: str) -> bool:
        """True when a run has ended, and its documents and signals are delivered."""
        run = self._daemon.authority.run(run_id)
        ended = run is not None and run.state in FINAL_STATES
        return ended and not self._daemon.authority.pending(only=run_id).undelivered
