"""Keeps one JVM with KCL's MultiLangDaemon running for as long as it is wanted.

It is started again whenever it ends, whatever its exit status: KCL exits 0 when it gave up initialising, 1 when a
record processor died, 143 when it was told to stop. SIGTERM goes to the JVM alone, which then lets its record
processors finish; nothing of its process group survives the end. When the supervisor is killed the kernel sends that
SIGTERM.
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
from typing import IO, Any, Final

import structlog

from scenario_runner.kcl.config import DRAIN_SECONDS
from scenario_runner.kcl.shard_status import Doing, Report, read_reports
from scenario_runner.kcl.worker_ids import SLOT_VARIABLE, Slot, kill_processes, processes_of, start_time
from scenario_runner.posix import SIGKILL

CHILD_VARIABLE: Final = "SR_KCL_CHILD"
"""Environment variable with everything that a record processor needs to know, as JSON."""
_LAUNCHER: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launch.py")
_FIRST_PAUSE_SECONDS: Final = 0.5
_MOST_PAUSE_SECONDS: Final = 10.0
_HEALTHY_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.05
_READ_SECONDS: Final = 0.25
_HUNG_SECONDS: Final = 300.0
_SILENT_SECONDS: Final = 60.0
_MARGIN_SECONDS: Final = 3.0
_LEVELS: Final = {"ERROR": "error", "WARN": "warning", "INFO": "debug"}
_ENDS: Final = {
    0: "KCL gave up: it could not initialise (is DynamoDB reachable, and may its tables be created?)",
    1: "a record processor ended or KCL failed; records that were not checkpointed come again",
    3: "the JVM ran out of memory",
    143: "it was told to stop by somebody else",
    -SIGKILL: "it was killed",
}
_log = structlog.get_logger("intake")


@dataclass(frozen=True)
class Recipe:
    """How to start the JVM.

    Attributes:
        command: The command.
        environment: Its environment, without what the keeper adds.
        child: What record processors need to know, beside what the keeper adds.
    """

    command: list[str]
    environment: Mapping[str, str]
    child: Mapping[str, Any]


class Keeper:
    """See the module. Everything happens in one thread of its own, which lives as long as the JVM.

    Args:
        slot: The slot whose JVM this is.
        recipe: How to start it.
        prepare: Called before the first start, until it succeeds; returns whether it did.
    """

    def __init__(self, slot: Slot, recipe: Recipe, prepare: Callable[[], bool]) -> None:
        self._slot, self._recipe, self._prepare = slot, recipe, prepare
        self._stopping = threading.Event()
        self._generation = ""
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="kcl")
        self._died: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Let record processors finish and checkpoint, end the JVM, and return when all of it is gone."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def failures(self) -> int:
        """How often in a row the JVM could not be prepared, or ended before it had handed out anything."""
        return self._failures

    def reports(self) -> dict[str, Report]:
        """Where the record processors of the present JVM stand, by shard.

        Raises:
            BaseException: whatever killed the keeper's thread.
        """
        if self._died is not None:
            raise self._died
        return read_reports(self._slot.reports, self._generation) if self._generation else {}

    # --- the thread

    def _run(self) -> None:
        try:
            self._keep()
        except BaseException as error:  # noqa: BLE001 - raised to whoever asks next
            self._died = error
        finally:
            kill_processes(self._slot.folder)

    def _keep(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set() and not self._prepare():
            self._failures += 1
            self._stopping.wait(pause)
            pause = min(_MOST_PAUSE_SECONDS, pause * 2)
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            status = self._one_jvm()
            if self._stopping.is_set():
                return
            lasted = time.monotonic() - began
            pause = _FIRST_PAUSE_SECONDS if lasted > _HEALTHY_SECONDS else min(_MOST_PAUSE_SECONDS, pause * 2)
            _log.warning("KCL ended and is started again", status=status, lasted_seconds=round(lasted, 1),
                         pause_seconds=pause, meaning=_ENDS.get(status, "not known"))  # fmt: skip
            self._stopping.wait(pause)

    def _one_jvm(self) -> int:
        """Run one JVM to its end; returns its exit status."""
        kill_processes(self._slot.folder)
        for name in os.listdir(self._slot.reports):
            with suppress(OSError):
                os.unlink(os.path.join(self._slot.reports, name))
        self._generation = secrets.token_hex(8)
        jvm = self._spawn()
        _log.info("KCL started", jvm=jvm.pid, worker_id=self._slot.worker_id)
        pump = threading.Thread(target=self._pump, args=(jvm.stdout,), name="kcl-log", daemon=True)
        pump.start()
        health = _Health(self._generation)
        seen = False
        while jvm.poll() is None and not self._stopping.wait(_LOOK_SECONDS):
            if not health.due():
                continue
            found = read_reports(self._slot.reports, self._generation)
            seen = seen or bool(found)
            if _some_died(found) or health.hung(found):
                break
        self._failures = 0 if seen or self._stopping.is_set() else self._failures + 1
        self._end(jvm)
        pump.join(_MARGIN_SECONDS)
        return jvm.returncode

    def _spawn(self) -> "subprocess.Popen[bytes]":
        supervisor = os.getpid()
        child = {
            **self._recipe.child, "reports": self._slot.reports, "generation": self._generation,
            "supervisor": f"{supervisor} {start_time(supervisor)}",
        }  # fmt: skip
        environment = {
            **self._recipe.environment,
            SLOT_VARIABLE: self._slot.folder,
            CHILD_VARIABLE: json.dumps(child),
            "SR_KCL_SUPERVISOR": str(supervisor),
            "SR_KCL_COMMAND": json.dumps(self._recipe.command),
        }
        return subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-I", "-S", _LAUNCHER], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(self._slot.lock_fd,),
        )  # fmt: skip

    def _end(self, jvm: "subprocess.Popen[bytes]") -> None:
        """Let the record processors finish, then end what is left of the JVM.

        KCL itself takes seconds more, to no purpose: once no record processor runs there is nothing to wait for.
        """
        if jvm.poll() is None and self._stopping.is_set():
            jvm.terminate()
            began = time.monotonic()
            while jvm.poll() is None and time.monotonic() - began < DRAIN_SECONDS + _MARGIN_SECONDS:
                if time.monotonic() - began > 1.0 and set(processes_of(self._slot.folder)) <= {jvm.pid}:
                    break
                time.sleep(_LOOK_SECONDS)
            left = set(processes_of(self._slot.folder)) - {jvm.pid}
            if left:
                _log.warning("record processors did not finish in time and are killed; their records come again",
                             processes=len(left))  # fmt: skip
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(jvm.pid, SIGKILL)
        jvm.wait()
        kill_processes(self._slot.folder)

    # --- its log

    def _pump(self, lines: IO[bytes] | None) -> None:
        """The JVM's log as ours: what record processors said as they said it, KCL's own chatter only for debugging."""
        assert lines is not None
        for line in lines:
            with suppress(Exception):
                self._relay_line(line.decode("utf-8", "replace").rstrip())

    def _relay_line(self, line: str) -> None:
        if line.startswith("{"):
            self._relay_child(line)
            return
        level, _, rest = line.partition(" ")
        logger, _, message = rest.partition(" ")
        if level not in _LEVELS:
            if line:
                _log.warning("KCL says", line=line[:2000])
            return
        at = "debug" if self._stopping.is_set() else _LEVELS[level]  # in this mode KCL stops noisily
        getattr(_log, at)("KCL says", logger=logger, line=message[:2000])

    def _relay_child(self, line: str) -> None:
        try:
            document = json.loads(line)
            at, event = document.pop("level"), document.pop("event")
            document.pop("timestamp", None)
            log = {"critical": _log.critical, "error": _log.error, "warning": _log.warning, "info": _log.info}
            log.get(at, _log.debug)(event, **document)
        except (ValueError, KeyError, AttributeError, TypeError):
            _log.error("a record processor says", line=line[:2000])


def _some_died(reports: Mapping[str, Report]) -> bool:
    """True when a record processor ended without being told to.

    KCL ends then too, but only after it has waited in vain for that very processor to finish.
    """
    for report in reports.values():
        if report.doing is not Doing.ENDED and not start_time(report.pid):
            _log.error("a record processor died; KCL is started anew", shard_id=report.shard_id, pid=report.pid)
            return True
    return False


class _Health:
    """Looks at reports every now and then, says when something rests too long, and tells a hung processor."""

    def __init__(self, generation: str) -> None:
        self._generation = generation
        self._began = self._looked = self._said = time.monotonic()

    def due(self) -> bool:
        """True a few times a second."""
        now = time.monotonic()
        if now - self._looked < _READ_SECONDS:
            return False
        self._looked = now
        return True

    def hung(self, reports: Mapping[str, Report]) -> bool:
        """True when a record processor has said nothing for so long that only killing it helps."""
        now = time.monotonic()
        for report in reports.values():
            silent = now - report.at
            if report.doing is Doing.ENDED or silent < _SILENT_SECONDS:
                continue
            if report.doing is Doing.ADMITTING and silent > _HUNG_SECONDS:
                _log.error("a record processor hangs; KCL is started anew", shard_id=report.shard_id, pid=report.pid,
                           silent_seconds=int(silent))  # fmt: skip
                return True
            if now - self._said > _SILENT_SECONDS:
                self._said = now
                _log.warning("KCL has handed out nothing for long; is the stream reachable?", shard_id=report.shard_id,
                             doing=report.doing, silent_seconds=int(silent))  # fmt: skip
        if not reports and now - self._began > _SILENT_SECONDS and now - self._said > _SILENT_SECONDS:
            self._said = now
            _log.warning("no shard has been given to this worker yet; another worker may hold them all",
                         running_seconds=int(now - self._began))  # fmt: skip
        return False
