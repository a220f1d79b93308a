"""Engines as processes of this host, each below a keeper of its own.

The daemon has no thread and does no work for a running engine: its keeper (:mod:`~scenario_runner.engine.keeper`)
drains its output, ends it in time and writes its result. The daemon waits for the ends of all keepers with one epoll.

An engine does not outlive its daemon: when the daemon ends, in whatever way, its keepers see the ends of their pipes.
The next daemon finds the attempts in their folders.
"""

import json
import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Final

import structlog
from typing_extensions import override

from scenario_runner.contracts.errors import ConfigurationError, Unavailable, in_short
from scenario_runner.contracts.reasons import Reason
from scenario_runner.engine import descriptors
from scenario_runner.engine.attempt_folder import AttemptFolder, prepare_root
from scenario_runner.engine.command import EngineCommand, environment_of, placeholder_values
from scenario_runner.engine.invoker import EngineInvoker, Job, JobEnd, Launch, LaunchFailed
from scenario_runner.engine.keeper_process import hand_over, open_process, pipes, start_keeper, wait_readable
from scenario_runner.posix import AVAILABLE, SIGKILL
from scenario_runner.procfs import start_time

if TYPE_CHECKING:
    import subprocess

#: Of each stream and at each end: what a person reads of a log, and little enough to be kept for every attempt.
KEPT_BYTES: Final = 256 << 10
#: A Python without libraries starts in 20 ms; on a host that swaps it may take seconds.
_START_SECONDS: Final = 10.0
#: For a keeper, beyond the grace, to kill what is left, and to write half a megabyte.
_MARGIN_SECONDS: Final = 5.0
#: A keeper says who it is within milliseconds of its start. Where it does not, because its daemon was stopped in the
#: middle of the launch or it runs in another container, the caller asks again later and has its thread back meanwhile.
_ADOPT_SECONDS: Final = 1.0
#: Between looks for a keeper that has the lock and has not written its process id yet: a few milliseconds of its start.
_PAUSE_SECONDS: Final = 0.01
_ENDED_BY: Final = {
    "STOPPED": "it was stopped by the daemon",
    "DAEMON_GONE": "the daemon that had launched it ended",
    "NOT_RENEWED": "the daemon did not renew the run's lease in time",
    "KEEPER_LOST": "its keeper was killed, or its host was restarted",
    "GIVEN_UP": "it was given up before it was launched",
    "NOT_STARTED": "its keeper could not be started",
}
#: Signals by which somebody ends a service or a session: the engine that they reach is not at fault.
_ENDING_SIGNALS: Final = frozenset({-signal.SIGTERM, -signal.SIGINT, -1})
_log = structlog.get_logger("engine")


@dataclass(frozen=True)
class SubprocessSettings:
    """How engines are started on this host.

    Attributes:
        folder: Private folder of all attempts, on a local disk that outlives the daemon.
        command: The command.
        cwd: Working directory of the engine; None for the attempt's folder.
        allow_list: Names of variables that the engine gets from the daemon's environment.
        grace_seconds: Between SIGTERM and SIGKILL.
        renew_seconds: How long an engine runs on after the last ``renew``; None for as long as its daemon lives.
    """

    folder: str
    command: EngineCommand
    cwd: str | None = None
    allow_list: tuple[str, ...] = ()
    grace_seconds: float = 10.0
    renew_seconds: float | None = None


@dataclass(frozen=True)
class _Watch:
    """A keeper that has not been seen to end.

    Attributes:
        job: Its job.
        pidfd: Becomes readable when the keeper ends.
        overdue_at: On the monotonic clock: when it has certainly ended, if it does what it should.
        child: The keeper, where this process started it; else it is the keeper of another daemon.
    """

    job: Job
    pidfd: int
    overdue_at: float
    child: "subprocess.Popen[bytes] | None" = None


