"""What ``/proc`` shows of a process (Linux: proc_pid_stat(5))."""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

#: State letters of processes that have ended: zombie and dead.
ENDED: Final = ("Z", "X")
#: Places of the state letter and of the start time among the fields after the name of the program.
_STATE, _START_TIME = 0, 19


def state_and_start_time(pid: int) -> tuple[str, str]:
    """A process's state letter, and its start time in clock ticks since boot; both empty when ``/proc`` hides it."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            # The name of the program, in brackets, may hold spaces and brackets itself.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[_STATE], fields[_START_TIME]


def start_time(pid: int) -> str:
    """The start time of a process that runs; empty when none does, or when it was killed and not waited for yet.

    A process id is used again by the kernel; together with its start time it is not.
    """
    state, started = state_and_start_time(pid)
    return "" if state in ENDED else started


def processes_with(variable: str, value: str) -> Iterator[int]:
    """Ids of the running processes, this one left out, that were started with a variable in their environment.

    A process shows its environment to its own user only; those of others are not found.
    """
    mark = f"{variable}={value}".encode()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with suppress(OSError):
            with open(f"/proc/{name}/environ", "rb") as file:
                marked = mark in file.read().split(b"\0")
            if marked and start_time(int(name)):
                yield int(name)
