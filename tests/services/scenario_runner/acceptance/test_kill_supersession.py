"""SIGKILL around the READY of a correction: it supersedes once, whole, and its signal follows its READY."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from crashing import KILLED, STORE, Moment, Scenery, drained, evidence, holder_of, launch, log_of
from invariants import Watch, paths_of, photograph
from support import World

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

ROWS = "scenario_runner.authority.sqlite:SqliteAuthority."
POINTS: dict[str, Moment] = {
    "correction admitted": Moment(ROWS + "admit"),
    "end of the old run asked for": Moment("scenario_runner.runs.batch:RunDriver._final_state"),
    "record of the old run grown, before the commit": Moment(ROWS + "_grow_now"),
    "READY committed": Moment(ROWS + "commit"),
    "supersession object linked": Moment("os:link", match="/supersession/"),
    "record of the old run replaced": Moment(STORE + ".replace", match="/run_record/"),
    "publish returned": Moment("scenario_runner.bus.spool:SpoolPublisher.publish"),
    "signals marked as sent": Moment(ROWS + "mark_sent"),
}


@pytest.mark.parametrize("target", sorted({moment.at for moment in POINTS.values() if moment.at != "os:link"}))
def test_each_call_at_which_a_process_is_killed_exists(target: str) -> None:
    holder, name = holder_of(target)
    assert callable(getattr(holder, name))


@pytest.fixture(scope="module")
def scenery(tmp_path_factory: pytest.TempPathFactory) -> Scenery:
    """A run that is READY, and a request that corrects it."""
    maker = World(tmp_path_factory.mktemp("kill-supersession") / "maker")
    small: dict[str, Any] = {"members": 2, "parts": 1, "outputs": ["s3_candidate_set_1A"]}
    old, new = maker.make_run("old", seed=1, **small), maker.make_run("new", seed=2, **small)
    correction = {
        "topic": "fp.bus.control.v1", "message_id": "correct", "published_at_utc": "2026-01-01T00:00:00Z",
        "attributes": {
            "kind": "RUN_REQUEST", "supersedes_run_id": str(old["run_id"]), "supersession_purpose": "late data",
        },
        "partition_key": "any", "payload": new["request"],
    }  # fmt: skip
    records = {"a.json": old["request"], "x.json": correction}
    encoded = {name: json.dumps(record).encode() for name, record in records.items()}
    return Scenery(maker.runs, encoded, {"evidence_wait_seconds": 0}, photograph([maker.runs]))


def settled(scenery: Scenery, root: Path, *names: str) -> World:
    world: World = scenery.world(root)
    for name in names:
        world.drop(scenery.records[name], name)
        drained(world)
    return world


@pytest.fixture(scope="module")
def wanted(scenery: Scenery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of it without a kill."""
    found: dict[str, Any] = evidence(settled(scenery, tmp_path_factory.mktemp("unkilled") / "w", "a.json", "x.json"))
    assert sum(key.startswith("RUN_SUPERSEDES ") for key in found) == 1
    return found


@pytest.mark.parametrize("point", POINTS)
def test_a_daemon_killed_before_and_after(point: str, scenery: Scenery, wanted: dict[str, Any], tmp_path: Path) -> None:
    def case(when: str) -> list[Any]:
        world = settled(scenery, tmp_path / when, "a.json")
        watch = Watch(paths_of(world))
        watch.look()
        world.drop(scenery.records["x.json"], "x.json")
        moment = replace(POINTS[point], when=when)
        with launch(world, moment, "--until-idle") as daemon:
            code = daemon.wait(timeout=60)
        if code != KILLED:
            return [f"{moment} was not reached (exit {code}): {log_of(world).read_text()[-2000:]}"]
        watch.look()
        drained(world)
        found = evidence(world)
        differing = [key for key in {*wanted, *found} if found.get(key) != wanted.get(key)]
        return [*scenery.violations(world, watch), *differing]

    sides = ("before", "after")
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(sides, pool.map(case, sides), strict=True))
    assert {when: found for when, found in results.items() if found} == {}
