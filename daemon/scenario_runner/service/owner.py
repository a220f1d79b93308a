"""Names of lease owners. On the same machine a name says whether its process still runs.

A name is ``host|machine|process id|start time|random``. A process id alone is reused by the kernel; with its start time
it is not.
"""

import hashlib
import os
import re
import secrets
import socket
import time
from typing import Final

from scenario_runner.procfs import ENDED, start_time, state_and_start_time

_UNKNOWN: Final = "?"
#: Of a name, see above.
_PARTS: Final = 5
_BOOTED: Final = re.compile(r"(?P<ids>[0-9a-f]+)@(?P<booted>[0-9]+)\.(?P<space>[0-9]+)")
_BOOT_TIME_TOLERANCE_SECONDS: Final = 2
"""Two readings of the time of one boot differ by a second of rounding and a leap second."""


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return _UNKNOWN


def _machine() -> str:
    """This kernel and process-id namespace: where a process id means the same process.

    Where the kernel's boot id is hidden (systemd's ``ProcSubset=pid``), the host's ids and the time of its boot, after
    an ``@``, stand for it. When the clock is set that time moves, and processes of before seem to be of another kernel.
    """
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = _UNKNOWN
    kernel = _read("/proc/sys/kernel/random/boot_id").strip()
    if kernel in ("", _UNKNOWN):
        kernel = _kernel_by_boot_time()
    return f"{kernel}.{namespace.strip('pid:[]')}"


def _kernel_by_boot_time() -> str:
    machine = _read("/etc/machine-id").strip()
    if machine in ("", _UNKNOWN, "uninitialized") or not hasattr(time, "CLOCK_BOOTTIME"):
        return _UNKNOWN
    ids = hashlib.sha256(f"scenario-runner|{machine}|{socket.gethostname()}".encode()).hexdigest()[:32]
    return f"{ids}@{time.time() - time.clock_gettime(time.CLOCK_BOOTTIME):.0f}"


def _same_machine(one: str, other: str) -> bool:
    """True when two answers of :func:`_machine` are certainly about the same one."""
    found, sought = _BOOTED.fullmatch(one), _BOOTED.fullmatch(other)
    if found is None or sought is None:
        return one == other
    apart = abs(int(found["booted"]) - int(sought["booted"]))
    return found.group("ids", "space") == sought.group("ids", "space") and apart <= _BOOT_TIME_TOLERANCE_SECONDS


def make_owner() -> str:
    """A new owner name for this process."""
    pid = os.getpid()
    return f"{socket.gethostname()}|{_machine()}|{pid}|{start_time(pid) or _UNKNOWN}|{secrets.token_hex(6)}"


def can_tell_dead_owners() -> bool:
    """True when this machine shows whether a process still runs; else leases of killed ones run out by themselves."""
    return _UNKNOWN not in _machine() and start_time(os.getpid()) != ""


def is_dead(owner: str) -> bool:
    """True when the owner was a process of this machine that certainly runs no more; False when in doubt."""
    parts = owner.split("|")
    if len(parts) != _PARTS or not parts[2].isdigit() or not can_tell_dead_owners():
        return False
    pid, started = int(parts[2]), parts[3]
    if not _same_machine(parts[1], _machine()) or start_time(pid) == started:
        return False
    return start_time(pid) != "" or not _exists(pid)


def _exists(pid: int) -> bool:
    """True unless the kernel knows no such process; ``/proc`` may hide those of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return state_and_start_time(pid)[0] not in ENDED
