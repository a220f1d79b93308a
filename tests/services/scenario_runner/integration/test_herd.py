"""A herd of runs whose roots are absent: one look for many, in rounds, while a real daemon does its work."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from support import World, need_posix

from scenario_runner.artifacts.base import RootsSeen
from scenario_runner.contracts.states import RunState
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.runs import absent_roots, waits
from scenario_runner.service.compose import Daemon, compose_daemon
from scenario_runner.service.loops import Role
from scenario_runner.service.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.integration

SMALL = {"outputs": ["outlet_catalogue"], "members": 3, "member_bytes": 64, "part_bytes": 64}
HERD = 60


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Scene:
    """A daemon in this process, how often each root was examined, and how many looks its rounds took."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.daemon: Daemon = compose_daemon(load_wiring(str(world.wiring)), load_policy(str(world.policy)))
        self.examined: Counter[str] = Counter()
        self.looks: list[int] = []
        artifacts: Any = self.daemon.absent_roots._artifacts
        examine, look = artifacts.open, artifacts.look
        monkeypatch.setattr(artifacts, "open", lambda root, left: self.examined.update([root]) or examine(root, left))
        monkeypatch.setattr(artifacts, "look", lambda roots: self.looks.append(len(roots)) or look(roots))

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.world.database)) as connection:
            return connection.execute(sql).fetchall()

    def count(self, condition: str) -> int:
        return int(self.rows(f"SELECT count(*) FROM runs WHERE {condition}")[0][0])

    def state(self, run_id: str) -> RunState | None:
        run = self.daemon.authority.run(run_id)
        return None if run is None else run.state

    @contextmanager
    def serving(self) -> Iterator[None]:
        thread = threading.Thread(target=Supervisor(self.daemon, Role.ALL, until_idle=False).run)
        thread.start()
        try:
            yield
        finally:
            self.daemon.stopping.set()
            thread.join()
            self.daemon.authority.close()

    def add_herd(self, run: dict[str, Any], roots: list[str]) -> None:
        """Ask for a run of each root, and wait until every root is looked at in rounds."""
        for number, root in enumerate(roots):
            request = run["request"] | {"run_equivalence_key": f"herd-{number}", "engine_run_root": root}
            self.world.drop(request, f"herd-{number}.json")
        until(lambda: self.count("absent_root <> '' AND due_us = deadline_us") == len(roots))

    def pass_rounds(self, rounds: int) -> None:
        wanted = len(self.looks) + rounds
        until(lambda: len(self.looks) >= wanted)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Waits and rounds take a moment in the place of a minute."""
    need_posix()
    monkeypatch.setattr(waits, "_ROUNDS_AFTER_US", 0)
    monkeypatch.setattr(absent_roots, "_ROUND_SECONDS", 0.2)
    monkeypatch.setattr(absent_roots, "_BETWEEN_ROUNDS_SECONDS", 0.05)
    return Scene(World(tmp_path / "world"), monkeypatch)


def absent(world: World, *names: str) -> list[str]:
    return [str(world.runs / name) for name in names]


def test_a_herd_is_examined_no_more_while_a_new_run_becomes_ready(scene: Scene) -> None:
    run, later = scene.world.make_run("now", **SMALL), scene.world.make_run("later", seed=8, **SMALL)
    there = Path(later["engine_run_root"])
    there.rename(scene.world.root / "not-yet")
    with structlog.testing.capture_logs() as logs, scene.serving():
        scene.add_herd(run, absent(scene.world, *(f"absent-{number}" for number in range(HERD))))
        scene.world.drop(later["request"], "later.json")
        until(lambda: scene.count("absent_root <> ''") == HERD + 1)
        examined, changes = Counter(scene.examined), scene.rows("SELECT run_id, lease_epoch, due_us FROM runs")
        logs.clear()
        scene.pass_rounds(5)
        assert scene.examined == examined, "no root was opened"
        assert scene.rows("SELECT run_id, lease_epoch, due_us FROM runs") == changes, "no row was written"
        assert logs == []
        assert set(scene.looks[-2:]) == {HERD + 1}, "one look in a round, though they lie in two folders"
        scene.world.drop(run["request"], "now.json")
        until(lambda: scene.state(run["run_id"]) is RunState.READY)
        (scene.world.root / "not-yet").rename(there)
        until(lambda: scene.state(later["run_id"]) is RunState.READY)
        assert scene.count("absent_root <> ''") == HERD
        assert {root: count for root, count in scene.examined.items() if "absent" in root} == examined - Counter(
            {str(there): examined[str(there)]}
        )
    assert [item.get("event") for item in logs].count("roots that runs waited for have come") == 1


def test_one_look_serves_all_runs_of_a_root_and_all_become_ready(scene: Scene) -> None:
    run = scene.world.make_run("shared", **SMALL)
    there = Path(run["engine_run_root"])
    there.rename(scene.world.root / "not-yet")
    with scene.serving():
        scene.add_herd(run, [str(there)] * HERD)
        scene.pass_rounds(3)
        assert set(scene.looks) == {1}
        (scene.world.root / "not-yet").rename(there)
        until(lambda: scene.count("state = 'READY'") == HERD)


def test_a_verdict_comes_at_the_deadline_though_no_look_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_posix()
    monkeypatch.setattr(waits, "_ROUNDS_AFTER_US", 0)
    scene = Scene(World(tmp_path / "world", policy_changes={"evidence_wait_seconds": 4}), monkeypatch)
    run = scene.world.make_run("never", **SMALL)
    with scene.serving():
        scene.add_herd(run, absent(scene.world, "absent"))
        until(lambda: scene.count("state = 'FAILED'") == 1)
    ((late_us,),) = scene.rows("SELECT updated_us - deadline_us FROM runs")
    assert 0 <= late_us < 30_000_000
    assert scene.rows("SELECT reason_code, absent_root FROM runs") == [("EVIDENCE_MISSING_DEADLINE", "")]


def test_an_allowed_root_that_is_away_ends_no_wait_and_is_told_of(scene: Scene) -> None:
    run = scene.world.make_run("now", **SMALL)
    with structlog.testing.capture_logs() as logs, scene.serving():
        scene.add_herd(run, absent(scene.world, "one", "two"))
        scene.world.runs.rename(scene.world.root / "away")
        until(lambda: any("cannot be looked at" in str(item.get("event")) for item in logs))
        (scene.world.root / "away").rename(scene.world.runs)
        scene.pass_rounds(3)
        assert scene.count("state = 'WAITING_EVIDENCE' AND absent_root <> '' AND retries = 0") == 2


def test_a_look_that_hangs_keeps_no_run_and_no_stop_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_posix()
    monkeypatch.setattr(waits, "_ROUNDS_AFTER_US", 0)
    scene = Scene(World(tmp_path / "world", {"shutdown_seconds": 1}), monkeypatch)
    run = scene.world.make_run("now", **SMALL)
    hangs, goes_on = threading.Event(), threading.Event()

    def look(roots: list[str]) -> RootsSeen:
        hangs.set()
        assert goes_on.wait(120)
        return RootsSeen(absent=frozenset(roots))

    artifacts: Any = scene.daemon.absent_roots._artifacts
    monkeypatch.setattr(artifacts, "look", look)
    monkeypatch.setattr(absent_roots, "_ROUND_SECONDS", 0.2)
    monkeypatch.setattr(absent_roots, "_BETWEEN_ROUNDS_SECONDS", 0.05)
    supervisor = Supervisor(scene.daemon, Role.ALL)
    thread = threading.Thread(target=supervisor.run)
    with structlog.testing.capture_logs() as logs:
        thread.start()
        try:
            scene.add_herd(run, absent(scene.world, "absent"))
            until(hangs.is_set)
            scene.world.drop(run["request"], "now.json")
            until(lambda: scene.state(run["run_id"]) is RunState.READY)
            scene.daemon.stopping.set()
            thread.join(60)
            assert not thread.is_alive(), "the stop waits for the look"
            (roots,) = [other for other in threading.enumerate() if other.name == "roots"]
            assert roots.daemon, "it does not keep the process alive"
        finally:
            scene.daemon.stopping.set()
            goes_on.set()
            thread.join()
        roots.join()
    scene.daemon.authority.close()
    assert [item["event"] for item in logs if item["log_level"] in {"error", "critical"}] == [
        "a loop that notices evidence does not end; it is left behind"
    ]
