"""A spool that several users share: the daemon is one, who drops requests is another. Only root may become both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import COMMAND, World

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

DAEMON, TEAM, GROUP = 20001, 20002, 20000


def as_user(user: int, *command: str, **more: Any) -> subprocess.CompletedProcess[str]:
    words = ["setpriv", f"--reuid={user}", f"--regid={GROUP}", "--clear-groups", "--", *command]
    environment = {"PATH": os.environ["PATH"], "HOME": tempfile.gettempdir(), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tempfile.gettempdir(),
        env=environment,
        **more,
    )


class SharedWorld(World):
    """A world of the daemon's user, with ``requests/`` open to everybody."""

    def hand_over(self, requests_mode: int = 0o2777, owner: int = DAEMON) -> None:
        for folder in (self.store, self.bus, self.bus / "requests"):
            folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["chown", "-R", f"{DAEMON}:{GROUP}", str(self.root)], check=True)
        os.chown(self.bus / "requests", owner, GROUP)
        (self.bus / "requests").chmod(requests_mode)

    def produce(self, name: str, request: dict[str, Any], mode: str) -> None:
        path, hidden = self.bus / "requests" / name, self.bus / "requests" / f".{name}"
        script = f"umask 000; cat > '{hidden}'; chmod {mode} '{hidden}'; mv '{hidden}' '{path}'"
        assert as_user(TEAM, "sh", "-c", script, input=json.dumps(request)).returncode == 0

    def drain_as_daemon(self) -> subprocess.CompletedProcess[str]:
        profiles = ["--wiring", str(self.wiring), "--policy", str(self.policy)]
        return as_user(DAEMON, COMMAND, "serve", *profiles, "--until-idle")

    def doctor(self) -> subprocess.CompletedProcess[str]:
        return as_user(DAEMON, COMMAND, "doctor", "--wiring", str(self.wiring))

    def left(self) -> list[str]:
        return sorted(os.listdir(self.bus / "requests"))


@pytest.fixture
def world() -> Iterator[SharedWorld]:
    if os.geteuid() != 0:
        pytest.skip("only root may become two other users")
    folder = Path(tempfile.mkdtemp(prefix="sr-shared-"))  # others may not enter pytest's
    folder.chmod(0o755)
    if as_user(DAEMON, COMMAND, "--version").returncode != 0:
        pytest.skip("other users may not run the installed command")
    yield SharedWorld(folder / "world")
    shutil.rmtree(folder)


def made_run(world: World) -> dict[str, Any]:
    return world.make_run("one", outputs=["outlet_catalogue"], members=2, member_bytes=64, parts=2, part_bytes=64)


def ready(world: World) -> list[str]:
    return [item["payload"]["run_id"] for item in world.signals("READY")]


@pytest.mark.parametrize("mode", ["0666", "0644", "0444"])
def test_a_file_of_another_user_that_the_daemon_may_read_is_taken_and_put_away(world: SharedWorld, mode: str) -> None:
    made = made_run(world)
    world.hand_over()
    world.produce("r.json", made["request"], mode)
    done = world.drain_as_daemon()
    assert (done.returncode, world.left(), ready(world)) == (0, [], [made["run_id"]]), done.stderr
    assert (world.bus / "consumed/r.json").stat().st_uid == TEAM
    assert world.drain_as_daemon().returncode == 0


def test_a_file_that_the_daemon_may_not_read_is_refused_with_what_to_do_and_its_bytes_are_kept(
    world: SharedWorld,
) -> None:
    made = made_run(world)
    world.hand_over()
    world.produce("private.json", made["request"], "0600")
    world.produce("z.json", made["request"], "0644")
    assert world.drain_as_daemon().returncode == 0
    assert (world.left(), ready(world)) == ([], [made["run_id"]])
    (reason,) = world.rejected()
    assert reason["reason_code"] == "RECORD_UNREADABLE"
    assert "mode 0600" in reason["detail"]
    assert "chmod" in reason["detail"]
    assert json.loads((world.bus / "rejected/private.json").read_bytes()) == made["request"]


@pytest.mark.parametrize(
    ("command", "moves"),
    [("ln -s z.json 0.json", True), ("mkfifo -m 666 0.json", True), ("mkdir -m 777 0.json", True),
     ("mkdir -m 555 0.json", False)],
)  # fmt: skip
def test_what_is_no_file_is_refused_or_left_by_itself(world: SharedWorld, command: str, moves: bool) -> None:
    made = made_run(world)
    world.hand_over()
    assert as_user(TEAM, "sh", "-c", f"cd {world.bus}/requests && {command}").returncode == 0
    world.produce("z.json", made["request"], "0644")
    done = world.drain_as_daemon()
    assert (done.returncode, ready(world)) == (0, [made["run_id"]]), done.stderr
    assert world.left() == ([] if moves else ["0.json"])
    assert [item["reason_code"] for item in world.rejected()] == ["RECORD_UNREADABLE"] * moves
    assert done.stderr.count("cannot be taken") == (not moves)
    assert ("requests that nobody takes: 0.json" in world.doctor().stdout) is not moves


def test_in_a_sticky_folder_of_somebody_else_each_file_is_left_and_the_remedy_is_said(world: SharedWorld) -> None:
    made = made_run(world)
    world.hand_over(0o3777, owner=0)
    world.produce("r.json", made["request"], "0644")
    done = world.drain_as_daemon()
    assert (done.returncode, world.left()) == (0, ["r.json"]), done.stderr
    assert done.stderr.count("cannot be taken") == 1
    assert "sticky" in done.stderr
    doctor = world.doctor()
    assert (doctor.returncode, "chmod -t" in doctor.stdout) == (2, True)
    (world.bus / "requests").chmod(0o2777)
    assert world.drain_as_daemon().returncode == 0
    assert (world.left(), ready(world)) == ([], [made["run_id"]])


def test_another_user_may_submit_where_he_may_write_into_requests(world: SharedWorld) -> None:
    made = made_run(world)
    world.hand_over()
    assert world.drain_as_daemon().returncode == 0  # makes its private folders
    world.wiring.chmod(0o644)
    request = world.root / "request.json"
    request.write_text(json.dumps(made["request"]))
    request.chmod(0o644)
    sent = as_user(TEAM, COMMAND, "submit", str(request), "--wiring", str(world.wiring))
    assert sent.returncode == 0, sent.stderr
    assert world.drain_as_daemon().returncode == 0
    assert ready(world) == [made["run_id"]]


def test_a_requests_folder_that_the_daemon_may_not_change_is_a_matter_of_configuration(world: SharedWorld) -> None:
    world.hand_over(0o755, owner=TEAM)
    done = world.drain_as_daemon()
    assert done.returncode == 2
    assert f"{world.bus}/requests" in done.stderr
    assert "owner of the folder" in done.stderr
    assert world.doctor().returncode == 2
