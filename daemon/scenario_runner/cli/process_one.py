"""Process 1 of a container: the kernel makes it the parent of every orphan, and it must wait for them.

KCL's JVM leaves orphans behind. If the daemon itself waited for every process, :mod:`subprocess` would not get the exit
statuses of its own children. So process 1 only waits and forwards signals, and the daemon is its child.
"""

import os
import signal
from typing import Final, NoReturn

_FORWARDED: Final = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


def leave_process_one() -> None:
    """Continue in a child if this is process 1, which then ends with its exit status. Must precede all threads."""
    if os.getpid() != 1:
        return
    awaited = {signal.SIGCHLD, *(getattr(signal, name) for name in _FORWARDED)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    child = os.fork()
    if child != 0:
        _wait_for_all(child, awaited)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for_all(child: int, awaited: set[signal.Signals]) -> NoReturn:
    while True:
        received = signal.sigwaitinfo(awaited)
        if received.si_signo == signal.SIGCHLD:
            _reap(child)
        elif received.si_code <= 0:  # sent by a process; a signal from a terminal has reached the child already
            os.kill(child, received.si_signo)


def _reap(child: int) -> None:
    """Collect every process that has ended; when the child has, end with its exit status."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
