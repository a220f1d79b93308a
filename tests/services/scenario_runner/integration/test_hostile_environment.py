"""Values of the environment that no client may see: the commands refuse them, name the variable, and make nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import ForkedWorld, World

from scenario_runner.contracts.errors import Unavailable

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


_IMPATIENT = """
from scenario_runner.bus import stream
from scenario_runner.retry import RetryPolicy
from scenario_runner.storage import s3_client
s3_client._RETRY = stream._RETRY = RetryPolicy(0.001, 0.005, deadline_seconds=0.01)
from scenario_runner.cli.main import main
main()
"""


def _doctor(world: World, *more: str) -> subprocess.CompletedProcess[bytes]:
    """``doctor`` in a process of its own, which gives S3 up at once: a fork cannot use the native client."""
    arguments = ["doctor", "--wiring", str(world.wiring), *more]
    return subprocess.run([sys.executable, "-c", _IMPATIENT, *arguments], capture_output=True, timeout=120, check=False)


def test_doctor_names_the_endpoints_in_effect_and_what_of_the_environment_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    world = World(tmp_path / "w", {**ON_A_STREAM, **ON_S3, "control_bus_endpoint_url": None,
                                   "engine_contracts_root": "/nowhere"})  # fmt: skip
    env = {**KEYS, "AWS_ENDPOINT_URL": "http://localhost:8", "AWS_SKIP_SIGNATURE": "true", "AWS_REGION": "eu-west-1"}
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    done = _doctor(world)
    said = done.stdout.decode()
    assert "S3: http://localhost:9 (key s3_endpoint_url), region eu-west-1 (AWS_REGION)" in said
    assert "Kinesis: http://localhost:8 (AWS_ENDPOINT_URL), region us-east-1 (key control_bus_region)" in said
    assert "DynamoDB: http://localhost:8 (AWS_ENDPOINT_URL)" in said
    assert "credentials come from the environment" in said
    assert "ignores: AWS_SKIP_SIGNATURE" in said
    assert all(line.startswith(("ok    ", "FAIL  ")) for line in said.splitlines()), "stdout holds findings only"
    assert b"AWS_SKIP_SIGNATURE" in done.stderr


def test_what_is_logged_does_not_get_into_the_json_of_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    world = World(tmp_path / "w", ON_S3)
    for variable, value in {**KEYS, "AWS_SKIP_SIGNATURE": "true", "AWS_REGION": "eu-west-1"}.items():
        monkeypatch.setenv(variable, value)
    done = _doctor(world, "--json")
    assert json.loads(done.stdout)["ok"] is False
    assert done.stderr.startswith(b"warning: ")


def test_doctor_shows_each_finding_when_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends a command that hangs sees how far it came."""

    def hang(_wiring: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("scenario_runner.cli.doctor.open_store", hang)
    world = ForkedWorld(tmp_path / "w")
    done = world.command("doctor", "--wiring", str(world.wiring))
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.decode().splitlines()[-1].startswith("ok    clock: ")


def test_a_stream_that_does_not_answer_is_an_outage_also_where_its_leases_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")

    def no_answer(*_given: object, **_named: object) -> None:
        raise Unavailable("no answer")

    monkeypatch.setattr("scenario_runner.cli.doctor.try_stream", no_answer)
    monkeypatch.setattr("scenario_runner.cli.doctor.try_tables", lambda *_given: [])
    for variable, value in KEYS.items():
        monkeypatch.setenv(variable, value)
    world = ForkedWorld(tmp_path / "w", ON_A_STREAM)
    done = world.command("doctor", "--wiring", str(world.wiring), "--json")
    failed = {item["check"] for item in json.loads(done.stdout)["checks"] if not item["ok"]} - {"KCL"}  # no JVM here
    assert (done.returncode, failed) == (5, {"control bus"})


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
