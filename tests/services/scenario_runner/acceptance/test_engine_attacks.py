"""Attacks on runs whose engine is invoked: stores that go away, engines that do what they should not, orderly ends."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from crashing import Fork, until, until_up
from engine_scene import EngineScene, ended
from engine_traces import marked_processes
from support import COMMAND, World

pytestmark = pytest.mark.integration


def running(scene: EngineScene, count: int = 1) -> None:
    """Wait until so many engines have read how they are to behave, and do so."""
    until(
        lambda: sum(line["what"] == "works" for line in scene.engine.trace()) >= count,
        f"{count} engines run; {scene.log()}",
    )


# ---------------------------------------------------------------- stores that go away


def test_a_database_that_is_away_for_longer_than_the_lease_costs_an_attempt_and_nothing_else(tmp_path: Path) -> None:
    scene = EngineScene(tmp_path, runs=3, seconds=3.0)
    with ended(daemon := Fork(scene.world)):
        running(scene, 3)
        with closing(sqlite3.connect(scene.world.database, timeout=15, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            until(lambda: not marked_processes(scene.engine.launches()), "the engines end with their leases", 20)
            connection.execute("ROLLBACK")
        scene.engine.behave()
        scene.finish(daemon)
    assert len(scene.engine.launches()) == 6


def test_a_database_file_that_is_moved_away_and_back_while_engines_run_loses_nothing(tmp_path: Path) -> None:
    scene = EngineScene(tmp_path, runs=2, seconds=2.0)
    with ended(daemon := Fork(scene.world)):
        running(scene, 2)
        away = scene.world.root / "away"
        away.mkdir()
        for path in scene.world.root.glob("authority.db*"):
            path.rename(away / path.name)
        time.sleep(0.5)
        for path in away.iterdir():
            path.rename(scene.world.root / path.name)
        if daemon.poll() is not None:  # a database that is another file all at once is no reason to go on
            with ended(again := Fork(scene.world)):
                scene.finish(again, killed=True)
        else:
            scene.finish(daemon)


def test_a_store_that_is_away_while_an_engine_ends_keeps_its_end(tmp_path: Path) -> None:
    """What it wrote is still there when the store is back, and it is not launched again."""
    scene = EngineScene(tmp_path, seconds=1.0)
    with ended(daemon := Fork(scene.world)):
        running(scene)
        logs = scene.world.ledger / "engine_attempt_logs"
        logs.parent.mkdir(parents=True, exist_ok=True)
        logs.write_text("a file in the place of a folder")
        until(lambda: scene.sql("SELECT max(retries) FROM runs")[0][0] >= 2, "it was tried again")
        logs.unlink()
        scene.finish(daemon)
    assert len(scene.engine.launches()) == 1
    (log,) = logs.rglob("stdout.log")
    assert scene.engine.launches()[0] in log.read_text()


# ---------------------------------------------------------------- an orderly end


def test_a_sigterm_ends_engines_before_their_leases_are_given_back(tmp_path: Path) -> None:
    """Also those that ignore SIGTERM and leave daemons, within the time that the profile gives."""
    scene = EngineScene(tmp_path, runs=3, seconds=30.0, lease_seconds=30, shutdown_seconds=4)
    scene.engine.behave(seconds=(30, 30), ignores_sigterm=1.0, leaves_daemon=1.0)
    with ended(daemon := Fork(scene.world)):
        running(scene, 3)
        until(lambda: len(scene.sql("SELECT 1 FROM run_events WHERE kind = 'ENGINE_JOB_SUBMITTED'")) == 3, "submitted")
        scene.engine.behave()
        with ended(other := Fork(scene.world)):
            until_up(other)
            began = time.monotonic()
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait() == 0, scene.log()
            took = time.monotonic() - began
            scene.finish(other)
    assert took < 4 + 4, "its time, and that of a machine that has much to do"
    rows = scene.sql("SELECT stop_code, outcome FROM engine_attempts ORDER BY run_id, attempt_no")
    assert rows == [("STOPPED", "FAILED"), ("", "SUCCEEDED")] * 3


def test_a_second_sigterm_leaves_no_engine_behind(tmp_path: Path) -> None:
    scene = EngineScene(tmp_path, runs=2, seconds=30.0, lease_seconds=30, shutdown_seconds=20)
    scene.engine.behave(seconds=(30, 30), ignores_sigterm=1.0, leaves_daemon=1.0)
    with ended(daemon := Fork(scene.world)):
        running(scene, 2)
        daemon.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert daemon.poll() is None, "it waits for engines that ignore SIGTERM"
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(3) == 143
    scene.engine.behave()
    until(lambda: not marked_processes(scene.engine.launches()), "the engines end with their daemon", 20)
    with ended(again := Fork(scene.world)):
        scene.finish(again, killed=True)


def run_arguments(scene: EngineScene) -> list[str]:
    world = scene.world
    path = world.root / "one.json"
    path.write_bytes(scene.records[0])
    profiles = ["--wiring", str(world.wiring), "--policy", str(world.policy), "--log-level", "error"]
    return ["run", str(path), *profiles, "--json"]


def run_one(scene: EngineScene, *more: str) -> "subprocess.Popen[bytes]":
    """``scenario-runner run`` of the scene's request."""
    arguments = [COMMAND, *run_arguments(scene), *more]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("how", ["its time is over", "SIGTERM", "SIGKILL"])
