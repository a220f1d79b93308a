"""Process 1 of a container: the kernel makes it the parent of every orphan, and it must wait for them.

``serve`` has processes of others below it (KCL's JVM, and what that leaves behind), and :mod:`subprocess` must get the
exit statuses of its own. So process 1 only waits and passes signals on, and the daemon is its child.
"""

import os
import signal
from typing import Final, NoReturn

_PASSED_ON: Final = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


def leave_process_one() -> None:
    """Go on in a child when this is process 1, which ends with the child's exit status; must precede all threads."""
    if os.getpid() != 1:
        return
    awaited = {signal.SIGCHLD, *(getattr(signal, name) for name in _PASSED_ON)}
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
        elif received.si_code <= 0:  # sent by a process: what a terminal sends, its whole foreground gets
            os.kill(child, received.si_signo)


def _reap(child: int) -> None:
    """Wait for every process that has ended; the end of the child is ours."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
