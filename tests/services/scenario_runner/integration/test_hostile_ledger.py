"""What is in the ledger or on the bus already, and is not what SR would have written."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hostile_evidence_support import MIB, drain, explain, make, polling, state_of
from support import ForkedWorld, World

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.fixture
def world(tmp_path: Path) -> World:
    return ForkedWorld(tmp_path / "world")


# --- what is already in the ledger or on the bus


def first_ready(world: World) -> dict[str, Any]:
    made = make(world, "first")
    world.drop(made["request"], "1.json")
    drain(world)
    assert state_of(world, made)[0] == "READY"
    return made


def forget(world: World) -> None:
    """Lose the authority's rows; ledger and bus stay."""
    for path in world.root.glob("authority.db*"):
        path.unlink()


def test_a_receipt_with_another_digest_for_the_same_scope_is_drift(world: World) -> None:
    made = first_ready(world)
    receipt = next((world.ledger / "instance_receipts").rglob("instance_receipt.json"))
    before = receipt.read_bytes()
    other = make(world, "second", **{key: made[key] for key in ("manifest_fingerprint", "parameter_hash")}, data_seed=2)
    world.drop(other["request"], "2.json")
    drain(world)
    assert state_of(world, other) == ("QUARANTINED", "INSTANCE_RECEIPT_DRIFT")
    assert str(receipt) in explain(world, other)["detail"] or "bundle_manifest" in explain(world, other)["detail"]
    assert receipt.read_bytes() == before
    assert len(world.signals("READY")) == 1


@pytest.mark.parametrize("junk", [b"", b"{}", b"not json", b"[]", b"x" * 100_000])
def test_junk_in_the_place_of_a_receipt_is_drift(world: World, junk: bytes) -> None:
    made = first_ready(world)
    receipt = next((world.ledger / "instance_receipts").rglob("instance_receipt.json"))
    receipt.write_bytes(junk)
    world.drop(made["request"] | {"run_equivalence_key": "second"}, "2.json")
    drain(world)
    assert [item["payload"]["reason_code"] for item in world.signals("TERMINAL")] == ["INSTANCE_RECEIPT_DRIFT"]
    assert receipt.read_bytes() == junk


@pytest.mark.parametrize(
    ("folder", "reason_code"), [("run_facts_view", "FACTS_VIEW_DRIFT"), ("run_plan", "PLAN_DRIFT")]
)
@pytest.mark.parametrize("junk", [b"", b'{"run_id": "x"}', b"x" * 100_000])
def test_another_document_in_the_place_of_a_write_once_one_is_drift(
    world: World, folder: str, reason_code: str, junk: bytes
) -> None:
    made = make(world, "first")
    place = world.ledger / folder / f"{made['run_id']}.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(junk)
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made) == ("QUARANTINED", reason_code)
    assert place.read_bytes() == junk
    assert world.signals("READY") == []
    assert [item["payload"]["reason_code"] for item in world.signals("TERMINAL")] == [reason_code]


def test_another_ready_signal_in_the_ledger_keeps_ready_off_the_bus_until_it_is_moved_away(world: World) -> None:
    made = make(world, "first")
    place = world.ledger / "ready_signal" / f"{made['run_id']}.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"{}")
    world.drop(made["request"])
    served = world.serve(timeout=15)
    assert served.returncode == 5
    assert b"READY_SIGNAL_DRIFT" in served.stderr
    assert b"Traceback" not in served.stderr
    assert world.signals() == []
    assert place.read_bytes() == b"{}"
    place.unlink()
    with polling() as until:
        until(lambda: world.serve().returncode == 0)
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [made["run_id"]]


def test_a_forged_envelope_around_the_right_payload_is_not_taken_for_our_own_publication(world: World) -> None:
    made = first_ready(world)
    path = next(world.signals_folder.glob("*.json"))
    right = json.loads(path.read_bytes())
    shutil.rmtree(world.store)
    forget(world)
    forged = right | {"attributes": {"kind": "READY", "facts_view_digest": "0" * 64}}
    path.write_text(json.dumps(forged), "utf-8")
    world.drop(made["request"], "2.json")
    served = world.serve()
    told = json.loads(path.read_bytes())["attributes"]["facts_view_digest"] == right["attributes"]["facts_view_digest"]
    assert told or served.returncode == 5  # published rightly, or still owed and said so


def test_a_run_status_that_only_looks_newer_does_not_stand_after_ready(world: World) -> None:
    made = make(world, "first")
    place = world.ledger / "run_status" / f"{made['run_id']}.json"
    place.parent.mkdir(parents=True)
    place.write_text('{"state": "OPEN", "updated_at_utc": "zzz"}', "utf-8")
    world.drop(made["request"])
    served = world.serve()
    assert b"Traceback" not in served.stderr
    assert world.signals("READY") == [] or json.loads(place.read_bytes())["state"] == "READY"


@pytest.mark.parametrize("folder", ["run_record", "run_status", "ready_signal", "run_facts_view"])
def test_an_object_too_large_to_be_ours_does_not_stop_the_daemon(world: World, folder: str) -> None:
    bad, good = make(world, "bad"), make(world, "good")
    place = world.ledger / folder / f"{bad['run_id']}.{'jsonl' if folder == 'run_record' else 'json'}"
    place.parent.mkdir(parents=True)
    with place.open("wb") as file:
        file.truncate(65 * MIB)
    world.drop(bad["request"], "a.json")
    world.drop(good["request"], "b.json")
    served = world.serve(timeout=15)
    assert b"Traceback" not in served.stderr, served.stderr.decode()[-1500:]
    assert served.returncode in (0, 5)
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [good["run_id"]]
