"""Publishing to a stream whose answers are throttled, partial, lost or refused; and looking for a message on it."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError, NoCredentialsError, ReadTimeoutError

from scenario_runner.authority.values import OutboxRow
from scenario_runner.bus.base import PublishResult, SearchInconclusive
from scenario_runner.bus.envelope import signal_envelope
from scenario_runner.bus.kinesis import KinesisPublisher, put_requests
from scenario_runner.bus.stream import MAX_RECORD_BYTES, MAX_REQUEST_BYTES, Stream
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.contracts.states import SignalKind
from scenario_runner.retry import RetryPolicy

pytestmark = pytest.mark.unit

TOPIC = "t"


def refusal(code: str, status: int = 400) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "PutRecords")


@dataclass
class FakeKinesis:
    """A stream in memory that answers as told.

    ``answers`` holds one function for each of the next requests; it gets the records and returns error codes by index,
    or raises. ``lose`` raises after the records were taken.
    """

    answers: list[Callable[[Sequence[dict[str, Any]]], dict[int, str]]] = field(default_factory=list)
    requests: list[list[dict[str, Any]]] = field(default_factory=list)
    stream: list[bytes] = field(default_factory=list)
    lose: list[Exception] = field(default_factory=list)
    pages: list[dict[str, Any]] = field(default_factory=list)
    retention: int = 24

    def put_records(self, StreamName: str, Records: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        self.requests.append(Records)
        codes = self.answers.pop(0)(Records) if self.answers else {}
        taken = [item for index, item in enumerate(Records) if index not in codes]
        self.stream += [item["Data"] for item in taken]
        if self.lose:
            raise self.lose.pop(0)
        return {
            "Records": [
                {"ErrorCode": codes[index], "ErrorMessage": "slow down"}
                if index in codes
                else {"ShardId": "shard-0", "SequenceNumber": str(index)}
                for index in range(len(Records))
            ]
        }

    def describe_stream_summary(self, **_: Any) -> dict[str, Any]:
        return {"StreamDescriptionSummary": {"StreamStatus": "ACTIVE", "RetentionPeriodHours": self.retention}}

    def list_shards(self, **_: Any) -> dict[str, Any]:
        half = 1 << 127
        spans = [("left", 0, half - 1), ("right", half, 2 * half - 1)]
        return {
            "Shards": [
                {"ShardId": name, "HashKeyRange": {"StartingHashKey": str(low), "EndingHashKey": str(high)}}
                for name, low, high in spans
            ]
        }

    def get_shard_iterator(self, ShardId: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        return {"ShardIterator": ShardId}

    def get_records(self, ShardIterator: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        self.requests.append([{"read": ShardIterator}])
        page = self.pages.pop(0) if self.pages else {"Records": [], "MillisBehindLatest": 0}
        return {"NextShardIterator": ShardIterator, **page}


def stream_of(kinesis: Any, **changes: Any) -> Stream:
    return Stream("bus", connect=lambda *_: kinesis, sleep=lambda _: None, **changes)


def row(number: int, run: int | None = None, **changes: Any) -> OutboxRow:
    run_id = f"{number if run is None else run:032x}"
    made = OutboxRow(
        outbox_id=number,
        message_id=hashlib.sha256(str(number).encode()).hexdigest(),
        run_id=run_id,
        kind=SignalKind.READY,
        partition_key=run_id,
        attributes={},
        payload=canonical_bytes({"n": number}),
        created_us=number,
        attempts=1,
    )
    return replace(made, **changes)


def publish(kinesis: FakeKinesis, *rows: OutboxRow, **changes: Any) -> list[PublishResult]:
    """Publish rows; the results without their receipts."""
    results = KinesisPublisher(stream_of(kinesis, **changes), TOPIC).publish(rows)
    assert [bool(item.receipt) for item in results] == [not item.error for item in results]
    return [replace(item, receipt="") for item in results]


def sent(*rows: OutboxRow) -> list[bytes]:
    return [signal_envelope(TOPIC, item) for item in rows]


def test_only_the_records_that_failed_are_sent_again() -> None:
    kinesis = FakeKinesis([lambda _: {1: "ProvisionedThroughputExceededException"}, lambda _: {}])
    rows = [row(1), row(2), row(3)]
    assert publish(kinesis, *rows) == [PublishResult(number, "") for number in (1, 2, 3)]
    assert [len(request) for request in kinesis.requests] == [3, 1]
    assert kinesis.stream == sent(rows[0], rows[2], rows[1])


def test_a_lost_answer_is_sent_again_with_the_same_bytes() -> None:
    kinesis = FakeKinesis(lose=[ReadTimeoutError(endpoint_url="x"), ConnectTimeoutError(endpoint_url="x")])
    assert publish(kinesis, row(1)) == [PublishResult(1, "")]
    assert kinesis.stream == sent(row(1)) * 3


@pytest.mark.parametrize("code", ["InternalFailure", "LimitExceededException", "AnythingElse"])
def test_what_may_pass_is_tried_again(code: str) -> None:
    kinesis = FakeKinesis(lose=[refusal(code, 503)])
    assert publish(kinesis, row(1)) == [PublishResult(1, "")]


@pytest.mark.parametrize("error", [refusal("ResourceNotFoundException"), refusal("AccessDeniedException"),
                                   refusal("ValidationException"), NoCredentialsError()])  # fmt: skip
def test_what_will_not_pass_is_reported_at_once_for_every_signal(error: Exception) -> None:
    kinesis = FakeKinesis(lose=[error, error])
    results = publish(kinesis, row(1), row(2))
    assert [bool(item.error) for item in results] == [True, True]
    assert len(kinesis.requests) == 1
    assert "bus" in results[0].error


def test_throttling_that_lasts_is_reported_and_the_rest_counts_as_sent() -> None:
    def slow(records: Sequence[dict[str, Any]]) -> dict[int, str]:
        keys = [item["PartitionKey"] for item in records]
        return {keys.index(row(2).partition_key): "ProvisionedThroughputExceededException"}

    kinesis = FakeKinesis([slow] * 1_000_000)
    results = publish(kinesis, row(1), row(2), row(3), retry=RetryPolicy(0.01, 0.01, deadline_seconds=0.05))
    assert [bool(item.error) for item in results] == [False, True, False]
    assert "Provisioned" in results[1].error


def test_no_request_holds_two_signals_of_one_run_and_they_keep_their_order() -> None:
    kinesis = FakeKinesis()
    rows = [row(1, run=7), row(2, run=8), row(3, run=7), row(4, run=7), row(5, run=8)]
    assert publish(kinesis, *rows) == [PublishResult(item.outbox_id, "") for item in rows]
    for request in kinesis.requests:
        keys = [item["PartitionKey"] for item in request]
        assert len(keys) == len(set(keys))
    assert kinesis.stream == sent(rows[0], rows[1], rows[2], rows[4], rows[3])


def test_a_signal_that_could_not_be_sent_holds_back_the_later_ones_of_its_run() -> None:
    kinesis = FakeKinesis(lose=[refusal("ValidationException")])
    stuck = [row(1, run=7), row(2, run=7), row(3, run=7)]
    results = publish(kinesis, *stuck)
    assert [bool(item.error) for item in results] == [True, True, True]
    assert len(kinesis.requests) == 1
    assert "earlier signal" in results[2].error


def test_what_is_too_large_is_never_sent() -> None:
    kinesis = FakeKinesis()
    large = row(1, payload=canonical_bytes({"pad": "x" * MAX_RECORD_BYTES}))
    results = publish(kinesis, large, row(2))
    assert [(bool(item.error), item.permanent) for item in results] == [(True, True), (False, False)]
    assert kinesis.stream == sent(row(2))


def test_requests_stay_within_what_the_service_takes() -> None:
    kinesis = FakeKinesis()
    rows = [row(number) for number in range(1, 1201)]
    assert {item.error for item in publish(kinesis, *rows)} == {""}
    assert [len(request) for request in kinesis.requests] == [500, 500, 200]
    kinesis.requests.clear()
    heavy = [row(number, payload=canonical_bytes({"pad": "x" * 900_000})) for number in range(1, 13)]
    assert {item.error for item in publish(kinesis, *heavy)} == {""}
    for request in kinesis.requests:
        assert sum(len(item["Data"]) + len(item["PartitionKey"]) for item in request) <= MAX_REQUEST_BYTES


def put(kinesis: FakeKinesis, *requests: tuple[str, bytes]) -> list[str | Unavailable]:
    return put_requests(stream_of(kinesis), requests)


def test_a_submitted_request_that_is_not_surely_on_the_stream_is_unavailable() -> None:
    assert put(FakeKinesis(), ("a" * 32, b"{}")) == ["kinesis/bus/shard-0/0"]
    (lost,) = put(FakeKinesis(lose=[refusal("ValidationException")]), ("a" * 32, b"{}"))
    assert isinstance(lost, Unavailable)


def test_many_requests_go_in_few_calls_and_those_that_failed_are_sent_again() -> None:
    kinesis = FakeKinesis([lambda _: dict.fromkeys((1, 498), "ProvisionedThroughputExceededException")])
    keys = put(kinesis, *((f"{number:032x}", b"%d" % number) for number in range(700)))
    assert [len(request) for request in kinesis.requests] == [500, 2, 200]
    assert (keys[0], keys[1], keys[2]) == tuple(f"kinesis/bus/shard-0/{number}" for number in (0, 0, 2))
    assert sorted(kinesis.stream, key=int) == [b"%d" % number for number in range(700)]


def test_requests_of_one_run_keep_their_order_and_one_that_failed_holds_back_the_later_ones() -> None:
    kinesis = FakeKinesis()
    put(kinesis, ("a", b"1"), ("b", b"2"), ("a", b"3"))
    assert kinesis.stream == [b"1", b"2", b"3"]
    assert [len(request) for request in kinesis.requests] == [2, 1]
    stuck = FakeKinesis([lambda _: {0: "AnythingElse"}] * 1000)
    stream = stream_of(stuck, retry=RetryPolicy(0.0, 0.0, most_tries=2))
    first, other, later = put_requests(stream, [("a", b"1"), ("b", b"2"), ("a", b"3")])
    assert (isinstance(first, Unavailable), other) == (True, "kinesis/bus/shard-0/1")
    assert isinstance(later, Unavailable)
    assert "earlier" in later.detail
    assert b"3" not in stuck.stream


def test_a_stream_that_does_not_exist_is_a_matter_of_configuration() -> None:
    class Absent(FakeKinesis):
        def describe_stream_summary(self, **_: Any) -> dict[str, Any]:
            raise refusal("ResourceNotFoundException")

    with pytest.raises(ConfigurationError, match="create it"):
        stream_of(Absent()).check()


# --- looking --------------------------------------------------------------------------------------------------------

NOW_US = 1_900_000_000_000_000


@pytest.fixture(autouse=True)
def _at_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenario_runner.bus.stream.time.time_ns", lambda: NOW_US * 1000)


def page(*data: bytes, behind: int = 0) -> dict[str, Any]:
    return {"Records": [{"Data": item} for item in data], "MillisBehindLatest": behind}


def test_a_message_is_looked_for_on_the_shard_of_its_key_through_empty_pages() -> None:
    (data,) = sent(row(1))
    kinesis = FakeKinesis(pages=[page(behind=9), page(b"junk", row(1).message_id.encode()), page(behind=9), page(data)])
    assert stream_of(kinesis).find(row(1).message_id, "key", NOW_US) == data
    shard = "left" if hashlib.md5(b"key").digest()[0] < 128 else "right"
    assert {request[0]["read"] for request in kinesis.requests} == {shard}


def test_a_message_that_is_not_there_is_missing_only_when_everything_was_read() -> None:
    assert stream_of(FakeKinesis()).find("0" * 64, "key", NOW_US) is None
    old = NOW_US - 25 * 3600 * 1_000_000
    trimmed = stream_of(FakeKinesis()).find("0" * 64, "key", old)
    assert isinstance(trimmed, SearchInconclusive)
    assert "24 h" in trimmed.why


def test_looking_gives_up_and_says_so() -> None:
    class Endless(FakeKinesis):
        def get_records(self, ShardIterator: str, **_: Any) -> dict[str, Any]:  # noqa: N803
            return {"NextShardIterator": ShardIterator, **page(b"x", behind=1)}

    clock = iter(range(10_000))
    found = stream_of(Endless(), monotonic=lambda: float(next(clock))).find("0" * 64, "key", NOW_US)
    assert isinstance(found, SearchInconclusive)
    assert "gave up" in found.why


HOUR_US = 3600 * 1_000_000


@dataclass
class Timed(FakeKinesis):
    """A stream whose clock differs from ours: its records carry its own time, and it is asked for times of its own."""

    off_us: int = 0
    arrived: list[tuple[int, bytes]] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)

    def get_shard_iterator(self, ShardId: str, Timestamp: float, **_: Any) -> dict[str, Any]:  # noqa: N803
        begin_us = round(Timestamp * 1_000_000)
        if begin_us > NOW_US + self.off_us:
            raise refusal("InvalidArgumentException")
        self.begun.append(begin_us)
        return {"ShardIterator": str(begin_us)}

    def get_records(self, ShardIterator: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        found = [(at, data) for at, data in self.arrived if at >= int(ShardIterator)]
        records = [
            {"Data": data, "ApproximateArrivalTimestamp": datetime.fromtimestamp(at / 1e6, UTC)} for at, data in found
        ]
        return {"Records": records, "MillisBehindLatest": 0, "NextShardIterator": str(NOW_US + 9 * HOUR_US)}


@pytest.mark.parametrize("off", [-HOUR_US, -2 * HOUR_US + 60_000_000, 0, HOUR_US])
@pytest.mark.parametrize("ago", [60_000_000, 5 * HOUR_US])
def test_a_message_is_found_on_a_stream_whose_clock_differs_by_an_hour(off: int, ago: int) -> None:
    (data,) = sent(row(1))
    kinesis = Timed(off_us=off, arrived=[(NOW_US - ago + off, data)])
    assert stream_of(kinesis).find(row(1).message_id, "key", NOW_US - ago) == data


def test_the_hours_before_are_read_only_when_nothing_was_found_and_no_record_twice() -> None:
    (data,) = sent(row(1))
    arrived = [(NOW_US - HOUR_US, b"early"), (NOW_US, b"late")]
    kinesis = Timed(arrived=[*arrived, (NOW_US, data)])
    assert stream_of(kinesis).find(row(1).message_id, "key", NOW_US) == data
    assert kinesis.begun == [NOW_US - 300_000_000]
    kinesis, read = Timed(arrived=arrived), list[bytes]()
    stream = stream_of(kinesis)
    assert stream.find("0" * 64, "key", NOW_US) is None
    assert kinesis.begun == [NOW_US - 300_000_000, NOW_US - 2 * HOUR_US]
    for begin, end in ((NOW_US - 300_000_000, None), (NOW_US - 2 * HOUR_US, NOW_US - 300_000_000)):
        read += stream._read("left", begin, end)
    assert read == [b"late", b"early"]
