"""What the first emulator loses and moto keeps: encryption of bucket and topic, a task in full, alarms on expressions.

moto does not know the whole of the templates, so it is given the resources in question, with what they import replaced.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from aws_emulator import IMAGE, OF_EXPRESSIONS, Emulator, running_moto
from cloudformation import template

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.infra

NETWORK = {"SubnetIds": "subnet-a,subnet-b"}


@pytest.fixture(scope="module")
def moto(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running_moto(tmp_path_factory.mktemp("moto")) as running:
        yield running


def excerpt(name: str, resources: set[str], outputs: set[str]) -> str:
    """A template with some of its resources and outputs; an import is the name of what is imported."""

    def imported(value: Any) -> Any:
        if isinstance(value, dict):
            if "Fn::ImportValue" in value:
                return value["Fn::ImportValue"]["Fn::Sub"].partition("-")[2]
            return {key: imported(item) for key, item in value.items()}
        return [imported(item) for item in value] if isinstance(value, list) else value

    whole = template(name)
    for section, kept in (("Resources", resources), ("Outputs", outputs)):
        whole[section] = {key: item for key, item in whole[section].items() if key in kept}
    return json.dumps({**whole, "Resources": imported(whole["Resources"])})


def test_the_ledger_is_encrypted_with_the_key(moto: Emulator) -> None:
    body = excerpt("data.yaml", {"Key", "Ledger", "LedgerPolicy"}, {"KeyArn", "LedgerBucket"})
    made = moto.create(body, "data", {**NETWORK, "VpcId": "vpc-a", "VpcCidr": "10.0.0.0/16"})
    found = moto.client("s3").get_bucket_encryption(Bucket=made["LedgerBucket"])
    (rule,) = found["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": made["KeyArn"]}


def test_a_task_has_its_secrets_its_health_check_and_no_capability(moto: Emulator) -> None:
    resources = {"DaemonTask", "OneShotTask", "AlarmTopic"}
    outputs = {"DaemonTaskDefinition", "OneShotTaskDefinition", "AlarmTopicArn"}
    body = excerpt("service.yaml", resources, outputs)
    made = moto.create(body, "service", {**NETWORK, "Image": IMAGE, "AuthAllowlist": "svc-a"})
    ecs = moto.client("ecs")
    for output, health in (
        ("DaemonTaskDefinition", ["CMD", "scenario-runner", "healthcheck", "--url", "http://127.0.0.1:8077"]),
        ("OneShotTaskDefinition", None),
    ):
        task = ecs.describe_task_definition(taskDefinition=made[output])["taskDefinition"]
        (container,) = task["containerDefinitions"]
        assert container["secrets"] == [
            {"name": "SR_PG_USER", "valueFrom": "DatabaseUserSecretArn:username::"},
            {"name": "PGPASSWORD", "valueFrom": "DatabaseUserSecretArn:password::"},
        ]
        assert container["linuxParameters"] == {"capabilities": {"drop": ["ALL"]}}
        assert container["ulimits"] == [{"name": "nofile", "softLimit": 65536, "hardLimit": 65536}]
        assert task["volumes"] == [{"name": "state"}, {"name": "tmp"}]
        assert container.get("healthCheck", {}).get("command") == health
    topic = moto.client("sns").get_topic_attributes(TopicArn=made["AlarmTopicArn"])["Attributes"]
    assert topic["KmsMasterKeyId"] == "KeyArn"


@pytest.mark.parametrize("logical", OF_EXPRESSIONS)
def test_cloudwatch_takes_an_alarm_on_an_expression_as_it_stands_in_the_template(moto: Emulator, logical: str) -> None:
    """Not through CloudFormation, of which moto knows no alarm; botocore compares names and types with AWS's model."""
    body = json.dumps(template("service.yaml")["Resources"][logical]["Properties"])
    for name, value in {"AWS::StackName": "service", "AlarmTopic": "arn:aws:sns:eu-west-1:000000000000:alarms"}.items():
        body = body.replace(json.dumps({"Ref": name}), json.dumps(value))
    wanted, client = json.loads(body), moto.client("cloudwatch")
    client.put_metric_alarm(AlarmName=logical, **wanted)
    (alarm,) = client.describe_alarms(AlarmNames=[logical])["MetricAlarms"]
    plain = wanted.keys() - {"Metrics"}
    assert {key: alarm[key] for key in plain} == {key: wanted[key] for key in plain}
    shown = {item["Id"]: item for item in alarm["Metrics"]}
    for item in wanted["Metrics"]:
        found = shown.pop(item["Id"])
        assert (found.get("Expression"), found.get("Label")) == (item.get("Expression"), item.get("Label"))
        if "MetricStat" in item:
            metric = item["MetricStat"]["Metric"]
            assert {key: found["MetricStat"]["Metric"][key] for key in metric} == metric
            assert (found["MetricStat"]["Period"], found["MetricStat"]["Stat"]) == (
                item["MetricStat"]["Period"], item["MetricStat"]["Stat"]
            )  # fmt: skip
    assert shown == {}
