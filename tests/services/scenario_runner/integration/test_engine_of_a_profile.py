"""The engine that a profile means: opened for both backends, its invocation documents, and what ``doctor`` says."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from engine_support import end_of, launch_of, processes_of, until
from fake_ecs import FakeEcs, ServiceError, fake_ecs
from support import ForkedWorld

from scenario_runner.contracts.errors import ConfigurationError, LedgerDrift, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.engine.invocations import KEPT_SECONDS, FileInvocations
from scenario_runner.engine.subprocess_invoker import SubprocessInvoker
from scenario_runner.profiles.wiring import Wiring, load_wiring
from scenario_runner.service.compose import open_store
from scenario_runner.service.engine import open_engine, open_invocations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

ID = "0" * 31 + "a"
DATA = b'{"run_id":"x"}'


@pytest.fixture
def world(tmp_path: Path) -> ForkedWorld:
    return ForkedWorld(tmp_path / "w")


@pytest.fixture
def ecs(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEcs]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with fake_ecs() as fake:
        fake.definitions["engine:3"] = {
            "status": "ACTIVE", "networkMode": "bridge", "containerDefinitions": [{"name": "engine"}],
        }  # fmt: skip
        yield fake


def process_keys(world: ForkedWorld, program: str = "", **keys: Any) -> dict[str, Any]:
    script = world.root / "engine.py"
    script.write_text(program)
    return {
        "engine_command": [sys.executable, "-I", "-S", str(script), "{seed}"],
        "engine_attempts_dir": str(world.root / "attempts"), **keys,
    }  # fmt: skip


def task_keys(fake: FakeEcs, **keys: Any) -> dict[str, Any]:
    return {
        "engine_command": ["engine", "{invocation_path}"], "engine_invoker": "ecs", "engine_ecs_cluster": "c",
        "engine_ecs_task_definition": "engine:3", "engine_ecs_container": "engine", "engine_ecs_region": "eu-west-1",
        "engine_ecs_endpoint_url": fake.url, **keys,
    }  # fmt: skip


def loaded(world: ForkedWorld, keys: dict[str, Any]) -> Wiring:
    world.write_profiles(**keys)
    return load_wiring(str(world.wiring))


def doctor(world: ForkedWorld, keys: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Exit code, and what was found about the engine."""
    world.write_profiles(**keys)
    done = world.command("doctor", "--wiring", str(world.wiring), "--policy", str(world.policy), "--json")
    checks = json.loads(done.stdout)["checks"]
    about = ("engine", "ECS", "AWS", "permissions of ECS", "private state")
    return done.returncode, [item for item in checks if item["check"] in about or "ecs:" in item["check"]]


def said(found: list[dict[str, Any]], *, ok: bool = True) -> str:
    return "\n".join(item["detail"] for item in found if item["ok"] is ok)


# --- open


def test_a_profile_without_an_engine_opens_none(world: ForkedWorld) -> None:
    wiring = loaded(world, {})
    assert open_engine(wiring) is None
    assert open_invocations(wiring, open_store(wiring)) is None


