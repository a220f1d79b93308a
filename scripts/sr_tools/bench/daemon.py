"""The daemon as a subprocess: started, watched, stopped, and what it took."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

from sr_tools.bench.report import CheckFailedError
from sr_tools.bench.subject import Subject

T = TypeVar("T")

#: Seconds between two readings of a daemon's memory. VmHWM is a high-water mark: only what grows in the last moments
#: before the end is missed.
_SAMPLE_SECONDS: Final = 0.05
#: Seconds within which a daemon has to start.
_START_SECONDS: Final = 30


@dataclass(frozen=True)
class Usage:
    """What a finished process took: seconds on the wall and of CPU, bytes at its peak."""

    wall: float
    cpu: float
    peak_rss: int


class Daemon:
    """A ``serve`` that runs.

    Its peak memory is sampled from /proc, because wait4's own figure includes the parent's at the time of the fork.

    Args:
        subject: What to run.
        arguments: Of the command, after its name.
        log: File for everything that it prints.
        timeout: Seconds after which it counts as stuck and is killed.
    """

    def __init__(self, subject: Subject, arguments: Sequence[str], log: Path, timeout: float) -> None:
        self.log, self._timeout, self._peak = log, timeout, 0
        self._done = threading.Event()
        with log.open("ab") as file:
            self.started_us = time.time_ns() // 1000
            self._started = time.perf_counter()
            command = [subject.command, *arguments]
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=subject.environment())
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def _sample(self) -> None:
        killed = False
        while not self._done.wait(_SAMPLE_SECONDS):
            self._peak = max(self._peak, high_water(self.process.pid))
            if not killed and time.perf_counter() - self._started > self._timeout:
                killed = True
                os.kill(self.process.pid, signal.SIGKILL)

    @property
    def ended(self) -> bool:
        """Whether it ended; its usage is left for :meth:`finish` to collect, which poll() would throw away."""
        if self.process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait_for_start(self) -> None:
        """Wait until it has logged that it started.

        Raises:
            CheckFailedError: It ended, or it takes too long.
        """
        self.until(lambda: '"started"' in self.log.read_text("utf-8", "replace"), "the daemon did not start",
                   seconds=_START_SECONDS)  # fmt: skip

    def until(self, found: Callable[[], T], failure: str, seconds: float | None = None, pause: float = 0.01) -> T:
        """Wait for something that this daemon does; returns the first true answer.

        Args:
            found: What to ask.
            failure: What to say when it does not happen.
            seconds: After so many it is too late; None for the timeout of the daemon.
            pause: Seconds between two questions.

        Raises:
            CheckFailedError: The daemon ended, or it takes too long.
        """
        deadline = time.perf_counter() + (self._timeout if seconds is None else seconds)
        while not (answer := found()):
            if self.ended or time.perf_counter() > deadline:
                raise CheckFailedError(f"{failure}; {log_tail(self.log)}")
            time.sleep(pause)
        return answer

    def finish(self) -> Usage:
        """Wait for the end of the process.

        Raises:
            CheckFailedError: It did not exit with 0.
        """
        _, status, usage = os.wait4(self.process.pid, 0)
        wall = time.perf_counter() - self._started
        self._stop_sampling()
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode != 0:
            raise CheckFailedError(f"serve ended with {self.process.returncode}; {log_tail(self.log)}")
        return Usage(wall, usage.ru_utime + usage.ru_stime, self._peak)

    def stop(self) -> Usage:
        """Ask the daemon to stop, and wait.

        Raises:
            CheckFailedError: It did not exit with 0.
        """
        self.process.send_signal(signal.SIGTERM)
        return self.finish()

    def kill(self) -> None:
        """Make sure that nothing of it is left."""
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()
        self._stop_sampling()

    def _stop_sampling(self) -> None:
        self._done.set()
        self._sampler.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def high_water(pid: int) -> int:
    """Peak resident memory of a running process in bytes; 0 when it cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def log_tail(path: Path) -> str:
    """The last line of a log, to say why."""
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    return f"the log ends with: {lines[-1][:300]}" if lines else "the log is empty"
