"""Fixtures of the infra tier: an emulator, and two environments on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aws_emulator import ENGINE, QUEUE_URL, READER, TOOLS, WHY_NOT, Deployed, Emulator, deploy_all, running_ministack

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def tools() -> None:
    if not TOOLS.name:
        pytest.skip(WHY_NOT)


@pytest.fixture(scope="session")
def emulator(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running_ministack(tmp_path_factory.mktemp("emulator")) as running:
        yield running


@pytest.fixture(scope="session")
def plain(emulator: Emulator) -> Deployed:
    """An environment with what is required, and nothing else."""
    return deploy_all(emulator, "plain")


@pytest.fixture(scope="session")
def full(emulator: Emulator) -> Deployed:
    """An environment with everything that can be had."""
    here = {"LocationConstraint": "eu-west-1"}
    emulator.client("s3").create_bucket(Bucket="access-logs", CreateBucketConfiguration=here)
    return deploy_all(
        emulator, "full",
        data={"ObjectLockMode": "COMPLIANCE", "ObjectLockDays": "30", "AccessLogBucket": "access-logs"},
        access={**ENGINE, "EnhancedFanOut": "true", "ReaderPrincipals": READER,
                "EngineKeyArn": "arn:aws:kms:eu-west-1:000000000000:key/engine"},
        service={"AlarmEmail": "oncall@example.org", "EnhancedFanOut": "true", "EvidenceEventsQueueUrl": QUEUE_URL},
    )  # fmt: skip