class SubprocessInvoker(EngineInvoker):
    """Runs engines as processes of this host.

    Args:
        settings: How they are started.
        environment: Where the variables of the allow-list come from.
        now_us: Microseconds since the epoch.

    Raises:
        ConfigurationError: This is not Linux, or the folder cannot be used.
    """

    def __init__(
        self,
        settings: SubprocessSettings,
        environment: Mapping[str, str] = os.environ,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        if not AVAILABLE or not hasattr(os, "pidfd_open"):
            raise ConfigurationError(
                "engine_invoker 'subprocess'", "needs Linux 5.3 or newer", "run the daemon on Linux, or use 'ecs'"
            )
        prepare_root(settings.folder)
        descriptors.use_hard_limit()
        self._settings, self._environment, self._now_us = settings, environment, now_us
        self._place = _place()
        self._lock = threading.Lock()
        self._watches: dict[str, _Watch] = {}
        self._by_pidfd: dict[int, str] = {}
        self._epoll = select.epoll()

    @property
    @override
    def name(self) -> str:
        return "subprocess"

    @property
    @override
    def bound_to_lease(self) -> bool:
        return True

    @property
    @override
    def place(self) -> str:
        return self._place

    # --- launch

    @override
    def require_room(self) -> None:
        descriptors.require_room()

    @override
    def launch(self, launch: Launch) -> Job:
        spec = self._spec(launch)
        job = Job(launch.attempt_id, self._place, self._now_us(), launch.timeout_seconds)
        folder = AttemptFolder(self._settings.folder, launch.attempt_id)
        try:
            lock = folder.create()
        except OSError as error:
            raise LaunchFailed(
                f"the folder of the attempt cannot be made: {error.strerror or error}", another_attempt=True
            ) from error
        if lock is None:
            return self._launched_before(job, folder)
        try:
            return self._start(job, folder, spec, lock)
        finally:
            os.close(lock)  # the keeper has it now

    def _spec(self, launch: Launch) -> bytes:
        settings = self._settings
        spec = {
            "argv": settings.command.render(placeholder_values(launch)),
            "environment": environment_of(launch, settings.allow_list, self._environment),
            "cwd": settings.cwd,
            "timeout_seconds": launch.timeout_seconds,
            "grace_seconds": settings.grace_seconds,
            "renew_seconds": settings.renew_seconds,
            "descriptors": descriptors.INHERITED,
            "start_by": None if math.isinf(launch.start_by) else launch.start_by,
            "head_bytes": KEPT_BYTES,
            "tail_bytes": KEPT_BYTES,
        }
        return json.dumps(spec).encode() + b"\n"

    def _launched_before(self, job: Job, folder: AttemptFolder) -> Job:
        result = folder.result()
        if result is not None and not result["started"]:
            raise _launch_failed(result)
        found = self.find(job)
        if found is None:  # another process has given the attempt up in between, or somebody has removed the folder
            raise Unavailable(f"attempt {job.attempt_id} was launched before, or given up")
        return found

    def _start(self, job: Job, folder: AttemptFolder, spec: bytes, lock: int) -> Job:
        """Start the keeper and return when the engine runs."""
        try:
            child = start_keeper(folder.path, job.attempt_id, lock)
        except OSError as error:
            raise _not_started(folder, f"the keeper cannot be started: {error.strerror or error}") from error
        with ExitStack() as opened:
            try:
                # Own copies: an engine may end at once, and the thread that sees it closes those of the child.
                stdin, stdout = (_dup(end, opened) for end in pipes(child))
                pidfd = os.pidfd_open(child.pid)
            except OSError as error:  # no descriptor is left
                _kill(child)
                raise _not_started(folder, f"the keeper cannot be watched: {error.strerror or error}") from error
            known = replace(job, handle=self._handle(child.pid))
            watch = self._add(_Watch(known, pidfd, self._overdue_at(job), child))
            answer = hand_over(stdin, stdout, spec, time.monotonic() + _START_SECONDS)
        if answer is None:
            _kill(child)
            raise _not_started(folder, "the keeper ended, or hung, before it had taken the launch")
        if answer.startswith("failed "):
            child.wait()
            # The result says whether the engine was at fault; on a full disk there may be none.
            raise _launch_failed(folder.result() or {"error": answer.removeprefix("failed "), "cause": ""})
        # Without an answer the keeper has ended, or is slow: `poll` sees what becomes of it.
        return watch.job

    def _overdue_at(self, job: Job) -> float:
        """When the keeper of a job that is watched from now on has certainly ended."""
        longest = job.timeout_seconds + self._settings.grace_seconds + _START_SECONDS + _MARGIN_SECONDS
        return time.monotonic() + longest

    def _handle(self, pid: int) -> str:
        return f"{self._place}|{pid}|{start_time(pid)}"

    # --- watches

    def _add(self, watch: _Watch) -> _Watch:
        """Watch a keeper; returns the watch that is there already when another thread was faster."""
        with self._lock:
            present = self._watches.get(watch.job.attempt_id)
            if present is not None and watch.child is None:
                os.close(watch.pidfd)
                return present
            if present is not None:  # another thread found the keeper in the moment in which this one started it
                del self._by_pidfd[present.pidfd]
                self._drop(present)
            self._watches[watch.job.attempt_id] = watch
            self._by_pidfd[watch.pidfd] = watch.job.attempt_id
            self._epoll.register(watch.pidfd, select.EPOLLIN)
        return watch

    def _collect(self) -> None:
        """Drop the watches of keepers that have ended: one call of the kernel, however many there are."""
        with self._lock:
            for pidfd, _ in self._epoll.poll(0):
                self._drop(self._watches.pop(self._by_pidfd.pop(pidfd)))

    def _drop(self, watch: _Watch) -> None:
        """Called under the lock, so that nobody uses a descriptor that has been closed and given out again."""
        self._epoll.unregister(watch.pidfd)
        os.close(watch.pidfd)
        if watch.child is not None:
            watch.child.wait()  # it has ended, so this buries it and does not wait
            for end in pipes(watch.child):
                end.close()

    # --- find and poll

    @override
    def find(self, job: Job, unrenewed_seconds: float = 0.0) -> Job | None:
        self._collect()
        with self._lock:
            watch = self._watches.get(job.attempt_id)
        if watch is not None:
            return watch.job
        folder = AttemptFolder(self._settings.folder, job.attempt_id)
        if job.handle.startswith(self._place):
            folder.give_up_unless_launched()
        elif not folder.exists():
            self._require_ended_elsewhere(job, unrenewed_seconds)
            return None
        return None if folder.is_given_up() else self._adopt(job, folder)

    def _require_ended_elsewhere(self, job: Job, unrenewed_seconds: float) -> None:
        """Return when an attempt of another host, whose processes cannot be seen from here, has certainly ended."""
        renewed = self._settings.renew_seconds
        if renewed is None or unrenewed_seconds < renewed + self._settings.grace_seconds + _MARGIN_SECONDS:
            where = job.handle.partition("|")[0] or "a place that is not known"
            raise Unavailable(f"attempt {job.attempt_id} was launched on {where} and may run there")

    def _adopt(self, job: Job, folder: AttemptFolder) -> Job:
        """Watch the keeper of an attempt that this process did not launch, if it runs."""
        deadline = time.monotonic() + _ADOPT_SECONDS
        while folder.reap() is None:
            keeper = folder.keeper()
            pidfd = -1 if keeper is None else open_process(*keeper)
            if keeper is not None and pidfd >= 0:
                known = replace(job, handle=self._handle(keeper[0]))
                return self._add(_Watch(known, pidfd, self._overdue_at(job))).job
            if time.monotonic() > deadline:
                raise Unavailable(f"attempt {job.attempt_id} is being started, and its keeper does not say who it is")
            time.sleep(_PAUSE_SECONDS)
        return job

    @override
    def poll(self, jobs: Sequence[Job]) -> dict[str, JobEnd]:
        self._collect()
        self._kill_overdue()
        ends, failure = {}, None
        for job in jobs:
            if job.attempt_id not in self._watches:
                try:
                    end = self._end_of(job)
                except Unavailable as error:  # one folder that cannot be read must not hide the ends of the others
                    failure = error
                    continue
                if end is not None:
                    ends[job.attempt_id] = end
        if failure is not None and not ends:
            raise failure
        return ends

    def _kill_overdue(self) -> None:
        """Kill keepers that should long have ended their engines: an engine may have stopped its keeper (SIGSTOP)."""
        now = time.monotonic()
        with self._lock:
            for watch in self._watches.values():
                if now >= watch.overdue_at:
                    _log.error("a keeper does not end its engine; it is killed", attempt_id=watch.job.attempt_id)
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(watch.pidfd, SIGKILL)

    def _end_of(self, job: Job) -> JobEnd | None:
        """The end of an attempt whose keeper is not watched; None when it runs all the same."""
        folder = AttemptFolder(self._settings.folder, job.attempt_id)
        if self.find(job) is None:
            return JobEnd(
                succeeded=False, reason_code=Reason.ENGINE_LAUNCH_FAILED, exit_code=None, stop_code="NOT_FOUND",
                detail="nothing is known of the attempt on this host", another_attempt=True,
            )  # fmt: skip
        result = folder.reap()
        return None if result is None else _end(result, job, folder)

    @override
    def renew(self, jobs: Iterable[Job]) -> None:
        with self._lock:
            for job in jobs:
                watch = self._watches.get(job.attempt_id)
                if watch is not None and watch.child is not None:
                    # A pipe that is full holds renewals enough; one that is closed belongs to a keeper that has ended.
                    with suppress(OSError):
                        os.write(pipes(watch.child)[0].fileno(), b".")

    # --- stop

    @override
    def stop(self, job: Job, check: Callable[[], None] = lambda: None) -> None:  # its grace fits into every stop
        found = self.find(job)
        if found is not None:
            self._stop_all([found.attempt_id])
            if AttemptFolder(self._settings.folder, job.attempt_id).reap() is None:
                raise Unavailable(f"attempt {job.attempt_id} still runs: its processes cannot be killed")

    def _stop_all(self, attempt_ids: Iterable[str]) -> None:
        """Stop keepers at the same time: with SIGTERM, which they pass on, and those that do not end with SIGKILL."""
        wanted = list(attempt_ids)
        for number, seconds in (
            (signal.SIGTERM, self._settings.grace_seconds + _MARGIN_SECONDS),
            (SIGKILL, _MARGIN_SECONDS),
        ):
            left = self._signal(wanted, number)
            if not left:
                return
            self._await_end(left, time.monotonic() + seconds)

    def _signal(self, attempt_ids: list[str], number: int) -> list[str]:
        """Send a signal to the keepers that run; returns their attempts."""
        self._collect()
        with self._lock:
            left = [attempt_id for attempt_id in attempt_ids if attempt_id in self._watches]
            for attempt_id in left:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._watches[attempt_id].pidfd, number)
        return left

    def _await_end(self, attempt_ids: list[str], deadline: float) -> None:
        for attempt_id in attempt_ids:
            with self._lock:
                watch = self._watches.get(attempt_id)
                pidfd = -1 if watch is None else os.dup(watch.pidfd)
            if pidfd >= 0:
                wait_readable(pidfd, deadline)
                os.close(pidfd)
        self._collect()

    @override
    def forget(self, job: Job) -> None:
        AttemptFolder(self._settings.folder, job.attempt_id).forget_outputs()

    @override
    def close(self) -> None:
        """End every engine that this process launched. The next daemon finds their ends."""
        with self._lock:
            own = [watch.job.attempt_id for watch in self._watches.values() if watch.child is not None]
        self._stop_all(own)
        for attempt_id in own:
            try:
                ended = AttemptFolder(self._settings.folder, attempt_id).reap() is not None
            except Unavailable:
                ended = False
            if not ended:
                _log.error("an engine is left running: its processes cannot be killed", attempt_id=attempt_id)


