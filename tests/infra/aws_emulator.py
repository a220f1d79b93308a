"""An emulator of AWS on this machine, and the three stacks of infra/aws deployed to it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

REPO = Path(__file__).resolve().parents[2]
TEMPLATES = REPO / "infra/aws"
TOOLS = Path(os.environ.get("SR_INFRA_TOOLS", ""))
WHY_NOT = "SR_INFRA_TOOLS is not set: scripts/run_tests.sh infra installs the tools and sets it"
REGION, ACCOUNT = "eu-west-1", "000000000000"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/scenario-runner@sha256:{'a' * 64}"
REPOSITORY = f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/scenario-runner"
QUEUE_URL = f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/engine-events"
ENGINE = {
    "EvidenceEventsQueueArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:engine-events",
    "EngineCluster": "engines",
    "EngineFamily": "engine",
    "EngineTaskRole": "engine-task",
    "EngineExecutionRole": "engine-execution",
}
OF_EXPRESSIONS = ("MostRefused", "NoVerdicts")
"""Alarms that are on an expression of several metrics."""
READER = f"arn:aws:iam::{ACCOUNT}:role/downstream"


class Emulator:
    """A running emulator."""

    def __init__(self, url: str) -> None:
        self.url = url

    def client(self, service: str) -> Any:
        settings = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
        return boto3.client(
            service, endpoint_url=self.url, region_name=REGION, aws_access_key_id="test",
            aws_secret_access_key="test", config=settings,
        )  # fmt: skip

    def network(self) -> dict[str, str]:
        """A VPC and two of its subnets."""
        ec2 = self.client("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnets = []
        for at, zone in enumerate("ab"):
            made = ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{at}.0/24", AvailabilityZone=f"{REGION}{zone}")
            subnets.append(made["Subnet"]["SubnetId"])
        return {"VpcId": vpc, "VpcCidr": "10.0.0.0/16", "SubnetIds": ",".join(subnets)}

    def deploy(self, template: str, name: str, parameters: Mapping[str, str]) -> dict[str, str]:
        """Create a stack from a template of infra/aws; returns its outputs."""
        body = (TEMPLATES / template).read_text("utf-8")
        # The emulator's CloudFormation knows no alarm on an expression; a test gives these to CloudWatch of another.
        for logical in OF_EXPRESSIONS:
            body, left_out = re.subn(rf"\n  {logical}:\n(?:    .*\n)+", "\n", body)
            assert left_out == (template == "service.yaml")
        # The emulator hands a Number to ECS as text, and fails over it.
        body = body.replace("DesiredCount: !Ref DesiredCount", f"DesiredCount: {parameters.get('DesiredCount', '2')}")
        return self.create(body, name, parameters)

    def create(self, body: str, name: str, parameters: Mapping[str, str]) -> dict[str, str]:
        """Create a stack; returns its outputs.

        Raises:
            AssertionError: the stack was not created; the message says why.
        """
        client = self.client("cloudformation")
        given = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
        client.create_stack(StackName=name, TemplateBody=body, Parameters=given, Capabilities=["CAPABILITY_IAM"])
        deadline = time.monotonic() + 60
        while (stack := client.describe_stacks(StackName=name)["Stacks"][0])["StackStatus"] == "CREATE_IN_PROGRESS":
            assert time.monotonic() < deadline, f"{name} is not created"
            time.sleep(0.05)
        events = client.describe_stack_events(StackName=name)["StackEvents"]
        reasons = [event.get("ResourceStatusReason") for event in events if "FAILED" in event["ResourceStatus"]]
        assert stack["StackStatus"] == "CREATE_COMPLETE", reasons
        return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}

    def resources(self, name: str) -> dict[str, str]:
        """Physical ids of a stack's resources, by their logical ids."""
        found = self.client("cloudformation").describe_stack_resources(StackName=name)["StackResources"]
        return {item["LogicalResourceId"]: item["PhysicalResourceId"] for item in found}

    def policies_of(self, role_arn: str) -> list[dict[str, Any]]:
        """The documents of every policy of a role, as IAM has them."""
        iam, role = self.client("iam"), role_arn.rpartition("/")[2]
        documents = [
            iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
            for name in iam.list_role_policies(RoleName=role)["PolicyNames"]
        ]
        attached = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
        documents.extend(self.managed_policy(item["PolicyArn"]) for item in attached)
        return documents

    def managed_policy(self, arn: str) -> dict[str, Any]:
        """The document of a managed policy."""
        iam = self.client("iam")
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        document: dict[str, Any] = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
        return document


@dataclass(frozen=True)
class Deployed:
    """The three stacks of one environment."""

    emulator: Emulator
    name: str
    data: dict[str, str]
    access: dict[str, str]
    service: dict[str, str]
    parameters: dict[str, str]

    def client(self, service: str) -> Any:
        return self.emulator.client(service)

    def id_of(self, logical: str, stack: str = "") -> str:
        """Physical id of a resource; ``stack`` is "", "access" or "service"."""
        return self.emulator.resources(f"{self.name}-{stack}" if stack else self.name)[logical]


def deploy_all(
    emulator: Emulator,
    name: str,
    data: Mapping[str, str] | None = None,
    access: Mapping[str, str] | None = None,
    service: Mapping[str, str] | None = None,
) -> Deployed:
    """Deploy an environment in the order of README.md; the mappings are parameters beyond those that are required."""
    network = emulator.network()
    outputs = emulator.deploy("data.yaml", name, {**network, **(data or {})})
    roles = {
        "DataStack": name, "ApplicationName": f"{name}-app", "ImageRepositoryArn": REPOSITORY,
        "EngineBucket": "engine-runs", "EnginePrefix": "prod", **(access or {}),
    }  # fmt: skip
    granted = emulator.deploy("access.yaml", f"{name}-access", roles)
    running = {
        "DataStack": name, "AccessStack": f"{name}-access", "Image": IMAGE, "AuthAllowlist": "svc-a,svc-b",
        "SubnetIds": network["SubnetIds"], **(service or {}),
    }  # fmt: skip
    served = emulator.deploy("service.yaml", f"{name}-service", running)
    return Deployed(emulator, name, outputs, granted, served, {**network, **(data or {}), **roles, **running})


@contextmanager
def running_ministack(folder: Path) -> Iterator[Emulator]:
    """The emulator that knows every resource of the templates."""
    port = _free_port()
    settings = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "LOG_LEVEL": "WARNING"}
    with _running(["ministack"], settings, f"http://127.0.0.1:{port}", "/_localstack/health", folder) as emulator:
        yield emulator


@contextmanager
def running_moto(folder: Path) -> Iterator[Emulator]:
    """An emulator that knows fewer resources, and some of their properties better."""
    port = _free_port()
    command = ["moto_server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, {}, f"http://127.0.0.1:{port}", "/moto-api/", folder) as emulator:
        yield emulator


@contextmanager
def _running(
    command: Sequence[str], settings: Mapping[str, str], url: str, health: str, folder: Path
) -> Iterator[Emulator]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **settings}
    program, *arguments = command
    path = folder / f"{program}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            [TOOLS / "venv/bin" / program, *arguments], env=environment, cwd=folder, stdout=log, stderr=log
        )
    try:
        _wait_for(url + health, process, path)
        yield Emulator(url)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.05)
    raise AssertionError(f"the emulator does not answer: {log.read_text()[-2000:]}")
