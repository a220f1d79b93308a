"""Trials of AWS permissions: a denial is told, whichever it is, and no trial changes anything."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.service.permissions import (
    NEEDED,
    Access,
    Trial,
    try_cluster,
    try_metrics,
    try_queue,
    try_stream,
    try_tables,
)

pytestmark = pytest.mark.unit

NEVER_TRIED = {"ecs:RunTask", "iam:PassRole"}
SERVICES = sorted(name for name in NEEDED.keys() - NEVER_TRIED if not name.startswith("s3:"))
OF_A_QUEUE = ("ReceiveMessage", "DeleteMessage")
CHANGING = ("PutItem", "UpdateItem", "DeleteItem")


def refusal(code: str, status: int = 400) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "Anything")


@dataclass
class Aws:
    """Kinesis, DynamoDB, ECS and CloudWatch of an account in which everything is in place."""

    denied: str = ""
    tables: bool = True
    consumer: bool = True
    backups: str = "ENABLED"
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    wrong: Callable[[str], Exception | None] = lambda _: None

    def __getattr__(self, operation: str) -> Any:
        name = "".join(part.capitalize() for part in operation.split("_"))

        def call(**arguments: Any) -> Any:
            self.calls.append((name, arguments))
            if error := self.wrong(name):
                raise error
            if name == self.denied:
                raise refusal("AccessDeniedException")
            return self.answer(name, arguments)

        return call

    def answer(self, name: str, arguments: dict[str, Any]) -> Any:
        if "TableName" in arguments and not self.tables:
            raise refusal("ResourceNotFoundException")
        refused = {
            "PutRecords": "InvalidArgumentException", "SubscribeToShard": "ResourceNotFoundException",
            "RegisterStreamConsumer": "ResourceInUseException", "CreateTable": "ResourceInUseException",
            "ReceiveMessage": "InvalidParameterValue", "DeleteMessage": "ReceiptHandleIsInvalid",
            "PutMetricData": "InvalidParameterValue", "StopTask": "InvalidParameterException",
            **dict.fromkeys(CHANGING, "ConditionalCheckFailedException"),
        }  # fmt: skip
        if name in refused:
            raise refusal(refused[name])
        if name == "DescribeStreamConsumer" and not self.consumer:
            raise refusal("ResourceNotFoundException")
        return {
            "StreamDescriptionSummary": {"StreamARN": "arn:stream/bus"}, "Shards": [{"ShardId": "s"}],
            "ShardIterator": "i", "ConsumerDescription": {"ConsumerARN": "arn:consumer"},
            "Table": {"TableStatus": "ACTIVE", "DeletionProtectionEnabled": True},
            "ContinuousBackupsDescription": {
                "PointInTimeRecoveryDescription": {"PointInTimeRecoveryStatus": self.backups}
            },
        }  # fmt: skip


def trials(aws: Aws) -> list[Trial]:
    everything: Iterator[Trial] = chain(
        try_stream(aws, "bus", "app", fan_out=True), try_tables(aws, "app"), try_metrics(aws, "app"),
        try_cluster(aws, "cluster", "engine:3"), try_queue(aws, "https://sqs/1/q"),
    )  # fmt: skip
    return list(everything)


def test_with_every_permission_each_is_found_to_be_there() -> None:
    found = trials(Aws())
    assert {trial.permission for trial in found} == {*SERVICES, *NEVER_TRIED}
    assert {trial.permission for trial in found if trial.access is not Access.ALLOWED} == NEVER_TRIED


@pytest.mark.parametrize("permission", SERVICES)
def test_each_permission_that_is_missing_is_named_with_what_it_is_for(permission: str) -> None:
    found = trials(Aws(denied=permission.partition(":")[2]))
    denied = [trial for trial in found if trial.access is Access.DENIED]
    assert {trial.permission for trial in denied} == {permission}
    for trial in denied:
        assert permission in trial.remedy
        assert NEEDED[permission] in trial.remedy
        assert trial.resource in trial.remedy


@pytest.mark.parametrize("backups", ["ENABLED", "DISABLED"])
@pytest.mark.parametrize("there", [True, False])
def test_no_trial_changes_anything(backups: str, there: bool) -> None:
    aws = Aws(tables=there, consumer=there, backups=backups)
    found = trials(aws)
    assert {trial.access for trial in found} <= {Access.ALLOWED, Access.NOT_TRIED}
    for name, arguments in aws.calls:
        if name in CHANGING:
            assert arguments["ConditionExpression"] == "attribute_exists(#k)"
            keys = str(arguments.get("Key") or arguments.get("Item"))
            assert "scenario-runner-doctor" in keys, "no such item is ever there"
        elif name == "CreateTable":
            assert there, "a table that is absent would be made"
        elif name == "RegisterStreamConsumer":
            assert there, "a consumer that is absent would be registered"
        elif name == "UpdateTable":
            assert arguments == {"TableName": "app", "DeletionProtectionEnabled": True}
        elif name == "UpdateContinuousBackups":
            wanted = arguments["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"]
            assert wanted is (backups == "ENABLED")
        elif name == "PutRecords":
            (record,) = arguments["Records"]
            assert int(record["ExplicitHashKey"]) >= 1 << 128
            assert re.fullmatch(r"0|([1-9]\d{0,38})", record["ExplicitHashKey"]), "well formed"
        elif name == "PutMetricData":
            assert str(arguments["MetricData"][0]["Value"]) == "nan"
        elif name == "StopTask":
            assert arguments["task"] == "0" * 32, "no such task is ever there"
        else:
            assert name.startswith(("Describe", "List", "Get", "Scan", "Query", "SubscribeToShard", *OF_A_QUEUE)), name


def test_no_trial_takes_or_deletes_a_message() -> None:
    aws = Aws()
    list(try_queue(aws, "https://sqs/1/q"))
    calls = dict(aws.calls)
    received = calls["ReceiveMessage"]
    assert (received["MaxNumberOfMessages"], received["VisibilityTimeout"]) == (11, 0), "too many, or for no time"
    assert calls["DeleteMessage"]["ReceiptHandle"] == "scenario-runner-doctor", "no such message is ever there"


def test_what_cannot_be_tried_without_a_change_is_said_to_be_that() -> None:
    found = trials(Aws(tables=False, consumer=False))
    untried = {trial.permission: trial.why for trial in found if trial.access is Access.NOT_TRIED}
    assert set(untried) == {"dynamodb:CreateTable", "kinesis:RegisterStreamConsumer", *NEVER_TRIED}
    assert "would make it" in untried["dynamodb:CreateTable"]
    (backups,) = [
        t for t in trials(Aws(denied="DescribeContinuousBackups")) if t.permission.endswith("ContinuousBackups")
    ]
    assert backups.access is Access.NOT_TRIED


@pytest.mark.parametrize(
    "error",
    [
        refusal("AccessDenied", 403),
        refusal("UnrecognizedClientException"),
        refusal("ExpiredTokenException"),
        refusal("SomethingNew", 403),
    ],
)
def test_a_denial_is_known_by_its_code_or_its_status(error: ClientError) -> None:
    assert {trial.access for trial in trials(Aws(wrong=lambda _: error))} <= {Access.DENIED, Access.NOT_TRIED}


def test_an_answer_that_says_nothing_about_permissions_proves_none() -> None:
    found = trials(Aws(wrong=lambda name: refusal("InternalFailure", 500) if name == "Scan" else None))
    assert {trial.access for trial in found if trial.permission == "dynamodb:Scan"} == {Access.NOT_TRIED}


def test_a_service_that_does_not_answer_is_unavailable_at_the_first_trial() -> None:
    aws = Aws(wrong=lambda _: ConnectTimeoutError(endpoint_url="x"))
    with pytest.raises(Unavailable):
        trials(aws)
    assert len(aws.calls) == 1
