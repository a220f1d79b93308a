"""The engine's keys of a wiring profile: what is needed together, what is refused, and what they become."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from profile_support import VALID as BASE

from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.profiles.policy import Policy
from scenario_runner.profiles.wiring import Wiring, load_wiring, parse_wiring
from scenario_runner.service.compose import allowed_roots, check_profile
from scenario_runner.service.engine import ecs_settings, engine_terms, subprocess_settings

pytestmark = pytest.mark.unit

VALID: dict[str, Any] = BASE | {"engine_roots": ["/tmp/runs"]}
COMMAND: dict[str, Any] = {"engine_command": ["/bin/engine", "--seed={seed}"]}
ECS: dict[str, Any] = COMMAND | {
    "engine_invoker": "ecs", "engine_ecs_cluster": "c", "engine_ecs_task_definition": "engine:3",
    "engine_ecs_container": "engine", "engine_ecs_region": "eu-west-1",
}  # fmt: skip
OF_ECS = {
    "engine_ecs_cluster": "c", "engine_ecs_task_definition": "engine:3", "engine_ecs_container": "engine",
    "engine_ecs_region": "eu-west-1", "engine_ecs_endpoint_url": "http://ecs:1", "engine_ecs_launch_type": "EC2",
    "engine_ecs_subnets": ["subnet-1"], "engine_ecs_security_groups": ["sg-1"], "engine_ecs_assign_public_ip": True,
}  # fmt: skip
OF_SUBPROCESS = {
    "engine_command_cwd": "/tmp", "engine_env_allowlist": ["PATH"], "engine_attempts_dir": "/tmp/attempts",
}  # fmt: skip
OF_BOTH = {
    "engine_invoker": "subprocess", "engine_command_timeout_seconds": 5, "engine_launch_retries": 0,
    "engine_run_root_template": "/tmp/runs/{run_id}",
}  # fmt: skip


def wiring(**keys: Any) -> Wiring:
    return parse_wiring(VALID | keys, "profile.yaml")


def refusal(keys: dict[str, Any]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as refused:
        parse_wiring(VALID | keys, "profile.yaml")
    assert refused.value.place == "profile.yaml"
    assert refused.value.remedy
    return refused.value


def start_refusal(keys: dict[str, Any], key: str) -> ConfigurationError:
    """What start-up, ``doctor`` and whatever judges requests say."""
    loaded = wiring(**keys)
    with pytest.raises(ConfigurationError) as refused:
        check_profile(loaded)
    assert f"key {key!r}" in refused.value.place
    assert refused.value.remedy
    return refused.value


# --- which backend


def test_without_a_command_no_engine_is_configured() -> None:
    loaded = wiring()
    assert loaded.engine_backend == ""
    assert engine_terms(loaded, ["/tmp/runs"]) is None
    assert wiring(engine_command="", engine_invoker=None).engine_backend == ""


def test_a_command_alone_is_a_process_of_this_host() -> None:
    loaded = wiring(**COMMAND)
    assert loaded.engine_backend == "subprocess"
    assert loaded.engine_command_timeout_seconds == 3600
    assert loaded.engine_launch_retries == 2
    assert wiring(**ECS).engine_backend == "ecs"


@pytest.mark.parametrize(("key", "value"), {**OF_ECS, **OF_SUBPROCESS, **OF_BOTH}.items())
def test_a_key_without_a_command_is_refused_by_name(key: str, value: object) -> None:
    error = refusal({key: value})
    assert "engine_command is needed" in error.problem
    assert key in error.problem


def test_a_command_without_engine_roots_is_refused() -> None:
    assert "engine_roots is needed with engine_command" in refusal(COMMAND | {"engine_roots": []}).problem


@pytest.mark.parametrize(("key", "value"), OF_ECS.items())
def test_a_process_takes_no_key_of_ecs(key: str, value: object) -> None:
    error = refusal(COMMAND | {key: value})
    assert "'subprocess' does not use" in error.problem
    assert key in error.problem


@pytest.mark.parametrize(("key", "value"), OF_SUBPROCESS.items())
def test_a_task_takes_no_key_of_processes(key: str, value: object) -> None:
    error = refusal(ECS | {key: value})
    assert "'ecs' does not use" in error.problem
    assert key in error.problem


@pytest.mark.parametrize("key", [key for key in ECS if key.startswith("engine_ecs_")])
def test_a_task_needs_its_cluster_definition_container_and_region(key: str) -> None:
    error = refusal({name: value for name, value in ECS.items() if name != key})
    assert "'ecs' needs" in error.problem
    assert key in error.problem


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"engine_ecs_security_groups": ["sg-1"]}, "engine_ecs_security_groups"),
        ({"engine_ecs_assign_public_ip": True}, "engine_ecs_assign_public_ip"),
        ({"engine_ecs_launch_type": "FARGATE"}, "FARGATE"),
    ],
)
def test_a_network_needs_subnets(keys: dict[str, Any], named: str) -> None:
    error = refusal(ECS | keys)
    assert "engine_ecs_subnets is needed" in error.problem
    assert named in error.problem
    wiring(**ECS, **keys, engine_ecs_subnets="subnet-1,subnet-2")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("engine_invoker", "docker"), ("engine_invoker", ""), ("engine_command_timeout_seconds", 0),
        ("engine_command_timeout_seconds", 604801), ("engine_command_timeout_seconds", "60"),
        ("engine_command_timeout_seconds", True), ("engine_launch_retries", -1), ("engine_launch_retries", 101),
        ("engine_launch_retries", 1.0), ("engine_env_allowlist", {"A": "1"}), ("engine_env_allowlist", [""]),
        ("engine_attempts_dir", ""), ("engine_attempts_dir", "~/attempts"), ("engine_command_cwd", "$HOME/x"),
        ("engine_run_root_template", "~/{run_id}"), ("engine_run_root_template", 7), ("engine_ecs_cluster", "a b"),
        ("engine_ecs_cluster", "-x"), ("engine_ecs_container", "c\n"), ("engine_ecs_region", "eu west"),
        ("engine_ecs_endpoint_url", "localhost:1"), ("engine_ecs_launch_type", "SPOT"),
        ("engine_ecs_subnets", ["a b"]), ("engine_ecs_subnets", {"a": 1}), ("engine_ecs_assign_public_ip", "yes"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_naming_its_key(key: str, value: object) -> None:
    assert key in refusal(COMMAND | {key: value}).problem


# --- the command


@pytest.mark.parametrize("value", ["/bin/engine --seed 7", "engine", "[/bin/engine]"])
def test_a_command_that_is_a_text_is_refused_because_nothing_splits_it(value: str) -> None:
    error = refusal({"engine_command": value})
    assert "engine_command: " in error.problem
    assert "must be a list" in error.problem
    assert "no shell splits" in error.problem


@pytest.mark.parametrize(("item", "written"), [(7, "7"), ({"seed": None}, "{seed}"), (None, ""), (["a"], "[a]")])
def test_an_argument_that_is_no_text_is_said_to_need_quotes(item: object, written: str) -> None:
    problem = refusal({"engine_command": ["/bin/engine", item]}).problem
    assert "item 1 is no text" in problem
    assert "in quotes" in problem
    assert yaml.safe_load(f"- /bin/engine\n- {written}\n")[1] == item, "YAML reads it so"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/bin/engine", "{sede}"], "{sede}"), (["/bin/engine", "{"], "braces"), (["{run_id}"], "placeholder"),
        (["", "x"], "names no command"), (["/bin/engine", "a\0b"], "zero byte"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_rendered_refuses_start_up(command: list[str], said: str) -> None:
    assert said in start_refusal({"engine_command": command}, "engine_command").problem


def test_a_task_gets_its_invocation_by_its_path_only() -> None:
    command = {"engine_command": ["/bin/engine", "{invocation_json}"]}
    assert "{invocation_json}" in start_refusal(ECS | command, "engine_command").problem
    check_profile(wiring(**command))


def test_a_relative_program_needs_the_folder_that_it_is_relative_to() -> None:
    error = refusal({"engine_command": ["bin/engine"]})
    assert "relative path" in error.problem
    assert "engine_command_cwd" in error.problem
    settings = subprocess_settings(wiring(engine_command=["bin/engine"], engine_command_cwd="work"))
    assert settings.cwd == str(Path.cwd() / "work")
    wiring(engine_command=["engine"])
    wiring(**(ECS | {"engine_command": ["bin/engine"]}))


@pytest.mark.parametrize(
    ("line", "value", "refused"),
    [
        ("${SR_TEST_ARG}", "--delete", True),
        ("${SR_TEST_ARG}", "-", True),
        ("${SR_TEST_ARG}x", "-", True),
        ("${SR_TEST_ARG}", "run", False),
        ("--flag=${SR_TEST_ARG}", "--delete", False),
        ("-${SR_TEST_ARG}", "v", False),
        ('"${SR_TEST_ARG:---delete}"', "", True),
    ],
)
def test_a_variable_of_the_environment_makes_no_option(tmp_path: Path, line: str, value: str, *, refused: bool) -> None:
    path = tmp_path / "wiring.yaml"
    path.write_text(yaml.safe_dump(VALID) + f"engine_command:\n  - /bin/engine\n  - {line}\n", "utf-8")
    if not refused:
        assert load_wiring(str(path), env={"SR_TEST_ARG": value}).engine_backend == "subprocess"
        return
    with pytest.raises(ConfigurationError) as error:
        load_wiring(str(path), env={"SR_TEST_ARG": value})
    assert error.value.place == f"{path}, key 'engine_command', item 1"
    assert "--name=${VALUE}" in error.value.remedy


def test_a_profile_with_a_command_may_come_through_a_pipe() -> None:
    read, write = os.pipe()
    with open(write, "wb") as pipe:
        pipe.write(yaml.safe_dump(VALID | COMMAND).encode())
    assert load_wiring(f"/dev/fd/{read}", env={}).engine_backend == "subprocess"
    os.close(read)


def test_a_variable_of_the_environment_makes_no_list_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "wiring.yaml"
    path.write_text(yaml.safe_dump(VALID) + "engine_command: ${SR_TEST_COMMAND}\n", "utf-8")
    with pytest.raises(ConfigurationError, match="must be a list"):
        load_wiring(str(path), env={"SR_TEST_COMMAND": "['/bin/engine', '--delete']"})


@pytest.mark.parametrize(("name", "said"), [("PATH=/bin", "not the name"), ("SR_ATTEMPT_ID", "SR sets"), ("1A", "not")])
def test_an_allow_list_holds_names_of_variables(name: str, said: str) -> None:
    assert said in start_refusal(COMMAND | {"engine_env_allowlist": [name]}, "engine_env_allowlist").problem


@pytest.mark.parametrize("key", ["engine_command_cwd", "engine_attempts_dir"])
def test_a_folder_is_one_of_this_machine(key: str) -> None:
    assert "no folder of this machine" in start_refusal(COMMAND | {key: "s3://bucket/x"}, key).problem


# --- the template of roots


@pytest.mark.parametrize(
    "template",
    ["/tmp/runs/{run_id}", "/tmp/runs/{manifest_fingerprint}/{parameter_hash}/{seed}/{scenario_id}/{run_id}",
     "file:///tmp/runs/{run_id}", "/tmp/runs/{run_id}/", "/tmp/runs/fixed"],
)  # fmt: skip
def test_a_template_under_the_roots_is_taken(template: str) -> None:
    check_profile(wiring(**COMMAND, engine_run_root_template=template))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("/tmp/runs/{run}", "{run}"), ("/tmp/runs/{engine_run_root}", "{engine_run_root}"),
        ("/tmp/runs/{scenario_set}", "{scenario_set}"), ("/tmp/runs/{attempt_id}", "{attempt_id}"),
        ("/tmp/runs/{}", "braces"), ("/tmp/runs/{{run_id}}", "braces"), ("/tmp/runs/{RUN_ID}", "braces"),
        ("/tmp/other/{run_id}", "not under any"), ("/tmp/runs{run_id}", "not under any"), ("{run_id}", "not under any"),
        ("/tmp/runs/../{run_id}", "'..'"), ("s3://bucket/{run_id}", "not under any"), ("ftp://h/{run_id}", "scheme"),
        ("s3://{scenario_id}/x", "not under any"), ("/tmp/runs/*/{run_id}", "wildcard"),
    ],
)  # fmt: skip
def test_a_template_that_could_lead_elsewhere_refuses_start_up(template: str, said: str) -> None:
    error = start_refusal(COMMAND | {"engine_run_root_template": template}, "engine_run_root_template")
    assert said in error.problem


# --- what the keys become


def test_a_process_gets_the_times_of_the_profile() -> None:
    settings = subprocess_settings(wiring(**COMMAND, lease_seconds=30, shutdown_seconds=20))
    assert settings.renew_seconds == pytest.approx(20.0)
    assert settings.grace_seconds == 10.0
    assert settings.cwd is None
    assert settings.folder == str(Path.cwd() / ".local/engine")
    assert subprocess_settings(wiring(**COMMAND, shutdown_seconds=3)).grace_seconds == 1.5
    assert subprocess_settings(wiring(**COMMAND, shutdown_seconds=110)).grace_seconds == 10.0


def test_a_task_gets_the_network_of_the_profile() -> None:
    assert ecs_settings(wiring(**ECS)).arguments == {}
    keys: dict[str, Any] = {"engine_ecs_launch_type": "FARGATE", "engine_ecs_subnets": ["subnet-1"]}
    assert ecs_settings(wiring(**ECS, **keys)).arguments == {
        "launchType": "FARGATE",
        "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-1"], "assignPublicIp": "DISABLED"}},
    }
    keys |= {"engine_ecs_security_groups": "sg-1, sg-2", "engine_ecs_assign_public_ip": True}
    network = ecs_settings(wiring(**ECS, **keys)).arguments["networkConfiguration"]["awsvpcConfiguration"]
    assert network == {"subnets": ["subnet-1"], "securityGroups": ["sg-1", "sg-2"], "assignPublicIp": "ENABLED"}


@pytest.mark.parametrize("name", ["engine", "engine:0", "engine:latest"])
def test_a_task_definition_is_pinned_to_a_revision(name: str) -> None:
    error = start_refusal(ECS | {"engine_ecs_task_definition": name}, "engine_ecs_task_definition")
    assert "revision" in error.problem


@pytest.mark.parametrize("keys", [COMMAND | OF_SUBPROCESS | OF_BOTH, ECS | OF_ECS, {}], ids=["process", "task", "none"])
def test_a_profile_that_is_passed_on_to_another_process_is_the_same_there(keys: dict[str, Any]) -> None:
    loaded = wiring(**keys)
    assert Wiring.model_validate_json(loaded.model_dump_json()) == loaded


def test_region_and_endpoint_of_a_task_come_from_the_environment_of_aws(tmp_path: Path) -> None:
    path = tmp_path / "wiring.yaml"
    keys = {name: value for name, value in ECS.items() if name != "engine_ecs_region"}
    path.write_text(yaml.safe_dump(VALID | keys), "utf-8")
    with pytest.raises(ConfigurationError, match="engine_ecs_region"):
        load_wiring(str(path), env={})
    loaded = load_wiring(str(path), env={"AWS_REGION": "eu-west-2", "AWS_ENDPOINT_URL_ECS": "http://ecs:1/"})
    assert (loaded.engine_ecs_region, loaded.engine_ecs_endpoint_url) == ("eu-west-2", "http://ecs:1")
    assert loaded.origin("engine_ecs_region") == "AWS_REGION"
    with pytest.raises(ConfigurationError) as refused:
        load_wiring(str(path), env={"AWS_REGION": "x", "AWS_ENDPOINT_URL_ECS": "ecs"})
    assert refused.value.place == "environment variable AWS_ENDPOINT_URL_ECS"
    path.write_text(yaml.safe_dump(VALID | COMMAND), "utf-8")
    assert load_wiring(str(path), env={"AWS_REGION": "no\r", "AWS_ENDPOINT_URL_ECS": "ecs"}).engine_ecs_region is None


def test_credentials_are_needed_for_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    check_profile(wiring(**COMMAND))
    with pytest.raises(ConfigurationError, match="AWS_SECRET_ACCESS_KEY"):
        check_profile(wiring(**ECS))
    assert wiring(**ECS).uses_aws
    assert allowed_roots(wiring(**ECS))


# --- the policy's key


@pytest.mark.parametrize(("given", "read"), [({}, "at_deadline"), ({"auto_invoke": "at_once"}, "at_once"),
                                             ({"auto_invoke": "at_deadline"}, "at_deadline")])  # fmt: skip
def test_the_policy_says_when_auto_invokes_the_engine(given: dict[str, str], read: str) -> None:
    document = {"policy_id": "p", "revision": "v0", "content_digest": "0" * 64, "reuse_policy": "ALLOW",
                "evidence_wait_seconds": 1, "attempt_limit": 1, "traffic_output_ids": []}  # fmt: skip
    assert Policy.model_validate_json(json.dumps(document | given)).auto_invoke == read


@pytest.mark.parametrize("value", ["never", "", "at deadline", True, 0])
def test_another_time_is_refused(value: object) -> None:
    document = {"policy_id": "p", "revision": "v0", "content_digest": "0" * 64, "reuse_policy": "ALLOW",
                "evidence_wait_seconds": 1, "attempt_limit": 1, "traffic_output_ids": []}  # fmt: skip
    with pytest.raises(ValueError, match="auto_invoke"):
        Policy.model_validate(document | {"auto_invoke": value})