def _place() -> str:
    """This host, since its last start, and what it shows of its processes: a container shows its own only."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return f"{socket.gethostname()}|{boot}|{os.readlink('/proc/self/ns/pid')}"


def _dup(end: IO[bytes], opened: ExitStack) -> int:
    """A copy of a descriptor, which is closed with the others."""
    descriptor = os.dup(end.fileno())
    opened.callback(os.close, descriptor)
    return descriptor


def _kill(child: "subprocess.Popen[bytes]") -> None:
    """Kill a keeper that was given nothing to start."""
    child.kill()
    child.wait()


def _launch_failed(result: Mapping[str, Any]) -> LaunchFailed:
    """A launch that failed, from what was noted of it."""
    return LaunchFailed(result["error"], another_attempt=bool(result["cause"]))


def _not_started(folder: AttemptFolder, why: str) -> LaunchFailed:
    with suppress(OSError):  # a full disk; what finds the folder without a result notes that the attempt was lost
        folder.note_not_started(why)
    return LaunchFailed(why, another_attempt=True)


def _end(result: Mapping[str, Any], job: Job, folder: AttemptFolder) -> JobEnd:
    """How an attempt ended, from what its keeper found."""
    code, cause = result["exit_code"], str(result["cause"])
    reason, detail = _judge(result, job)
    return JobEnd(
        succeeded=reason is None, reason_code=reason, exit_code=code, stop_code=cause, detail=detail,
        another_attempt=cause in _ENDED_BY or (not cause and code in _ENDING_SIGNALS), stdout=folder.output("stdout"),
        stderr=folder.output("stderr"), duration_ms=int(result["duration_ms"]),
    )  # fmt: skip


def _judge(result: Mapping[str, Any], job: Job) -> tuple[Reason | None, str]:
    """Reason code and sentence of an end."""
    code, cause = result["exit_code"], str(result["cause"])
    if not result["started"]:
        return Reason.ENGINE_LAUNCH_FAILED, in_short(result["error"] or "the engine was not started")
    if cause == "TIMEOUT":
        return Reason.ENGINE_TIMEOUT, f"the engine did not end within {job.timeout_seconds:g} s and was stopped"
    if cause:
        why = in_short(result["error"])
        return Reason.ENGINE_EXIT_NONZERO, f"the engine was ended: {_ENDED_BY[cause]}{why and f' ({why})'}"
    if code is None or code < 0:
        number = 0 if code is None else -code
        return Reason.ENGINE_EXIT_NONZERO, f"the engine was killed by signal {number}, which SR did not send"
    if code:
        return Reason.ENGINE_EXIT_NONZERO, f"the engine ended with exit status {code}"
    return None, "the engine ended with exit status 0"
