"""Worker ids: stable, so that a restart finds its own leases at once, and unique.

Two workers under one id would take each other's leases for their own.

A daemon takes the first free slot of its host, application and state folder, and the slot's number is part of its id.
The slot is a lock that the JVM inherits, so it is free only when the supervisor and its JVM are both gone. A JVM that
outlived its supervisor is killed by the next daemon that wants the slot.
"""

import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.posix import SIGKILL, fcntl

SLOT_VARIABLE: Final = "SR_KCL_SLOT"
"""Set in the environment of a JVM and of its record processors, so that leftovers can be told from other processes."""
_SLOTS: Final = 64
_WAIT_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05
_log = structlog.get_logger("intake")


@dataclass(frozen=True)
class Slot:
    """A slot that is ours until it is given back.

    Attributes:
        folder: Its own folder.
        worker_id: The worker id that goes with it.
        lock_fd: The lock; inherited by the JVM.
    """

    folder: str
    worker_id: str
    lock_fd: int

    @property
    def reports(self) -> str:
        """Where record processors report."""
        return os.path.join(self.folder, "reports")

    def release(self) -> None:
        """Give the slot back."""
        with suppress(OSError):
            os.unlink(os.path.join(self.folder, "supervisor"))
        os.close(self.lock_fd)


def take_slot(
    state_dir: str, application: str, worker: str | None, sleep: Callable[[float], None] = time.sleep
) -> Slot:
    """Take the first free slot.

    Args:
        state_dir: Folder for state that outlives a process, on a disk of this host.
        application: The consumer application.
        worker: Begin of the worker id; the host's name when None.
        sleep: Pauses.

    Raises:
        Unavailable: the folder cannot be used, or all slots are taken.
    """
    home = os.path.join(os.path.realpath(state_dir), application)
    place = hashlib.sha256(home.encode()).hexdigest()[:8]
    try:
        for number in range(_SLOTS):
            folder = os.path.join(home, f"slot-{number}")
            os.makedirs(os.path.join(folder, "reports"), exist_ok=True)
            lock_fd = _lock(folder, sleep)
            if lock_fd is None:
                continue
            with open(os.path.join(folder, "supervisor"), "w", encoding="ascii") as file:
                file.write(f"{os.getpid()} {start_time(os.getpid())}")
            base = _plain(worker or f"{socket.gethostname()}.{application}")
            return Slot(folder, f"{base}.{place}.{number}", lock_fd)
    except OSError as error:
        raise Unavailable(f"the state folder {home} cannot be used: {error.strerror or error}") from error
    raise Unavailable(f"all {_SLOTS} slots under {home} are taken by running daemons")


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:160]


def _lock(folder: str, sleep: Callable[[float], None]) -> int | None:
    """The slot's lock as an inheritable descriptor, or None when a running daemon has it."""
    lock_fd = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline: float | None = None
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _supervisor_runs(folder) or (deadline is not None and time.monotonic() > deadline):
                os.close(lock_fd)
                return None
        else:
            kill_processes(folder)
            return lock_fd
        deadline = deadline or time.monotonic() + _WAIT_SECONDS
        if killed := kill_processes(folder):
            _log.warning("killed what a dead supervisor left running", processes=killed, slot=folder)
        sleep(_POLL_SECONDS)


def start_time(pid: int) -> str:
    """The kernel's start time of a process in clock ticks, or empty when no such process runs."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def runs(pid: int, started: str) -> bool:
    """True while the process with this id and start time runs."""
    return bool(started) and start_time(pid) == started


def _supervisor_runs(folder: str) -> bool:
    """True unless the slot's supervisor is certainly gone; one that has not signed in yet counts as running."""
    try:
        with open(os.path.join(folder, "supervisor"), encoding="ascii") as file:
            pid, _, started = file.read().partition(" ")
        return runs(int(pid), started)
    except (OSError, ValueError):
        return True


def processes_of(folder: str) -> Iterator[int]:
    """Process ids of JVMs and record processors of a slot that run, in no order."""
    mark = f"{SLOT_VARIABLE}={folder}".encode()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with suppress(OSError):
            with open(f"/proc/{name}/environ", "rb") as file:
                marked = mark in file.read().split(b"\0")
            if marked and start_time(int(name)):
                yield int(name)


def kill_processes(folder: str) -> int:
    """Kill every process of a slot; returns how many there were."""
    killed = 0
    for pid in processes_of(folder):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, SIGKILL)
            killed += 1
    return killed
