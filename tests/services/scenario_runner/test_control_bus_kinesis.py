"""The adapter to the stream, against a real endpoint: what is published is on the stream, whole and in order."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from streaming import ENDPOINT, MADE, REGION, TOPIC, WHY_NOT, client, delete_streams, make_stream, records_of

from scenario_runner.authority.values import OutboxRow
from scenario_runner.bus.base import PublishResult, SearchInconclusive
from scenario_runner.bus.envelope import signal_envelope
from scenario_runner.bus.kinesis import KinesisPublisher, put_requests
from scenario_runner.bus.stream import MAX_RECORD_BYTES, Stream
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.contracts.states import SignalKind
from scenario_runner.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.localstack, pytest.mark.skipif(not ENDPOINT, reason=WHY_NOT)]


@pytest.fixture(scope="module")
def name() -> Iterator[str]:
    made = make_stream(shards=3)
    MADE.remove(made)  # it outlives one test
    yield made
    delete_streams([made])


@pytest.fixture
def stream(name: str) -> Stream:
    return Stream(name, REGION, ENDPOINT)


def row(number: int, kind: SignalKind = SignalKind.READY, **changes: Any) -> OutboxRow:
    run_id = hashlib.sha256(f"{number % 1000}".encode()).hexdigest()[:32]
    made = OutboxRow(
        outbox_id=number,
        message_id=hashlib.sha256(f"{number}{kind}".encode()).hexdigest(),
        run_id=run_id,
        kind=kind,
        partition_key=run_id,
        attributes={"facts_view_digest": "f" * 64},
        payload=canonical_bytes({"run_id": run_id, "bundle_hash": "b" * 64, "number": number}),
        created_us=1_767_225_600_000_000 + number,
        attempts=1,
    )
    return replace(made, **changes)


def test_what_is_published_is_read_back_byte_for_byte(stream: Stream) -> None:
    rows = [row(number) for number in range(1, 61)]
    results = KinesisPublisher(stream, TOPIC).publish(rows)
    assert [replace(result, receipt="") for result in results] == [PublishResult(item.outbox_id, "") for item in rows]
    lying = {(record["ShardId"], record["SequenceNumber"]): record["Data"] for record in records_of(stream.name)}
    for item, result in zip(rows, results, strict=True):
        receipt = json.loads(result.receipt)
        assert receipt["stream"] == stream.name
        assert lying[receipt["shard_id"], receipt["sequence_number"]] == signal_envelope(TOPIC, item)
    found = {json.loads(record["Data"]).get("message_id"): record for record in records_of(stream.name)}
    for item in rows:
        assert found[item.message_id]["Data"] == signal_envelope(TOPIC, item)
        assert found[item.message_id]["PartitionKey"] == item.run_id


def test_signals_of_one_run_are_on_its_shard_in_their_order(stream: Stream) -> None:
    rows = [row(100 + 1000 * n) for n in range(6)]
    assert {item.error for item in KinesisPublisher(stream, TOPIC).publish(rows)} == {""}
    ids = [item.message_id for item in rows]
    on_stream = [json.loads(record["Data"]).get("message_id") for record in records_of(stream.name)]
    assert [item for item in on_stream if item in ids] == ids


def test_a_signal_of_just_the_allowed_size_arrives_and_one_byte_more_is_not_sent(stream: Stream) -> None:
    def sized(number: int, size: int) -> OutboxRow:
        empty = row(number, payload=canonical_bytes({"pad": ""}))
        pad = size - len(signal_envelope(TOPIC, empty)) - len(empty.partition_key)
        return row(number, payload=canonical_bytes({"pad": "x" * pad}))

    results = KinesisPublisher(stream, TOPIC).publish(
        [sized(200, MAX_RECORD_BYTES), sized(201, MAX_RECORD_BYTES + 1), row(202)]
    )
    assert [bool(item.error) for item in results] == [False, True, False]


def test_a_message_is_found_again_by_its_id(stream: Stream) -> None:
    item = row(300)
    KinesisPublisher(stream, TOPIC).publish([row(number) for number in range(301, 400)] + [item])
    now_us = client().describe_stream_summary(StreamName=stream.name)["StreamDescriptionSummary"][
        "StreamCreationTimestamp"
    ].timestamp() * 1_000_000  # fmt: skip
    assert stream.find(item.message_id, item.run_id, int(now_us)) == signal_envelope(TOPIC, item)
    assert stream.find("0" * 64, item.run_id, int(now_us)) is None


def test_a_message_is_read_where_its_receipt_says(stream: Stream) -> None:
    items = [row(400), row(401)]
    one, other = (json.loads(result.receipt) for result in KinesisPublisher(stream, TOPIC).publish(items))
    place = (one["shard_id"], one["sequence_number"])
    assert stream.read_at(items[0].message_id, *place) == signal_envelope(TOPIC, items[0])
    assert stream.read_at(items[1].message_id, *place) is None, "another message lies there"
    assert stream.read_at(items[0].message_id, one["shard_id"], str(int(one["sequence_number"]) + 1)) is None
    assert stream.read_at(items[1].message_id, other["shard_id"], "1") is None, "of another stream"


def test_a_message_older_than_the_retention_is_not_called_missing(stream: Stream) -> None:
    assert isinstance(stream.find("0" * 64, "a" * 32, row(1).created_us - 10**15), SearchInconclusive)


def test_a_submitted_request_is_named_by_the_key_that_the_authority_will_know(stream: Stream) -> None:
    (key,) = put_requests(stream, [("c" * 32, b'{"a": 1}')])
    assert isinstance(key, str)
    kind, where, shard_id, number = key.split("/")
    found = {(record["ShardId"], record["SequenceNumber"]): record["Data"] for record in records_of(stream.name)}
    assert (kind, where) == ("kinesis", stream.name)
    assert found[shard_id, number] == b'{"a": 1}'


def test_a_stream_that_does_not_exist_is_reported_and_never_raised_by_the_publisher() -> None:
    absent = Stream("sr-no-such-stream", REGION, ENDPOINT)
    with pytest.raises(ConfigurationError, match="does not exist"):
        absent.check()
    (result,) = KinesisPublisher(absent, TOPIC).publish([row(1)])
    assert "sr-no-such-stream" in result.error


def test_an_endpoint_that_does_not_answer_is_unavailable() -> None:
    nobody = Stream("any", REGION, "http://127.0.0.1:9", retry=RetryPolicy(0.1, 0.1, deadline_seconds=0.5))
    with pytest.raises(Unavailable):
        nobody.check()
    results = KinesisPublisher(nobody, TOPIC).publish([row(1), row(2)])
    assert all("any" in item.error for item in results)
