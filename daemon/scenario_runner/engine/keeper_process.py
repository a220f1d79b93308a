"""The daemon's side of a keeper: start one, hand the launch over to it, and wait for its end.

What both sides say to each other is written down in :mod:`~scenario_runner.engine.keeper`.
"""

import os
import select
import subprocess
import sys
import time
from typing import IO, Final

from scenario_runner.engine.command import ATTEMPT_VARIABLE
from scenario_runner.procfs import start_time

_KEEPER: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "keeper.py")
#: Of the daemon's environment; the engine gets none of it. A Python may need it to find its own library.
_KEEPER_VARIABLES: Final = ("LD_LIBRARY_PATH",)
#: More than an answer ever holds; it comes in one piece.
_ANSWER_BYTES: Final = 64 << 10
#: Without its answer, a keeper that took the launch is followed as one that is slow.
NO_ANSWER: Final = ""


def start_keeper(folder: str, attempt_id: str, lock: int) -> "subprocess.Popen[bytes]":
    """Start a keeper, which waits for the launch.

    Args:
        folder: The attempt's folder.
        attempt_id: hex32.
        lock: Descriptor of the attempt's lock, which the keeper inherits.

    Raises:
        OSError: It cannot be started.
    """
    environment = {name: os.environ[name] for name in _KEEPER_VARIABLES if name in os.environ}
    with open(os.open(os.path.join(folder, "keeper.log"), os.O_WRONLY | os.O_CREAT, 0o600), "wb") as errors:
        # A session of its own: the Ctrl-C of a terminal is for the daemon, which then ends its engines in order. The
        # mark is in the keeper's own environment, so that a child of it which is not the engine yet is found too.
        return subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-I", "-S", _KEEPER], env={**environment, ATTEMPT_VARIABLE: attempt_id},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=folder, pass_fds=(lock,),
            start_new_session=True, bufsize=0,
        )  # fmt: skip


def hand_over(stdin: int, stdout: int, spec: bytes, deadline: float) -> str | None:
    """Give a keeper its launch, and wait for the answer.

    Args:
        stdin: What the keeper reads, a descriptor that nobody else closes meanwhile; likewise what it writes to.
        stdout: Of the answer.
        spec: The launch, one line.
        deadline: On the monotonic clock.

    Returns:
        The answer, or :data:`NO_ANSWER`; None when the keeper did not take the launch, so that it starts nothing.
    """
    if not _write_all(stdin, spec, deadline):
        return None
    data = b""
    while not data.endswith(b"\n") and wait_readable(stdout, deadline):
        piece = os.read(stdout, _ANSWER_BYTES)
        if not piece:
            return NO_ANSWER
        data += piece
    return data.decode(errors="replace").strip()


def pipes(child: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes]]:
    """The daemon's ends of the keeper's descriptors 0 and 1."""
    assert child.stdin is not None
    assert child.stdout is not None
    return child.stdin, child.stdout


def _write_all(descriptor: int, data: bytes, deadline: float) -> bool:
    """Write to a pipe whose reader may hang; returns whether all of it was written before the deadline."""
    os.set_blocking(descriptor, False)
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    left = memoryview(data)
    while left:
        if not poller.poll(_milliseconds_until(deadline)):
            return False
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            continue
        except OSError:  # the keeper has ended
            return False
    return True


def wait_readable(descriptor: int, deadline: float) -> bool:
    """Wait until a descriptor can be read, or its other end is closed; False when the time is over."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(_milliseconds_until(deadline)))


def _milliseconds_until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic()) * 1000


def open_process(pid: int, started: str) -> int:
    """A descriptor of the process with this id and start time; -1 when it has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return -1
    if start_time(pid) != started:
        os.close(descriptor)
        return -1
    return descriptor
