"""What stands where a flag or an index should, and what the engine declares beside its digests."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from support import ForkedWorld, World

pytestmark = pytest.mark.integration

MALFORMED, CONFLICT, LARGE, SAYS_NO = "EVIDENCE_MALFORMED", "EVIDENCE_CONFLICT", "EVIDENCE_TOO_LARGE", "GATE_FAIL"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return ForkedWorld(tmp_path / "world")


def make(world: World, key: str) -> dict[str, Any]:
    return world.make_run(key, outputs=["outlet_catalogue"], members=3, member_bytes=64, parts=2, part_bytes=64)


def flag_of(made: dict[str, Any]) -> Path:
    return next(Path(made["engine_run_root"]).glob("data/layer*/1A/validation/*/_passed.flag"))


def state_of(world: World, made: dict[str, Any]) -> tuple[str, str]:
    document = world.query("status", made["run_id"])[1]
    return document["state"], document["reason_code"] or ""


def drain(world: World, made: dict[str, Any]) -> tuple[str, str]:
    world.drop(made["request"])
    world.serve()
    return state_of(world, made)


@pytest.mark.parametrize("what", ["flag", "index"])
def test_a_socket_for_a_flag_or_an_index_is_malformed_and_not_an_outage(world: World, what: str) -> None:
    made = make(world, f"socket {what}")
    path = flag_of(made) if what == "flag" else flag_of(made).with_name("index.json")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is short
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)
        world.drop(made["request"])
        world.serve()
    assert state_of(world, made) == ("QUARANTINED", MALFORMED)


RECEIPTS: dict[str, tuple[Any, tuple[str, str]]] = {
    "not there": (None, ("READY", "")),
    "another run id": ({"run_id": "0" * 32}, ("READY", "")),
    "another manifest": ({"manifest_fingerprint": "0" * 64}, ("QUARANTINED", "ENGINE_RECEIPT_MISMATCH")),
    "another parameter hash": ({"parameter_hash": "0" * 64}, ("QUARANTINED", "ENGINE_RECEIPT_MISMATCH")),
    "another seed": ({"seed": 99}, ("QUARANTINED", "ENGINE_RECEIPT_MISMATCH")),
    "a seed in words": ({"seed": "7"}, ("QUARANTINED", "ENGINE_RECEIPT_INVALID")),
    "junk": (b"{", ("QUARANTINED", "ENGINE_RECEIPT_INVALID")),
    "a list": (b"[]", ("QUARANTINED", "ENGINE_RECEIPT_INVALID")),
    "huge": (b" " * (1 << 20), ("QUARANTINED", LARGE)),
}


@pytest.mark.parametrize("name", RECEIPTS)
def test_a_run_receipt_that_is_there_must_be_about_the_run(world: World, name: str) -> None:
    change, expected = RECEIPTS[name]
    made = make(world, name)
    path = Path(made["request"]["engine_run_root"]) / "run_receipt.json"
    if change is None:
        path.unlink()
    else:
        changed = change if isinstance(change, bytes) else json.dumps(json.loads(path.read_bytes()) | change).encode()
        path.write_bytes(changed)
    assert drain(world, made) == expected
    explained = world.query("explain", made["run_id"])[1]
    assert (explained["run_receipt"] or {}).get("reason_code", "") == expected[1]


def test_a_run_receipt_that_changes_after_ready_is_found_by_verify(world: World) -> None:
    made = make(world, "later")
    world.drop(made["request"])
    world.serve()
    path = Path(made["request"]["engine_run_root"]) / "run_receipt.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"seed": 99}), "utf-8")
    assert world.query("verify", made["run_id"])[0] == 1


DENIALS: dict[str, Any] = {
    "gate_passed": False, "overall_status": "FAIL", "failed": True, "errors": ["x"], "failures": 3,
    "run_state": "FAILED", "validation_result": None, "is_valid": "no",
}  # fmt: skip


@pytest.mark.parametrize("key", DENIALS)
def test_a_flag_that_denies_in_other_words_says_no(world: World, key: str) -> None:
    made = make(world, key)
    flag = flag_of(made)
    digest = re.search(rb"[0-9a-f]{64}", flag.read_bytes())
    assert digest is not None
    flag.write_text(json.dumps({"sha256_hex": digest.group().decode(), key: DENIALS[key]}), "utf-8")
    assert drain(world, made) == ("FAILED", SAYS_NO)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"gate_id": "gate.layer1.9Z.validation"}, ("QUARANTINED", CONFLICT)),
        ({"manifest_fingerprint": "0" * 64}, ("QUARANTINED", CONFLICT)),
        ({"gate_passed": True, "errors": [], "failed": False, "created_by": "engine", "status": "PASS"}, ("READY", "")),
    ],
    ids=["another gate", "another manifest", "all is well"],
)
def test_a_flag_is_about_its_own_gate_and_manifest(
    world: World, extra: dict[str, Any], expected: tuple[str, str]
) -> None:
    made = make(world, str(extra))
    flag = flag_of(made)
    digest = re.search(rb"[0-9a-f]{64}", flag.read_bytes())
    assert digest is not None
    flag.write_text(json.dumps({"sha256_hex": digest.group().decode(), **extra}), "utf-8")
    assert drain(world, made) == expected
