"""Logging never decides: whatever becomes of stderr, requests become READY and SIGTERM ends the daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from support import COMMAND, World

from scenario_runner.posix import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


def _fill(writer: int) -> None:
    """Fill a pipe, and leave it as it was but for that."""
    flags = fcntl.fcntl(writer, fcntl.F_GETFL)
    fcntl.fcntl(writer, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    fcntl.fcntl(writer, fcntl.F_SETFL, flags)


@contextmanager
def _nobody_reads() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def _full_pipe(*, blocking: bool) -> Iterator[int]:
    reader, writer = os.pipe()
    _fill(writer)
    os.set_blocking(writer, blocking)
    yield writer
    os.close(reader)
    os.close(writer)


@contextmanager
def _full_disk() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


LOGS: dict[str, Callable[[], Any]] = {
    "its reader is gone": _nobody_reads,
    "its reader stopped and the pipe is full": lambda: _full_pipe(blocking=True),
    "the full pipe does not block": lambda: _full_pipe(blocking=False),
    "its disk is full": _full_disk,
}


def _serve(world: World, stderr: int, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([COMMAND, "serve", "--wiring", str(world.wiring), "--policy", str(world.policy), *more],
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)  # fmt: skip


def _until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("log", LOGS)
def test_a_log_that_fails_does_not_keep_a_request_from_ready_nor_the_daemon_from_its_end(world: World, log: str):
    with LOGS[log]() as stderr:
        daemon = _serve(world, stderr, "--log-level", "debug")
        try:
            for number in range(3):
                world.drop(world.make_run(f"key-{number}")["request"], f"{number}.json")
            _until(lambda: len(world.signals("READY")) == 3 or daemon.poll() is not None)
            assert daemon.poll() is None
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(15) == 0
        finally:
            daemon.kill()
            daemon.wait()


@pytest.mark.parametrize("closed", ["2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams_are_no_files_of_the_daemon(world: World, closed: str):
    world.drop(world.make_run()["request"])
    arguments = [COMMAND, "serve", "--wiring", str(world.wiring), "--policy", str(world.policy), "--until-idle"]
    done = subprocess.run(["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *arguments], timeout=60, check=False)
    assert done.returncode == 0
    assert len(world.signals("READY")) == 1


@pytest.mark.parametrize("log", LOGS)
def test_exit_codes_do_not_depend_on_the_log(world: World, log: str):
    world.write_profiles(object_store_root="gopher://nowhere")
    with LOGS[log]() as stderr:
        assert _serve(world, stderr, "--until-idle").wait(30) == 2


@pytest.mark.parametrize("log", LOGS)
def test_a_defect_ends_the_daemon_with_a_code_of_its_own_whatever_the_log_does(world: World, tmp_path: Path, log: str):
    with LOGS[log]() as stderr:
        assert _with_patch(world, tmp_path, stderr, _DEFECT).wait(30) == 70


def test_a_defect_that_ends_the_daemon_is_in_the_log(world: World, tmp_path: Path):
    with (tmp_path / "log").open("wb") as log:
        assert _with_patch(world, tmp_path, log.fileno(), _DEFECT).wait(30) == 70
    lines = (tmp_path / "log").read_text("utf-8").splitlines()
    [died] = [json.loads(line) for line in lines if "a loop died" in line]
    assert "a defect for the test" in died["exception"]
    assert died["level"] == "critical"


def test_a_configuration_that_turns_out_wrong_while_serving_is_no_defect(world: World, tmp_path: Path):
    with (tmp_path / "log").open("wb") as log:
        assert _with_patch(world, tmp_path, log.fileno(), _WRONG_CONFIGURATION).wait(30) == 2
    lines = (tmp_path / "log").read_text("utf-8").splitlines()
    [died] = [json.loads(line) for line in lines if "a loop died" in line]
    assert (died["level"], died["reason_code"], died["loop"]) == ("error", "CONFIGURATION_INVALID", "runner")
    assert died["detail"] == "the database: a pooler lies before it. Remedy: go around it"
    assert not [line for line in lines if "critical" in line or "Traceback" in line]


def test_a_thread_that_hangs_does_not_keep_the_process_after_a_stop(world: World, tmp_path: Path):
    world.write_profiles(shutdown_seconds=1)
    with (tmp_path / "log").open("wb") as log:
        daemon = _with_patch(world, tmp_path, log.fileno(), _HANG)
    _until((tmp_path / "hangs").exists)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 5
    assert "the stop takes too long" in (tmp_path / "log").read_text("utf-8")


def test_lines_wait_for_a_reader_that_is_late_and_none_is_lost(world: World):
    reader, writer = os.pipe()
    _fill(writer)
    daemon = _serve(world, writer, "--log-level", "debug")
    os.close(writer)
    for number in range(2):
        world.drop(world.make_run(f"key-{number}")["request"], f"{number}.json")
    _until(lambda: len(world.signals("READY")) == 2)
    text = bytearray()
    pump = threading.Thread(target=lambda: [text.extend(data) for data in iter(lambda: os.read(reader, 65536), b"")])
    pump.start()
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(15) == 0
    pump.join(10)
    os.close(reader)
    lines = bytes(text).lstrip(b"x").decode().splitlines()
    events = [json.loads(line)["event"] for line in lines if line.startswith("{")]
    assert "started" in events
    assert events[-1] == "stopped"
    assert "log lines were lost" not in events


_DEFECT = """
from scenario_runner.authority.sqlite import SqliteAuthority
def step(self, *given, **named):
    raise ValueError("a defect for the test")
SqliteAuthority.claim = step
"""
_WRONG_CONFIGURATION = """
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.contracts.errors import ConfigurationError
def claim(self, *given, **named):
    raise ConfigurationError("the database", "a pooler lies before it", "go around it")
SqliteAuthority.claim = claim
"""
_HANG = """
import pathlib, time
import scenario_runner.cli.stopping as stopping
from scenario_runner.runs.leases import Leases
stopping._LAST_RESORT_SECONDS = 1.0
def claim(self, size):
    pathlib.Path({folder!r}, "hangs").touch()
    while True:
        time.sleep(60)
Leases.claim = claim
"""


def _with_patch(world: World, folder: Path, stderr: int, patch: str) -> subprocess.Popen[bytes]:
    """The daemon with something of it replaced."""
    program = folder / "patched.py"
    program.write_text(
        f"{patch.replace('{folder!r}', repr(str(folder)))}\nfrom scenario_runner.cli.main import main\nmain()\n"
    )
    return subprocess.Popen([sys.executable, str(program), "serve", "--wiring", str(world.wiring), "--policy",
                             str(world.policy)], stdout=subprocess.DEVNULL, stderr=stderr)  # fmt: skip