def test_a_run_of_one_request_that_is_broken_off_leaves_no_engine_and_goes_on_later(how: str, tmp_path: Path) -> None:
    scene = EngineScene(tmp_path, seconds=30.0, lease_seconds=30)
    with run_one(scene, *(["--timeout", "2"] if how == "its time is over" else [])) as first:
        running(scene)
        if how != "its time is over":
            first.send_signal(getattr(signal, how))
        out, err = first.communicate(timeout=30)
    if how == "SIGKILL":
        until(lambda: not marked_processes(scene.engine.launches()), "the engine ends with its daemon", 20)
    else:
        assert (first.returncode, json.loads(out)["state"]) == (3, "EXECUTING"), err.decode()
        assert marked_processes(scene.engine.launches()) == {}
    scene.engine.behave()
    with run_one(scene) as again:
        out, err = again.communicate(timeout=60)
    assert (again.returncode, json.loads(out)["state"]) == (0, "READY"), err.decode()
    assert len(scene.engine.launches()) == 2
    assert list(scene.engine.problems(2)) == []


# ---------------------------------------------------------------- a profile without an engine


def test_a_daemon_without_an_engine_decides_nothing_about_a_run_that_has_one(tmp_path: Path) -> None:
    scene = EngineScene(tmp_path, seconds=30.0)
    with Fork(scene.world) as first:
        running(scene)
        first.kill()
        first.wait()
    with_engine = scene.world.wiring.read_bytes()
    scene.world.write_profiles(lease_seconds=2, poll_seconds=0.05)
    with ended(without := Fork(scene.world)):
        until(lambda: scene.sql("SELECT retries FROM runs")[0][0] >= 2, "it has tried")
        until_up(without)
        without.send_signal(signal.SIGTERM)
        assert without.wait() == 0, scene.log()
    assert scene.sql("SELECT state, attempts FROM runs") == [("EXECUTING", 1)]
    scene.world.wiring.write_bytes(with_engine)
    scene.engine.behave()
    with ended(again := Fork(scene.world)):
        scene.finish(again, killed=True)
    assert len(scene.engine.launches()) == 2


# ---------------------------------------------------------------- the folder of attempts


