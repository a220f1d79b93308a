"""The templates of infra/aws agree with the code: permissions, variables of the profile, what is kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cloudformation import NAMES, TEMPLATES, actions, statements, template

from scenario_runner.service.permissions import NEEDED

pytestmark = pytest.mark.unit

REPO = Path(__file__).resolve().parents[4]
GUIDE = (REPO / "docs/guides/permissions.md").read_text("utf-8")
DOCTOR_READS = set(re.findall(r"`(\w+:Describe\w+)`", "".join(re.findall(r"^- `doctor`.+\n(?:  .+\n)*", GUIDE, re.M))))
KEY = {"kms:Decrypt", "kms:GenerateDataKey"}
#: What AWS knows no resource for, or names its cluster in a condition.
ON_EVERYTHING = {"cloudwatch:PutMetricData", "ecr:GetAuthorizationToken", "ecs:DescribeTaskDefinition", "ecs:ListTasks"}


@cache
def access() -> dict[str, Any]:
    return template("access.yaml")["Resources"]  # type: ignore[no-any-return]


def policies_of(role: str) -> list[str]:
    """Logical ids of the managed policies of a role."""
    attached = access()[role]["Properties"]["ManagedPolicyArns"]
    return [item["Fn::If"][1]["Ref"] if "Fn::If" in item else item["Ref"] for item in attached]


def actions_of(role: str) -> set[str]:
    documents = [access()[name]["Properties"]["PolicyDocument"] for name in policies_of(role)]
    return {action for document in documents for statement in statements(document) for action in actions(statement)}


def container(logical: str) -> dict[str, Any]:
    (found,) = template("service.yaml")["Resources"][logical]["Properties"]["ContainerDefinitions"]
    return found  # type: ignore[no-any-return]


# --- permissions


def test_the_daemon_may_do_what_it_needs_and_nothing_else() -> None:
    assert {
        "dynamodb:DescribeContinuousBackups",
        "ecs:DescribeClusters",
        "ecs:DescribeTaskDefinition",
    } == DOCTOR_READS
    assert actions_of("DaemonRole") == NEEDED.keys() | DOCTOR_READS | KEY


def test_a_one_shot_run_may_do_nothing_that_only_the_intake_needs() -> None:
    intake = {
        statement for statement in NEEDED if statement.startswith(("kinesis:", "dynamodb:", "cloudwatch:", "sqs:"))
    }
    publishing = {"kinesis:DescribeStreamSummary", "kinesis:PutRecords"}
    allowed = actions_of("OneShotRole")
    assert allowed == (actions_of("DaemonRole") - intake - {"dynamodb:DescribeContinuousBackups"}) | publishing


@pytest.mark.parametrize("name", NAMES)
def test_no_permission_is_granted_with_a_wildcard_in_its_name_or_on_everything(name: str) -> None:
    for logical, resource in template(name)["Resources"].items():
        properties = resource["Properties"]
        documents = [properties[key] for key in ("PolicyDocument",) if key in properties]
        documents += [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
        for statement in (found for document in documents for found in statements(document)):
            if statement["Effect"] == "Deny":
                continue
            assert [action for action in actions(statement) if "*" in action] == [], logical
            if statement["Resource"] == "*":
                assert set(actions(statement)) <= ON_EVERYTHING, logical


# --- task definitions


@pytest.mark.parametrize("logical", ["DaemonTask", "OneShotTask"])
def test_a_task_has_every_variable_of_the_profile_and_passwords_only_by_reference(logical: str) -> None:
    profile = (REPO / "config/platform/sr/wiring_aws.yaml").read_text("utf-8")
    required = set(re.findall(r"\$\{(\w+)\}", profile))
    optional = set(re.findall(r"\$\{(\w+):-", profile))
    found = container(logical)
    plain, secret = ({item["Name"] for item in found[key]} for key in ("Environment", "Secrets"))
    assert required - plain - secret == set()
    assert plain | secret <= required | optional | {"PGPASSWORD"}
    assert secret == {"SR_PG_USER", "PGPASSWORD"}


def test_both_tasks_differ_only_in_what_they_run_may_and_need() -> None:
    def shared(logical: str) -> Any:
        properties = dict(template("service.yaml")["Resources"][logical]["Properties"])
        (found,) = properties.pop("ContainerDefinitions")
        for key in ("Family", "TaskRoleArn", "Cpu", "Memory"):
            properties.pop(key)
        found = {key: value for key, value in found.items() if key not in ("EntryPoint", "Command", "HealthCheck")}
        options = found["LogConfiguration"]["Options"]
        return properties, {**found, "LogConfiguration": {**options, "awslogs-stream-prefix": ""}}

    assert shared("DaemonTask") == shared("OneShotTask")


#: Stands for the commands of the image: it keeps its arguments.
COMMANDS = """#!/bin/sh
{ printf '%s ' "$@"; echo; } >> "$CALLS"
"""
REQUEST = dict.fromkeys(re.findall(r"SR_RUN_(?!DAY)\w+", container("OneShotTask")["Command"][0]), "given")


@pytest.mark.skipif(sys.platform != "linux", reason="the script runs in the image, with GNU date")
@pytest.mark.parametrize("missing", ["", *REQUEST])
def test_a_one_shot_run_without_its_request_fails_and_runs_nothing(tmp_path: Path, missing: str) -> None:
    (tmp_path / "scenario-runner").write_text(COMMANDS)
    (tmp_path / "scenario-runner").chmod(0o755)
    calls, found = tmp_path / "calls", container("OneShotTask")
    (script,) = found["Command"]
    given = {key: value for key, value in REQUEST.items() if key != missing}
    done = subprocess.run(
        [*found["EntryPoint"], script.replace("/tmp/", f"{tmp_path}/")], capture_output=True, text=True, check=False,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), **given},
    )  # fmt: skip
    if missing:
        assert done.returncode != 0
        assert missing in done.stderr
        assert not calls.exists()
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.split()[0] for line in calls.read_text("utf-8").splitlines()] == ["submit", "run"]


ECS = REPO / "deploy/ecs"
#: What is an account's own.
OF_AN_ACCOUNT = {"family", "taskRoleArn", "executionRoleArn", "image"}


def as_the_api_has_it(value: Any) -> Any:
    """Properties of CloudFormation under the names of ECS's own API."""
    if isinstance(value, dict):
        renamed = {key[:1].lower() + key[1:]: as_the_api_has_it(item) for key, item in value.items()}
        # What is so anyhow is left out there.
        return {key: item for key, item in renamed.items() if (key, item) != ("readOnly", False)}
    return [as_the_api_has_it(item) for item in value] if isinstance(value, list) else value


