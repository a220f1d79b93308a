"""How a process that drives runs stops: in order at the first signal, at once at the second, by force if it hangs."""

import signal
import threading
import time
from types import FrameType
from typing import Final

import structlog

from scenario_runner.cli.console import Exit, exit_for_error, print_err
from scenario_runner.kcl.config import DRAIN_SECONDS
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.service.compose import Daemon
from scenario_runner.service.supervisor import Supervisor
from scenario_runner.service.telemetry import end_process

_LAST_RESORT_SECONDS: Final = 30.0
"""How long after ``shutdown_seconds`` the process ends whatever still hangs. An orderly stop takes less, also where
each statement waits for a database that somebody keeps locked."""
_MOST_SECONDS: Final = 117.0
"""In all: ECS kills a task 120 s after it asked it to stop, at the latest, and the log wants a second of that."""
_STREAM_SECONDS: Final = DRAIN_SECONDS + 3.0
"""What the intake of a stream may take in any case: KCL's grace for record processors, and the end of its JVM."""
_log = structlog.get_logger("service")


def stop_on_signals(daemon: Daemon, supervisor: Supervisor) -> None:
    """Drain on the first SIGTERM or SIGINT; end the process on the second, or when the stop takes too long.

    Args:
        daemon: What is stopped.
        supervisor: Runs its loops.
    """
    threading.Thread(target=_end_stuck_process, args=(daemon, supervisor), name="last-resort", daemon=True).start()
    draining = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        if draining.is_set():
            print_err("second signal: stopping at once; the next start gives up the leases")
            end_process(128 + signal.SIGTERM)
        draining.set()
        daemon.stopping.set()
        print_err("stopping: what is in progress will finish; signal again to stop at once")

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def stop_between_batches(stopping: threading.Event) -> None:
    """Set an event on the first SIGTERM or SIGINT; end the process on the second, which breaks no transaction."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        if stopping.is_set():
            end_process(128 + signal.SIGTERM)
        stopping.set()
        print_err("stopping: the batch in progress will finish; signal again to stop at once")

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def longest_stop(wiring: Wiring) -> float:
    """So many seconds after a signal the process has ended, whatever hangs; a supervisor's SIGKILL must come later."""
    draining = float(wiring.shutdown_seconds)
    if wiring.bus_kind == "kinesis":
        draining = max(draining, _STREAM_SECONDS)
    return min(draining + _LAST_RESORT_SECONDS, _MOST_SECONDS)


def _end_stuck_process(daemon: Daemon, supervisor: Supervisor) -> None:
    """End the process when a stop takes too long: the next start gives up the leases of threads that hang."""
    daemon.stopping.wait()
    time.sleep(longest_stop(daemon.wiring))
    threads = sorted(thread.name for thread in threading.enumerate() if not thread.daemon)
    # No defect, which `critical` stands for and which pages: mostly a mount or a server does not answer.
    _log.error("the stop takes too long; the process ends without the threads that hang", threads=threads)
    end_process(exit_for_error(supervisor.failure) if supervisor.failure is not None else Exit.UNAVAILABLE)
