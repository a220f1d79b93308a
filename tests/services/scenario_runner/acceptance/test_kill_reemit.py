"""SIGKILL at every step of a re-emit, by a daemon and by the command: it is published once, or was never asked for."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from crashing import KILLED, STORE, Moment, Scenery, drained, evidence, holder_of, launch, launch_command, log_of
from invariants import Watch, check, paths_of, photograph
from support import World

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

ACTS = "scenario_runner.authority.sqlite_reemits:SqliteReemits."
ROWS = "scenario_runner.authority.sqlite:SqliteAuthority."
POINTS: dict[str, Moment] = {
    "act decided and written, before the commit": Moment(ACTS + "_reemit"),
    "record grown, before the commit": Moment(ACTS + "_grow"),
    "signal owed, before the commit": Moment(ROWS + "_add_signal"),
    "signals claimed": Moment(ROWS + "claim_signals", after_result=True),
    "facts view compared": Moment("scenario_runner.ledger.ledger:Ledger._compare_facts_view"),
    "emission linked": Moment("os:link", match=".reemit-1.json"),
    "publish returned": Moment("scenario_runner.bus.spool:SpoolPublisher.publish"),
    "delivery recorded, before the commit": Moment(ACTS + "_end_reemit"),
    "delivery committed": Moment(ACTS + "end_reemits"),
    "record replaced": Moment(STORE + ".replace", match="/run_record/"),
    "projection marked": Moment(ROWS + "mark_projected"),
}
OF_A_DAEMON = {"acts committed with their records": Moment(ROWS + "admit")}
OF_THE_COMMAND = {"act committed": Moment(ACTS + "reemit")}


@pytest.mark.parametrize(
    "target",
    sorted({moment.at for moment in (POINTS | OF_A_DAEMON | OF_THE_COMMAND).values() if moment.at != "os:link"}),
)
def test_each_call_at_which_a_process_is_killed_exists(target: str) -> None:
    holder, name = holder_of(target)
    assert callable(getattr(holder, name))


@pytest.fixture(scope="module")
def scenery(tmp_path_factory: pytest.TempPathFactory) -> Scenery:
    """A run that is READY, one that is QUARANTINED, and a record for each that asks for its signal again."""
    maker = World(tmp_path_factory.mktemp("kill-reemit") / "maker")
    small: dict[str, Any] = {"members": 2, "parts": 1, "outputs": ["s3_candidate_set_1A"]}
    ready, bad = (
        maker.make_run("ready", seed=1, **small), maker.make_run("bad", seed=2, damage="flag_bit_off", **small),
    )  # fmt: skip
    records = {"a.json": ready["request"], "b.json": bad["request"]}
    for name, run in (("x.json", ready), ("y.json", bad)):
        records[name] = {
            "topic": "fp.bus.control.v1", "message_id": name, "published_at_utc": "2026-01-01T00:00:00Z",
            "attributes": {"kind": "REEMIT_REQUEST"}, "partition_key": run["run_id"],
            "payload": {"run_id": run["run_id"], "reemit_kind": "BOTH"},
        }  # fmt: skip
    encoded = {name: json.dumps(record).encode() for name, record in records.items()}
    return Scenery(maker.runs, encoded, {"evidence_wait_seconds": 0}, photograph([maker.runs]))


def settled(scenery: Scenery, root: Path) -> World:
    world: World = scenery.world(root)
    for name in ("a.json", "b.json"):
        world.drop(scenery.records[name], name)
    drained(world)
    return world


def both(case: Any, moment: Moment) -> dict[str, list[Any]]:
    """What is wrong when the process is killed before, and after."""
    sides = ("after",) if moment.after_result else ("before", "after")
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(sides, pool.map(lambda when: case(replace(moment, when=when)), sides), strict=True))
    return {when: found for when, found in results.items() if found}


@pytest.mark.parametrize("point", POINTS | OF_A_DAEMON)
def test_a_daemon_killed_before_and_after(point: str, scenery: Scenery, tmp_path: Path) -> None:
    def case(moment: Moment) -> list[Any]:
        world = settled(scenery, tmp_path / moment.when)
        before, watch = evidence(world), Watch(paths_of(world))
        watch.look()
        for name in ("x.json", "y.json"):
            world.drop(scenery.records[name], name)
        with launch(world, moment, "--until-idle") as daemon:
            code = daemon.wait(timeout=60)
        if code != KILLED:
            return [f"{moment} was not reached (exit {code}): {log_of(world).read_text()[-2000:]}"]
        watch.look()
        drained(world)
        wanted = {**before, "READY_REEMIT": 1, "TERMINAL_REEMIT": 1}
        differing = [key for key in wanted if evidence(world).get(key) != wanted[key]]
        return [*scenery.violations(world, watch), *differing]

    assert both(case, (POINTS | OF_A_DAEMON)[point]) == {}


@pytest.mark.parametrize("point", POINTS | OF_THE_COMMAND)
def test_the_command_killed_before_and_after(point: str, scenery: Scenery, tmp_path: Path) -> None:
    def case(moment: Moment) -> list[Any]:
        world = settled(scenery, tmp_path / moment.when)
        before, watch = evidence(world), Watch(paths_of(world))
        watch.look()
        (ready,) = world.signals("READY")
        arguments = ("reemit", ready["payload"]["run_id"], "--wiring", str(world.wiring), "--reason", "a test")
        with launch_command(world, moment, *arguments) as command:
            code = command.wait(timeout=60)
        if code != KILLED:
            return [f"{moment} was not reached (exit {code}): {log_of(world).read_text()[-2000:]}"]
        watch.look()
        owed = world.query("explain", ready["payload"]["run_id"])[1]["actions"]
        drained(world)
        wanted = {**before, **({"READY_REEMIT": 1} if owed else {})}
        after = evidence(world)
        differing = [key for key in {*wanted, *after} if after.get(key) != wanted.get(key)]
        return [*check(paths_of(world), watch=watch, before=scenery.photo, killed=True), *differing]

    assert both(case, (POINTS | OF_THE_COMMAND)[point]) == {}
