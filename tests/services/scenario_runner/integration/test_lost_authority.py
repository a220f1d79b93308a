"""The authority is lost; the ledger is the published truth, and the same requests come again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from invariants import check, paths_of
from support import ForkedWorld, World

pytestmark = pytest.mark.integration


@pytest.fixture
def world(tmp_path: Path) -> World:
    return ForkedWorld(tmp_path / "world")


def make(world: World, key: str, **options: Any) -> dict[str, Any]:
    small = {"outputs": ["outlet_catalogue", "s1_site_weights_2B"], "members": 3, "member_bytes": 64, "part_bytes": 64}
    return world.make_run(key, manifest_fingerprint=(key.encode().hex() * 64)[:64], **{**small, **options})


def lose_the_authority(world: World) -> None:
    for path in world.root.glob("authority.db*"):
        path.unlink()


def published(world: World) -> dict[str, bytes]:
    roots = (world.ledger, world.signals_folder)
    files = [path for root in roots for path in root.rglob("*") if path.is_file() and ".private" not in path.parts]
    return {str(path.relative_to(world.root)): path.read_bytes() for path in files}


def violations(world: World) -> list[str]:
    """Invariants that do not hold; the dispositions of records from before the loss are lost with the authority."""
    return [item.sentence for item in check(paths_of(world)) if item.invariant != "I8"]


def ask_again(world: World, made: dict[str, Any], times: int = 2) -> None:
    for number in range(times):
        world.drop(made["request"], f"again-{number}.json")
        served = world.serve()
        assert served.returncode == 0, served.stderr.decode()[-2000:]


@pytest.mark.parametrize(
    ("damage", "state", "code"),
    [(None, "READY", 0), ("flag_says_fail", "FAILED", 1), ("flag_bit_off", "QUARANTINED", 4)],
)
def test_a_finished_run_stays_what_it_is_and_nothing_that_was_published_changes(
    world: World, damage: str | None, state: str, code: int
) -> None:
    made = make(world, "finished", damage=damage)
    world.drop(made["request"])
    world.serve()
    before = published(world)
    lose_the_authority(world)
    ask_again(world, made)
    assert world.query("status", made["run_id"])[0] == code
    assert world.query("status", made["run_id"])[1]["state"] == state
    assert published(world) == before
    explained = world.query("explain", made["run_id"])[1]
    assert [item["disposition"] for item in explained["records"]] == ["ACCEPTED", "DUPLICATE"]
    assert [event["seq"] for event in explained["events"]] == list(range(1, len(explained["events"]) + 1))
    assert violations(world) == []


def test_a_waiting_run_goes_on_where_it_was_with_its_first_deadline(world: World) -> None:
    made = make(world, "waiting")
    flag = next(Path(made["engine_run_root"]).glob("data/layer*/1A/validation/*/_passed.flag"))
    content = flag.read_bytes()
    flag.unlink()
    world.drop(made["request"])
    world.serve()
    code, before = world.query("status", made["run_id"])
    assert (code, before["state"]) == (3, "WAITING_EVIDENCE")
    lose_the_authority(world)
    ask_again(world, made)
    code, after = world.query("status", made["run_id"])
    assert (code, after["state"]) == (3, "WAITING_EVIDENCE")
    assert after["evidence_deadline_utc"] == before["evidence_deadline_utc"]
    flag.write_bytes(content)
    world.serve()
    assert world.query("status", made["run_id"])[1]["state"] == "READY"
    assert world.query("verify", made["run_id"])[0] == 0
    assert violations(world) == []


def test_a_run_that_was_planned_under_another_policy_is_restored_under_that(world: World) -> None:
    made = make(world, "policy")
    world.drop(made["request"])
    world.serve()
    before = published(world)
    lose_the_authority(world)
    world.policy_changes = {"revision": "v1", "traffic_output_ids": ["outlet_catalogue"]}
    world.write_profiles()
    ask_again(world, made)
    assert world.query("status", made["run_id"])[1]["state"] == "READY"
    assert {key: value for key, value in published(world).items() if key in before} == before


def test_another_intent_under_a_published_key_restores_nothing_and_publishes_nothing(world: World) -> None:
    made = make(world, "mine")
    world.drop(made["request"])
    world.serve()
    before = published(world)
    lose_the_authority(world)
    world.drop(made["request"] | {"output_ids": ["outlet_catalogue"]}, "other.json")
    world.serve()
    assert world.query("status", made["run_id"])[1]["reason_code"] == "PLAN_DRIFT"
    after = published(world)
    assert {key: after[key] for key in before} == before
    assert len(world.signals("TERMINAL")) == 0


@pytest.mark.parametrize("damage", ["empty", "cut", "of another run", "out of order", "without its last detail"])
def test_a_record_that_is_not_whole_is_no_ground_to_restore_anything(world: World, damage: str) -> None:
    made, other = make(world, "broken"), make(world, "other")
    for item in (made, other):
        world.drop(item["request"], f"{item['run_id']}.json")
    world.serve()
    record = world.ledger / "run_record" / f"{made['run_id']}.jsonl"
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(
        {
            "empty": b"",
            "without its last detail": b"".join([*lines[:-1], lines[-1].replace(b'"ready":', b'"rxady":')]),
            "cut": b"".join(lines)[:-40],
            "of another run": (record.with_name(f"{other['run_id']}.jsonl")).read_bytes(),
            "out of order": b"".join([lines[0], *lines[2:]]),
        }[damage]
    )
    lose_the_authority(world)
    world.drop(made["request"])
    world.serve()
    assert world.query("status", made["run_id"])[1]["reason_code"] == "PLAN_DRIFT"
    assert len(world.signals("READY")) == 2
    assert world.signals("TERMINAL") == []


def test_ready_whose_facts_view_is_gone_is_not_restored_but_waited_for(world: World) -> None:
    made = make(world, "hidden")
    world.drop(made["request"])
    world.serve()
    view = world.ledger / "run_facts_view" / f"{made['run_id']}.json"
    view.rename(world.root / "view.json")
    lose_the_authority(world)
    world.drop(made["request"])
    world.serve()
    assert world.query("status", made["run_id"])[0] == 3
    (world.root / "view.json").rename(view)
    with closing(sqlite3.connect(world.database)) as connection, connection:
        connection.execute("UPDATE runs SET due_us = 1")
    world.serve()
    assert world.query("status", made["run_id"])[1]["state"] == "READY"


@pytest.mark.parametrize("change", ["gone", "other bytes"])
def test_ready_is_not_put_back_on_the_word_of_a_document_alone(world: World, change: str) -> None:
    made = make(world, "unproven")
    world.drop(made["request"])
    world.serve()
    root = Path(made["engine_run_root"])
    part = next(path for path in sorted(root.rglob("*")) if "outlet_catalogue" in str(path) and path.is_file())
    kept = part.read_bytes()
    if change == "gone":
        part.unlink()
    else:
        part.write_bytes(kept + b"x")
    lose_the_authority(world)
    before = published(world)
    world.drop(made["request"])
    world.serve()
    code, explained = world.query("explain", made["run_id"])
    assert code == 3
    assert "the ledger says READY" in explained["last_infrastructure_error"]
    assert explained["signals"] == []
    assert published(world) == before
    part.write_bytes(kept)
    with closing(sqlite3.connect(world.database)) as connection, connection:
        connection.execute("UPDATE runs SET due_us = 1")
    world.serve()
    assert world.query("status", made["run_id"])[1]["state"] == "READY"
    assert published(world) == before


def test_a_run_of_which_nothing_was_published_yet_goes_on_from_its_plan(world: World) -> None:
    made = make(world, "in flight")
    world.drop(made["request"])
    world.serve()
    plan = (world.ledger / "run_plan" / f"{made['run_id']}.json").read_bytes()
    for path in [*world.ledger.rglob(f"{made['run_id']}.*"), *world.signals_folder.glob("*.json")]:
        if path.parent.name != "run_plan":
            path.unlink()
    lose_the_authority(world)
    ask_again(world, made)
    assert world.query("status", made["run_id"])[1]["state"] == "READY"
    assert (world.ledger / "run_plan" / f"{made['run_id']}.json").read_bytes() == plan
    assert world.query("verify", made["run_id"])[0] == 0
    assert violations(world) == []


def test_a_damaged_last_line_publishes_no_other_ready(world: World) -> None:
    made = make(world, "damaged")
    world.drop(made["request"])
    world.serve()
    before = world.signals("READY")
    record = world.ledger / "run_record" / f"{made['run_id']}.jsonl"
    lines = record.read_bytes().splitlines(keepends=True)
    message_id = before[0]["message_id"].encode()
    record.write_bytes(b"".join([*lines[:-1], lines[-1].replace(message_id, b"e" * 64)]))
    lose_the_authority(world)
    world.drop(made["request"])
    world.serve()
    assert world.signals("READY") == before
    assert "the ledger says READY" in world.query("explain", made["run_id"])[1]["last_infrastructure_error"]
