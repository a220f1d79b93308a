"""Worker ids for KCL: stable, so that a restarted daemon finds its own leases at once, and unique.

Two workers with the same id would renew each other's shard leases and read the same shards.

A daemon leases the first free slot of its host, application and state folder; the number of the slot is part of the
worker id. The lease is a file lock that the JVM inherits, so the slot is free only when the daemon and its JVM have
both ended. A JVM that outlived its daemon is killed by the next daemon that wants the slot.
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
from scenario_runner.procfs import processes_with, start_time

SLOT_VARIABLE: Final = "SR_KCL_SLOT"
"""Names the slot in the environment of a JVM and of its shard workers. Processes of a slot are found by it."""

#: Daemons of one application on one host; more of them than a stream has shards would have nothing to read.
_SLOTS: Final = 64
#: A killed JVM needs a moment until the kernel has closed its descriptors, and with them the lock.
_LOCK_WAIT_SECONDS: Final = 10.0
#: Between tries to lock a slot whose daemon is dead.
_POLL_SECONDS: Final = 0.05
#: KCL stores worker ids in DynamoDB and in file names of its metrics; 160 characters hold every host name of DNS.
_LONGEST_NAME: Final = 160
_log = structlog.get_logger("kcl")


@dataclass(frozen=True)
class WorkerIdLease:
    """A worker id that no other process uses until it is released.

    Attributes:
        folder: Folder of the slot.
        worker_id: The worker id.
        lock_fd: Descriptor of the lock; the JVM inherits it.
    """

    folder: str
    worker_id: str
    lock_fd: int

    @property
    def status_folder(self) -> str:
        """Where shard workers write their status."""
        return os.path.join(self.folder, "reports")

    def release(self) -> None:
        """Let another process have the worker id."""
        with suppress(OSError):
            os.unlink(os.path.join(self.folder, "supervisor"))
        os.close(self.lock_fd)


def lease_worker_id(
    state_dir: str, application: str, worker: str | None, sleep: Callable[[float], None] = time.sleep
) -> WorkerIdLease:
    """Lease the worker id of the first free slot.

    Args:
        state_dir: Folder for state that outlives a process, on a disk of this host.
        application: Name of the consumer application.
        worker: First part of the worker id; None for the name of the host and the application.
        sleep: Waits some seconds.

    Raises:
        Unavailable: The folder cannot be used, or running daemons have all slots.
    """
    home = os.path.join(os.path.realpath(state_dir), application)
    # Slots are counted per folder: two state folders of one host must not both give out the id with number 0.
    home_digest = hashlib.sha256(home.encode()).hexdigest()[:8]
    try:
        for number in range(_SLOTS):
            folder = os.path.join(home, f"slot-{number}")
            os.makedirs(os.path.join(folder, "reports"), exist_ok=True)
            lock_fd = _lock(folder, sleep)
            if lock_fd is None:
                continue
            with open(os.path.join(folder, "supervisor"), "w", encoding="ascii") as file:
                file.write(f"{os.getpid()} {start_time(os.getpid())}")
            name = _safe_name(worker or f"{socket.gethostname()}.{application}")
            return WorkerIdLease(folder, f"{name}.{home_digest}.{number}", lock_fd)
    except OSError as error:
        raise Unavailable(f"the state folder {home} cannot be used: {error.strerror or error}") from error
    raise Unavailable(f"all {_SLOTS} slots under {home} are taken by running daemons")


def _safe_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:_LONGEST_NAME]


def _lock(folder: str, sleep: Callable[[float], None]) -> int | None:
    """Lock a slot; returns an inheritable descriptor, or None when a running daemon holds the lock."""
    lock_fd = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline: float | None = None
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _supervisor_is_alive(folder) or (deadline is not None and time.monotonic() > deadline):
                os.close(lock_fd)
                return None
        else:
            # Java closes the lock in the processes that it starts, so a shard worker may have outlived its JVM.
            kill_processes(folder)
            return lock_fd
        deadline = deadline or time.monotonic() + _LOCK_WAIT_SECONDS
        if killed := kill_processes(folder):
            _log.warning("killed processes that a dead daemon had left running", processes=killed, slot=folder)
        sleep(_POLL_SECONDS)


def is_alive(pid: int, started: str) -> bool:
    """Whether the process with this id and this start time runs; an id alone may have been given out again."""
    return bool(started) and start_time(pid) == started


def _supervisor_is_alive(folder: str) -> bool:
    """Whether the daemon of a slot may be running.

    One that has locked the slot and not written its process id yet counts as running: its JVM must not be killed.
    """
    try:
        with open(os.path.join(folder, "supervisor"), encoding="ascii") as file:
            pid, _, started = file.read().partition(" ")
        return is_alive(int(pid), started)
    except (OSError, ValueError):
        return True


def processes_of(folder: str) -> Iterator[int]:
    """Ids of the running processes (JVM and shard workers) of a slot, in no order."""
    return processes_with(SLOT_VARIABLE, folder)


def kill_processes(folder: str) -> int:
    """Kill every process of a slot; returns how many were killed."""
    killed = 0
    for pid in processes_of(folder):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, SIGKILL)
            killed += 1
    return killed
