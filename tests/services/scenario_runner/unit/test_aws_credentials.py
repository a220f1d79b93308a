"""AWS credentials: half keys and misread ones are refused without being told; rotated files are read again."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

pytest.importorskip("botocore", reason="the AWS SDK is not installed")

from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.storage.aws import (
    HONOURED,
    Credentials,
    Keys,
    drop_foreign_variables,
    foreign_variables,
    keys_of,
    native_options,
    sdk_client,
)

pytestmark = pytest.mark.unit

SECRET = "s3cret/of+ours"
GIVEN = {"AWS_ACCESS_KEY_ID": "AKIA1", "AWS_SECRET_ACCESS_KEY": SECRET}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own AWS settings, and no metadata service."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


def write(path: Path, access_key: str, secret_key: str = SECRET, token: str = "") -> None:
    """A shared credentials file, replaced as rotation does it."""
    lines = ["[default]", f"aws_access_key_id = {access_key}", f"aws_secret_access_key = {secret_key}"]
    temporary = path.with_suffix(".new")
    temporary.write_text("\n".join([*lines, *([f"aws_session_token = {token}"] if token else [])]) + "\n", "utf-8")
    temporary.replace(path)


# --- the environment --------------------------------------------------------------------------------------------------


def test_the_environment_names_a_key_with_or_without_a_token() -> None:
    assert keys_of({}) is None
    assert keys_of(GIVEN) == Keys("AKIA1", SECRET, "")
    assert keys_of(GIVEN | {"AWS_SESSION_TOKEN": "t"}) == Keys("AKIA1", SECRET, "t")


def test_a_token_that_is_set_and_empty_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (GIVEN | {"AWS_SESSION_TOKEN": ""}).items():
        monkeypatch.setenv(name, value)
    drop_foreign_variables()
    assert "AWS_SESSION_TOKEN" not in os.environ, "the native client would send it"
    assert native_options(Credentials()) == {"access_key_id": "AKIA1", "secret_access_key": SECRET}
    assert keys_of(os.environ) == Keys("AKIA1", SECRET, "")


@pytest.mark.parametrize("missing", sorted(GIVEN))
def test_half_a_key_is_refused_by_the_name_of_the_other_half(missing: str) -> None:
    for env in ({k: v for k, v in GIVEN.items() if k != missing}, GIVEN | {missing: ""}):
        with pytest.raises(ConfigurationError) as refused:
            keys_of(env)
        assert refused.value.place == f"environment variable {missing}"
        assert SECRET not in str(refused.value)


@pytest.mark.parametrize("name", [*sorted(GIVEN), "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize("wrong", ["{}\r", "{} ", " {}", "{}\n", '"{}"', "'{}'", '"{}', "{}\x00", "a\tb{}", "\u00e9{}"])
def test_a_misread_credential_is_refused_by_its_variable_and_never_told(name: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        keys_of(GIVEN | {name: wrong.format(SECRET)})
    assert refused.value.place == f"environment variable {name}"
    assert SECRET not in str(refused.value)


def test_keys_are_not_shown_where_they_are_printed() -> None:
    assert SECRET not in repr(Keys("AKIA1", SECRET, SECRET))


# --- the SDK's chain --------------------------------------------------------------------------------------------------


def test_a_shared_credentials_file_that_is_rotated_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    write(path, "AKIA1")
    credentials = Credentials()
    assert credentials.current().access_key == "AKIA1"
    write(path, "AKIA2", "other", "token")
    assert credentials.current() == Keys("AKIA2", "other", "token")
    assert "shared-credentials-file" in credentials.source


def test_the_last_good_keys_are_used_while_a_file_is_away_or_half_written(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    write(path, "AKIA1")
    credentials = Credentials()
    path.write_text("[default]\naws_access_key_id = AKIA2\n", "utf-8")
    assert credentials.current().access_key == "AKIA1"
    path.unlink()
    assert credentials.current().access_key == "AKIA1"
    write(path, "AKIA3")
    assert credentials.current().access_key == "AKIA3"


def test_the_native_client_asks_for_rotating_keys_again_and_for_fixed_ones_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "credentials", "AKIA1")
    given = native_options(Credentials())["credential_provider"]()
    assert (given["access_key_id"], given["token"]) == ("AKIA1", None)
    assert timedelta(seconds=300) < given["expires_at"] - datetime.now(UTC) < timedelta(seconds=330)
    for name, value in (GIVEN | {"AWS_SESSION_TOKEN": "t"}).items():
        monkeypatch.setenv(name, value)
    fixed = {"access_key_id": "AKIA1", "secret_access_key": SECRET, "session_token": "t"}
    assert native_options(Credentials()) == fixed


def test_a_client_of_the_sdk_signs_with_the_keys_of_the_moment(tmp_path: Path) -> None:
    from botocore.config import Config

    write(tmp_path / "credentials", "AKIA1")
    client = sdk_client("kinesis", "eu-west-1", "http://localhost:9", Config(retries={"total_max_attempts": 1}))
    signed: list[str] = []

    def keep(request: object, **_: object) -> None:
        signed.append(request.headers["Authorization"].decode())  # type: ignore[attr-defined]
        raise InterruptedError

    client.meta.events.register("before-send.kinesis", keep)
    for key in ("AKIA1", "AKIA2"):
        write(tmp_path / "credentials", key)
        with pytest.raises(InterruptedError):
            client.list_streams()
    assert ["Credential=AKIA1/" in signed[0], "Credential=AKIA2/" in signed[1]] == [True, True]


def test_an_endpoint_in_the_sdks_own_files_is_not_followed_by_one_service_alone(tmp_path: Path) -> None:
    from botocore.config import Config

    write(tmp_path / "credentials", "AKIA1")
    (tmp_path / "config").write_text("[default]\nendpoint_url = http://elsewhere:1\n", "utf-8")
    assert "amazonaws.com" in sdk_client("dynamodb", "eu-west-1", None, Config()).meta.endpoint_url


def test_a_file_with_quoted_keys_is_refused_and_none_at_all_is_an_outage(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no AWS credentials"):
        Credentials()
    write(tmp_path / "credentials", "AKIA1", f'"{SECRET}"')
    with pytest.raises(ConfigurationError, match="quotes") as refused:
        Credentials()
    assert SECRET not in str(refused.value)


# --- everything else of AWS in the environment ------------------------------------------------------------------------


def test_foreign_variables_are_named_once_and_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = ("AWS_SKIP_SIGNATURE", "AWS_ENDPOINT", "AWS_CONDITIONAL_PUT", "AWS_USE_FIPS_ENDPOINT")
    for name in foreign:
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert foreign_variables(os.environ) == sorted(foreign)
    with capture_logs() as log:
        drop_foreign_variables()
        drop_foreign_variables()
    assert [item["variables"] for item in log] == [sorted(foreign)]
    assert not set(foreign) & set(os.environ)
    assert os.environ["AWS_REGION"] == "eu-west-1"
    assert {name for name in os.environ if name.startswith("AWS_")} <= HONOURED
