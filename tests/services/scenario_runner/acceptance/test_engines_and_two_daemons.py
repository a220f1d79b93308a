"""Engines of runs that change hands: launched once, one at a time, none left over, whoever stops, dies or is late."""

import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from crashing import Fork, Moment, is_stopped, until, until_up
from engine_scene import FOLDER, INVOKER, LANE, LEDGER, ROWS, WIRING, EngineScene, ended
from support import COMMAND

pytestmark = pytest.mark.integration

STOPPED: dict[str, Moment] = {
    "after its attempt is on record": Moment(ROWS + "commit", "after"),
    "before the attempt has a folder": Moment(FOLDER + "create"),
    "after the attempt has a folder": Moment(FOLDER + "create", "after"),
    "before it hands the launch over": Moment(INVOKER + "hand_over"),
    "after it handed the launch over": Moment(INVOKER + "hand_over", "after"),
    "before the submission is on record": Moment(ROWS + "commit", nth=2),
    "while the engine runs": Moment(LANE + "_park", "after"),
    "after it saw the end": Moment(INVOKER + "SubprocessInvoker.poll", "after", after_result=True),
    "after it wrote the logs": Moment(LEDGER + "write_attempt_logs", "after"),
    "before the end is on record": Moment(ROWS + "commit", nth=3),
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_daemon_stopped_past_its_lease_and_continued_launches_nothing_twice(name: str, tmp_path: Path) -> None:
    scene, first = stopped_at(STOPPED[name], tmp_path)
    with ended(first):
        launched = len(scene.engine.launches())
        second = Fork(scene.world)
        with ended(second):
            # The engine of the second daemon runs when the first one goes on; where there cannot be one, it has waited.
            late = time.monotonic() + 2 * WIRING["lease_seconds"] + 2
            while len(scene.engine.launches()) == launched and not scene.settled() and time.monotonic() < late:
                time.sleep(0.05)
            scene.watch.look()
            first.send_signal(signal.SIGCONT)
            scene.finish(first, second)


def stopped_at(moment: Moment, folder: Path) -> tuple[EngineScene, Fork]:
    """A world whose daemon stopped itself (SIGSTOP) at a moment, holding no lock of the database."""
    for attempt in range(8):
        scene = EngineScene(folder / str(attempt))
        daemon = Fork(scene.world, moment=moment, action="stop")
        until(lambda scene=scene, daemon=daemon: is_stopped(daemon), f"{moment} comes; {scene.log()}")
        if not scene.is_locked():
            return scene, daemon
        with ended(daemon):
            pass
    raise AssertionError("the daemon always stopped with the database locked")


# ---------------------------------------------------------------- another host


def elsewhere(scene: EngineScene) -> "subprocess.Popen[bytes]":
    """A daemon that sees neither processes nor attempts of the others: another host name, process table and folder.

    The test is skipped where that needs more rights than there are.
    """
    namespaces = ["unshare", "-pfu", "--kill-child", "--mount-proc"]
    if subprocess.run([*namespaces, "hostname", "x"], capture_output=True, check=False).returncode:
        pytest.skip("namespaces cannot be made here")
    here = scene.world.wiring.read_bytes()
    keys = yaml.safe_load(here) | {"engine_attempts_dir": str(scene.world.root / "attempts-elsewhere")}
    there = scene.world.root / "wiring-elsewhere.yaml"
    there.write_text(yaml.safe_dump(keys), "utf-8")
    serve = [COMMAND, "serve", "--wiring", str(there), "--policy", str(scene.world.policy), "--log-level", "error"]
    script = f"hostname elsewhere; exec {shlex.join(serve)}"
    return subprocess.Popen(
        [*namespaces, "sh", "-c", script], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["before the attempt has a folder", "while the engine runs"])
def test_a_daemon_of_another_host_waits_until_an_engine_has_certainly_ended(name: str, tmp_path: Path) -> None:
    """It sees no process of it: the end of the lease, which no process outlives, is all that it knows."""
    scene, first = stopped_at(STOPPED[name], tmp_path)
    with ended(first):
        scene.engine.behave(seconds=(4, 4))
        launched = len(scene.engine.launches())
        with elsewhere(scene) as second:
            try:
                until(
                    lambda: len(scene.engine.launches()) > launched, f"it launches another attempt; {scene.log()}", 60
                )
                first.send_signal(signal.SIGCONT)
                until(scene.settled, "READY", 60, pause=0.1)
                until_up(first)
                first.send_signal(signal.SIGTERM)
                assert first.wait() == 0, scene.log()
            finally:
                second.kill()
    assert scene.sql("SELECT stop_code, outcome FROM engine_attempts ORDER BY attempt_no") == [
        ("LOST", "FAILED"), ("", "SUCCEEDED"),
    ]  # fmt: skip
    scene.judge(killed=True)
