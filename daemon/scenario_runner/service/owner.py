"""Who holds a lease: a name that tells, on the same host, whether the process still lives."""

import os
import secrets
import socket
from typing import Final

_UNKNOWN: Final = "?"
_PARTS: Final = 5


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return _UNKNOWN


def _start_time(pid: int) -> str:
    """The kernel's start time of a process, in clock ticks since boot; ``?`` when no such process runs.

    A killed process that nobody has waited for yet runs no more.
    """
    text = _read(f"/proc/{pid}/stat")
    if text == _UNKNOWN:
        return _UNKNOWN
    fields = text.rpartition(")")[2].split()
    return _UNKNOWN if fields[0] in "ZX" else fields[19]


def _machine() -> str:
    """This kernel and process-id namespace: where a process id means the same process."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = _UNKNOWN
    boot = _read("/proc/sys/kernel/random/boot_id").strip()
    return f"{boot}.{namespace.strip('pid:[]')}"


def make_owner() -> str:
    """A new owner name for this process."""
    pid = os.getpid()
    return f"{socket.gethostname()}|{_machine()}|{pid}|{_start_time(pid)}|{secrets.token_hex(6)}"


def is_dead(owner: str) -> bool:
    """True when the owner was a process of this machine that certainly runs no more."""
    parts = owner.split("|")
    if len(parts) != _PARTS or parts[1] != _machine() or _UNKNOWN in parts[1] or not parts[2].isdigit():
        return False
    if _start_time(int(parts[2])) == parts[3] or _start_time(os.getpid()) == _UNKNOWN:
        return False
    return _start_time(int(parts[2])) != _UNKNOWN or not _exists(int(parts[2]))


def _exists(pid: int) -> bool:
    """True unless the kernel knows no such process; ``/proc`` may hide those of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _state(pid) not in ("Z", "X")


def _state(pid: int) -> str:
    """A process's state letter; empty when it cannot be told."""
    text = _read(f"/proc/{pid}/stat")
    return "" if text == _UNKNOWN else text.rpartition(")")[2].split()[0]
