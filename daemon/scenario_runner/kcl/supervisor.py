"""Runs one JVM with KCL's MultiLangDaemon for as long as it is wanted.

The JVM is started again whenever it ends, whatever its exit status: KCL exits with 0 when it gave up initialising, with
1 when a record processor died, with 143 when it was told to stop. A stop sends SIGTERM to the JVM alone, which then
lets its record processors finish. No process of the JVM's group survives its end. When the daemon is killed, the kernel
sends that SIGTERM (see :mod:`~scenario_runner.kcl.launch`).
"""

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.counters import count
from scenario_runner.kcl.config import DRAIN_SECONDS
from scenario_runner.kcl.health import HealthCheck
from scenario_runner.kcl.jvm_log import forward_logs
from scenario_runner.kcl.shard_status import ShardStatus, read_statuses
from scenario_runner.kcl.worker_ids import SLOT_VARIABLE, WorkerIdLease, kill_processes, processes_of
from scenario_runner.posix import SIGKILL
from scenario_runner.procfs import start_time
from scenario_runner.retry import RetryPolicy, with_retries

WORKER_CONFIG_VARIABLE: Final = "SR_KCL_CHILD"
"""Environment variable with all that a shard worker needs to know, as JSON."""

_LAUNCHER: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launch.py")
#: Between starts of a JVM, and between tries to prepare the first one. A start costs seconds of CPU and a registration
#: in DynamoDB; ten seconds more do not matter to an outage that already lasted through several starts.
_RETRY: Final = RetryPolicy(first_seconds=0.5, most_seconds=10.0)
#: A JVM that ran for so long has initialised, so its end is not one more failure of the same start.
_HEALTHY_SECONDS: Final = 60.0
#: Between looks at the process table and the stop event; nothing notices a twentieth of a second.
_POLL_SECONDS: Final = 0.05
#: For the JVM to write its last lines, and to end beyond the grace that KCL gives record processors.
_MARGIN_SECONDS: Final = 3.0
#: A shard worker that the JVM is just starting is not found among the processes of the slot yet.
_LEAST_DRAIN_SECONDS: Final = 1.0
_EXIT_MEANINGS: Final = {
    0: "KCL gave up: it could not initialise (is DynamoDB reachable, and may its tables be created?)",
    1: "a record processor ended or KCL failed; records that were not checkpointed come again",
    3: "the JVM ran out of memory",
    143: "another process told it to stop",
    -SIGKILL: "it was killed",
}
_log = structlog.get_logger("kcl")


@dataclass(frozen=True)
class LaunchSpec:
    """How to start the JVM.

    Attributes:
        command: The command and its arguments.
        environment: The environment, without the variables that the supervisor adds.
        worker_config: What shard workers need to know, without what the supervisor adds; JSON values.
    """

    command: list[str]
    environment: Mapping[str, str]
    worker_config: Mapping[str, Any]


