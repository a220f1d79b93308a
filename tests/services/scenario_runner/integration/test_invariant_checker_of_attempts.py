"""I14 of the invariant checker: two good attempts are clean, and breaking each rule once turns it red."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from engine_traces import TracedEngine
from invariants import check, paths_of
from invariants_world import canonical
from support import World

pytestmark = pytest.mark.integration


@dataclass
class Scene:
    """A READY run whose engine broke once, then succeeded."""

    world: World
    engine: TracedEngine
    run_id: str

    def found(self) -> list[str]:
        return [one.invariant for one in check(paths_of(self.world))]

    def sql(self, statement: str) -> None:
        with closing(sqlite3.connect(self.world.database)) as connection, connection:
            assert connection.execute(statement).rowcount > 0

    def edit_record(self, change: Callable[[list[Any]], object]) -> None:
        path = self.world.ledger / "run_record" / f"{self.run_id}.jsonl"
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        change(lines)
        path.write_bytes(b"".join(canonical(line) + b"\n" for line in lines))

    def edit_plan(self, **changes: Any) -> None:
        path = self.world.ledger / "run_plan" / f"{self.run_id}.json"
        path.write_bytes(canonical({**json.loads(path.read_bytes()), **changes}))

    def invocation(self, name: str, request_id: str) -> None:
        path = self.world.ledger / "engine_invocations" / f"{name}.json"
        path.parent.mkdir()
        path.write_bytes(canonical({"run_id": self.run_id, "request_id": request_id}))

    def logs(self, number: int) -> Path:
        return self.world.ledger / f"engine_attempt_logs/run_id={self.run_id}/attempt_no={number}"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, Path]:
    folder = tmp_path_factory.mktemp("attempts")
    world, engine = World(folder / "world"), TracedEngine(folder / "engine")
    engine.behave(break_first=1)
    engine.wiring(world)
    world.drop(engine.request(str(folder)))
    assert world.serve().returncode == 0
    (ready,) = world.signals("READY")
    shutil.copytree(world.root, folder / "copy", symlinks=True)
    return Scene(world, engine, ready["payload"]["run_id"]), folder / "copy"


@pytest.fixture
def scene(pristine: tuple[Scene, Path]) -> Iterator[Scene]:
    scene, copy = pristine
    yield scene
    shutil.rmtree(scene.world.root)
    shutil.copytree(copy, scene.world.root, symlinks=True)


def test_two_attempts_that_are_as_they_should_be_are_no_violation(scene: Scene) -> None:
    assert len(scene.engine.launches()) == 2
    assert list(scene.engine.problems(2)) == []
    assert check(paths_of(scene.world)) == []


def finished(lines: list[Any]) -> list[Any]:
    return [line for line in lines if line["event_kind"] == "ENGINE_ATTEMPT_FINISHED"]


BREAKS: dict[str, Callable[[Scene], object]] = {
    "the plan allows fewer attempts": lambda s: s.edit_plan(attempt_limit=1),
    "a row is missing": lambda s: s.sql("DELETE FROM engine_attempts WHERE attempt_no = 2"),
    "a launch was not counted": lambda s: s.sql("UPDATE runs SET attempts = 1"),
    "an attempt is open though its run has ended": lambda s: s.sql(
        "UPDATE engine_attempts SET ended_us = NULL, outcome = '' WHERE attempt_no = 2"
    ),
    "an attempt is open though another one followed": lambda s: s.sql(
        "UPDATE engine_attempts SET ended_us = NULL, outcome = '' WHERE attempt_no = 1"
    ),
    "an attempt has the id of another": lambda s: s.sql("UPDATE engine_attempts SET attempt_id = 'x' || attempt_id"),
    "an attempt was launched under no lease of the run": lambda s: s.sql("UPDATE engine_attempts SET epoch = 99"),
    "a later attempt has an older epoch": lambda s: s.sql(
        "UPDATE engine_attempts SET epoch = CASE attempt_no WHEN 1 THEN 2 ELSE 1 END"
    ),
    "an attempt was launched before the last one had ended": lambda s: s.sql(
        "UPDATE engine_attempts SET ended_us = launched_us + 60000000 WHERE attempt_no = 1"
    ),
    "an engine succeeded with another exit status": lambda s: s.sql(
        "UPDATE engine_attempts SET exit_code = 3 WHERE attempt_no = 2"
    ),
    "an engine was invoked after a success": lambda s: s.sql(
        "UPDATE engine_attempts SET outcome = 'SUCCEEDED', exit_code = 0 WHERE attempt_no = 1"
    ),
    "a run is READY without the success that it needs": lambda s: s.sql(
        "UPDATE engine_attempts SET outcome = 'FAILED'"
    ),
    "the record does not tell the end of an attempt": lambda s: s.edit_record(
        lambda lines: lines.remove(finished(lines)[0])
    ),
    "the record tells an end twice": lambda s: s.edit_record(lambda lines: lines.append(finished(lines)[0])),
    "the record tells another end": lambda s: s.edit_record(
        lambda lines: finished(lines)[0]["details"].update(duration_ms=10**6)
    ),
    "the record tells the attempt of another run": lambda s: s.edit_record(
        lambda lines: finished(lines)[1]["details"].update(attempt_id="0" * 32)
    ),
    "an attempt was submitted after its end": lambda s: s.edit_record(
        lambda lines: lines.append(next(one for one in lines if one["event_kind"] == "ENGINE_JOB_SUBMITTED"))
    ),
    "a log that the record names is gone": lambda s: (s.logs(1) / "stderr.log").unlink(),
    "there are logs of an attempt that never was": lambda s: shutil.copytree(s.logs(1), s.logs(3)),
    "an invocation is of no attempt": lambda s: s.invocation("0" * 32, "0" * 32),
    "an invocation is of another attempt": lambda s: s.invocation(s.engine.launches()[0], "0" * 32),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_checker_goes_red_when(scene: Scene, name: str) -> None:
    BREAKS[name](scene)
    assert "I14" in scene.found()


def test_a_process_that_bears_the_mark_of_an_attempt_is_a_violation(scene: Scene) -> None:
    environment = {**os.environ, "SR_ATTEMPT_ID": scene.engine.launches()[0]}
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as left:  # fmt: skip
        assert left.stdout is not None
        left.stdout.readline()
        assert scene.found() == ["I14"]
        left.communicate(b"\n")
    assert scene.found() == []