@pytest.mark.parametrize("damage", ["removed", "a file", "emptied"])
def test_a_folder_of_attempts_that_is_taken_from_a_daemon_costs_an_attempt(damage: str, tmp_path: Path) -> None:
    scene = EngineScene(tmp_path, runs=2, seconds=1.5)
    attempts = scene.world.root / "attempts"
    with ended(daemon := Fork(scene.world)):
        running(scene, 2)
        if damage == "emptied":
            for path in attempts.iterdir():
                shutil.rmtree(path)
        else:
            shutil.rmtree(attempts)
        if damage == "a file":
            attempts.write_text("")
            until(lambda: not marked_processes(scene.engine.launches()), "the engines end", 20)
            time.sleep(0.3)
            attempts.unlink()
        scene.engine.behave()
        scene.finish(daemon)
    assert len(scene.engine.launches()) == 4


def mounted(folder: Path, size: str) -> bool:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    return done.returncode == 0


def test_a_full_disk_under_the_keepers_costs_attempts_and_decides_nothing(tmp_path: Path) -> None:
    scene = EngineScene(tmp_path, seconds=0.5)
    attempts = scene.world.root / "attempts"
    if not mounted(attempts, "512k"):
        pytest.skip("a file system cannot be mounted here")
    try:
        with ended(daemon := Fork(scene.world)):
            running(scene)
            with open(attempts / "full", "wb") as file, pytest.raises(OSError, match="space"):
                file.write(bytes(1 << 20))
            until(lambda: scene.sql("SELECT retries FROM runs")[0][0] >= 1, "it waits for room")
            assert scene.sql("SELECT state FROM runs") == [("EXECUTING",)]
            (attempts / "full").unlink()
            scene.finish(daemon)
    finally:
        subprocess.run(["umount", str(attempts)], check=True)


# ---------------------------------------------------------------- engines that do what they should not


def one_shot(tmp_path: Path, program: str, limit: int = 1, **wiring: Any) -> tuple[World, dict[str, Any]]:
    """Run one request whose engine is a Python program; the run root is its first argument."""
    scene = EngineScene(tmp_path)
    script = scene.world.root / "engine.py"
    script.write_text("import os, signal, sys, time\nroot, run_id = sys.argv[1:]\n" + program)
    scene.world.policy_changes["attempt_limit"] = limit
    scene.world.write_profiles(
        engine_command=[sys.executable, "-I", "-S", str(script), "{engine_run_root}", "{run_id}"],
        engine_attempts_dir=str(scene.world.root / "attempts"), shutdown_seconds=2,
        engine_run_root_template=f"{scene.world.runs}/made/{{run_id}}", **wiring,
    )  # fmt: skip
    done = scene.world.command(*run_arguments(scene))
    assert done.returncode == 1, done.stderr.decode()
    return scene.world, json.loads(done.stdout)


