"""A fork of the command answers as the installed command does, and is a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import fork_server
import pytest
from support import World, run_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        (("--version",), None),
        (("runs", "--help"), None),
        (("no-such-command",), None),
        (("status", "nobody", "--wiring", "wiring.yaml"), None),
        (("submit", "-", "--wiring", "wiring.yaml"), b"not json"),
        (("policy", "digest", "policy.yaml"), None),
    ],
)
def test_a_fork_answers_as_the_installed_command_does(
    world: World, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], data: bytes | None
) -> None:
    monkeypatch.chdir(world.root)
    forked, installed = (run_command(*arguments, stdin=data, installed=how) for how in (False, True))
    assert (forked.returncode, forked.stdout, forked.stderr) == (
        installed.returncode, installed.stdout, installed.stderr,
    )  # fmt: skip


def test_a_fork_has_the_environment_of_its_test(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write_profiles(object_store_root="${SR_TEST_PLACE}/store")
    monkeypatch.setenv("SR_TEST_PLACE", str(world.root / "first"))
    assert world.serve().returncode == 0
    monkeypatch.delenv("SR_TEST_PLACE")
    assert b"SR_TEST_PLACE" in world.serve().stderr
    assert [path.name for path in (world.root / "first").iterdir()] == ["store"]


def test_an_environment_that_an_interpreter_reads_at_its_start_is_for_no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fork_server.is_possible(os.environ)
    for name in ("PYTHONHASHSEED", "LC_ALL", "TZ"):
        monkeypatch.setenv(name, "C")
        assert not fork_server.is_possible(os.environ)
        monkeypatch.undo()


@pytest.fixture
def daemon(world: World) -> Iterator[fork_server.Forked]:
    arguments = ["serve", "--wiring", str(world.wiring), "--policy", str(world.policy)]
    with (world.root / "log").open("w+b") as log:
        process = fork_server.Forked(arguments, stdin=log, stdout=log, stderr=log, env=os.environ, new_session=True)
        yield process
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP"])
def test_a_fork_runs_until_it_ends_and_says_how(daemon: fork_server.Forked, number: str) -> None:
    assert daemon.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.wait(0.05)
    assert os.getsid(daemon.pid) == daemon.pid
    daemon.send_signal(signal.Signals[number])
    daemon.kill()
    assert daemon.wait(30) == daemon.poll() == -signal.SIGKILL


def test_a_command_that_takes_too_long_is_killed(world: World, tmp_path: Path) -> None:
    arguments = ["serve", "--wiring", str(world.wiring), "--policy", str(world.policy)]
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        fork_server.run(arguments, None, 0.2, os.environ)
    assert raised.value.cmd == arguments
