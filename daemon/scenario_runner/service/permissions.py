"""The AWS permissions that SR needs, and a trial of each that changes nothing.

A trial is a request that AWS refuses for another reason than a missing permission: a condition that never holds, a
value out of range, an object that is not there. AWS checks permissions first, so a refusal other than a denial shows
that the permission was granted. A permission that cannot be tried without a change is reported as not tried.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Final

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.storage.boto import failure_of
from scenario_runner.storage.s3_client import BadKeyError, S3Bucket

_LEASES_INDEX: Final = "LeaseOwnerToLeaseKeyIndex"
_BUSY: Final = "ProvisionedThroughputExceededException"
_NO_ETAG: Final = '"00000000000000000000000000000000"'
"""An ETag that no object has."""
_ABSENT: Final = "scenario-runner-doctor"
"""Name of everything that a trial asks for and that is never there."""
_NO_HASH_KEY: Final = "9" * 39
"""Well formed, and beyond 2^128, the largest hash key: Kinesis refuses a record under it."""
_REFUSED_RECORD: Final = {
    "PartitionKey": _ABSENT,
    "ExplicitHashKey": _NO_HASH_KEY,
    "Data": json.dumps(
        {
            "topic": _ABSENT,
            "message_id": "0" * 64,
            "published_at_utc": "1970-01-01T00:00:00Z",
            "attributes": {"kind": "NOTHING"},
            "partition_key": _ABSENT,
            "payload": {},
        }
    ).encode(),
}
"""Its topic is nobody's: a server that accepts it in spite of its hash key has a record that every reader ignores."""

_DENIALS: Final = ("AccessDenied", "NotAuthorized", "Unauthorized", "UnrecognizedClient", "InvalidClientTokenId",
                   "InvalidSignature", "SignatureDoesNotMatch", "ExpiredToken", "IncompleteSignature")  # fmt: skip
#: HTTP status of a denial whose code is not known here.
_DENIED_STATUS: Final = (401, 403)

_ITEMS: Final = {
    "Scan": "reads the leases",
    "GetItem": "reads a lease, the mode of the workers, the identity of the stream",
    "PutItem": "makes leases, keeps the identity of the stream",
    "UpdateItem": "takes, renews and checkpoints leases",
    "DeleteItem": "ends leases of shards that are gone; `stream adopt` forgets leases",
}

NEEDED: Final[dict[str, str]] = {
    "s3:ListBucket": "tells an object that is absent from one that is denied; lists engine runs",
    "s3:GetObject": "reads engine runs, and its own documents back",
    "s3:PutObject": "writes its documents (object store only)",
    "kinesis:DescribeStreamSummary": "knows whether the stream is there and whether it is still the same",
    "kinesis:ListShards": "finds the shards",
    "kinesis:GetShardIterator": "begins to read a shard",
    "kinesis:GetRecords": "reads requests; `verify` reads READY",
    "kinesis:PutRecords": "publishes READY and TERMINAL; `submit` puts requests",
    "kinesis:DescribeStreamConsumer": "only with `kinesis_enhanced_fan_out`: finds its consumer",
    "kinesis:RegisterStreamConsumer": "only with `kinesis_enhanced_fan_out`: registers it once",
    "kinesis:SubscribeToShard": "only with `kinesis_enhanced_fan_out`: reads through it",
    "dynamodb:DescribeTable": "finds its tables",
    "dynamodb:CreateTable": "makes them at the first start",
    "dynamodb:UpdateTable": "makes the lease table's index where it is missing",
    "dynamodb:UpdateContinuousBackups": "switches point-in-time recovery of the lease table on",
    "dynamodb:Query": f"reads the index `{_LEASES_INDEX}` of the lease table",
    **{f"dynamodb:{action}": why for action, why in _ITEMS.items()},
    "sqs:ReceiveMessage": "only with `evidence_events_queue_url`: hears of new objects",
    "sqs:DeleteMessage": "only with `evidence_events_queue_url`: removes what it has heard",
    "sqs:GetQueueAttributes": "only with `evidence_events_queue_url`: `doctor` looks whether the queue is there",
    "ecs:RunTask": "only with `engine_invoker: ecs`: launches the engine",
    "ecs:DescribeTasks": "only with `engine_invoker: ecs`: follows it to its end",
    "ecs:ListTasks": "only with `engine_invoker: ecs`: finds a task whose launch was not answered",
    "ecs:StopTask": "only with `engine_invoker: ecs`: ends it after its timeout",
    "iam:PassRole": "only with `engine_invoker: ecs`: gives the task the roles of its definition",
    "cloudwatch:PutMetricData": "KCL's metrics, in a namespace that is named like the application",
}
"""Every permission, and what SR does with it. docs/guides/permissions.md lists them with their resources."""


