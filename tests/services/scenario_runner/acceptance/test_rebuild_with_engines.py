"""The database is lost while an engine runs: the rebuilt run follows it, and no second one is launched."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
from crashing import Fork, until
from engine_scene import EngineScene, ended

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def test_an_engine_that_runs_is_followed_and_not_launched_again(tmp_path: Path) -> None:
    scene = EngineScene(tmp_path, seconds=12.0)
    records = scene.world.ledger / "run_record"
    with ended(daemon := Fork(scene.world)):
        until(
            lambda: any(b"ENGINE_JOB_SUBMITTED" in path.read_bytes() for path in records.glob("*.jsonl")),
            "the ledger knows the attempt", 60,
        )  # fmt: skip
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    for path in scene.world.root.glob("authority.db*"):
        path.unlink()
    done = scene.world.command(
        "authority", "rebuild", "--wiring", str(scene.world.wiring), "--policy", str(scene.world.policy), "--reason",
        "a test", "--json",
    )  # fmt: skip
    report = json.loads(done.stdout.splitlines()[-1])["report"]
    assert (done.returncode, report["by_state"], report["attempts"]) == (0, {"EXECUTING": 1}, 1), done.stdout
    with ended(Fork(scene.world)):
        until(lambda: scene.hurry() or scene.settled(), "the run has its verdict", 90, pause=0.1)
    attempts = scene.sql("SELECT attempt_no, outcome FROM engine_attempts ORDER BY attempt_no")
    launches = scene.engine.launches()
    assert len(launches) == len(set(launches)) == len(attempts), "every launch has a row, and each its own"
    assert list(scene.engine.problems(30)) == [], "no two engines of one run ran at a time"
    assert scene.sql("SELECT state FROM runs") == [("READY",)]
