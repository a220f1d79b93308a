"""As process 1 of a container: no zombies stay, signals and exit codes are what they are elsewhere."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import COMMAND, World

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.integration

_AS_ONE = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if (
        shutil.which("unshare") is None
        or subprocess.run([*_AS_ONE, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no process-id namespace may be made here (unshare --fork --pid --mount-proc)")


def _serve(world: World, *more: str, program: list[str] | None = None) -> subprocess.Popen[bytes]:
    arguments = ["serve", "--wiring", str(world.wiring), "--policy", str(world.policy), *more]
    return subprocess.Popen([*_AS_ONE, *(program or [COMMAND]), *arguments], stderr=subprocess.DEVNULL)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


def _until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_orphans_are_waited_for_and_a_sigterm_drains(world: World, tmp_path: Path):
    program = (
        "import pathlib, subprocess\n"
        "from scenario_runner.service.supervisor import Supervisor\n"
        "run = Supervisor.run\n"
        "def beside(self):\n"
        "    codes = [subprocess.run(['sh', '-c', 'sleep 0.1 & exit 7']).returncode for _ in range(20)]\n"
        f"    pathlib.Path({str(tmp_path / 'codes')!r}).write_text(str(set(codes)))\n"
        "    return run(self)\n"
        "Supervisor.run = beside\n"
        "from scenario_runner.cli.main import main\n"
        "main()\n"
    )
    world.drop(world.make_run()["request"])
    outer = _serve(world, program=[sys.executable, "-c", program])
    try:
        _until(lambda: world.signals("READY"))
        assert (tmp_path / "codes").read_text("ascii") == "{7}"
        [one] = _children(outer.pid)
        _until(lambda: len(_children(one)) == 1, 10)  # the daemon alone
        os.kill(one, signal.SIGTERM)
        assert outer.wait(20) == 0
    finally:
        outer.kill()
        outer.wait()


def test_exit_codes_pass_through(world: World):
    world.drop(world.make_run()["request"])
    assert _serve(world, "--until-idle").wait(60) == 0
    assert len(world.signals("READY")) == 1
    world.write_profiles(object_store_root="gopher://nowhere")
    assert _serve(world, "--until-idle").wait(60) == 2


def test_a_daemon_that_is_killed_ends_the_container_with_the_shells_code(world: World):
    outer = _serve(world)
    try:
        [one] = _until(lambda: _children(outer.pid))
        [daemon] = _until(lambda: _children(one))
        os.kill(daemon, signal.SIGKILL)
        assert outer.wait(20) == 128 + signal.SIGKILL
    finally:
        outer.kill()
        outer.wait()
