"""Event notifications of S3 from a queue: which objects they name, who is told, and that no message ends the loop."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from botocore.exceptions import ClientError, ConnectTimeoutError

from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.counters import counts
from scenario_runner.intake import evidence_queue
from scenario_runner.intake.evidence_queue import AWAY, EvidenceQueue
from scenario_runner.intake.s3_events import NoEventError, created_objects, roots_above
from scenario_runner.profiles.wiring import parse_wiring
from scenario_runner.service import evidence_events
from scenario_runner.service.metrics import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scenario_runner.authority.acts import Arrival

pytestmark = pytest.mark.unit

URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/events"
ALLOWED = ("/folders/runs", "s3://engine/runs", "s3://others")


def event(key: str = "runs/a/data/f.parquet", name: str = "ObjectCreated:Put", bucket: str = "engine") -> Any:
    return {"eventSource": "aws:s3", "eventName": name, "s3": {"bucket": {"name": bucket}, "object": {"key": key}}}


def body(*events: Any) -> str:
    return json.dumps({"Records": list(events)})


def bridged(**changes: Any) -> str:
    detail = {"bucket": {"name": "engine"}, "object": {"key": "runs/a b/100%"}}
    return json.dumps({"source": "aws.s3", "detail-type": "Object Created", "detail": detail} | changes)


# --- what a message says ----------------------------------------------------------------------------------------------


def test_the_keys_of_events_are_decoded_wherever_they_come_from() -> None:
    assert created_objects(body(event("runs/a+b/%C3%BC%2B1"), event("x", "s3:ObjectCreated:Copy"))) == [
        "s3://engine/runs/a b/ü+1", "s3://engine/x",
    ]  # fmt: skip
    through_sns = json.dumps({"Type": "Notification", "Message": body(event("k"))})
    assert created_objects(through_sns) == ["s3://engine/k"]
    assert created_objects(bridged()) == ["s3://engine/runs/a b/100%"], "EventBridge encodes nothing"


@pytest.mark.parametrize(
    "text",
    [
        body(event(name="ObjectRemoved:Delete")),
        body(),
        json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "engine"}),
        bridged(**{"detail-type": "Object Deleted"}),
    ],
)
def test_what_is_no_new_object_names_none(text: str) -> None:
    assert created_objects(text) == []


HOSTILE: dict[str, Any] = {
    "no text": None,
    "empty": "",
    "no JSON": "hello",
    "a list": "[]",
    "nested deeply": '{"Records":' * 5000,
    "no events": "{}",
    "events that are no list": json.dumps({"Records": {"s3": 1}}),
    "too many events": body(*[event()] * 101),
    "an event that is a number": body(7),
    "an event of another service": body(event() | {"eventSource": "aws:ses"}),
    "an event without an object": body(event() | {"s3": {"bucket": {"name": "engine"}}}),
    "a bucket that is a list": body(event() | {"s3": {"bucket": {"name": ["x"]}, "object": {"key": "k"}}}),
    "a bucket with a slash": body(event(bucket="engine/runs")),
    "an empty key": body(event("")),
    "a long key": body(event("k" * 1025)),
    "a key with a NUL": body(event("runs/%00")),
    "a key with a line feed": body(event("runs/a\nb")),
    "a key that is no UTF-8": body(event("runs/%ff")),
    "a key with half a surrogate pair": '{"Records":[' + json.dumps(event("runs/@")).replace("@", "\\ud800") + "]}",
    "half a surrogate pair": "\ud800",
    "SNS around nothing": json.dumps({"Type": "Notification", "Message": 7}),
    "SNS around SNS": json.dumps({"Type": "Notification", "Message": json.dumps({"Type": "Notification"})}),
    "SNS around a type that is long": json.dumps({"Type": "x" * 9999}),
    "SNS with a type that is no text": json.dumps({"Type": ["Notification"], "Message": body(event())}),
    "the same key twice": body(event()).replace('"eventName"', '"eventName": "ObjectCreated:Put", "eventName"'),
    "a number that is no number": body(event()).replace('"engine"', "NaN"),
    "a number without an end": '{"Records":' + "9" * 200_000 + "}",
    "events within events": body([event()]),
    "a name of an object that is a number": body(event() | {"s3": {"bucket": {"name": "b"}, "object": {"key": 7}}}),
    "text that is large": "x" * 1_000_000,
    "EventBridge without a detail": bridged(detail=None),
    "EventBridge with a detail that is a list": bridged(detail=[{"bucket": {"name": "engine"}}]),
    "EventBridge with an empty key": bridged(detail={"bucket": {"name": "engine"}, "object": {"key": ""}}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_event_of_s3_is_told_from_one(case: str) -> None:
    with pytest.raises(NoEventError) as caught:
        created_objects(HOSTILE[case])
    assert 0 < len(str(caught.value)) < 300, "a reason fits a line of the log"


def test_every_folder_of_an_object_from_the_allowed_root_on_may_be_a_run_root() -> None:
    assert list(roots_above("s3://engine/runs/a/data/f", ALLOWED)) == [
        "s3://engine/runs", "s3://engine/runs/a", "s3://engine/runs/a/data",
    ]  # fmt: skip
    assert list(roots_above("s3://others/f", ALLOWED)) == ["s3://others"]
    assert list(roots_above("s3://engine/runs10/f", ALLOWED)) == list(roots_above("s3://engine/runs", ALLOWED)) == []
    assert list(roots_above("/folders/runs/f", ("s3://engine",))) == []
    assert len(list(roots_above("s3://others/" + "d/" * 500, ALLOWED))) == 17


# --- the documented shapes, with all that stands in them --------------------------------------------------------------

KEY = "runs/night one/däta+1/part.parquet"
ENCODED = "runs/night+one/d%C3%A4ta%2B1/part.parquet"
RECORD: dict[str, Any] = {
    "eventVersion": "2.1", "eventSource": "aws:s3", "awsRegion": "us-west-2", "eventTime": "1970-01-01T00:00:00.000Z",
    "eventName": "ObjectCreated:CompleteMultipartUpload", "userIdentity": {"principalId": "AIDAJDPLRKLG7UEXAMPLE"},
    "requestParameters": {"sourceIPAddress": "172.16.0.1"},
    "responseElements": {"x-amz-request-id": "C3D13FE58DE4C810", "x-amz-id-2": "FMyUVURIY8"},
    "s3": {
        "s3SchemaVersion": "1.0", "configurationId": "testConfigRule",
        "bucket": {"name": "engine", "ownerIdentity": {"principalId": "A3NL1"}, "arn": "arn:aws:s3:::engine"},
        "object": {"key": ENCODED, "size": 1024, "eTag": "d41d8", "versionId": "096fKKXTRTtl3on89fVO",
                   "sequencer": "0055AED6DCD90281E5"},
    },
    "glacierEventData": None,
}  # fmt: skip
TEST_EVENT = {
    "Service": "Amazon S3", "Event": "s3:TestEvent", "Time": "2014-10-13T15:57:02.089Z", "Bucket": "engine",
    "RequestId": "5582815E1AEA5ADF", "HostId": "8cLeGAmw098X5cv4Zkwcmo8vvZa3eH3eKxsPzbB9wrR",
}  # fmt: skip


def enveloped(message: str, kind: str = "Notification") -> str:
    """As SNS delivers a message to a queue without raw delivery."""
    return json.dumps({
        "Type": kind, "MessageId": "63a3f6b6-d533-4a47-aef9-fcf5cf758c76", "Subject": "Amazon S3 Notification",
        "TopicArn": "arn:aws:sns:us-west-2:123456789012:events", "Message": message, "SignatureVersion": "1",
        "Timestamp": "2012-03-29T05:12:16.901Z", "Signature": "EXAMPLE", "SigningCertURL": "https://sns/cert.pem",
        "UnsubscribeURL": "https://sns/?Action=Unsubscribe",
        "MessageAttributes": {"a": {"Type": "String", "Value": "v"}},
    })  # fmt: skip


def of_eventbridge(kind: str, reason: dict[str, str]) -> str:
    return json.dumps({
        "version": "0", "id": "17793124-05d4-b198-2fde-7ededc63b103", "detail-type": kind, "source": "aws.s3",
        "account": "111122223333", "time": "2021-11-12T00:00:00Z", "region": "ca-central-1",
        "resources": ["arn:aws:s3:::engine"],
        "detail": {
            "version": "0", "bucket": {"name": "engine"}, "request-id": "N4N7GDK58NMKJ12R", "requester": "123456789012",
            "object": {"key": KEY, "size": 5, "etag": "b1946ac9", "version-id": "IYV3", "sequencer": "617f0829"},
            "source-ip-address": "1.2.3.4", **reason,
        },
    })  # fmt: skip


DIRECT = json.dumps({"Records": [RECORD]})
BRIDGED = of_eventbridge("Object Created", {"reason": "CompleteMultipartUpload"})
RESTORED = json.dumps({"Records": [RECORD | {
    "eventName": "ObjectRestore:Completed",
    "glacierEventData": {"restoreEventData": {"lifecycleRestorationExpiryTime": "2026-01-01T00:00:00.000Z",
                                              "lifecycleRestoreStorageClass": "GLACIER"}},
}]})  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        DIRECT, enveloped(DIRECT), BRIDGED, enveloped(BRIDGED), RESTORED,
        of_eventbridge("Object Restore Completed", {"restore-expiry-time": "2021-11-13T00:00:00Z"}),
    ],
    ids=["SQS, or SNS with raw delivery", "SNS", "EventBridge", "EventBridge and SNS", "restored", "restored, bridged"],
)  # fmt: skip
def test_every_way_of_an_event_of_s3_names_the_same_object(text: str) -> None:
    assert created_objects(text) == [f"s3://engine/{KEY}"]
    assert "s3://engine/runs/night one" in roots_above(f"s3://engine/{KEY}", ALLOWED)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(TEST_EVENT), enveloped(json.dumps(TEST_EVENT)),
        of_eventbridge("Object Restore Initiated", {"source-storage-class": "GLACIER"}),
        of_eventbridge("Object Tags Added", {}), RESTORED.replace("Completed", "Post"),
        DIRECT.replace("ObjectCreated:CompleteMultipartUpload", "ObjectCreated"),
        *(DIRECT.replace("ObjectCreated:CompleteMultipartUpload", name) for name in (
            "ObjectRemoved:DeleteMarkerCreated", "ObjectRestore:Delete", "LifecycleExpiration:Delete",
            "ObjectTagging:Put", "ReducedRedundancyLostObject", "Replication:OperationMissedThreshold",
            "s3:ObjectTagging:ObjectCreated:Put", "ObjectRestore:Completed:Not",
        )),
    ],
)  # fmt: skip
def test_what_else_s3_tells_names_no_object(text: str) -> None:
    assert created_objects(text) == []


@pytest.mark.parametrize("kind", ["SubscriptionConfirmation", "UnsubscribeConfirmation"])
def test_what_sns_says_of_itself_is_no_event_and_the_reason_names_it(kind: str) -> None:
    with pytest.raises(NoEventError, match=f"'{kind}' of SNS"):
        created_objects(enveloped("You have chosen to subscribe", kind))


# --- the queue --------------------------------------------------------------------------------------------------------


class Queue:
    """A queue as boto3 shows it, and an authority where runs wait at one root."""

    def __init__(self, *bodies: Any, waits: str = "s3://engine/runs/a") -> None:
        self.messages = [{"MessageId": f"{n}", "ReceiptHandle": f"r{n}", "Body": text} for n, text in enumerate(bodies)]
        self.waits, self.log = waits, list[tuple[str, Any]]()
        self.fails: dict[str, Exception] = {}
        authority: Any = self
        self.now = 0.0
        self.queue = EvidenceQueue(self, URL, authority, ALLOWED, lambda: self.now)

    def _called(self, name: str, arguments: Any) -> None:
        self.log.append((name, arguments))
        if name in self.fails:
            raise self.fails[name]

    def receive_message(self, **arguments: Any) -> Any:
        self._called("receive", arguments)
        return {"Messages": self.messages} if self.messages else {}

    def delete_message_batch(self, **arguments: Any) -> Any:
        self._called("delete", [entry["ReceiptHandle"] for entry in arguments["Entries"]])
        return {"Successful": []}

    def tell(self, arrivals: Sequence[Arrival]) -> list[int]:
        self._called("tell", [arrival.engine_run_root for arrival in arrivals])
        return [2 * (arrival.engine_run_root == self.waits) for arrival in arrivals]


def counted() -> dict[str, float]:
    found = counts()
    names = [("sr_evidence_events_total", name) for name in ("told", "unawaited", "other", "invalid")]
    return {name: found.get(key, 0) for key in (*names, ("sr_evidence_arrivals_total", "s3")) for name in key[1:]}


def test_runs_are_told_before_the_messages_are_deleted_each_root_once() -> None:
    bodies = [body(event("runs/a/f1")), body(event("runs/a/f2")), body(event("runs/b/f")), body(), "no event"]
    queue, before = Queue(*bodies), counted()
    assert queue.queue.step() == 5
    assert queue.log == [
        ("receive", {"QueueUrl": URL, "MaxNumberOfMessages": 10, "WaitTimeSeconds": 3}),
        ("tell", ["s3://engine/runs", "s3://engine/runs/a", "s3://engine/runs/b"]),
        ("delete", ["r0", "r1", "r2", "r3", "r4"]),
    ]
    assert {name: number - before[name] for name, number in counted().items()} == {
        "told": 2, "unawaited": 1, "other": 1, "invalid": 1, "s3": 2,
    }  # fmt: skip


def test_an_empty_queue_asks_the_authority_nothing() -> None:
    queue = Queue()
    assert queue.queue.step() == 0
    assert [name for name, _ in queue.log] == ["receive"]


@pytest.mark.parametrize("case", HOSTILE)
def test_a_message_of_anybody_is_deleted_and_tells_nobody(case: str) -> None:
    queue = Queue(HOSTILE[case], body(event("runs/a/f")))
    assert queue.queue.step() == 2
    assert ("tell", ["s3://engine/runs", "s3://engine/runs/a"]) in queue.log
    assert queue.log[-1] == ("delete", ["r0", "r1"])


def test_a_message_that_breaks_the_reader_is_deleted_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_body: str) -> list[str]:
        raise RuntimeError("a defect")

    monkeypatch.setattr(evidence_queue, "created_objects", breaks)
    queue = Queue(body(event()))
    assert queue.queue.step() == 1
    assert queue.log[-1] == ("delete", ["r0"])


def test_messages_of_anybody_do_not_fill_the_log() -> None:
    queue = Queue(*["no event"] * 9, "{}")
    with structlog.testing.capture_logs() as logs:
        for _ in range(100):
            assert queue.queue.step() == 10
        assert [line["detail"][:8] for line in logs] == ["not well", "it holds"]
        queue.now = 61.0
        queue.queue.step()
        assert [line["others_not_logged"] for line in logs] == [0, 8, 990, 8]
        del logs[:]
        for number in range(1000):
            queue.messages[0]["Body"] = f'{{"a{number}":1,"a{number}":2}}'
            queue.queue.step()
        assert len(logs) == 18, "as many reasons as messages are not logged either"


def test_a_queue_that_does_not_answer_is_counted() -> None:
    queue, before = Queue(), counts().get((AWAY, ""), 0)
    queue.fails["receive"] = ConnectTimeoutError(endpoint_url=URL)
    for _ in range(3):
        with pytest.raises(Unavailable):
            queue.queue.step()
    assert counts()[AWAY, ""] == before + 3
    assert AWAY in OPERATIONS


def test_a_message_is_not_deleted_whose_runs_could_not_be_told() -> None:
    queue = Queue(body(event("runs/a/f")))
    queue.fails["tell"] = Unavailable("the database is away")
    with pytest.raises(Unavailable, match="the database is away"):
        queue.queue.step()
    assert "delete" not in {name for name, _ in queue.log}


@pytest.mark.parametrize("call", ["receive", "delete"])
@pytest.mark.parametrize(
    "error",
    [
        ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "X"),
        ClientError({"Error": {"Code": "AWS.SimpleQueueService.NonExistentQueue", "Message": "gone"}}, "X"),
        ConnectTimeoutError(endpoint_url=URL),
    ],
)
def test_a_queue_that_cannot_be_read_is_unavailable(call: str, error: Exception) -> None:
    queue = Queue(body(event("runs/a/f")))
    queue.fails[call] = error
    with pytest.raises(Unavailable, match=URL):
        queue.queue.step()


# --- the profile ------------------------------------------------------------------------------------------------------

KEYS: dict[str, Any] = {
    "profile_id": "p", "object_store_root": "o", "control_bus_root": "b", "engine_catalogue_path": "c",
    "gate_map_path": "g", "schema_root": "s", "engine_contracts_root": "e", "authority_store_dsn": "sqlite:///a",
    "auth_mode": "disabled",
}  # fmt: skip


@pytest.mark.parametrize(
    ("url", "more", "region", "server"),
    [
        (URL, {}, "eu-west-1", "https://sqs.eu-west-1.amazonaws.com"),
        (URL, {"s3_region": "us-east-1"}, "eu-west-1", "https://sqs.eu-west-1.amazonaws.com"),
        ("https://vpce-1.sqs.eu-west-3.vpce.amazonaws.com/1/q", {}, "eu-west-3",
         "https://vpce-1.sqs.eu-west-3.vpce.amazonaws.com"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", {}, "cn-north-1", "https://sqs.cn-north-1.amazonaws.com.cn"),
        ("http://localhost:9000/000000000000/q", {"s3_region": "us-east-1"}, "us-east-1", "http://localhost:9000"),
    ],
)  # fmt: skip
def test_the_host_of_a_queue_names_its_region_or_s3_does(
    monkeypatch: pytest.MonkeyPatch, url: str, more: dict[str, str], region: str, server: str
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(evidence_events, "client_of", lambda *given: asked.append(given))
    evidence_events.open_queue_client(parse_wiring(KEYS | more | {"evidence_events_queue_url": url}, "p"))
    assert asked == [("sqs", region, server, "evidence_events_queue_url")]


def test_a_queue_without_a_region_is_refused() -> None:
    wiring = parse_wiring(KEYS | {"evidence_events_queue_url": "http://localhost:9000/0/q"}, "p")
    with pytest.raises(ConfigurationError, match="s3_region"):
        evidence_events.open_queue_client(wiring)


@pytest.mark.parametrize("url", ["events", "https://sqs.eu-west-1.amazonaws.com/events", "https://h/1/q?x=1",
                                 "https://u:p@h/1/q", "ftp://h/1/q", "https://h/1/q name"])  # fmt: skip
def test_what_is_no_url_of_a_queue_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="evidence_events_queue_url"):
        parse_wiring(KEYS | {"evidence_events_queue_url": url}, "p")


def test_a_profile_without_a_queue_opens_none() -> None:
    authority: Any = None
    assert evidence_events.open_evidence_queue(parse_wiring(KEYS, "p"), authority, ALLOWED) is None
