"""Signals are published again on a real stream: by the command and by a record, with the installed daemon between."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from streaming import ENDPOINT, TOPIC, WHY_NOT, KinesisWorld, records_of, seed_leases

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.localstack, pytest.mark.skipif(not ENDPOINT, reason=WHY_NOT)]

SMALL: dict[str, Any] = {"members": 2, "parts": 1, "outputs": ["s3_candidate_set_1A"]}


class Scene:
    """A run that is READY and one that is QUARANTINED, whose signals are on a stream."""

    def __init__(self, root: Path) -> None:
        self.world = KinesisWorld(root / "world")
        seed_leases(self.world)
        self.ready = self.world.make_run("ready", seed=1, **SMALL)
        self.bad = self.world.make_run("bad", seed=2, damage="flag_bit_off", **SMALL)
        self.world.put(self.ready["request"], self.bad["request"])
        self.drain()

    def drain(self) -> None:
        served = self.world.serve(timeout=180)
        assert served.returncode == 0, served.stderr.decode()[-3000:]

    def records(self, run: dict[str, Any], *kinds: str) -> list[dict[str, Any]]:
        """Records of a run's signals in the order of the stream, each with its ``Envelope``."""
        found = []
        for record in records_of(self.world.stream, self.world.kinesis):
            envelope = json.loads(record["Data"])
            kind = envelope.get("attributes", {}).get("kind")
            if kind in kinds and envelope["payload"]["run_id"] == run["run_id"]:
                found.append({**record, "Envelope": envelope})
        return found

    def reemit(self, run: dict[str, Any], *more: str) -> tuple[int, dict[str, Any]]:
        done = self.world.command(
            "reemit", run["run_id"], "--wiring", str(self.world.wiring), "--reason", "e2e", "--json", *more
        )
        assert done.stdout, done.stderr.decode()[-2000:]
        return done.returncode, json.loads(done.stdout)

    def ask(self, run: dict[str, Any], message_id: str, **payload: Any) -> str:
        """Put a REEMIT_REQUEST on the stream; returns the key of its record."""
        envelope = {
            "topic": TOPIC, "message_id": message_id, "published_at_utc": "2026-01-01T00:00:00Z",
            "attributes": {"kind": "REEMIT_REQUEST"}, "partition_key": run["run_id"],
            "payload": {"run_id": run["run_id"], "reemit_kind": "BOTH", "requested_by": "ops", **payload},
        }  # fmt: skip
        (key,) = self.world.put(envelope)
        return key

    def events(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        return [line for line in self.world.document("run_record", run["run_id"], "jsonl")
                if line["event_kind"].startswith("REEMIT_")]  # fmt: skip


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    yield Scene(tmp_path)
    assert os.environ["SR_KINESIS_ENDPOINT_URL"] == ENDPOINT


def same_message(first: dict[str, Any], again: dict[str, Any]) -> None:
    """The second record repeats the first: message id, payload, partition key, shard and the first's attributes."""
    one, other = first["Envelope"], again["Envelope"]
    for key in ("message_id", "payload", "partition_key", "topic"):
        assert one[key] == other[key]
    kind, run_id = one["attributes"]["kind"], one["payload"]["run_id"]
    assert other["attributes"] == {**one["attributes"], "kind": f"{kind}_REEMIT", "run_id": run_id}
    assert (first["PartitionKey"], first["ShardId"]) == (again["PartitionKey"], again["ShardId"])
    assert other["published_at_utc"] > one["published_at_utc"]


def test_signals_are_published_again_by_the_command_and_by_a_record(scene: Scene) -> None:
    status = scene.world.document("run_status", scene.ready["run_id"])
    for run, kind in ((scene.ready, "READY"), (scene.bad, "TERMINAL")):
        code, answer = scene.reemit(run)
        assert (code, answer["outcome"], answer["kind"]) == (0, "PUBLISHED", f"{kind}_REEMIT")
        (first,), (again,) = scene.records(run, kind), scene.records(run, f"{kind}_REEMIT")
        same_message(first, again)
        assert answer["receipt"] == {
            "stream": scene.world.stream, "shard_id": again["ShardId"], "sequence_number": again["SequenceNumber"],
        }  # fmt: skip

    accepted = scene.ask(scene.ready, "ask-1", reason="a consumer lost its offset")
    refused = scene.ask(scene.ready, "ask-2", reemit_kind="TERMINAL_ONLY")
    rehearsed = scene.ask(scene.bad, "ask-3", dry_run=True)
    scene.drain()
    found = scene.world.dispositions()
    assert [found[key] for key in (accepted, refused, rehearsed)] == ["ACCEPTED", "REJECTED", "ACCEPTED"]
    (first,), repeated = scene.records(scene.ready, "READY"), scene.records(scene.ready, "READY_REEMIT")
    assert len(repeated) == 2
    for again in repeated:
        same_message(first, again)
    assert len(scene.records(scene.bad, "TERMINAL_REEMIT")) == 1
    (rejected,) = scene.records(scene.ready, "REQUEST_REJECTED")
    assert rejected["Envelope"]["payload"]["reason_code"] == "REEMIT_TERMINAL_ONLY_MISMATCH"

    told = [event["event_kind"] for event in scene.events(scene.ready)]
    assert sorted(told) == ["REEMIT_FAILED"] + ["REEMIT_PUBLISHED"] * 2 + ["REEMIT_REQUESTED"] * 3
    published = [event["details"] for event in scene.events(scene.ready) if event["event_kind"] == "REEMIT_PUBLISHED"]
    lying = {(record["ShardId"], record["SequenceNumber"]) for record in repeated}
    assert {(item["receipt"]["shard_id"], item["receipt"]["sequence_number"]) for item in published} == lying
    assert scene.world.document("run_status", scene.ready["run_id"]) == status
    code, document = scene.world.query("explain", scene.ready["run_id"])
    assert code == 0
    assert next((item["kind"], "receipt" in item) for item in document["signals"]) == ("READY", True)
    assert {(act["actor"], act["via"]) for act in document["actions"]} >= {("ops", "bus")}
    assert scene.world.query("verify", scene.ready["run_id"])[1]["outcome"] == "PASS"


def test_ready_is_not_published_again_when_its_facts_view_drifts(scene: Scene) -> None:
    view = scene.world.ledger / "run_facts_view" / f"{scene.ready['run_id']}.json"
    data = view.read_bytes()
    view.write_bytes(data.replace(b"PASS", b"FAIL", 1))
    code, answer = scene.reemit(scene.ready)
    assert (code, answer["reason_code"]) == (1, "FACTS_VIEW_DRIFT")
    key = scene.ask(scene.ready, "ask-1")
    scene.drain()
    assert scene.world.dispositions()[key] == "ACCEPTED"
    assert scene.records(scene.ready, "READY_REEMIT") == []
    assert [event["event_kind"] for event in scene.events(scene.ready)] == ["REEMIT_REQUESTED", "REEMIT_FAILED"] * 2
    view.write_bytes(data)
    assert scene.reemit(scene.ready)[0] == 0
    assert len(scene.records(scene.ready, "READY_REEMIT")) == 1


def test_many_are_published_again_at_a_bounded_rate(scene: Scene) -> None:
    requests = [{**scene.ready["request"], "run_equivalence_key": f"many-{number}"} for number in range(5)]
    scene.world.put(*requests)
    scene.drain()
    arguments = ("--state", "READY", "--since", "2020-01-01T00:00:00Z", "--reason", "rehydrate", "--rate", "50")
    done = scene.world.command("reemit", "--wiring", str(scene.world.wiring), "--json", *arguments)
    assert done.returncode == 0, done.stderr.decode()
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["outcome"] for line in lines] == ["PUBLISHED"] * 6
    first = {item["message_id"]: item for item in scene.world.signals("READY_REEMIT")}
    assert {line["message_id"] for line in lines} == set(first)
