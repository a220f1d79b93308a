"""Runs the loops of a daemon: which of them a process has, how it starts, when it is idle, in which order it stops.

A loop that fails with a defect stops the daemon: the others would go on with half of the work undone, and nobody would
notice.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from scenario_runner.contracts.errors import ConfigurationError, ScenarioRunnerError, Unavailable
from scenario_runner.contracts.states import FINAL_STATES
from scenario_runner.counters import counted
from scenario_runner.intake.evidence_queue import WAIT_SECONDS
from scenario_runner.service.compose import Daemon
from scenario_runner.service.loops import RETRY_QUEUE, Loops, Role
from scenario_runner.service.mending import expire_dead_owners, pull_in_times

#: How often `--until-idle` asks whether anything is left: five statements, and the wait that a drained daemon adds.
_IDLE_POLL_SECONDS: Final = 0.05
#: How often a serving daemon wakes up its main thread, so that a signal handler runs also where waits are not
#: interrupted.
_SERVING_POLL_SECONDS: Final = 1.0
#: What is left of ``shutdown_seconds``, after examinations were broken off, for delivering what is owed. What is not
#: delivered by then is left to the next daemon: another one under load would keep this relay busy for ever.
_STOP_MARGIN_SECONDS: Final = 2.0
_log = structlog.get_logger("service")


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
        self._daemon, self._role, self._until_idle, self._only = daemon, role, until_idle, only
        self._failure: BaseException | None = None
        self._stopping = daemon.stopping
        self._poll = daemon.wiring.poll_seconds
        self._loops = Loops(daemon, role, self._fail, until_idle=until_idle, only=only)
        self.heartbeats = self._loops.heartbeats
        # Before any thread runs: what is wrong with it refuses the start.
        self._queue = daemon.open_evidence_queue() if self._listens else None

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

    @property
    def _ends_by_itself(self) -> bool:
        return self._until_idle or bool(self._only)

    @property
    def _listens(self) -> bool:
        """Whether it hears of evidence that comes. One that ends by itself examines waiting runs at its start."""
        return self._loops.has(Role.RUNNER) and not self._ends_by_itself

    # --- start

    def _prepare(self) -> None:
        """Mend what an earlier process left, before any loop takes work."""
        expire_dead_owners(self._daemon.authority)
        pull_in_times(self._daemon.authority)
        if self._loops.has(Role.RELAY) and not self._only:
            self._daemon.authority.resume_deliveries()
        if self._until_idle and self._loops.has(Role.RUNNER):
            self._daemon.authority.make_waiting_due()
        if self._loops.has(Role.INTAKE):
            self._daemon.intake.open()
        with suppress(Unavailable):  # a row for people ends no start; housekeeping writes it again
            self._loops.report()  # last: a daemon that could not start is none

    def _start(self) -> _Threads:
        sources = list[threading.Thread]()
        if self._loops.has(Role.INTAKE):
            sources.append(self._thread("intake", self._loops.take_requests, self._poll))
        if self._loops.has(Role.RUNNER):
            self._loops.bulk.start()
            if self._loops.engines is not None:
                self._loops.engines.start()
            sources.append(self._thread("runner", self._loops.drive_runs, self._poll))
            sources += [
                self._thread(f"runner:{number}", self._loops.drive_runs, self._poll)
                for number in range(2, self._daemon.batches + 1)
            ]
        relay = [self._thread("relay", self._loops.deliver, self._poll)] if self._loops.has(Role.RELAY) else []
        # In every role, since most hold leases.
        upkeep = [
            self._thread("renewal", self._loops.renew_leases, self._loops.renewal_seconds),
            self._thread("housekeeping", self._loops.keep_house, self._loops.housekeeping_seconds),
        ]
        return _Threads(sources, relay, upkeep, self._notice_evidence())

    def _notice_evidence(self) -> list[threading.Thread]:
        """Start the loops that notice evidence which comes, by rounds and by what the profile names beside the bus."""
        loops = []
        if self._loops.has(Role.RUNNER):
            loops.append(self._thread("roots", self._loops.look_at_roots, self._poll, may_be_left=True))
        if self._queue is not None:
            pause = RETRY_QUEUE.most_seconds + WAIT_SECONDS  # a queue that is away is no reason to be unhealthy
            take = partial(self._loops.take_events, self._queue)
            loops.append(self._thread("arrivals", take, pause, may_be_left=True))
        if self._listens and (watch := self._daemon.open_folder_watch()) is not None:
            loops.append(
                self._thread("folders", partial(self._loops.watch_folders, watch), self._poll, may_be_left=True)
            )
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
        self._loops.stop_by = time.monotonic() + seconds
        self.heartbeats.end()  # of the main thread: from here on it waits for the others
        self._daemon.leases.end_in(seconds - min(_STOP_MARGIN_SECONDS, seconds / 4))
        self._stopping.set()
        self._loops.take_no_more()
        _join(threads.sources)
        self._loops.bulk.stop(0.0)  # no examination begins any more
        if self._loops.engines is not None:
            self._loops.engines.stop(max(1.0, self._loops.stop_by - time.monotonic()))
        if not self._loops.bulk.stop(max(1.0, self._loops.stop_by - time.monotonic())):
            _log.error("an examination does not end; it is left behind, and its lease runs out")
        self._daemon.leases.give_back()
        self._loops.deliver_for_the_last_time()
        _join(threads.relay)
        self._loops.end_upkeep()
        _join(threads.upkeep)
        for thread in threads.notice:
            thread.join(max(0.0, self._loops.stop_by - time.monotonic()))
            if thread.is_alive():
                _log.error("a loop that notices evidence does not end; it is left behind", loop=thread.name)
        self._loops.forget_daemon()

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
        if self._loops.has(Role.INTAKE) and not self._daemon.intake.empty():
            return True
        if self._loops.has(Role.RUNNER) and self._daemon.leases.held:
            return True
        pending = self._daemon.authority.pending()
        # The leases once more: a run that was claimed between the two readings above is not due any more, but held.
        if self._loops.has(Role.RUNNER) and (pending.runs or self._daemon.leases.held):
            return True
        return self._loops.has(Role.RELAY) and (pending.projections or pending.signals)

    def _is_delivered(self, run_id: str) -> bool:
        """True when a run has ended, and its documents and signals are delivered."""
        run = self._daemon.authority.run(run_id)
        ended = run is not None and run.state in FINAL_STATES
        return ended and not self._daemon.authority.pending(only=run_id).undelivered
