"""``submit`` and ``plan`` as a person or a program calls them."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import pytest
from commands_support import UNKNOWN, snapshot, write_request
from support import SMALL, ForkedWorld, World

from scenario_runner.contracts.ids import run_id_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def test_submit_drops_an_envelope_that_becomes_ready(world: World) -> None:
    run = world.make_run(**SMALL)
    sent = world.command("submit", "--wiring", str(world.wiring), write_request(world, run["request"]), "--json")
    assert sent.returncode == 0
    document = json.loads(sent.stdout)
    assert document["run_id"] == run["run_id"]
    assert re.fullmatch("[0-9a-f]{64}", document["message_id"])
    (dropped,) = (world.bus / "requests").glob("*.json")
    envelope = json.loads(dropped.read_bytes())
    assert envelope["message_id"] == document["message_id"]
    assert envelope["partition_key"] == run["run_id"]
    assert envelope["payload"] == run["request"]
    for command in ("status", "explain"):
        code, found = world.query(command, run["run_id"])
        assert (code, found["state"]) == (3, "SUBMITTED")
        assert dropped.name in found["detail"]
    assert not world.database.exists()
    assert world.serve().returncode == 0
    assert world.query("status", run["run_id"])[0] == 0


def test_a_request_that_a_killed_daemon_had_claimed_is_still_submitted(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    run = world.make_run(**SMALL)
    world.drop(run["request"])
    lot = world.bus / ".private/claimed/0123456789abcdef"
    lot.mkdir(parents=True)
    (world.bus / "requests/request.json").rename(lot / "request.json")
    assert world.query("status", run["run_id"])[1]["state"] == "SUBMITTED"
    assert world.query("status", UNKNOWN)[0] == 2
    assert world.serve().returncode == 0
    assert world.query("status", run["run_id"])[0] == 0
    assert not lot.exists()


def test_a_corrected_request_that_was_submitted_again_is_submitted_and_no_longer_rejected(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    run = world.make_run(**SMALL)
    world.drop(run["request"] | {"seed": "7"})
    assert world.serve().returncode == 0
    assert world.query("status", run["run_id"])[1]["state"] == "REJECTED"
    world.drop(run["request"])
    assert world.query("status", run["run_id"])[1]["state"] == "SUBMITTED"
    assert world.serve().returncode == 0
    assert world.query("status", run["run_id"])[1]["state"] == "READY"


def test_a_run_is_looked_for_in_requests_of_our_topic_and_in_nothing_else(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    request = world.make_run(**SMALL)
    envelope = {
        "topic": "orders.v1", "message_id": "m", "published_at_utc": "2026-01-01T00:00:00Z",
        "attributes": {"kind": "RUN_REQUEST"}, "partition_key": "p", "payload": request["request"],
    }  # fmt: skip
    world.drop(envelope, "foreign.json")
    world.drop(request["request"], "request.json.txt")
    world.drop(request["request"], "folder.json").rename(world.root / "elsewhere.json")
    (world.bus / "requests/link.json").symlink_to(world.root / "elsewhere.json")
    os.mkfifo(world.bus / "requests/fifo.json")
    assert world.query("status", request["run_id"])[0] == 2
    world.drop(envelope | {"topic": "fp.bus.control.v1"}, "ours.json")
    assert world.query("status", request["run_id"])[0] == 3


@pytest.mark.parametrize("command", ["status", "explain"])
def test_on_a_stream_an_unknown_run_is_one_that_was_not_seen_yet(tmp_path: Path, command: str) -> None:
    world = ForkedWorld(
        tmp_path / "world",
        {"control_bus_kind": "kinesis", "control_bus_root": None, "control_bus_stream": "s",
         "control_bus_region": "eu-west-2"},
    )  # fmt: skip
    code, found = world.query(command, UNKNOWN)
    assert (code, found["state"], found["reason_code"]) == (3, "NOT_SEEN", "RUN_NOT_SEEN")
    assert found["sentence"]


def test_what_a_terminal_would_obey_is_shown_escaped(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    run = world.make_run(**SMALL)
    root = str(world.runs / "nobody\u202etxt.exe\x9b31m\u2028")
    world.drop(run["request"] | {"engine_run_root": root, "run_equivalence_key": "k\u202e"}, "\u202eno\x9b.json")
    served = world.serve()
    shown = world.command("status", run_id_of("k\u202e"), "--wiring", str(world.wiring))
    explained = world.command("explain", run_id_of("k\u202e"), "--wiring", str(world.wiring))
    world.drop(run["request"], "\u2066left\u2069.JSON")
    doctor = world.command("doctor", "--wiring", str(world.wiring))
    for text in (served.stderr, shown.stdout, explained.stdout, doctor.stdout):
        assert text
        assert not re.search("[\x80-\x9f\u200e\u200f\u061c\u2028-\u202e\u2066-\u2069]", text.decode())
    assert [item["reason_code"] for item in world.rejected()] == ["REQUEST_SCHEMA_INVALID"]
    assert b"\\u2066left" in doctor.stdout


def test_submit_reads_standard_input_and_prints_both_ids_for_people(world: World) -> None:
    run = world.make_run(**SMALL)
    sent = world.command("submit", "--wiring", str(world.wiring), "-", stdin=json.dumps(run["request"]).encode())
    assert sent.returncode == 0
    assert run["run_id"].encode() in sent.stdout
    assert re.search(rb"[0-9a-f]{64}", sent.stdout)
    again = world.command("submit", "--wiring", str(world.wiring), "-", stdin=json.dumps(run["request"]).encode())
    assert again.returncode == 0
    assert len(list((world.bus / "requests").glob("*.json"))) == 2
    assert world.serve().returncode == 0
    assert len(world.signals("READY")) == 1


@pytest.mark.parametrize(
    ("data", "reason_code"),
    [
        (b"", "RECORD_NOT_JSON"),
        (b"[]", "RECORD_NOT_JSON"),
        (b"\xff", "RECORD_NOT_JSON"),
        (b"{}", "REQUEST_SCHEMA_INVALID"),
        (b'{"a":1,"a":1}', "RECORD_NOT_JSON"),
        (b"[" * 100_000, "RECORD_NOT_JSON"),
        (b" " * (2 << 20), "RECORD_TOO_LARGE"),
        (b'{"attributes":{"kind":"READY"},"payload":{}}', "KIND_NOT_SERVED"),
        (b'{"attributes":{"kind":"X"},"payload":{}}', "KIND_UNKNOWN"),
    ],
)
def test_submit_refuses_a_bad_document_and_drops_nothing(tmp_path: Path, data: bytes, reason_code: str) -> None:
    world = ForkedWorld(tmp_path / "world")
    before = snapshot(world.root)
    sent = world.command("submit", "--wiring", str(world.wiring), "-", "--json", stdin=data)
    assert sent.returncode == 1
    assert json.loads(sent.stdout)["error"]["reason_code"] == reason_code
    assert reason_code.encode() in sent.stderr
    assert snapshot(world.root) == before


def test_submit_of_no_file_is_a_usage_error(world: World) -> None:
    for name in ("nowhere.json", str(world.root)):
        assert world.command("submit", "--wiring", str(world.wiring), name).returncode == 2


# --- plan


def test_plan_says_what_a_run_would_get_and_touches_nothing(world: World) -> None:
    run = world.make_run(**SMALL)
    request = write_request(world, run["request"])
    before = snapshot(world.root)
    arguments = ["plan", "--wiring", str(world.wiring), "--policy", str(world.policy), request]
    planned = world.command(*arguments, "--json")
    text = world.command(*arguments)
    assert snapshot(world.root) == before
    assert (planned.returncode, text.returncode, planned.stderr) == (0, 0, b"")
    document = json.loads(planned.stdout)
    assert document["run_id"] == run["run_id"]
    for part in (run["run_id"], "outlet_catalogue", "gate.layer1.1A.validation", document["plan_hash"]):
        assert part.encode() in text.stdout
    world.drop(run["request"])
    assert world.serve().returncode == 0
    written = world.document("run_plan", run["run_id"])
    for key in ("plan_hash", "intended_outputs", "required_gates", "policy_rev", "attempt_limit", "strategy"):
        assert document[key] == written[key]


def test_plan_of_a_request_that_would_be_refused_says_why(world: World) -> None:
    request = world.make_run(**SMALL)["request"]
    arguments = ["plan", "--wiring", str(world.wiring), "--policy", str(world.policy)]
    refusals = {
        "UNKNOWN_OUTPUT_ID": request | {"output_ids": ["nope"]},
        "ENGINE_ROOT_NOT_ALLOWED": request | {"engine_run_root": "/etc"},
        "REQUEST_SCHEMA_INVALID": request | {"seed": "7"},
    }
    for reason_code, document in refusals.items():
        planned = world.command(*arguments, "-", "--json", stdin=json.dumps(document).encode())
        assert planned.returncode == 1
        assert json.loads(planned.stdout)["error"]["reason_code"] == reason_code
