"""Properties that the first emulator loses and moto keeps: encryption of bucket and topic, and a task in full.

moto does not know the whole of the templates, so it is given the resources in question, with what they import replaced.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from aws_emulator import IMAGE, Emulator, running_moto
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
