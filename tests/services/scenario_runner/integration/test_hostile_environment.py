"""Values of the environment that no client may see: the commands refuse them, name the variable, and make nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from support import ForkedWorld, World

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.retry import RetryPolicy

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

ON_S3: dict[str, Any] = {"object_store_root": "s3://sr-local", "s3_endpoint_url": "http://localhost:9"}
ON_A_STREAM: dict[str, Any] = {
    "control_bus_kind": "kinesis", "control_bus_stream": "s", "control_bus_endpoint_url": "http://localhost:9",
    "control_bus_region": "us-east-1",
}  # fmt: skip
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "hunter2"}

# what the profile changes, what the environment holds, what is named
REFUSED: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "endpoint without scheme": (ON_S3 | {"s3_endpoint_url": "localhost:9"}, KEYS, "s3_endpoint_url"),
    "endpoint of the stream without scheme": (
        ON_A_STREAM | {"control_bus_endpoint_url": "localhost:9"}, KEYS, "control_bus_endpoint_url",
    ),
    "endpoint in the environment without scheme": (
        ON_S3 | {"s3_endpoint_url": None}, KEYS | {"AWS_ENDPOINT_URL": "localhost:9"}, "AWS_ENDPOINT_URL",
    ),
    "carriage return in an expanded variable": (
        ON_S3 | {"s3_endpoint_url": "${SR_TEST_ENDPOINT}"}, KEYS | {"SR_TEST_ENDPOINT": "http://localhost:9\r"},
        "SR_TEST_ENDPOINT",
    ),
    "quotes in an expanded variable": (
        ON_S3 | {"object_store_root": "s3://${SR_TEST_BUCKET}"}, KEYS | {"SR_TEST_BUCKET": '"sr-local"'},
        "SR_TEST_BUCKET",
    ),
    "carriage return in the secret": (ON_S3, KEYS | {"AWS_SECRET_ACCESS_KEY": "hunter2\r"}, "AWS_SECRET_ACCESS_KEY"),
    "carriage return in the key, stream only": (
        ON_A_STREAM, KEYS | {"AWS_ACCESS_KEY_ID": "a\r"}, "AWS_ACCESS_KEY_ID",
    ),
    "quotes around the token": (ON_S3, KEYS | {"AWS_SESSION_TOKEN": "'t'"}, "AWS_SESSION_TOKEN"),
    "a key without its secret": (ON_S3, {"AWS_ACCESS_KEY_ID": "a"}, "AWS_SECRET_ACCESS_KEY"),
    "carriage return in the region": (ON_S3, KEYS | {"AWS_REGION": "us-east-1\r"}, "AWS_REGION"),
    "name of the stream": (ON_A_STREAM, KEYS | {"SR_KINESIS_STREAM": "s\r"}, "SR_KINESIS_STREAM"),
    "bucket": ({"object_store_root": "s3://Sr_Local"}, KEYS, "object_store_root"),
    "scheme of the store": ({"object_store_root": "gs://sr-local"}, {}, "object_store_root"),
    "DSN on a Windows path": ({"authority_store_dsn": "sqlite:///C:\\sr\\a.db"}, {}, "authority_store_dsn"),
    "engine root on a Windows path": ({"engine_roots": ["/tmp", "D:\\runs"]}, {}, "engine_roots"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "SR_KINESIS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize("command", ["serve", "doctor"])
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_a_line_that_names_it_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: str
) -> None:
    changes, env, named = REFUSED[name]
    world = ForkedWorld(tmp_path / "w", changes)
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(world.root)
    before = set(world.root.rglob("*"))
    done = world.command(command, "--wiring", str(world.wiring), "--policy", str(world.policy), timeout=60)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 2, said
    assert named in said
    assert not [word for word in ("hunter2", "Traceback", "panicked") if word in said]
    assert len(said.splitlines()) <= 4
    assert set(world.root.rglob("*")) == before


def test_the_installed_command_refuses_the_same(tmp_path: Path) -> None:
    world = World(tmp_path / "w", ON_S3 | {"s3_endpoint_url": "localhost:9"})
    served = world.serve()
    assert (served.returncode, len(served.stderr.splitlines())) == (2, 1)
    assert b"s3_endpoint_url" in served.stderr


def test_a_policy_is_examined_although_the_wiring_is_refused(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "w", ON_S3 | {"s3_endpoint_url": "localhost:9"})
    done = world.command("doctor", "--wiring", str(world.wiring), "--policy", str(world.policy))
    assert b"ok    policy profile" in done.stdout


def test_credentials_are_not_the_concern_of_a_profile_without_aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half\r")
    assert ForkedWorld(tmp_path / "w").serve().returncode == 0


def test_doctor_names_the_endpoints_in_effect_and_what_of_the_environment_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    world = ForkedWorld(tmp_path / "w", {**ON_A_STREAM, **ON_S3, "control_bus_endpoint_url": None,
                                         "engine_contracts_root": "/nowhere"})  # fmt: skip
    env = {**KEYS, "AWS_ENDPOINT_URL": "http://localhost:8", "AWS_SKIP_SIGNATURE": "true", "AWS_REGION": "eu-west-1"}
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    for module in ("storage.s3_client", "bus.stream"):
        monkeypatch.setattr(f"scenario_runner.{module}._RETRY", RetryPolicy(0.001, 0.005, deadline_seconds=0.01))
    said = world.command("doctor", "--wiring", str(world.wiring)).stdout.decode()
    assert "S3: http://localhost:9 (key s3_endpoint_url), region eu-west-1 (AWS_REGION)" in said
    assert "Kinesis: http://localhost:8 (AWS_ENDPOINT_URL), region us-east-1 (key control_bus_region)" in said
    assert "DynamoDB: http://localhost:8 (AWS_ENDPOINT_URL)" in said
    assert "credentials come from the environment" in said
    assert "ignores: AWS_SKIP_SIGNATURE" in said


def test_a_panic_of_the_native_client_is_an_outage_and_does_not_end_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("obstore")
    from scenario_runner.storage.s3_client import S3Bucket, S3Settings

    for variable, value in KEYS.items():
        monkeypatch.setenv(variable, value)
    bucket = S3Bucket("sr-local", S3Settings("localhost:9", "us-east-1"))  # no profile brings this so far
    calls = (lambda: bucket.get("key", 1), lambda: bucket.put("key", b"x"), lambda: bucket.head("key"),
             lambda: bucket.listing("", 1))  # fmt: skip
    for call in calls:
        with pytest.raises(Unavailable, match="broke off") as told:
            call()
        assert "\n" not in told.value.detail