def test_a_process_runs_the_command_with_the_folder_and_variables_of_the_profile(
    world: ForkedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import os, sys; print(sys.argv[1], os.getcwd(), os.environ['SR_T'], 'SR_U' in os.environ, flush=True)"
    keys = process_keys(world, program, engine_command_cwd=str(world.runs), engine_env_allowlist=["SR_T"])
    monkeypatch.setenv("SR_T", "given")
    monkeypatch.setenv("SR_U", "kept back")
    engine = open_engine(loaded(world, keys))
    assert engine is not None
    try:
        end = end_of(engine, engine.launch(launch_of()))
    finally:
        engine.close()
    assert end.succeeded, end.detail
    assert end.stdout.decode().split() == ["7", os.path.realpath(world.runs), "given", "False"]
    assert (world.root / "attempts").stat().st_mode & 0o777 == 0o700


def test_a_process_whose_lease_nobody_renews_is_ended_after_two_thirds_of_it(world: ForkedWorld) -> None:
    keys = process_keys(world, "import time; time.sleep(600)", lease_seconds=2, shutdown_seconds=1)
    engine = open_engine(loaded(world, keys))
    assert isinstance(engine, SubprocessInvoker)
    try:
        job = engine.launch(launch_of())
        end = end_of(engine, job)
    finally:
        engine.close()
    assert end.stop_code == "NOT_RENEWED"
    assert until(lambda: not processes_of(job.attempt_id), "nothing of the engine runs")


def test_a_task_is_run_in_the_cluster_of_the_profile(world: ForkedWorld, ecs: FakeEcs) -> None:
    ecs.definitions["engine:3"]["networkMode"] = "awsvpc"
    keys = task_keys(ecs, engine_ecs_launch_type="FARGATE", engine_ecs_subnets=["subnet-1"])
    engine = open_engine(loaded(world, keys))
    assert engine is not None
    assert engine.name == "ecs"
    engine.launch(launch_of())
    engine.close()
    ((operation, request),) = ecs.requests
    assert operation == "RunTask"
    assert (request["cluster"], request["taskDefinition"], request["launchType"]) == ("c", "engine:3", "FARGATE")
    assert request["networkConfiguration"]["awsvpcConfiguration"]["subnets"] == ["subnet-1"]
    assert request["overrides"]["containerOverrides"][0]["command"] == ["engine", launch_of().invocation_path]


def test_a_folder_of_attempts_that_others_may_write_refuses_the_start(world: ForkedWorld) -> None:
    folder = world.root / "attempts"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ConfigurationError, match="others may write"):
        open_engine(loaded(world, process_keys(world)))


def test_serve_refuses_an_engine_that_could_never_be_launched_before_it_makes_anything(world: ForkedWorld) -> None:
    world.write_profiles(engine_command=["/bin/engine", "{sede}"])
    before = set(world.root.rglob("*"))
    done = world.serve()
    assert done.returncode == 2
    assert b"key 'engine_command'" in done.stderr
    assert b"{sede}" in done.stderr
    assert set(world.root.rglob("*")) == before


# --- invocation documents


def test_a_process_finds_its_invocation_in_a_private_file(world: ForkedWorld) -> None:
    wiring = loaded(world, process_keys(world))
    invocations = open_invocations(wiring, open_store(wiring))
    assert invocations is not None
    path = invocations.write(ID, DATA)
    assert path == invocations.write(ID, DATA)
    assert path.startswith(str(world.root / "attempts") + "/")
    with open(path, "rb") as file:
        assert file.read() == DATA
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert os.listdir(os.path.dirname(path)) == [f"{ID}.json"], "no temporary file is left"
    engine = open_engine(wiring)
    assert engine is not None
    engine.close()
    assert os.path.exists(path), "the folder of attempts is swept, and this is not an attempt's"


def test_a_document_that_cannot_be_written_is_asked_for_again(world: ForkedWorld) -> None:
    (world.root / "attempts").write_text("a file in the place of the folder")
    with pytest.raises(Unavailable, match=ID):
        FileInvocations(str(world.root / "attempts")).write(ID, DATA)


def test_a_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match="No space"):
        FileInvocations(str(tmp_path)).write(ID, DATA)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_documents_that_no_engine_can_still_read_are_removed(tmp_path: Path) -> None:
    old, new = (FileInvocations(str(tmp_path)).write(name * 32, DATA) for name in "ab")
    past = time.time() - KEPT_SECONDS - 60
    os.utime(old, (past, past))
    FileInvocations(str(tmp_path))
    assert (os.path.exists(old), os.path.exists(new)) == (False, True)