class JvmSupervisor:
    """Supervises the JVM of one worker id.

    All of it happens in one thread that lives as long as the JVM: the kernel ties the death signal of the JVM to the
    thread that started it, not to the process.

    Args:
        worker: The worker id, leased by this process.
        spec: How to start the JVM.
        prepare: Called before the first start, until it returns; raises ``Unavailable`` while something is missing.
    """

    def __init__(self, worker: WorkerIdLease, spec: LaunchSpec, prepare: Callable[[], None]) -> None:
        self._worker, self._spec, self._prepare = worker, spec, prepare
        self._stopping = threading.Event()
        self._generation = ""
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="kcl")
        self._fatal: BaseException | None = None

    def start(self) -> None:
        """Start supervising."""
        self._thread.start()

    def stop(self) -> None:
        """Let record processors finish and checkpoint, end the JVM, and return when all its processes are gone."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def failures(self) -> int:
        """How often in a row the preparation failed, or a JVM ended before any shard worker had started."""
        return self._failures

    def statuses(self) -> dict[str, ShardStatus]:
        """The statuses of the present JVM's record processors, by shard id.

        Raises:
            BaseException: Whatever ended the supervisor's thread.
        """
        if self._fatal is not None:
            raise self._fatal
        return read_statuses(self._worker.status_folder, self._generation) if self._generation else {}

    # --- the thread

    def _run(self) -> None:
        try:
            self._prepare_until_done()
            self._supervise()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that asks for statuses next
            self._fatal = error
        finally:
            kill_processes(self._worker.folder)

    def _prepare_until_done(self) -> None:
        def count_failure(_error: BaseException, _pause: float) -> None:
            self._failures += 1

        with suppress(Unavailable):  # it was stopped while it waited
            with_retries(self._prepare, _RETRY, lambda error: isinstance(error, Unavailable),
                         wait=self._stopping.wait, on_failure=count_failure)  # fmt: skip

    def _supervise(self) -> None:
        short_runs = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            status = self._run_jvm()
            if self._stopping.is_set():
                return
            lasted = time.monotonic() - began
            short_runs = 1 if lasted > _HEALTHY_SECONDS else short_runs + 1
            pause = _RETRY.pause_seconds(short_runs)
            count("sr_jvm_restarts_total")
            _log.warning("KCL ended and is started again", status=status, lasted_seconds=round(lasted, 1),
                         pause_seconds=pause, meaning=_EXIT_MEANINGS.get(status, "not known"))  # fmt: skip
            self._stopping.wait(pause)

    def _run_jvm(self) -> int:
        """Run one JVM until it ends, or must be ended; returns its exit status."""
        kill_processes(self._worker.folder)
        self._clear_statuses()
        self._generation = secrets.token_hex(8)
        jvm = self._spawn()
        _log.info("KCL started", jvm=jvm.pid, worker_id=self._worker.worker_id)
        logs = threading.Thread(target=forward_logs, args=(jvm.stdout, self._stopping), name="kcl-log", daemon=True)
        logs.start()
        started = self._watch(jvm)
        self._failures = 0 if started or self._stopping.is_set() else self._failures + 1
        self._end(jvm)
        logs.join(_MARGIN_SECONDS)
        return jvm.returncode

    def _clear_statuses(self) -> None:
        for name in os.listdir(self._worker.status_folder):
            with suppress(OSError):
                os.unlink(os.path.join(self._worker.status_folder, name))

    def _watch(self, jvm: "subprocess.Popen[bytes]") -> bool:
        """Return when the JVM has ended, is to be stopped, or must be killed; whether a shard worker had started."""
        health, started = HealthCheck(), False
        while jvm.poll() is None and not self._stopping.wait(_POLL_SECONDS):
            if not health.due():
                continue
            statuses = read_statuses(self._worker.status_folder, self._generation)
            started = started or bool(statuses)
            if health.must_restart(statuses):
                break
        return started

    def _spawn(self) -> "subprocess.Popen[bytes]":
        supervisor = os.getpid()
        worker_config = {
            **self._spec.worker_config, "status_folder": self._worker.status_folder, "generation": self._generation,
            "supervisor": f"{supervisor} {start_time(supervisor)}",
        }  # fmt: skip
        environment = {
            **self._spec.environment,
            SLOT_VARIABLE: self._worker.folder,
            WORKER_CONFIG_VARIABLE: json.dumps(worker_config),
            "SR_KCL_SUPERVISOR": str(supervisor),
            "SR_KCL_COMMAND": json.dumps(self._spec.command),
        }
        return subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-I", "-S", _LAUNCHER], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(self._worker.lock_fd,),
        )  # fmt: skip

    def _end(self, jvm: "subprocess.Popen[bytes]") -> None:
        """Let record processors finish when this is an orderly stop, then kill what is left of the JVM."""
        if jvm.poll() is None and self._stopping.is_set():
            jvm.terminate()
            self._await_shard_workers(jvm)
            left = set(processes_of(self._worker.folder)) - {jvm.pid}
            if left:
                _log.warning("record processors did not finish in time and are killed; their records come again",
                             processes=len(left))  # fmt: skip
        # The group first: the JVM is its leader, so the group's id cannot be given out again before wait().
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(jvm.pid, SIGKILL)
        jvm.wait()
        kill_processes(self._worker.folder)

    def _await_shard_workers(self, jvm: "subprocess.Popen[bytes]") -> None:
        """Wait until no shard worker runs, for no longer than KCL lets them finish.

        The JVM is not waited for: it takes seconds longer, and after the last record processor it has nothing to do.
        """
        began = time.monotonic()
        while jvm.poll() is None and time.monotonic() - began < DRAIN_SECONDS + _MARGIN_SECONDS:
            lasted = time.monotonic() - began
            if lasted > _LEAST_DRAIN_SECONDS and set(processes_of(self._worker.folder)) <= {jvm.pid}:
                return
            time.sleep(_POLL_SECONDS)