class Access(StrEnum):
    """The result of a trial."""

    ALLOWED = "allowed"
    DENIED = "denied"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Trial:
    """One permission on one resource; ``why`` is the service's answer where it is not allowed."""

    permission: str
    resource: str
    access: Access
    why: str = ""

    @property
    def remedy(self) -> str:
        """What to do about a denial."""
        return f"grant {self.permission} on {self.resource} to the daemon's role; SR {NEEDED[self.permission]}"


def _is_denial(error: Exception, code: str) -> bool:
    response: dict[str, Any] = getattr(error, "response", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return code.startswith(_DENIALS) or status in _DENIED_STATUS


def attempt(permission: str, resource: str, call: Callable[[], object], *expected: str) -> Trial:
    """Try a permission.

    Args:
        permission: One of :data:`NEEDED`.
        resource: What it is needed on, for a person.
        call: Makes the request.
        expected: Error codes of refusals that show that the permission was granted.

    Raises:
        Unavailable: the service does not answer at all.
    """
    try:
        call()
    except Exception as error:
        code, sentence, _ = failure_of(error)
        if not isinstance(getattr(error, "response", None), dict):
            raise Unavailable(f"{permission} on {resource}: {sentence}") from error
        if _is_denial(error, code):
            return Trial(permission, resource, Access.DENIED, sentence)
        if code not in expected:
            return Trial(permission, resource, Access.NOT_TRIED, sentence)
    return Trial(permission, resource, Access.ALLOWED)


def try_stream(client: Any, name: str, application: str, *, fan_out: bool) -> Iterator[Trial]:  # noqa: ANN401 - boto3
    """Try the permissions on a stream. No record is put.

    Args:
        client: boto3's client of Kinesis.
        name: The stream.
        application: The consumer application.
        fan_out: Whether the application reads through a registered consumer of its own.
    """
    resource, found = f"stream {name}", dict[str, Any]()

    def trial(permission: str, call: Callable[[], object], *expected: str) -> Trial:
        return attempt(f"kinesis:{permission}", resource, call, *expected)

    def describe() -> None:
        found["arn"] = client.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]["StreamARN"]

    def shards() -> None:
        found["shard"] = client.list_shards(StreamName=name)["Shards"][0]["ShardId"]

    def iterator() -> None:
        shard = found.get("shard", "shardId-000000000000")
        answer = client.get_shard_iterator(StreamName=name, ShardId=shard, ShardIteratorType="LATEST")
        found["iterator"] = answer["ShardIterator"]

    described = trial("DescribeStreamSummary", describe)
    yield described
    if described.access is Access.NOT_TRIED:
        return  # there is no such stream
    yield trial("ListShards", shards)
    yield trial("GetShardIterator", iterator, "ResourceNotFoundException")
    if "iterator" in found:
        yield trial("GetRecords", partial(client.get_records, ShardIterator=found["iterator"], Limit=1), _BUSY)
    else:
        yield Trial("kinesis:GetRecords", resource, Access.NOT_TRIED, "it needs kinesis:GetShardIterator")
    put = partial(client.put_records, StreamName=name, Records=[_REFUSED_RECORD])
    yield trial("PutRecords", put, "InvalidArgumentException", "ValidationException", _BUSY)
    if fan_out:
        yield from _try_consumer(client, found.get("arn"), application)


def _try_consumer(client: Any, arn: str | None, application: str) -> Iterator[Trial]:  # noqa: ANN401 - boto3
    resource = f"consumer {application} of the stream"
    names = [f"kinesis:{name}" for name in ("DescribeStreamConsumer", "RegisterStreamConsumer", "SubscribeToShard")]
    if arn is None:
        yield from (Trial(name, resource, Access.NOT_TRIED, "the stream's ARN is not known") for name in names)
        return
    known: list[str] = []

    def describe() -> None:
        answer = client.describe_stream_consumer(StreamARN=arn, ConsumerName=application)
        known.append(answer["ConsumerDescription"]["ConsumerARN"])

    yield attempt(names[0], resource, describe, "ResourceNotFoundException")
    if known:
        register = partial(client.register_stream_consumer, StreamARN=arn, ConsumerName=application)
        yield attempt(names[1], resource, register, "ResourceInUseException")
    else:
        yield Trial(names[1], resource, Access.NOT_TRIED, "a trial would register the consumer")
    consumer, position = f"{arn}/consumer/{application}:1", {"Type": "LATEST"}
    subscribe = partial(
        client.subscribe_to_shard, ConsumerARN=consumer, ShardId="shardId-000000000000", StartingPosition=position
    )
    yield attempt(names[2], resource, subscribe, "ResourceNotFoundException", "InvalidArgumentException")