def test_a_task_finds_its_invocation_in_the_object_store(world: ForkedWorld, ecs: FakeEcs) -> None:
    wiring = loaded(world, task_keys(ecs))
    store = open_store(wiring)
    invocations = open_invocations(wiring, store)
    assert invocations is not None
    place = invocations.write(ID, DATA)
    assert place == invocations.write(ID, DATA)
    assert place == str(world.ledger / f"engine_invocations/{ID}.json")
    stored = store.read(f"fraud-platform/sr/engine_invocations/{ID}.json", 100)
    assert stored is not None
    assert stored.data == DATA
    with pytest.raises(LedgerDrift) as drift:
        invocations.write(ID, b"{}")
    assert drift.value.reason is Reason.ENGINE_INVOCATION_INVALID
    assert drift.value.place == place


# --- doctor


def test_doctor_says_that_no_engine_is_configured(world: ForkedWorld) -> None:
    code, found = doctor(world, {})
    assert code == 0
    assert "none is configured" in said(found)


def test_doctor_finds_the_program_and_says_when_it_is_invoked(world: ForkedWorld) -> None:
    keys = process_keys(world, engine_run_root_template=f"{world.runs}/{{run_id}}", engine_command_timeout_seconds=77)
    world.policy_changes["auto_invoke"] = "at_once"
    code, found = doctor(world, keys)
    assert code == 0, found
    assert f"runs {sys.executable}, for 77 s" in said(found)
    assert "AUTO invokes it at once, 3 attempts" in said(found)
    assert f"{world.runs}/{{run_id}}" in said(found)
    assert "share" not in said(found)
    assert not (world.root / "attempts").exists(), "the first start makes it"
    assert f"the first start makes {world.root / 'attempts'}" in said(found)
    keys = process_keys(world, engine_run_root_template=f"{world.runs}/{{seed}}")
    assert "share" in said(doctor(world, keys)[1])
    assert "no engine_run_root_template" in said(doctor(world, process_keys(world))[1])


def _missing(world: ForkedWorld) -> dict[str, Any]:
    return {"engine_command": [str(world.root / "nowhere")]}


def _not_executable(world: ForkedWorld) -> dict[str, Any]:
    return {"engine_command": [str(world.wiring)]}


def _not_in_path(_: ForkedWorld) -> dict[str, Any]:
    return {"engine_command": ["no-such-engine"], "engine_env_allowlist": ["PATH"]}


def _no_path(world: ForkedWorld) -> dict[str, Any]:
    program = world.root / "bin/engine-of-a-test"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    os.environ["PATH"] += f":{program.parent}"  # the test's monkeypatch puts it back
    return {"engine_command": [program.name]}


def _no_cwd(world: ForkedWorld) -> dict[str, Any]:
    return {"engine_command": ["/bin/true"], "engine_command_cwd": str(world.root / "nowhere")}


