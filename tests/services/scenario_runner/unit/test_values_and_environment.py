"""Endpoints, regions, names and paths of a profile or the environment: checked before any client sees them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.profiles import values
from scenario_runner.profiles.wiring import Wiring, load_wiring, parse_wiring

pytestmark = pytest.mark.unit

VALID: dict[str, Any] = {
    "profile_id": "test", "object_store_root": "s3://bucket/x", "authority_store_dsn": "sqlite:////tmp/authority.db",
    "control_bus_kind": "kinesis", "control_bus_stream": "stream", "engine_catalogue_path": "catalogue.yaml",
    "gate_map_path": "gates.yaml", "engine_contracts_root": "contracts", "schema_root": "schemas",
    "auth_mode": "disabled", "control_bus_root": "bus",
}  # fmt: skip
ENDPOINT_KEYS = ("s3_endpoint_url", "control_bus_endpoint_url", "kinesis_dynamodb_endpoint_url")
BAD_ENDPOINTS = (
    "localhost:9000", "localhost", "//localhost:9000", "http:/localhost:9000", "ftp://localhost", "s3://bucket",
    "http://", "http://:9000", "http://localhost:", "http://localhost:0", "http://localhost:65536",
    "http://localhost:9000/bucket", "http://localhost:9000//", "http://localhost:9000?x=1", "http://localhost:9000#x",
    "http://minio:hunter2@localhost:9000", "http://local host:9000", " http://localhost:9000",
    "http://localhost:9000 ", "http://localhost:9000\r", "http://localhost:9000\n", '"http://localhost:9000"',
    "'http://localhost:9000'", "http://localhost:9000,http://other:9000", "http://l\u00f6calhost", "http://-host",
    "http://host\\path", "http://[::1", "http://\u202elocalhost",
)  # fmt: skip


def written(path: Path, **changes: Any) -> str:
    file = path / "wiring.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in (VALID | changes).items() if v is not None}), "utf-8")
    return str(file)


def refusal(document: dict[str, Any]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as refused:
        parse_wiring(document, "profile.yaml")
    assert "\n" not in str(refused.value)
    return refused.value


@pytest.fixture(autouse=True)
def _not_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "WINDOWS", False)


# --- endpoints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ENDPOINT_KEYS)
@pytest.mark.parametrize("value", BAD_ENDPOINTS)
def test_an_endpoint_that_is_no_address_of_a_server_is_refused_by_its_key(key: str, value: str) -> None:
    error = refusal(VALID | {key: value})
    assert key in error.problem
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("http://localhost:9000", "http://localhost:9000"), ("http://localhost:9000/", "http://localhost:9000"),
        ("HTTPS://S3.example.org", "https://S3.example.org"), ("http://10.0.0.1:80", "http://10.0.0.1:80"),
        ("http://[::1]:9000", "http://[::1]:9000"), ("http://sr_minio:9000", "http://sr_minio:9000"),
        ("http://a", "http://a"),
    ],
)  # fmt: skip
def test_an_endpoint_is_read_in_its_normal_form(value: str, read: str) -> None:
    for key in ENDPOINT_KEYS:
        assert getattr(parse_wiring(VALID | {key: value}, "x"), key) == read


def test_a_missing_scheme_is_said_to_be_that() -> None:
    assert "write http:// or https:// before the host" in refusal(VALID | {"s3_endpoint_url": "localhost:9"}).problem


@pytest.mark.parametrize(
    "variable",
    ["SR_KINESIS_ENDPOINT_URL", "SR_KINESIS_DYNAMODB_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
     "AWS_ENDPOINT_URL_KINESIS", "AWS_ENDPOINT_URL_DYNAMODB"],
)  # fmt: skip
@pytest.mark.parametrize("value", BAD_ENDPOINTS)
def test_an_endpoint_of_the_environment_is_refused_by_the_name_of_its_variable(
    tmp_path: Path, variable: str, value: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_wiring(written(tmp_path), env={variable: value})
    assert refused.value.place == f"environment variable {variable}"
    assert variable in refused.value.remedy
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SR_KINESIS_STREAM", "a stream"), ("SR_KINESIS_STREAM", "stream\r"), ("SR_KINESIS_STREAM", '"stream"'),
        ("SR_KINESIS_STREAM", "arn:aws:kinesis:eu-west-1:1:stream/x"), ("SR_KINESIS_REGION", "eu west"),
        ("SR_KINESIS_REGION", "eu-west-1\r"), ("AWS_REGION", "'eu-west-1'"), ("AWS_REGION", "http://localhost"),
        ("AWS_DEFAULT_REGION", "eu-west-1\n"),
    ],
)  # fmt: skip
def test_a_name_of_the_environment_is_refused_by_the_name_of_its_variable(
    tmp_path: Path, variable: str, value: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_wiring(written(tmp_path), env={variable: value})
    assert refused.value.place == f"environment variable {variable}"


LOCAL = {"object_store_root": "/tmp/store", "control_bus_kind": "spool", "control_bus_stream": None}


def test_variables_that_a_profile_does_not_use_are_not_its_concern(tmp_path: Path) -> None:
    env = dict.fromkeys(("AWS_ENDPOINT_URL", "SR_KINESIS_ENDPOINT_URL", "AWS_REGION", "SR_KINESIS_STREAM"), "no\r")
    assert load_wiring(written(tmp_path, **LOCAL), env=env) == load_wiring(written(tmp_path, **LOCAL), env={})


def endpoints(wiring: Wiring) -> tuple[str | None, str | None, str | None]:
    return wiring.s3_endpoint_url, wiring.control_bus_endpoint_url, wiring.dynamodb_endpoint_url


@pytest.mark.parametrize(
    ("keys", "env", "s3", "kinesis", "dynamodb"),
    [
        ({}, {}, None, None, None),
        ({}, {"AWS_ENDPOINT_URL": "http://any"}, "http://any", "http://any", "http://any"),
        ({}, {"AWS_ENDPOINT_URL": "http://any", "AWS_ENDPOINT_URL_S3": "http://s3"}, "http://s3", "http://any",
         "http://any"),
        ({}, {"AWS_ENDPOINT_URL_KINESIS": "http://kin"}, None, "http://kin", None),
        ({}, {"AWS_ENDPOINT_URL_KINESIS": "http://kin", "AWS_ENDPOINT_URL": "http://any"}, "http://any", "http://kin",
         "http://any"),
        ({}, {"AWS_ENDPOINT_URL_DYNAMODB": "http://dyn"}, None, None, "http://dyn"),
        ({"s3_endpoint_url": "http://key"}, {"AWS_ENDPOINT_URL_S3": "http://s3"}, "http://key", None, None),
        ({"control_bus_endpoint_url": "http://key"}, {"AWS_ENDPOINT_URL": "http://any"}, "http://any", "http://key",
         "http://key"),
        ({"control_bus_endpoint_url": "http://key"}, {"SR_KINESIS_ENDPOINT_URL": "http://sr"}, None, "http://sr",
         "http://sr"),
        ({}, {"SR_KINESIS_ENDPOINT_URL": "http://sr", "AWS_ENDPOINT_URL": "http://any"}, "http://any", "http://sr",
         "http://sr"),
        ({"kinesis_dynamodb_endpoint_url": "http://key"}, {"AWS_ENDPOINT_URL_DYNAMODB": "http://dyn"}, None, None,
         "http://key"),
        ({}, {"AWS_ENDPOINT_URL": "http://any", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, None, None, None),
        ({}, {"AWS_ENDPOINT_URL": ""}, None, None, None),
    ],
)  # fmt: skip
def test_the_sdks_variables_fill_in_what_the_profile_leaves_open_for_all_three_services(
    tmp_path: Path, keys: dict[str, str], env: dict[str, str], s3: str | None, kinesis: str | None, dynamodb: str | None
) -> None:
    assert endpoints(load_wiring(written(tmp_path, **keys), env=env)) == (s3, kinesis, dynamodb)


def test_a_wiring_knows_where_its_values_come_from(tmp_path: Path) -> None:
    env = {"AWS_ENDPOINT_URL": "http://any", "SR_KINESIS_STREAM": "other", "AWS_DEFAULT_REGION": "eu-west-1"}
    found = load_wiring(written(tmp_path, s3_region="us-east-1"), env=env)
    assert found.origin("s3_endpoint_url") == "AWS_ENDPOINT_URL"
    assert found.origin("s3_region") == "key s3_region"
    assert (found.control_bus_stream, found.origin("control_bus_stream")) == ("other", "SR_KINESIS_STREAM")
    assert (found.control_bus_region, found.origin("control_bus_region")) == ("eu-west-1", "AWS_DEFAULT_REGION")


# --- paths ------------------------------------------------------------------------------------------------------------

PATH_KEYS = (
    "object_store_root", "control_bus_root", "engine_catalogue_path", "gate_map_path", "schema_root",
    "engine_contracts_root", "kinesis_state_dir", "engine_roots", "authority_store_dsn",
)  # fmt: skip
WINDOWS = ("C:\\runs\\bus", "c:/runs/bus", "runs\\bus", "\\\\server\\share", "C:", "D:\\", "file:///C:/runs")
MISREAD = ("C:\temp\bus", "a\rb", "/tmp/bus\r", "a\nb", "a\x00b", "a\x1bb", "a\x85b", "a\u202eb", "a\u2028b")
LITERAL = ("~/sr", "~", "$HOME/sr", "%USERPROFILE%/sr", "'/tmp/x'", '"/tmp/x"')


def as_value(key: str, path: str) -> Any:
    if key == "engine_roots":
        return ["/tmp", path]
    return f"sqlite:///{path}" if key == "authority_store_dsn" else path


@pytest.mark.parametrize("key", PATH_KEYS)
@pytest.mark.parametrize("path", [*WINDOWS, *MISREAD, *LITERAL, " ", "\t", " /tmp/x", "/tmp/x "], ids=ascii)
def test_a_path_that_cannot_be_meant_on_this_machine_is_refused_by_its_key(key: str, path: str) -> None:
    error = refusal(VALID | {key: as_value(key, path)})
    assert key in error.problem


def test_a_windows_path_is_told_as_it_is_written_in_wsl() -> None:
    error = refusal(VALID | {"control_bus_root": "C:\\runs\\bus"})
    assert "/mnt/c/runs/bus" in error.problem
    assert "/mnt/d" in refusal(VALID | {"schema_root": "D:\\"}).problem


@pytest.mark.parametrize("key", [key for key in PATH_KEYS if key != "authority_store_dsn"])
@pytest.mark.parametrize("path", ["runs", "./runs", "/data/runs", "a b/c", "a:b", "12:30", "caf\u00e9", "a~b", "x$y"])
def test_every_other_path_is_taken(key: str, path: str) -> None:
    found = getattr(parse_wiring(VALID | {key: as_value(key, path)}, "x"), key)
    assert found == as_value(key, path)


def test_on_windows_a_windows_path_is_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "WINDOWS", True)
    assert parse_wiring(VALID | {"schema_root": "C:\\sr\\schemas"}, "x").schema_root == "C:\\sr\\schemas"
