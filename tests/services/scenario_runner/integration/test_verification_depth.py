"""Verification depth where no S3 is: folders are read whatever the policy says, and every document says so."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support import ForkedWorld

pytestmark = pytest.mark.integration

DEEP = {"output_digest_source": "s3_checksum"}


def ready_of(world: ForkedWorld) -> dict[str, Any]:
    (path,) = world.signals_folder.glob("*.json")
    return dict(json.loads(path.read_bytes()))


def ready_under(root: Path, policy: dict[str, Any]) -> tuple[ForkedWorld, dict[str, Any]]:
    world = ForkedWorld(root, {}, policy)
    world.drop(world.make_run("key-1", outputs=["outlet_catalogue"])["request"])
    assert world.serve().returncode == 0
    return world, ready_of(world)


def lose_authority(world: ForkedWorld) -> None:
    world.database.unlink()
    for name in ("-wal", "-shm"):
        Path(f"{world.database}{name}").unlink(missing_ok=True)


def test_folders_are_read_under_a_policy_that_takes_checksums(tmp_path: Path) -> None:
    world, ready = ready_under(tmp_path / "world", DEEP)
    assert ready["attributes"]["verification_depth"] == "read"
    record = (world.ledger / f"run_record/{ready['payload']['run_id']}.jsonl").read_text("utf-8")
    events = {item["event_kind"]: item["details"] for item in map(json.loads, record.splitlines())}
    assert [item["verification_depth"] for item in events["RECEIPTS_COMMITTED"]["outputs"]] == ["read"]
    assert events["RUN_ADMITTED"]["inputs"]["output_digest_source"] == "s3_checksum"
    done = world.command("verify", ready["payload"]["run_id"], "--wiring", str(world.wiring), "--json")
    verified = json.loads(done.stdout)
    assert (done.returncode, verified["verification_depth"]) == (0, "read")
    examined = world.command("doctor", "--wiring", str(world.wiring), "--policy", str(world.policy), "--json")
    (found,) = [item for item in json.loads(examined.stdout)["checks"] if item["check"] == "checksums"]
    assert (examined.returncode, "no engine root lies on S3" in found["detail"]) == (0, True)


def test_a_policy_that_names_the_default_gives_the_documents_of_one_that_does_not(tmp_path: Path) -> None:
    world, ready = ready_under(tmp_path / "world", {"output_digest_source": "read"})
    assert sorted(ready["attributes"]) == ["facts_view_digest", "kind", "run_id"]
    found = [path for folder in (world.store, world.bus) for path in folder.rglob("*") if path.is_file()]
    assert [path for path in found if b"depth" in path.read_bytes() or b"digest_source" in path.read_bytes()] == []


@pytest.mark.parametrize("value", ["trust", "", None, 1, ["read"]])
def test_a_policy_with_another_source_is_refused(tmp_path: Path, value: object) -> None:
    world = ForkedWorld(tmp_path / "world", {}, {"output_digest_source": value})
    done = world.serve()
    assert done.returncode == 2
    assert b"output_digest_source" in done.stderr


def test_a_rebuilt_authority_repeats_the_depth(tmp_path: Path) -> None:
    world, ready = ready_under(tmp_path / "world", DEEP)
    lose_authority(world)
    profiles = ("--wiring", str(world.wiring), "--policy", str(world.policy))
    done = world.command("authority", "rebuild", *profiles, "--reason", "test")
    assert done.returncode == 0, done.stdout + done.stderr
    again = world.command("reemit", ready["payload"]["run_id"], "--reason", "test", "--wiring", str(world.wiring))
    assert again.returncode == 0, again.stdout + again.stderr
    (repeated,) = [json.loads(path.read_bytes()) for path in world.signals_folder.glob("*.reemit-*.json")]
    assert repeated["attributes"] == {**ready["attributes"], "kind": "READY_REEMIT"}


def test_a_ready_on_the_bus_that_tells_another_depth_than_the_record_is_not_restored(tmp_path: Path) -> None:
    world, ready = ready_under(tmp_path / "world", DEEP)
    (path,) = world.signals_folder.glob("*.json")
    ready["attributes"]["verification_depth"] = "s3_checksum"
    path.chmod(0o600)
    path.write_text(json.dumps(ready, separators=(",", ":"), sort_keys=True), "utf-8")
    lose_authority(world)
    profiles = ("--wiring", str(world.wiring), "--policy", str(world.policy))
    done = world.command("authority", "rebuild", *profiles, "--reason", "test")
    assert done.returncode == 1
    assert b"READY_CONTRADICTED" in done.stdout + done.stderr


@pytest.mark.parametrize("witness", ["evidence", "ledger"])
@pytest.mark.parametrize(
    ("policy", "written", "instead", "code"),
    [
        (DEEP, ',"verification_depth":"read"', "", "RECORD_DAMAGED"),
        ({}, '"output_id":"outlet_catalogue",', '\\g<0>"verification_depth":"read",', "RECORD_DAMAGED"),
        (DEEP, '"output_digest_source":"s3_checksum"', '"output_digest_source":"of_tomorrow"', "ADMISSION_DRIFT"),
        (DEEP, '"output_digest_source":', '"key_of_tomorrow":1,\\g<0>', "ADMISSION_DRIFT"),
    ],
    ids=["depth removed", "depth added", "a source of tomorrow", "a key of tomorrow"],
)
def test_a_record_whose_depth_is_not_that_of_its_policy_is_not_restored(
    tmp_path: Path, policy: dict[str, Any], written: str, instead: str, code: str, witness: str
) -> None:
    world, ready = ready_under(tmp_path / "world", policy)
    record = world.ledger / f"run_record/{ready['payload']['run_id']}.jsonl"
    before = record.read_text("utf-8")
    record.chmod(0o600)
    record.write_text(re.sub(written, instead, before), "utf-8")
    assert record.read_text("utf-8") != before
    for path in world.signals_folder.glob("*.json"):
        path.unlink()
    lose_authority(world)
    profiles = ("--wiring", str(world.wiring), "--policy", str(world.policy))
    done = world.command("authority", "rebuild", *profiles, "--reason", "test", "--witness", witness)
    assert (done.returncode, code.encode() in done.stdout + done.stderr) == (1, True), done.stdout + done.stderr
