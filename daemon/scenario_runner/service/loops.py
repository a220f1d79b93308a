"""The loops of a daemon, as threads. Each can be killed at any instant; each does nothing twice.

A loop that dies of a defect stops the daemon: half a daemon is worse than none. Infrastructure that does not answer is
waited for.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Final

import structlog

from scenario_runner.artifacts.budget import BATCH_SHARE, Share
from scenario_runner.authority.base import Claim
from scenario_runner.contracts.errors import ScenarioRunnerError, Unavailable
from scenario_runner.counters import counted
from scenario_runner.retry import RetryPolicy, with_retries
from scenario_runner.runs.known_large import Deferred
from scenario_runner.service.long_lane import LongLane
from scenario_runner.service.owner import is_dead
from scenario_runner.service.wiring import Daemon

#: While infrastructure does not answer: a loop asks at least every two seconds, and not all daemons at once.
_RETRY: Final = RetryPolicy(first_seconds=0.5, most_seconds=2.0, jitter=True)
#: For duties that come round by themselves: their next round is the retry, and one must not keep the others waiting.
_TRY_ONCE: Final = RetryPolicy(first_seconds=0.0, most_seconds=0.0, most_tries=1)
_RELAY_SWEEP_SECONDS: Final = 1.0
_IDLE_POLL_SECONDS: Final = 0.05
_FIRST_BATCH: Final = 32
_LEAST_BATCH, _MOST_BATCH = 8, 64
_QUICK_SECONDS, _SLOW_SECONDS = 0.25, 1.0
#: What is left of ``shutdown_seconds`` for giving up examinations and delivering what is owed.
_STOP_MARGIN_SECONDS: Final = 2.0
_log = structlog.get_logger("service")


class Role(StrEnum):
    """What a process does; ``all`` does everything."""

    ALL = "all"
    INTAKE = "intake"
    RUNNER = "runner"
    RELAY = "relay"
    HOUSEKEEPING = "housekeeping"


def next_batch(size: int, driven: int, seconds: float) -> int:
    """How many runs to claim next: large batches share more, but every run of a batch waits for all of it."""
    if seconds > _SLOW_SECONDS:
        return max(_LEAST_BATCH, size // 2)
    if driven == size and seconds < _QUICK_SECONDS:
        return min(_MOST_BATCH, size * 2)
    return size


def _join(threads: Iterable[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


class Supervisor:
    """Runs the loops of a role until told to stop, or until nothing is left to do.

    Args:
        daemon: The wired objects.
        role: Which loops to run.
        until_idle: Stop when nothing is left that can be done now.
    """

    def __init__(self, daemon: Daemon, role: Role, *, until_idle: bool) -> None:
        self._daemon, self._role, self._until_idle = daemon, role, until_idle
        self._stopping = daemon.stopping
        self._failure: BaseException | None = None
        self._runs_wanted = threading.Event()
        self._batch = _FIRST_BATCH
        self._relay_wanted = threading.Event()
        self._last_delivery = threading.Event()
        self._drained = threading.Event()
        self._poll = daemon.wiring.poll_seconds
        self._long = LongLane(daemon.wiring.runner_workers, self._drive_long)

    def run(self) -> bool:
        """Run until stopped or idle, then let what is in flight finish; true when it became idle.

        Raises:
            BaseException: whatever killed a loop.
        """
        self._expire_dead_owners()
        self._pull_in_times()
        if self._has(Role.RELAY):
            self._daemon.authority.resume_deliveries()
        if self._until_idle and self._has(Role.RUNNER):
            self._daemon.authority.wake_waiting()
        if self._has(Role.INTAKE):
            self._daemon.intake.open()
        if self._has(Role.RUNNER):
            self._long.start()
        sources = [*self._start(Role.INTAKE, self._intake), *self._start(Role.RUNNER, self._runner)]
        relay = self._start(Role.RELAY, self._relay)
        keepers = [
            self._thread(Role.HOUSEKEEPING, self._renewing),
            self._thread(Role.HOUSEKEEPING, self._housekeeping),
        ]
        _log.info("started", role=self._role, owner=self._daemon.owner)
        idle = False
        while not idle and not self._stopping.wait(_IDLE_POLL_SECONDS if self._until_idle else 1.0):
            idle = self._until_idle and self._looks_idle()
        self._stop(sources, relay, keepers)
        if self._failure is not None:
            raise self._failure
        _log.info("stopped", role=self._role, idle=idle, counts=counted())
        return idle

    @property
    def failure(self) -> BaseException | None:
        """What killed a loop, if anything did."""
        return self._failure

    def _has(self, role: Role) -> bool:
        return self._role in (Role.ALL, role)

    def _start(self, role: Role, loop: Callable[[], None]) -> list[threading.Thread]:
        return [self._thread(role, loop)] if self._has(role) else []

    def _thread(self, role: Role, loop: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(role, loop), name=role.value)
        thread.start()
        return thread

    def _stop(
        self, sources: list[threading.Thread], relay: list[threading.Thread], keepers: list[threading.Thread]
    ) -> None:
        """What makes work stops first, what delivers it last; leases are renewed to the end."""
        seconds, began = float(self._daemon.wiring.shutdown_seconds), time.monotonic()
        self._daemon.leases.end_in(seconds - min(_STOP_MARGIN_SECONDS, seconds / 4))
        self._stopping.set()
        self._runs_wanted.set()
        _join(sources)
        if not self._long.stop(max(1.0, seconds - (time.monotonic() - began))):
            _log.error("an examination does not end; it is left behind, and its lease runs out")
        self._daemon.leases.give_back()
        self._last_delivery.set()
        self._relay_wanted.set()
        _join(relay)
        self._drained.set()
        _join(keepers)

    def _guarded(self, role: Role, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:  # noqa: BLE001 - any death of a loop stops the daemon
            self._die(error, role=role)

    def _die(self, error: BaseException, **facts: str) -> None:
        self._failure = self._failure or error
        self._stopping.set()  # first: the stop does not hang on what can be logged
        _log.critical("a loop died; the daemon stops", exc_info=error, **facts)

    def _with_retries(self, step: Callable[[], int], policy: RetryPolicy = _RETRY) -> int:
        """One step of a loop, tried again while infrastructure does not answer; 0 when it was stopped or given up.

        Raises:
            Unavailable: infrastructure does not answer, and the daemon only runs until it is idle.
        """

        def attempt() -> int:
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

    # --- loops

    def _intake(self) -> None:
        try:
            while not self._stopping.is_set():
                if self._with_retries(self._daemon.intake.step):
                    self._runs_wanted.set()
                    self._wake_relay()
                else:
                    self._stopping.wait(self._poll)
        finally:
            self._daemon.intake.close()

    def _runner(self) -> None:
        while not self._stopping.is_set():
            self._runs_wanted.clear()
            if self._with_retries(self._drive_batch):
                self._wake_relay()
            else:
                self._runs_wanted.wait(self._poll)

    def _drive_batch(self) -> int:
        """Drive one batch here; runs with much to examine go to the long lane, which is never waited for."""
        claims, began = self._daemon.leases.claim(self._batch), time.monotonic()
        self._long.add(self._daemon.driver.drive(claims, BATCH_SHARE))
        self._batch = next_batch(self._batch, len(claims), time.monotonic() - began)
        return len(claims)

    def _drive_long(self, claims: Sequence[Claim], share: Share) -> list[Deferred]:
        try:
            return self._daemon.driver.drive(claims, share)
        except Unavailable as error:
            _log.warning("waiting for infrastructure", run_id=claims[0].run_id, detail=error.detail)
        except BaseException as error:  # noqa: BLE001 - a defect: stop, the lease runs out and nothing is decided
            self._die(error, run_id=claims[0].run_id)
        finally:
            self._wake_relay()
        return []

    def _wake_relay(self) -> None:
        self._relay_wanted.set()

    def _relay(self) -> None:
        """Deliver batch after batch; when a batch delivered nothing, ask before the next claim, which costs less."""
        quiet, busy = 0.0, False
        while True:
            last = self._last_delivery.is_set()
            self._relay_wanted.clear()
            if busy or last or quiet >= _RELAY_SWEEP_SECONDS or self._with_retries(self._daemon.relay.has_pending):
                quiet, busy = 0.0, self._with_retries(self._daemon.relay.step) > 0
                if busy:
                    continue
            if last:
                return
            self._relay_wanted.wait(self._poll)
            quiet += self._poll

    def _renewing(self) -> None:
        """Renews what is held, and does nothing else that could keep it from that."""
        while not self._drained.wait(self._daemon.leases.seconds / 3):
            self._daemon.leases.renew()

    def _housekeeping(self) -> None:
        while not self._drained.wait(self._daemon.leases.seconds / 3):
            if not self._stopping.is_set():
                self._with_retries(self._expire_dead_owners, _TRY_ONCE)
                self._with_retries(self._pull_in_times, _TRY_ONCE)
                self._with_retries(self._daemon.store.sweep, _TRY_ONCE)
                self._with_retries(self._daemon.intake.sweep, _TRY_ONCE)

    def _expire_dead_owners(self) -> int:
        """Leases of processes of this machine that were killed need not run out by themselves."""
        dead = [owner for owner in self._daemon.authority.owners() if is_dead(owner)]
        for owner in dead:
            _log.info("expiring the leases of a dead process", owner=owner)
            self._daemon.authority.expire_owner(owner)
        return len(dead)

    def _pull_in_times(self) -> int:
        """A clock that was set back does not keep anything waiting for longer than it is ever put off."""
        corrected = self._daemon.authority.pull_in_times()
        if corrected:
            _log.warning("the authority's clock was set back; what seemed due far ahead is due now", rows=corrected)
        return corrected

    def _looks_idle(self) -> bool:
        """True when idle; when that cannot be told, the daemon stops and says why."""
        try:
            return self._idle()
        except ScenarioRunnerError as error:
            self._failure = self._failure or error
            self._stopping.set()
            return False

    def _idle(self) -> bool:
        """True when nothing is left that this role could do now."""
        if self._has(Role.INTAKE) and not self._daemon.intake.empty():
            return False
        if self._has(Role.RUNNER) and self._daemon.leases.held:
            return False
        pending = self._daemon.authority.pending()
        if self._has(Role.RUNNER) and (pending.runs or self._daemon.leases.held):
            return False
        return not (self._has(Role.RELAY) and (pending.projections or pending.signals))
