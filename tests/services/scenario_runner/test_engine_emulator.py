"""The calls of the ECS backend against an emulator: SR_ECS_ENDPOINT_URL names one, e.g. a ``moto_server``.

It shows that the requests are well formed for a service that checks them, that a task is listed by ``startedBy``, and
that ``stoppedReason`` comes back. It does not show what the fake service of the other tests does: moto makes a second
task for the same ``clientToken``, gives a container the exit status 0 while it runs, sets no ``stopCode``, answers
StopTask for an unknown task with 500, and ends every task after some calls of DescribeTasks.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import Any

import pytest
from engine_support import end_of, launch_of

from scenario_runner.contracts.reasons import Reason
from scenario_runner.engine.command import parse_command
from scenario_runner.engine.ecs_calls import EcsCalls
from scenario_runner.engine.ecs_invoker import EcsInvoker, EcsSettings
from scenario_runner.engine.invoker import Job, LaunchFailed

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif("SR_ECS_ENDPOINT_URL" not in os.environ, reason="SR_ECS_ENDPOINT_URL is not set: no ECS"),
]


def client_of(service: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        service, region_name="us-east-1", endpoint_url=os.environ["SR_ECS_ENDPOINT_URL"], aws_access_key_id="a",
        aws_secret_access_key="b", config=Config(retries={"total_max_attempts": 1}),
    )  # fmt: skip


@pytest.fixture
def invoker() -> EcsInvoker:
    ecs, ec2, name = client_of("ecs"), client_of("ec2"), f"sr-{secrets.token_hex(4)}"
    ecs.create_cluster(clusterName=name)
    definition = ecs.register_task_definition(
        family=name, networkMode="awsvpc", requiresCompatibilities=["FARGATE"], cpu="256", memory="512",
        containerDefinitions=[{"name": "engine", "image": "engine", "memory": 100}],
    )["taskDefinition"]["taskDefinitionArn"]  # fmt: skip
    network = {
        "subnets": [ec2.describe_subnets()["Subnets"][0]["SubnetId"]],
        "securityGroups": [ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]],
    }
    settings = EcsSettings(
        name, definition, "engine", parse_command(["run", "{run_id}"], "test", by_path_only=True), poll_seconds=0.0,
        arguments={"launchType": "FARGATE", "networkConfiguration": {"awsvpcConfiguration": network}},
    )  # fmt: skip
    return EcsInvoker(settings, EcsCalls(ecs, name, "engine"))


def test_a_task_is_launched_found_by_its_row_stopped_and_ended(invoker: EcsInvoker) -> None:
    launch = launch_of(attempt_id=secrets.token_hex(16))
    job = invoker.launch(launch)
    row = Job(launch.attempt_id, invoker.place, time.time_ns() // 1000, 60.0)
    found = invoker.find(row)
    assert found is not None
    assert found.handle == job.handle
    assert invoker.poll([job]) == {}
    invoker.stop(job)
    again = invoker.find(row)
    assert again is not None
    assert again.handle == job.handle
    end = end_of(invoker, job)
    assert (end.succeeded, end.reason_code, end.another_attempt) == (False, Reason.ENGINE_EXIT_NONZERO, True)
    assert "scenario-runner: stopped" in end.detail


def test_a_task_that_takes_too_long_is_stopped_with_its_reason(invoker: EcsInvoker) -> None:
    job = invoker.launch(launch_of(attempt_id=secrets.token_hex(16), timeout_seconds=0.001))
    time.sleep(0.01)
    assert end_of(invoker, job).reason_code is Reason.ENGINE_TIMEOUT


def test_a_cluster_that_does_not_exist_is_a_failed_launch() -> None:
    settings = EcsSettings("no-such-cluster", "engine:1", "engine", parse_command(["run"], "test"))
    with pytest.raises(LaunchFailed, match="ClusterNotFoundException"):
        EcsInvoker(settings, EcsCalls(client_of("ecs"), "no-such-cluster", "engine")).launch(launch_of())
