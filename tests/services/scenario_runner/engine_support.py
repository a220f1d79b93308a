"""What tests of the engine room share: launches, waiting, and a view of the processes of an attempt."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scenario_runner.engine.command import ATTEMPT_VARIABLE, parse_command
from scenario_runner.engine.invoker import EngineInvoker, Job, JobEnd, Launch
from scenario_runner.engine.subprocess_invoker import SubprocessInvoker, SubprocessSettings
from scenario_runner.procfs import processes_with, state_and_start_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SALT_VARIABLE = "SR_TEST_ATTEMPT_SALT"
"""Set for each test: what a failed test leaves running must not be taken for a process of the next one."""
RUN_ID = "0" * 31 + "1"


def launch_of(number: int = 1, timeout_seconds: float = 60.0, **changes: Any) -> Launch:
    """A launch; equal numbers are one attempt of a test, and those of other tests are others."""
    salt = os.environ.get(SALT_VARIABLE, "")
    fields: dict[str, Any] = {
        "attempt_id": hashlib.sha256(f"{salt}|{number}".encode()).hexdigest()[:32],
        "attempt_no": number,
        "run_id": RUN_ID,
        "tokens": {"manifest_fingerprint": "a" * 64, "parameter_hash": "b" * 64, "seed": "7", "scenario_id": "base",
                   "scenario_set": "base"},
        "engine_run_root": "/runs/r1",
        "invocation": json.dumps({"run_id": RUN_ID}).encode(),
        "invocation_path": "/store/invocation.json",
        "timeout_seconds": timeout_seconds,
        "traceparent": "00-0123-4567-01",
    }  # fmt: skip
    return Launch(**{**fields, **changes})


def script_engine(folder: Path, program: str, **settings: Any) -> SubprocessInvoker:
    """A subprocess invoker whose engine is a Python program, in a file."""
    script = folder.parent / f"engine-{hashlib.sha256(program.encode()).hexdigest()[:8]}.py"
    script.write_text(program)
    command = parse_command([sys.executable, "-I", "-S", str(script)], "test")
    return SubprocessInvoker(
        SubprocessSettings(str(folder), command, **{"grace_seconds": 0.5, **settings}), environment=os.environ
    )


def until(true: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Wait until something holds; returns it."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return found


def end_of(invoker: EngineInvoker, job: Job) -> JobEnd:
    """Wait for the end of a job."""
    end: JobEnd = until(lambda: invoker.poll([job]).get(job.attempt_id), "the engine ends")
    return end


def processes_of(attempt_id: str) -> set[int]:
    """Running processes that bear the attempt's mark, its keeper among them."""
    return set(processes_with(ATTEMPT_VARIABLE, attempt_id))


# Forks twice, in a session of its own, ignores SIGTERM, forgets its environment: and says its process id in a file.
ESCAPE = """
import os, signal, sys, time
def escape(path, clear):
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if clear:
        program = "import time, sys; open(sys.argv[1], 'w').write(str(__import__('os').getpid())); time.sleep(600)"
        os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", program, path], {})
    open(path, "w").write(str(os.getpid()))
    time.sleep(600)
    os._exit(0)
def wait(path):
    while not os.path.exists(path):
        time.sleep(0.01)
"""


@contextmanager
def engine(folder: Path, program: str, **settings: object) -> Iterator[SubprocessInvoker]:
    invoker = script_engine(folder, program, **settings)
    try:
        yield invoker
    finally:
        invoker.close()


def state_of(pid: int) -> str:
    return state_and_start_time(pid)[0]


def is_gone(pid: int) -> bool:
    return state_of(pid) in ("", "Z", "X")


def written_pid(path: Path) -> int:
    return int(until(lambda: path.exists() and path.read_text(), f"{path.name} is written"))