def try_tables(client: Any, application: str) -> Iterator[Trial]:  # noqa: ANN401 - boto3
    """Try the permissions on KCL's tables. No table is made or changed, no item written.

    Args:
        client: boto3's client of DynamoDB.
        application: The consumer application.
    """
    lease = _Table(client, application, "leaseKey")
    yield from lease.trials()
    if lease.there:
        yield from lease.trials_of_leases()
    for suffix, key in (("CoordinatorState", "key"), ("WorkerMetricStats", "wid")):
        yield from _Table(client, f"{application}-{suffix}", key).trials()


class _Table:
    """Trials on one table.

    Attributes:
        there: True once the table was described.
    """

    def __init__(self, client: Any, name: str, key: str) -> None:  # noqa: ANN401 - boto3
        self._client, self._name, self._key, self.there = client, name, key, False
        self._description: dict[str, Any] = {}

    def _trial(self, action: str, *expected: str, **arguments: Any) -> Trial:  # noqa: ANN401 - boto3
        operation = getattr(self._client, re.sub(r"(?<!^)(?=[A-Z])", "_", action).lower())
        call = partial(operation, TableName=self._name, **arguments)
        return attempt(f"dynamodb:{action}", f"table {self._name}", call, *expected)

    def _describe(self) -> None:
        self._description = self._client.describe_table(TableName=self._name)["Table"]
        self.there = True

    def trials(self) -> Iterator[Trial]:
        """Try what every table needs."""
        resource, absent = f"table {self._name}", "ResourceNotFoundException"
        yield attempt("dynamodb:DescribeTable", resource, self._describe, absent)
        if self.there:  # then it is not made again
            key = {
                "KeySchema": [{"AttributeName": self._key, "KeyType": "HASH"}],
                "AttributeDefinitions": [{"AttributeName": self._key, "AttributeType": "S"}],
            }
            yield self._trial("CreateTable", "ResourceInUseException", BillingMode="PAY_PER_REQUEST", **key)
        else:
            why = "it is not there yet, a trial would make it"
            yield Trial("dynamodb:CreateTable", resource, Access.NOT_TRIED, why)
        never: dict[str, Any] = {
            "ConditionExpression": "attribute_exists(#k)", "ExpressionAttributeNames": {"#k": self._key},
        }  # fmt: skip
        item, refused = {self._key: {"S": _ABSENT}}, ("ConditionalCheckFailedException", absent)
        yield self._trial("Scan", absent, Limit=1)
        yield self._trial("GetItem", absent, Key=item)
        yield self._trial("PutItem", *refused, Item=item, **never)
        yield self._trial("UpdateItem", *refused, Key=item, **never)
        yield self._trial("DeleteItem", *refused, Key=item, **never)

    def trials_of_leases(self) -> Iterator[Trial]:
        """Try what only the lease table needs; it must be there."""
        protected = bool(self._description.get("DeletionProtectionEnabled"))
        allowed = ("ResourceInUseException", "ValidationException")
        yield self._trial("UpdateTable", *allowed, DeletionProtectionEnabled=protected)
        yield self._backups()
        nobody = {":o": {"S": _ABSENT}}
        yield self._trial(
            "Query", "ValidationException", IndexName=_LEASES_INDEX, KeyConditionExpression="leaseOwner = :o",
            ExpressionAttributeValues=nobody,
        )  # fmt: skip

    def _backups(self) -> Trial:
        """Set point-in-time recovery to the value that it has; not tried when that cannot be read."""
        action = "UpdateContinuousBackups"
        try:
            found = self._client.describe_continuous_backups(TableName=self._name)["ContinuousBackupsDescription"]
            status = found.get("PointInTimeRecoveryDescription", {}).get("PointInTimeRecoveryStatus")
        except Exception as error:  # noqa: BLE001 - as in attempt: boto3 has many
            why = f"without dynamodb:DescribeContinuousBackups a trial might change it ({failure_of(error)[1]})"
            return Trial(f"dynamodb:{action}", f"table {self._name}", Access.NOT_TRIED, why)
        same = {"PointInTimeRecoveryEnabled": status == "ENABLED"}
        expected = "ContinuousBackupsUnavailableException"
        return self._trial(action, expected, PointInTimeRecoverySpecification=same)


