"""The authority is lost and the same requests come again: the ledger decides nothing, and nothing published changes."""

from __future__ import annotations

import shutil
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


def serve_once(world: World, made: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Ask for a run and drain; returns what is explained of it."""
    world.drop(made["request"] | changes)
    served = world.serve()
    assert b"Traceback" not in served.stderr, served.stderr.decode()[-2000:]
    return world.query("explain", made["run_id"])[1]


def kinds(world: World) -> list[str]:
    return sorted(item["attributes"]["kind"] for item in world.signals())


@pytest.mark.parametrize("damage", [None, "flag_says_fail", "flag_bit_off"])
def test_a_request_for_a_run_that_only_the_ledger_knows_is_drift_and_publishes_and_changes_nothing(
    world: World, damage: str | None
) -> None:
    made = make(world, "finished", damage=damage)
    serve_once(world, made)
    before = published(world)
    lose_the_authority(world)
    explained = serve_once(world, made)
    assert (explained["state"], explained["reason_code"]) == ("QUARANTINED", "PLAN_DRIFT")
    assert explained["drift"]["object"] == str(world.ledger / "run_plan" / f"{made['run_id']}.json")
    assert [item["sent_at_utc"] for item in explained["signals"]] == [None], "TERMINAL beside what was published"
    assert explained["documents_owed"]["error"].startswith("RECORD_DRIFT: ")
    assert published(world) == before
    world.drop(made["request"], "again.json")
    assert world.serve().returncode == 5
    assert published(world) == before


def test_ready_and_terminal_never_stand_on_the_bus_for_one_run(world: World) -> None:
    made = make(world, "ready")
    serve_once(world, made)
    lose_the_authority(world)
    next(Path(made["engine_run_root"]).glob("data/layer*/1A/validation/*/_passed.flag")).write_bytes(b"junk")
    for _ in range(2):
        assert serve_once(world, made)["reason_code"] == "PLAN_DRIFT"
    assert kinds(world) == ["READY"]
    (world.ledger / "run_record" / f"{made['run_id']}.jsonl").unlink()  # the status still tells of READY
    assert world.serve().returncode == 5
    assert kinds(world) == ["READY"]


def test_the_rows_of_a_backup_make_the_ledger_whole_again(world: World, tmp_path: Path) -> None:
    made = make(world, "backup")
    serve_once(world, made)
    before = published(world)
    for path in world.root.glob("authority.db*"):
        shutil.copy2(path, tmp_path)
    lose_the_authority(world)
    serve_once(world, made)
    lose_the_authority(world)
    for path in tmp_path.glob("authority.db*"):
        shutil.copy2(path, world.root)
    world.drop(made["request"], "again.json")
    assert world.serve().returncode == 0
    assert world.query("status", made["run_id"])[1]["state"] == "READY"
    assert world.query("verify", made["run_id"])[0] == 0
    assert published(world) == before
    assert [item.sentence for item in check(paths_of(world)) if item.invariant != "I8"] == []


def test_a_run_of_which_only_the_facts_view_is_left_is_ready_again_with_the_same_signal(world: World) -> None:
    """Facts view and READY hold no time: what was READY is READY again, or is drift."""
    made = make(world, "view")
    serve_once(world, made)
    signals = world.signals()
    lose_the_authority(world)
    for folder in ("run_plan", "run_record", "run_status"):
        shutil.rmtree(world.ledger / folder)
    assert serve_once(world, made)["state"] == "READY"
    assert [item["message_id"] for item in world.signals()] == [item["message_id"] for item in signals]
    assert world.query("verify", made["run_id"])[0] == 0


def test_another_intent_under_a_published_key_publishes_nothing(world: World) -> None:
    made = make(world, "mine")
    serve_once(world, made)
    before = published(world)
    lose_the_authority(world)
    assert serve_once(world, made, output_ids=["outlet_catalogue"])["reason_code"] == "PLAN_DRIFT"
    assert published(world) == before


def test_a_waiting_run_whose_rows_are_lost_is_drift_as_well(world: World) -> None:
    made = make(world, "waiting")
    next(Path(made["engine_run_root"]).glob("data/layer*/1A/validation/*/_passed.flag")).unlink()
    assert serve_once(world, made)["state"] == "WAITING_EVIDENCE"
    lose_the_authority(world)
    assert serve_once(world, made)["reason_code"] == "PLAN_DRIFT"
    assert kinds(world) == []
