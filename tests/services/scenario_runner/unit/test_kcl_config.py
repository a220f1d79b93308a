"""From the wiring profile to KCL's properties, command and environment."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from profile_support import VALID

from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.kcl import config as kcl_config
from scenario_runner.profiles.environment import KINESIS_OVERRIDES
from scenario_runner.profiles.wiring import Wiring, load_wiring, parse_wiring

pytestmark = pytest.mark.unit

REPO = Path(__file__).resolve().parents[4]
STREAM = VALID | {"control_bus_kind": "kinesis", "control_bus_root": None, "control_bus_stream": "bus"}
EMULATOR = "http://localhost:4566"


def wiring(**changes: Any) -> Wiring:
    return parse_wiring(STREAM | changes, "test")


def properties(**changes: Any) -> dict[str, str]:
    return kcl_config.kcl_properties(wiring(**changes), "eu-west-1", "host.app.0")


def test_the_properties_name_the_application_the_stream_and_the_worker() -> None:
    found = properties()
    assert (found["applicationName"], found["streamName"]) == ("scenario-runner-bus", "bus")
    assert (found["workerId"], found["regionName"]) == ("host.app.0", "eu-west-1")
    assert properties(kinesis_application_name="mine")["applicationName"] == "mine"


def test_the_record_processor_is_named_without_white_space_and_found_first_on_the_path() -> None:
    assert properties()["executableName"] == f"{os.path.basename(sys.executable)} -m {kcl_config.SHARD_WORKER_MODULE}"
    environment = kcl_config.jvm_environment({"PATH": "/usr/bin", "HOME": "/h"})
    assert environment["PATH"].split(os.pathsep)[0] == os.path.dirname(sys.executable)
    assert environment["HOME"] == "/h"


def test_production_is_the_default_and_has_no_leader() -> None:
    found = properties()
    assert found["failoverTimeMillis"] == "5000"
    assert found["clientVersionConfig"] == "CLIENT_VERSION_CONFIG_COMPATIBLE_WITH_2X"
    assert int(found["idleTimeBetweenReadsInMillis"]) >= 200
    assert found["leaseTableDeletionProtectionEnabled"] == "true"
    assert "timeoutInSeconds" not in found
    assert "metricsLevel" not in found
    assert properties(kinesis_timing="fast")["failoverTimeMillis"] == "2000"


def test_an_emulator_gets_its_addresses_and_no_metrics() -> None:
    found = properties(control_bus_endpoint_url=EMULATOR)
    assert (found["kinesisEndpoint"], found["dynamoDBEndpoint"]) == (EMULATOR, EMULATOR)
    assert found["metricsLevel"] == "NONE"
    assert "leaseTableDeletionProtectionEnabled" not in found
    elsewhere = properties(control_bus_endpoint_url=EMULATOR, kinesis_dynamodb_endpoint_url="http://localhost:4567")
    assert elsewhere["dynamoDBEndpoint"] == "http://localhost:4567"


def test_the_start_position_is_one_of_three() -> None:
    assert properties()["initialPositionInStream"] == "TRIM_HORIZON"
    assert properties(kinesis_start_position="LATEST")["initialPositionInStream"] == "LATEST"
    found = properties(kinesis_start_position="AT_TIMESTAMP", kinesis_start_timestamp="2026-01-01T00:00:00Z")
    assert found["initialPositionInStreamExtended"] == "1767225600"
    assert "initialPositionInStream" not in found


@pytest.mark.parametrize(
    "changes",
    [
        {"kinesis_start_position": "AT_TIMESTAMP"},
        {"kinesis_start_timestamp": "2026-01-01T00:00:00Z"},
        {"kinesis_start_position": "AT_TIMESTAMP", "kinesis_start_timestamp": "yesterday"},
        {"kinesis_timing": "slow"},
        {"kinesis_application_name": "a/b"},
        {"kinesis_worker_id": "a b"},
        {"control_bus_stream": None},
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        wiring(**changes)


def test_fan_out_can_be_chosen() -> None:
    assert properties()["retrievalMode"] == "POLLING"
    assert properties(kinesis_enhanced_fan_out=True)["retrievalMode"] == "FANOUT"


def test_properties_are_written_as_java_reads_them() -> None:
    assert kcl_config.render_properties({"a": "C:\\x é"}) == "a = C:\\\\x \\u00e9\n"


def test_java_is_found_by_java_home_or_on_the_path(tmp_path: Path) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\n", "utf-8")
    java.chmod(0o755)
    assert kcl_config.find_java({"JAVA_HOME": str(tmp_path), "PATH": "/nowhere"}) == str(java)
    assert kcl_config.find_java({"PATH": str(java.parent)}) == str(java)
    for env in ({"PATH": "/nowhere"}, {"JAVA_HOME": "/nowhere", "PATH": str(java.parent)}):
        with pytest.raises(ConfigurationError, match="Java runtime"):
            kcl_config.find_java(env)


def test_missing_jars_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kcl_config.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"\.\[kinesis\]"):
        kcl_config.find_jars()


# --- the profiles ---------------------------------------------------------------------------------------------------

AWS = {
    "SR_S3_BUCKET": "b", "SR_S3_REGION": "eu-west-1", "SR_PG_USER": "u", "SR_PG_PASSWORD": "p", "SR_PG_HOST": "h",
    "SR_PG_DATABASE": "d", "SR_PG_CA_FILE": "/ca.pem", "SR_KINESIS_STREAM": "s", "SR_KINESIS_REGION": "eu-west-1",
    "SR_KINESIS_APPLICATION": "app", "SR_ENGINE_ROOTS": "s3://engine/runs", "SR_AUTH_ALLOWLIST": "a,b",
}  # fmt: skip


def test_the_local_profile_with_a_stream_needs_nothing_from_the_environment() -> None:
    found = load_wiring(str(REPO / "config/platform/sr/wiring_local_kinesis.yaml"), env={})
    assert (found.control_bus_stream, found.control_bus_endpoint_url) == ("sr-control-bus", EMULATOR)
    assert found.dynamodb_endpoint_url == "http://localhost:4567"


def test_the_profile_for_aws_takes_everything_from_the_environment_and_overrides_no_endpoint() -> None:
    path = str(REPO / "config/platform/sr/wiring_aws.yaml")
    found = load_wiring(path, env=AWS)
    assert found.auth_mode == "allowlist"
    assert found.auth_allowlist == ["a", "b"]
    assert "sslmode=verify-full" in found.authority_store_dsn
    assert {found.control_bus_endpoint_url, found.dynamodb_endpoint_url, found.s3_endpoint_url} == {None}
    for name in AWS:
        with pytest.raises(ConfigurationError, match=name):
            load_wiring(path, env={key: value for key, value in AWS.items() if key != name})


def test_the_environment_overrides_a_profile_with_a_stream_and_no_other(tmp_path: Path) -> None:
    import yaml

    env = dict.fromkeys(KINESIS_OVERRIDES, "name-1") | {n: "http://h:1" for n in KINESIS_OVERRIDES if n.endswith("URL")}
    path = tmp_path / "wiring.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in STREAM.items() if v is not None}), "utf-8")
    found = load_wiring(str(path), env=env)
    assert {name: getattr(found, key) for name, (key, _) in KINESIS_OVERRIDES.items()} == env
    assert load_wiring(str(path), env=dict.fromkeys(env, "")) == load_wiring(str(path), env={})
    path.write_text(yaml.safe_dump(VALID), "utf-8")
    assert load_wiring(str(path), env=env) == load_wiring(str(path), env={})
