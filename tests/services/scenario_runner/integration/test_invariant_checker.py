"""The invariant checker is itself checked: a good final state is clean, and breaking it once turns it red."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broken_worlds import BREAKS, OPTIONAL, RUN, Scene, build, copy_signal, put, restore
from invariants import Watch, check, paths_of

pytestmark = pytest.mark.integration


def repeated(s: Scene, run: dict[str, Any], number: int = 1) -> Path:
    """The file of a signal that was published again."""
    message_id = s.signal("READY" if run is s.other else "TERMINAL", run).stem
    return s.world.signals_folder / f"{message_id}.reemit-{number}.json"


def event_after_the_end(s: Scene) -> None:
    """An event that decides something stands after the end, in rows and record alike."""
    sql = "UPDATE run_events SET kind = 'GATES_PASSED' WHERE run_id = ? AND kind = 'REEMIT_REQUESTED'"
    s.sql(sql, s.failed["run_id"])
    s.edit_lines(s.failed, lambda lines: lines[-2].update(event_kind="GATES_PASSED"))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, Path]:
    """The scene, and a copy of its folder to restore it from."""
    folder = tmp_path_factory.mktemp("checker")
    scene = build(folder / "world")
    shutil.copytree(folder / "world", folder / "copy", symlinks=True)
    return scene, folder / "copy"


@pytest.fixture
def scene(pristine: tuple[Scene, Path]) -> Iterator[Scene]:
    """The good final state, as it was."""
    scene, copy = pristine
    yield scene
    restore(copy, scene.world.root)


def test_a_good_final_state_has_no_violation(scene: Scene) -> None:
    states = {"ready": "READY", "other": "READY", "failed": "FAILED", "quarantined": "QUARANTINED"}
    for name, state in {**states, "waiting": "WAITING_EVIDENCE"}.items():
        assert scene.world.document("run_status", getattr(scene, name)["run_id"])["state"] == state
    assert len(scene.world.rejected()) == 4
    view = scene.world.document("run_facts_view", scene.ready["run_id"])
    assert view["evidence_notes"] == [f"OPTIONAL_OUTPUT_ABSENT:{OPTIONAL}"]
    assert scene.found() == []


@pytest.mark.parametrize("name", BREAKS)
def test_the_checker_goes_red_when(scene: Scene, name: str) -> None:
    invariant, damage = BREAKS[name]
    damage(scene)
    found = scene.found()
    assert invariant in {one.invariant for one in found}, found


def test_every_invariant_is_broken_at_least_once() -> None:
    assert {invariant for invariant, _ in BREAKS.values()} == {*(f"I{n}" for n in range(1, 16)), "LIVE"}


def test_a_deadline_that_passed_is_a_violation(scene: Scene) -> None:
    assert {one.invariant for one in scene.found(now=4e9)} == {"LIVE"}


def test_a_secret_in_an_object_a_row_or_a_log_is_a_violation(scene: Scene) -> None:
    log = scene.world.root / "daemon.log"
    log.write_bytes(b"password=hunter2")
    paths = paths_of(scene.world)
    assert check(paths, secrets=[b"hunter2"]) == []
    assert [one.invariant for one in check(type(paths)(**{**vars(paths), "logs": (log,)}), secrets=[b"hunter2"])] == [
        "I15"
    ]
    assert {one.invariant for one in check(paths, secrets=[scene.ready["run_id"].encode()])} == {"I15"}


def test_a_process_that_still_works_in_an_engine_root_is_a_violation(scene: Scene) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], cwd=scene.ready["engine_run_root"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as engine:  # fmt: skip
        assert engine.stdout is not None
        engine.stdout.readline()
        assert [one.invariant for one in scene.found()] == ["I14"]
        engine.communicate(b"\n")
    assert scene.found() == []


def test_private_leftovers_are_excused_only_where_daemons_were_killed(scene: Scene) -> None:
    put(scene.world.ledger / ".private/abc.tmp")
    assert [one.invariant for one in scene.found()] == ["I10"]
    assert scene.found(killed=True) == []


def test_a_record_that_was_lost_or_disposed_of_twice_is_a_violation(scene: Scene) -> None:
    paths = paths_of(scene.world)
    assert [one.invariant for one in check(paths, dropped=[*scene.dropped, b"never seen"])] == ["I8"]
    assert [one.invariant for one in check(paths, dropped=scene.dropped[:-1])] == ["I8"]


REEMITS: dict[str, tuple[str, Callable[[Scene], object]]] = {
    "a signal that was published again is gone": ("I6", lambda s: repeated(s, s.other, 2).unlink()),
    "a signal was published again and nobody asked": (
        "I6",
        lambda s: shutil.copy(repeated(s, s.other, 2), repeated(s, s.other, 3)),
    ),
    "an emission repeats nothing": ("I6", lambda s: s.sql("UPDATE outbox SET emission = 5 WHERE emission = 2")),
    "an emission has no act": ("I6", lambda s: s.sql("DELETE FROM operator_actions WHERE outcome = 'PUBLISHED'")),
    "an act says that it published what was refused": (
        "I6",
        lambda s: s.sql("UPDATE operator_actions SET outcome = 'PUBLISHED' WHERE outcome LIKE 'REEMIT_%'"),
    ),
    "an act is still owed": ("I6", lambda s: s.sql("UPDATE operator_actions SET outcome = 'ACCEPTED'")),
    "an emission lost its digest": (
        "I6",
        lambda s: s.sql("UPDATE outbox SET attributes = '{}' WHERE kind = 'READY_REEMIT'"),
    ),
    "an emission has another payload": (
        "I7",
        lambda s: s.edit(repeated(s, s.failed), lambda item: item["payload"].update(reason_code="GATE_FAIL")),
    ),
    "an emission lies under another name": (
        "I7",
        lambda s: repeated(s, s.failed).rename(s.world.signals_folder / f"{'0' * 64}.reemit-1.json"),
    ),
    "the record goes on after the end": ("I12", event_after_the_end),
}


@pytest.mark.parametrize("name", REEMITS)
def test_the_checker_goes_red_when_of_a_reemit(scene: Scene, name: str) -> None:
    invariant, change = REEMITS[name]
    change(scene)
    assert invariant in {one.invariant for one in scene.found()}


SEEN_BY_A_WATCH: dict[str, tuple[str, Callable[[Scene], object]]] = {
    "a lease epoch went back": ("I9", lambda s: s.sql("UPDATE runs SET lease_epoch = 1")),
    "a terminal state changed": (
        "I4",
        lambda s: s.sql(f"UPDATE runs SET state = 'QUARANTINED' {RUN}", s.failed["run_id"]),
    ),
    "a run disappeared": ("I4", lambda s: s.sql(f"DELETE FROM runs {RUN}", s.failed["run_id"])),
    "a sequence went back": ("I12", lambda s: s.sql("UPDATE runs SET projected_seq = 1")),
    "a sent mark was taken back": ("I6", lambda s: s.sql("UPDATE outbox SET sent_us = NULL")),
    "a facts view was written again": (
        "I10",
        lambda s: s.edit(s.path("run_facts_view", s.ready), lambda view: view.update(evidence_notes=["x"])),
    ),
    "a receipt disappeared": ("I10", lambda s: s.receipt("arrival_events_5B").unlink()),
    "a record was written anew": ("I12", lambda s: s.edit_lines(s.ready, lambda lines: lines[0].update(run_id="x"))),
    "a signal was published again with other bytes": (
        "I7",
        lambda s: copy_signal(s, lambda item: item["payload"].update(bundle_hash="0" * 64)),
    ),
}


@pytest.mark.parametrize("name", SEEN_BY_A_WATCH)
def test_a_watch_sees_that(scene: Scene, name: str) -> None:
    invariant, change = SEEN_BY_A_WATCH[name]
    scene.sql("UPDATE runs SET lease_epoch = lease_epoch + 5")
    watch = Watch(paths_of(scene.world))
    watch.look()
    watch.look()
    assert watch.found == []
    change(scene)
    watch.look()
    assert invariant in {one.invariant for one in watch.found}