def without_the_account(definition: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """A task definition, its container, and the names of the container's variables, without what an account decides."""
    (found,) = definition["containerDefinitions"]
    task = {key: item for key, item in definition.items() if key not in OF_AN_ACCOUNT | {"containerDefinitions"}}
    variables = {item["name"] for kind in ("environment", "secrets") for item in found[kind]}
    found = {key: item for key, item in found.items() if key not in OF_AN_ACCOUNT | {"environment", "secrets"}}
    options = {
        key: found["logConfiguration"]["options"][key] for key in ("mode", "max-buffer-size", "awslogs-stream-prefix")
    }
    return task, {**found, "logConfiguration": options}, variables


@pytest.mark.skipif(not ECS.is_dir(), reason="deploy/ecs is not here")
@pytest.mark.parametrize(("logical", "file"), [("DaemonTask", "daemon.task.json"), ("OneShotTask", "run.task.json")])
def test_a_task_is_the_one_that_deploy_has(logical: str, file: str) -> None:
    properties = as_the_api_has_it(template("service.yaml")["Resources"][logical]["Properties"])
    # Keys of Options are the log driver's own; the conversion above has left them alone.
    task, found, variables = without_the_account(properties)
    example, of_example, variables_of_example = without_the_account(json.loads((ECS / file).read_text("utf-8")))
    assert task == example
    if logical == "OneShotTask":  # the example has its request already; here whoever starts the task gives it
        variables_of_example = {name for name in variables_of_example if not name.startswith("SR_RUN_")}
    assert found == of_example
    assert variables == variables_of_example


# --- what outlives a stack, exceptions, and the README


def test_what_holds_state_is_kept_when_its_stack_is_deleted() -> None:
    kept = {
        name
        for name, item in template("data.yaml")["Resources"].items()
        if item.get("DeletionPolicy") == item.get("UpdateReplacePolicy") == "Retain"
    }
    assert kept == {"Key", "Stream", "Ledger", "Database", "DatabaseUser", "Logs"}


@pytest.mark.parametrize("name", NAMES)
def test_each_exception_of_a_linter_has_its_reason(name: str) -> None:
    text = (TEMPLATES / name).read_text("utf-8")
    for resource in template(name)["Resources"].values():
        for exception in resource.get("Metadata", {}).get("checkov", {}).get("skip", []):
            assert re.fullmatch(r"CKV2?_AWS_\d+", exception["id"])
            assert len(exception["comment"]) > 30
    assert "cfn-lint" not in text, "cfn-lint has no exception"


def test_the_readme_names_each_parameter_that_must_be_given_and_each_output() -> None:
    readme = (TEMPLATES / "README.md").read_text("utf-8")
    for name in NAMES:
        document = template(name)
        required = [key for key, value in document["Parameters"].items() if "Default" not in value]
        missing = [word for word in (*required, *document["Outputs"]) if not re.search(rf"\b{word}\b", readme)]
        assert missing == [], name


def test_no_statement_of_the_readme_has_a_password_which_the_log_of_the_database_would_keep() -> None:
    readme = (TEMPLATES / "README.md").read_text("utf-8")
    assert readme.count(r"\password scenario_runner") == 2  # the first one, and another one later
    assert re.findall(r"\bPASSWORD\s+'", readme) == []


#: Stands for the command line of AWS: it keeps its arguments, and prints JSON.
AWS = """#!/bin/sh
{ printf '%s ' "$@"; echo; } >> "$CALLS"
echo '{"asked":true}'
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX")
def test_the_commands_of_the_readme_use_nothing_that_is_defined_later(tmp_path: Path) -> None:
    (tmp_path / "aws").write_text(AWS)
    (tmp_path / "aws").chmod(0o755)
    blocks = re.findall(r"^```sh\n(.*?)^```$", (TEMPLATES / "README.md").read_text("utf-8"), re.DOTALL | re.M)
    commands = "".join(block for block in blocks if "aws " in block)
    calls = tmp_path / "calls"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=REPO, capture_output=True, text=True, check=False,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    made = calls.read_text("utf-8")
    outputs = {name for file in NAMES for name in template(file)["Outputs"]}
    asked = set(re.findall(r"OutputKey=='(\w+)'", made))
    assert asked
    assert asked <= outputs
    assert made.count("cloudformation deploy") == len(NAMES) + 1  # the service again, with its daemons
    assert made.count("OutputKey==") == commands.count("$(out ")
    assert made.count("ecs run-task") == commands.count("ecs run-task") == 3