ROOTS: dict[str, tuple[str, str]] = {
    "no run root at all": ("pass", "ENGINE_RECEIPT_MISSING"),
    "a run root that is a file": ("os.makedirs(os.path.dirname(root)); open(root, 'w')", "ENGINE_RECEIPT_INVALID"),
    "a run root that leads out of the roots": (
        "os.makedirs(os.path.dirname(root)); os.symlink('/etc', root)", "ENGINE_RECEIPT_INVALID",
    ),
    "a parent of the run root that leads out of the roots": (
        "os.symlink('/etc', os.path.dirname(root))", "ENGINE_RECEIPT_INVALID",
    ),
    "a receipt that is a FIFO": (
        "os.makedirs(root); os.mkfifo(root + '/run_receipt.json')", "ENGINE_RECEIPT_INVALID",
    ),
    "a receipt of a gigabyte": (
        "os.makedirs(root); open(root + '/run_receipt.json', 'w').truncate(1 << 30)", "ENGINE_RECEIPT_INVALID",
    ),
    "a receipt that is a folder": ("os.makedirs(root + '/run_receipt.json')", "ENGINE_RECEIPT_INVALID"),
    "a receipt that is a link to a device": (
        "os.makedirs(root); os.symlink('/dev/zero', root + '/run_receipt.json')", "ENGINE_RECEIPT_INVALID",
    ),
    "a receipt nested a hundred thousand deep": (
        "os.makedirs(root); open(root + '/run_receipt.json', 'w').write('[' * 100000)", "ENGINE_RECEIPT_INVALID",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ROOTS)
def test_a_run_root_that_is_no_engine_run_fails_the_run_at_once(what: str, tmp_path: Path) -> None:
    program, code = ROOTS[what]
    world, status = one_shot(tmp_path, program)
    assert (status["state"], status["reason_code"]) == ("FAILED", code)
    assert world.query("verify", status["run_id"])[0] in (0, 1)


def test_a_run_root_that_leads_elsewhere_before_the_launch_launches_nothing(tmp_path: Path) -> None:
    scene = EngineScene(tmp_path)
    (scene.world.runs / "made").symlink_to("/tmp")
    done = scene.world.command(*run_arguments(scene))
    assert (done.returncode, json.loads(done.stdout)["reason_code"]) == (1, "ENGINE_INVOCATION_INVALID")
    assert scene.engine.launches() == []


def test_an_engine_that_writes_without_end_and_closes_its_streams_is_kept_small(tmp_path: Path) -> None:
    program = "for _ in range(4096): os.write(1, b'x' * 65536)\nfor number in range(3): os.close(number)\nsys.exit(3)\n"
    world, status = one_shot(tmp_path, program)
    assert (status["state"], status["reason_code"]) == ("FAILED", "ENGINE_EXIT_NONZERO")
    (log,) = (world.ledger / "engine_attempt_logs").rglob("stdout.log")
    assert log.stat().st_size < 600_000
    assert b"bytes left out" in log.read_bytes()


def test_an_engine_that_kills_everything_of_its_own_costs_its_attempts(tmp_path: Path) -> None:
    """Its keeper first, then its group: SR sees that the keeper is lost, and lets the next attempt try."""
    program = "os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)"
    _, status = one_shot(tmp_path, program, limit=2)
    assert (status["state"], status["reason_code"]) == ("FAILED", "ATTEMPT_LIMIT_EXCEEDED")


# ---------------------------------------------------------------- clocks


def test_a_clock_that_is_set_back_while_an_engine_runs_changes_nothing(tmp_path: Path) -> None:
    scene = EngineScene(tmp_path, seconds=1.5)
    with ended(daemon := Fork(scene.world, prepare=lambda: set_clock(after=lambda: launched(scene), by=-3600))):
        running(scene)
        scene.finish_without_judging(daemon)
    assert len(scene.engine.launches()) == 1
    (record,) = scene.world.ledger.glob("run_record/*")
    times = [json.loads(line)["ts_utc"] for line in record.read_text().splitlines()]
    assert times == sorted(times)


def test_a_clock_that_jumps_ahead_while_an_engine_runs_launches_nothing_twice(tmp_path: Path) -> None:
    """Every lease seems to have run out, so the daemon claims its own runs once more."""
    scene = EngineScene(tmp_path, runs=3, seconds=1.5, lease_seconds=10)
    with ended(daemon := Fork(scene.world, prepare=lambda: set_clock(after=lambda: launched(scene), by=3600))):
        running(scene, 3)
        scene.finish_without_judging(daemon)
    assert list(scene.engine.problems(20)) == []


def launched(scene: EngineScene) -> bool:
    return len(scene.engine.launches()) >= len(scene.records)


def set_clock(after: Callable[[], bool], by: int) -> None:
    """In this process, from a moment on the clock is another."""
    real_ns, real, moved = time.time_ns, time.time, []

    def offset() -> int:
        if not moved and after():
            moved.append(by)
        return sum(moved)

    time.time_ns = lambda: real_ns() + offset() * 10**9
    time.time = lambda: real() + offset()