def try_queue(client: Any, url: str) -> Iterator[Trial]:  # noqa: ANN401 - boto3
    """Try the permissions on a queue of S3 events. No message is taken or deleted.

    Args:
        client: boto3's client of SQS.
        url: The queue.
    """
    resource = f"queue {url}"
    attributes = partial(client.get_queue_attributes, QueueUrl=url, AttributeNames=["QueueArn"])
    found = attempt("sqs:GetQueueAttributes", resource, attributes)
    yield found
    if found.access is Access.NOT_TRIED:
        return  # there is no such queue
    # More messages than the service gives at once; a server that gives some leaves them to others at once.
    receive = partial(client.receive_message, QueueUrl=url, MaxNumberOfMessages=11, VisibilityTimeout=0)
    bad = ("InvalidParameterValue", "InvalidParameterValueException", "ReadCountOutOfRange")
    yield attempt("sqs:ReceiveMessage", resource, receive, *bad, "AWS.SimpleQueueService.ReadCountOutOfRange")
    delete = partial(client.delete_message, QueueUrl=url, ReceiptHandle=_ABSENT)
    yield attempt("sqs:DeleteMessage", resource, delete, *bad, "ReceiptHandleIsInvalid", "InvalidIdFormat")


def try_cluster(client: Any, cluster: str, task_definition: str) -> Iterator[Trial]:  # noqa: ANN401 - boto3
    """Try the permissions to run engines as tasks. No task is run or stopped.

    Args:
        client: boto3's client of ECS.
        cluster: Name or ARN.
        task_definition: ``family:revision`` or an ARN.
    """
    resource, nobody = f"cluster {cluster}", "0" * 32
    stop = partial(client.stop_task, cluster=cluster, task=nobody, reason=_ABSENT)
    yield attempt(
        "ecs:ListTasks", resource, partial(client.list_tasks, cluster=cluster, startedBy=_ABSENT, maxResults=1)
    )
    yield attempt("ecs:DescribeTasks", resource, partial(client.describe_tasks, cluster=cluster, tasks=[nobody]))
    yield attempt("ecs:StopTask", resource, stop, "InvalidParameterException")
    yield Trial("ecs:RunTask", f"task definition {task_definition}", Access.NOT_TRIED, "a trial would run the engine")
    yield Trial("iam:PassRole", "the roles of the task definition", Access.NOT_TRIED, "only ecs:RunTask needs it")


def try_metrics(client: Any, application: str) -> Iterator[Trial]:  # noqa: ANN401 - boto3
    """Try the permission to send metrics, with a value that CloudWatch refuses."""
    datum = {"MetricName": _ABSENT, "Value": float("nan")}
    call = partial(client.put_metric_data, Namespace=application, MetricData=[datum])
    codes = ("InvalidParameterValue", "InvalidParameterValueException", "ValidationError")
    yield attempt("cloudwatch:PutMetricData", f"namespace {application}", call, *codes)


def _harmless(bucket: S3Bucket, key: str) -> tuple[str, bytes]:
    """A write that also a server which ignores its condition may carry out: of the bytes that are there.

    Where they cannot be read, the key is that of an object which is never there.
    """
    with suppress(Unavailable, BadKeyError):
        found = bucket.get(key, 1 << 16)
        if found is not None:
            return key, bytes(found.data)
    return f"{key}-{_ABSENT}", b"{}"


def try_bucket(bucket: S3Bucket, prefix: str, written: str | None) -> Iterator[Trial]:
    """Try the permissions on a bucket.

    Args:
        bucket: The bucket.
        prefix: Where objects lie in it, without slashes at its ends.
        written: Key of an object that SR writes; None to try no write. A write is tried under a condition that does not
            hold, and with the bytes that are there, so that nothing changes.
    """
    resource = bucket.uri(prefix)

    def trial(permission: str, call: Callable[[], object]) -> Trial:
        try:
            with suppress(BadKeyError):
                call()
        except Unavailable as error:
            denied = "access is denied" in error.detail or "credentials are not accepted" in error.detail
            return Trial(permission, resource, Access.DENIED if denied else Access.NOT_TRIED, error.detail)
        return Trial(permission, resource, Access.ALLOWED)

    listed = trial("s3:ListBucket", lambda: bucket.listing(prefix, 0))
    yield listed
    if written is not None:
        yield trial("s3:PutObject", lambda: bucket.put(*_harmless(bucket, written), replacing=_NO_ETAG))
    got = trial("s3:GetObject", lambda: bucket.get(written or f"{prefix}/{_ABSENT}".lstrip("/"), 1 << 16))
    if got.access is Access.DENIED and written is None and listed.access is Access.DENIED:
        got = Trial(
            "s3:GetObject", resource, Access.NOT_TRIED, "without s3:ListBucket an absent object is denied as well"
        )
    yield got
