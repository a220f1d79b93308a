"""deploy/ecs: the model of the AWS SDK reads the documents, the installed command line reads what they start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from deploy_support import DEPLOY, INSTALLED_CONFIG, MARGIN_SECONDS, load_profiles, longest_shutdown, parse_command
from support import COMMAND, REPO

from scenario_runner.contracts.documents import parse_run_request
from scenario_runner.profiles.values import listen_address

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

ECS = DEPLOY / "ecs"
TASKS = ["daemon.task.json", "run.task.json"]
DOCKERFILE = (DEPLOY / "docker/Dockerfile").read_text("utf-8")
OPERATIONS = {
    "daemon.task.json": ("ecs", "RegisterTaskDefinition"),
    "run.task.json": ("ecs", "RegisterTaskDefinition"),
    "daemon.service.json": ("ecs", "CreateService"),
    "run.schedule.json": ("scheduler", "CreateSchedule"),
}
#: What Fargate allows at most, which the model does not say.
LONGEST_STOP_SECONDS, LONGEST_START_PERIOD_SECONDS = 120, 300
#: Of Fargate: memory in MiB by CPU units.
SIZES = {"512": range(1024, 4097, 1024), "1024": range(2048, 8193, 1024)}


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ECS / name).read_text("utf-8"))
    return found


def container(name: str) -> dict[str, Any]:
    (only,) = document(name)["containerDefinitions"]
    assert isinstance(only, dict)
    return only


def environment(name: str, secret: str = "from-a-secret") -> dict[str, str]:
    """What the container sees: of the image, of the task definition, and a value for every secret."""
    block = re.search(r"^ENV (PATH=.*?[^\\])\n", DOCKERFILE, flags=re.MULTILINE | re.DOTALL)
    assert block is not None
    image = dict(pair.split("=", 1) for pair in block.group(1).replace("\\\n", " ").split())
    given = {item["name"]: item["value"] for item in container(name)["environment"]}
    secrets = {item["name"]: secret for item in container(name)["secrets"]}
    assert not set(given) & set(secrets)
    return image | given | secrets


def test_every_document_is_tried() -> None:
    assert {path.name for path in ECS.glob("*.json")} == set(OPERATIONS)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_the_model_of_aws_accepts_a_document(name: str) -> None:
    session = pytest.importorskip("botocore.session").get_session()
    from botocore.validate import ParamValidator

    service, operation = OPERATIONS[name]
    shape = session.get_service_model(service).operation_model(operation).input_shape
    report = ParamValidator().validate(document(name), shape)
    assert not report.has_errors(), report.generate_report()


def test_the_model_of_aws_refuses_a_misspelt_key() -> None:
    session = pytest.importorskip("botocore.session").get_session()
    from botocore.validate import ParamValidator

    damaged = document(TASKS[0])
    damaged["containerDefinitions"][0]["readonlyRootFileSystem"] = True
    shape = session.get_service_model("ecs").operation_model("RegisterTaskDefinition").input_shape
    assert ParamValidator().validate(damaged, shape).has_errors()


@pytest.mark.parametrize("name", TASKS)
def test_a_task_keeps_to_what_fargate_allows(name: str) -> None:
    task = document(name)
    assert int(task["memory"]) in SIZES[task["cpu"]]
    assert task["networkMode"] == "awsvpc"
    assert container(name)["stopTimeout"] <= LONGEST_STOP_SECONDS
    assert container(name).get("healthCheck", {}).get("startPeriod", 0) <= LONGEST_START_PERIOD_SECONDS


def test_a_start_may_bring_a_schema_up_to_date_before_it_is_asked_for_its_health() -> None:
    assert container("daemon.task.json")["healthCheck"]["startPeriod"] == LONGEST_START_PERIOD_SECONDS
    assert f"--start-period={LONGEST_START_PERIOD_SECONDS}s" in DOCKERFILE


@pytest.mark.parametrize("name", TASKS)
def test_ecs_waits_longer_for_a_stop_than_any_drain_takes(name: str) -> None:
    assert container(name)["stopTimeout"] >= longest_shutdown() + MARGIN_SECONDS
    assert container(name)["stopTimeout"] > load_profiles(environment(name)).shutdown_seconds


@pytest.mark.parametrize("name", TASKS)
def test_a_container_writes_nowhere_but_into_its_volumes(name: str) -> None:
    spec = container(name)
    assert spec["readonlyRootFilesystem"] is True
    assert spec["user"] in DOCKERFILE
    assert spec["user"].split(":")[0] not in ("", "0", "root")
    assert "privileged" not in spec
    volumes = {volume["name"] for volume in document(name)["volumes"]}
    mounted = {mount["containerPath"]: mount["sourceVolume"] for mount in spec["mountPoints"]}
    assert set(mounted.values()) == volumes
    # Without VOLUME in the image an empty volume belongs to root, and the user of the image could not write there.
    declared = re.search(r"^VOLUME (.*)$", DOCKERFILE, flags=re.MULTILINE)
    assert declared is not None
    assert set(mounted) == set(json.loads(declared.group(1)))
    assert load_profiles(environment(name)).kinesis_state_dir.startswith("/var/lib/scenario-runner/")


@pytest.mark.parametrize("name", TASKS)
def test_secrets_are_named_and_not_written_down(name: str) -> None:
    for secret in container(name)["secrets"]:
        assert re.match(r"arn:aws:(secretsmanager:.*:secret:|ssm:.*:parameter/)", secret["valueFrom"])
    given = {item["name"]: item["value"] for item in container(name)["environment"]}
    assert not [key for key, value in given.items() if "PASSWORD" in key and value]
    assert "PGPASSWORD" in {secret["name"] for secret in container(name)["secrets"]}


@pytest.mark.parametrize("name", TASKS)
def test_a_password_with_any_character_reaches_the_database_as_it_is(name: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    seen = environment(name, secret="p@ss/w#rd%?")
    dsn = load_profiles(seen | {"SR_PG_USER": "user"}).authority_store_dsn
    given = psycopg.conninfo.conninfo_to_dict(dsn)
    assert "password" not in given  # so libpq takes PGPASSWORD
    assert (given["host"], given["sslmode"]) == (seen["SR_PG_HOST"], "verify-full")


@pytest.mark.parametrize("name", TASKS)
def test_every_variable_is_one_that_somebody_reads(name: str) -> None:
    profile = (REPO / "config/platform/sr/wiring_aws.yaml").read_text("utf-8")
    known = set(re.findall(r"\$\{(\w+)", profile)) | {"PGPASSWORD"}
    script = "\n".join(container(name).get("command", []))
    ours = {item["name"] for key in ("environment", "secrets") for item in container(name)[key]}
    assert ours - known == {key for key in re.findall(r"\$\{?(SR_RUN_\w+)", script) if key != "SR_RUN_DAY"}


def test_the_daemon_and_its_health_check_are_commands_that_exist() -> None:
    spec, seen = container(TASKS[0]), environment(TASKS[0])
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, flags=re.MULTILINE)[0]) == ["scenario-runner"]
    with pytest.MonkeyPatch.context() as patch:
        for key in ("SR_WIRING", "SR_POLICY"):
            patch.setenv(key, seen[key])
        assert parse_command(spec["command"])[0] == "serve"
    kind, program, *words = spec["healthCheck"]["command"]
    assert (kind, program) == ("CMD", "scenario-runner")
    command, values = parse_command(words)
    listen = load_profiles(seen).health_listen
    assert listen is not None
    host, port = listen_address(listen)
    assert (command, values["url"], values["ready"]) == ("healthcheck", f"http://{host}:{port}", False)


def test_the_one_shot_task_makes_a_request_of_the_day_and_becomes_the_run_of_it(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the script runs in the image, with GNU date")
    spec, seen = container(TASKS[1]), environment(TASKS[1])
    (script,) = spec["command"]
    *_, last = script.splitlines()
    program, *words = last.removeprefix("exec ").split()
    # Process 1 of the container must be the command itself: a shell there would ignore SIGTERM.
    assert (last.split()[0], program) == ("exec", "scenario-runner")
    here = {**seen, "PATH": f"{os.path.dirname(COMMAND)}:{os.environ['PATH']}", "SR_RUN_DAY": "2026-02-28"}
    here |= {"SR_CONFIG_ROOT": str(REPO / "config")}
    here |= {key: seen[key].replace(INSTALLED_CONFIG, str(REPO / "config")) for key in ("SR_WIRING", "SR_POLICY")}
    made = script.replace(last, "").replace("/tmp/request.json", str(tmp_path / "request.json"))
    first = [*spec["entryPoint"], made]
    assert first[:1] == ["/bin/sh"]
    documents = []
    for _ in range(2):
        done = subprocess.run(first, env=here, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        documents.append((tmp_path / "request.json").read_bytes())
    assert documents[0] == documents[1]  # the same day again is the same record, and the same run
    request = parse_run_request(json.loads(documents[0]))
    assert request.run_equivalence_key == "nightly-2026-02-28"
    with pytest.MonkeyPatch.context() as patch:
        for key in ("SR_WIRING", "SR_POLICY"):
            patch.setenv(key, here[key])
        assert parse_command(words)[0] == "run"


def test_the_tasks_that_the_readme_of_infra_starts_run_commands_and_requests_that_exist() -> None:
    readme = (REPO / "infra/aws/README.md").read_text("utf-8")
    overrides = [json.loads(text) for text in re.findall(r"--overrides '(.+?)'", readme, flags=re.DOTALL)]
    doctor, submit, one_shot = [override for each in overrides for override in each["containerOverrides"]]
    with pytest.MonkeyPatch.context() as patch:
        for key in ("SR_WIRING", "SR_POLICY"):
            patch.setenv(key, environment(TASKS[0])[key])
        assert parse_command(doctor["command"])[0] == "doctor"
        command, values = parse_command(submit["command"])
    assert (command, values["wait"]) == ("submit", True)
    script = "\n".join(container(TASKS[1])["command"])
    given = {item["name"] for item in one_shot["environment"]}
    assert given == set(re.findall(r"\$\{?(SR_RUN_\w+)", script))


def test_service_and_schedule_name_the_tasks() -> None:
    assert document("daemon.service.json")["taskDefinition"] == document(TASKS[0])["family"]
    target = document("run.schedule.json")["Target"]["EcsParameters"]
    assert target["TaskDefinitionArn"].endswith(f":task-definition/{document(TASKS[1])['family']}")


def test_the_images_are_the_targets_of_this_release() -> None:
    from scenario_runner import __version__

    assert container(TASKS[0])["image"].endswith(f"/scenario-runner:{__version__}-kinesis")
    assert container(TASKS[1])["image"].endswith(f"/scenario-runner:{__version__}")
