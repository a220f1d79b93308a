"""Evidence comes for runs that wait, and the installed command says so: they are READY at once, before they are due."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from invariants import check, paths_of
from support import SMALL, World

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.integration

FAR_SECONDS = 100
"""When waiting runs are due by their schedule: below two minutes, beyond which a clock counts as set back."""


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Scene:
    """Runs that wait for an engine run which lies elsewhere, due by their schedule long after the test."""

    def __init__(self, root: Path, **wiring: Any) -> None:
        self.world = World(root, {"evidence_watch": "off", **wiring})
        made = self.world.make_run("k", **SMALL)
        self.run_id, self.request = made["run_id"], made["request"]
        self.named = str(self.request["engine_run_root"])
        (self.away, self.place) = (self.world.root / "away", self.world.runs.parent / self.named)
        self.place.rename(self.away)
        for number, key in enumerate(("k", "k2")):
            self.world.drop(self.request | {"run_equivalence_key": key}, f"{number}.json")
        assert self.world.serve().returncode == 0
        assert [state for state, _ in self.runs()] == ["WAITING_EVIDENCE"] * 2
        self.execute(f"UPDATE runs SET due_us = due_us + {FAR_SECONDS * 1_000_000}")

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.world.database)) as connection, connection:
            return connection.execute(statement).fetchall()

    def runs(self) -> list[tuple[Any, ...]]:
        return self.execute("SELECT state, due_us FROM runs ORDER BY run_equivalence_key")

    def ready(self) -> list[str]:
        return [state for state, _ in self.runs()]

    def come(self) -> None:
        self.away.rename(self.place)

    def say(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return self.world.command("evidence", "arrived", *arguments, "--wiring", str(self.world.wiring))


def is_watching(pid: int) -> bool:
    """Whether a process has an inotify with a watch."""
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):
            if "inotify wd:" in info.read_text():
                return True
    return False


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "world")


@pytest.fixture
def served(scene: Scene) -> Iterator[Scene]:
    daemon = scene.world.start()
    yield scene
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(30) == 0
    assert check(paths_of(scene.world)) == []


def test_runs_that_are_told_are_ready_at_once(served: Scene) -> None:
    served.come()
    told = served.say(served.named, "--json")
    assert told.returncode == 0, told.stderr
    until(lambda: served.ready() == ["READY", "READY"], "told, and not READY")
    ready = served.execute("SELECT max(ts_us) FROM run_events WHERE kind = 'RUN_READY'")[0][0]
    records = served.execute(
        "SELECT message_id, run_id, disposition, detail, received_us FROM intake_records "
        "WHERE kind = 'EVIDENCE_ARRIVED'"
    )
    said = json.loads(told.stdout)
    assert [record[:4] for record in records] == [
        (said["message_id"], "", "ACCEPTED", "waiting runs that were told: 2")
    ]
    assert (said["engine_run_root"], said["run_id"]) == (served.named, None)
    # The target is a second; a slow machine takes longer, and the schedule would have taken ten times as long.
    assert ready - records[0][4] < FAR_SECONDS * 100_000
    assert list((served.world.bus / "rejected").iterdir()) == []


def test_a_run_that_is_named_is_told_alone(served: Scene) -> None:
    served.come()
    before = served.runs()
    assert served.say(served.named, "--run", served.run_id).returncode == 0
    until(lambda: served.ready()[0] == "READY", "told, and not READY")
    assert served.runs()[1] == before[1]
    assert served.say(served.named).returncode == 0
    until(lambda: served.ready() == ["READY", "READY"], "told, and not READY")


def test_what_intake_would_refuse_is_not_sent(scene: Scene) -> None:
    requests = scene.world.bus / "requests"
    for arguments, words, code in (
        (("/etc",), "ENGINE_ROOT_NOT_ALLOWED", 1),
        (("http://engine/1",), "ENGINE_ROOT_NOT_ALLOWED", 1),
        (("runs/\n",), "REQUEST_SCHEMA_INVALID", 1),
        ((scene.named, "--run", "k"), "run id", 2),
    ):
        done = scene.say(*arguments)
        assert (done.returncode, words in done.stderr.decode()) == (code, True), done.stderr
    assert list(requests.iterdir()) == []


def test_it_can_be_said_before_a_daemon_runs_and_again(scene: Scene) -> None:
    scene.come()
    first, again = (json.loads(scene.say(scene.named, "--json").stdout) for _ in range(2))
    assert first["message_id"] == again["message_id"]
    assert first["record"] != again["record"], "each is a record of its own"
    assert len(list((scene.world.bus / "requests").iterdir())) == 2
    assert scene.world.serve().returncode == 0
    kept = scene.execute("SELECT disposition FROM intake_records WHERE kind = 'EVIDENCE_ARRIVED'")
    assert len(kept) == 2
    assert scene.ready() == ["READY", "READY"]


def test_a_folder_that_comes_is_seen_without_a_word(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "world", evidence_watch="auto")
    daemon = scene.world.start()
    until(lambda: is_watching(daemon.pid), "the folder is watched")
    scene.come()
    until(lambda: scene.ready() == ["READY", "READY"], "seen, and not READY")
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(30) == 0
    assert scene.execute("SELECT count(*) FROM intake_records WHERE kind = 'EVIDENCE_ARRIVED'") == [(0,)]