@pytest.mark.parametrize(
    ("keys", "detail", "remedy"),
    [
        (_missing, "nowhere is no program", "whole path"), (_not_executable, "is no program", "mode"),
        (_not_in_path, "no-such-engine is no program that the daemon can execute in", "whole path"),
        (_no_path, "engine-of-a-test is no program", "engine_env_allowlist"),
        (_no_cwd, "is no folder", "engine_command_cwd"),
    ],
)  # fmt: skip
def test_doctor_says_what_a_command_lacks(
    world: ForkedWorld, monkeypatch: pytest.MonkeyPatch, keys: Callable[[ForkedWorld], dict[str, Any]], detail: str,
    remedy: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", os.environ["PATH"])
    code, found = doctor(world, {"engine_attempts_dir": str(world.root / "attempts"), **keys(world)})
    assert code == 2
    assert detail in said(found, ok=False)
    assert any(remedy in item["remedy"] for item in found if not item["ok"])


def test_doctor_looks_for_a_program_as_the_engine_will(world: ForkedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    keys = _no_path(world) | {"engine_attempts_dir": str(world.root / "attempts")}
    assert doctor(world, keys | {"engine_env_allowlist": ["PATH"]})[0] == 0
    relative = {"engine_command": ["bin/engine-of-a-test"], "engine_command_cwd": str(world.root)}
    assert doctor(world, keys | relative)[0] == 0


def test_doctor_warns_of_variables_that_are_not_set(world: ForkedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SR_T", raising=False)
    code, found = doctor(world, process_keys(world, engine_env_allowlist=["PATH", "SR_T"]))
    assert code == 0
    assert "warning: variables of engine_env_allowlist that are not set: SR_T" in said(found)


def test_doctor_refuses_a_folder_of_attempts_that_others_may_write_and_warns_of_one_that_they_may_read(
    world: ForkedWorld,
) -> None:
    folder = world.root / "attempts"
    folder.mkdir()
    folder.chmod(0o777)
    code, found = doctor(world, process_keys(world))
    assert code == 2
    assert "others may write into the folder of engine attempts" in said(found, ok=False)
    folder.chmod(0o755)
    code, found = doctor(world, process_keys(world))
    assert code == 0
    assert f"others may use {folder}" in said(found)


def test_doctor_tries_a_cluster_without_running_anything(world: ForkedWorld, ecs: FakeEcs) -> None:
    code, found = doctor(world, task_keys(ecs))
    assert code == 0, found
    assert "the cluster c is ACTIVE" in said(found)
    assert "the task definition engine:3" in said(found)
    assert "allowed: ecs:DescribeTasks, ecs:ListTasks, ecs:StopTask; not tried: ecs:RunTask" in said(found)
    assert f"ECS: {ecs.url} (key engine_ecs_endpoint_url), region eu-west-1" in said(found)
    assert ecs.count("RunTask") == 0


@pytest.mark.parametrize(
    ("keys", "definition", "detail"),
    [
        ({"engine_ecs_cluster": "other"}, {}, "the cluster other is not there"),
        ({"engine_ecs_task_definition": "engine:4"}, {}, "Unable to describe task definition"),
        ({"engine_ecs_container": "sidecar"}, {}, "has no container sidecar, it has engine"),
        ({}, {"status": "INACTIVE"}, "is INACTIVE"),
        ({}, {"networkMode": "awsvpc"}, "engine_ecs_subnets is not set"),
        ({"engine_ecs_subnets": ["subnet-1"]}, {}, "engine_ecs_subnets is set"),
    ],
)
def test_doctor_says_what_does_not_fit_the_task_definition(
    world: ForkedWorld, ecs: FakeEcs, keys: dict[str, Any], definition: dict[str, Any], detail: str
) -> None:
    ecs.definitions["engine:3"] |= definition
    code, found = doctor(world, task_keys(ecs, **keys))
    assert code == 2
    assert detail in said(found, ok=False)
    assert all(item["remedy"] for item in found if not item["ok"])


def test_doctor_names_a_permission_that_is_missing(world: ForkedWorld, ecs: FakeEcs) -> None:
    ecs.fail("ListTasks", ServiceError("AccessDeniedException"))
    code, found = doctor(world, task_keys(ecs))
    assert code == 2
    (denied,) = [item for item in found if item["check"] == "permission ecs:ListTasks"]
    assert "grant ecs:ListTasks on cluster c" in denied["remedy"]


def test_doctor_needs_no_permission_that_the_daemon_does_not_need(world: ForkedWorld, ecs: FakeEcs) -> None:
    for operation in ("DescribeClusters", "DescribeTaskDefinition"):
        ecs.fail(operation, ServiceError("AccessDeniedException"))
    code, found = doctor(world, task_keys(ecs))
    assert code == 0, found
    assert "ecs:DescribeClusters is denied, which the daemon does not need" in said(found)


def test_doctor_says_that_a_cluster_does_not_answer(world: ForkedWorld, ecs: FakeEcs) -> None:
    code, found = doctor(world, task_keys(ecs) | {"engine_ecs_endpoint_url": "http://127.0.0.1:9"})
    assert code == 5
    assert "ecs:ListTasks" in said(found, ok=False)
