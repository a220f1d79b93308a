"""From a DSN to an engine, and what of a DSN may be told to anybody: never a password, in no spelling."""

import traceback
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest

from scenario_runner.authority import connect
from scenario_runner.authority.connect import check_dsn, connect_authority, is_postgres, sqlite_path
from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.retry import RetryPolicy

pytestmark = pytest.mark.unit

PASSWORDS = (
    "p@ss:w0rd/with%percent and space",
    "hunter2@",
    "@:/%? #&=+",
    "it's \\quoted\\",
    "%41%42%43",
    'dou"ble',
    "pässwörd-ключ",
    "new\nline-secret",
)


def uri(password: str) -> str:
    return f"postgresql://the_user:{quote(password, safe='')}@127.0.0.1:9/the_database?connect_timeout=2"


def key_value(password: str) -> str:
    quoted = password.replace("\\", "\\\\").replace("'", "\\'")
    return f"host=127.0.0.1 port=9 user=the_user dbname=the_database connect_timeout=2 password='{quoted}'"


def spellings(password: str) -> list[str]:
    return [
        password,
        quote(password),
        quote(password, safe=""),
        quote_plus(password),
        password.replace("\\", "\\\\").replace("'", "\\'"),
        repr(password)[1:-1],
        ascii(password)[1:-1],
    ]


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://u:p@host/db", True),
        ("postgres://host/db", True),
        ("postgresql:///db?host=/run/postgresql", True),
        ("host=/run/postgresql dbname=db", True),
        ("dbname=db", True),
        ("user=u host = h", True),
        ("sqlite:///x.db", False),
        ("sqlite:////tmp/dbname=x", False),
        ("mysql://host/db?dbname=x host=y", False),
        ("user=u password=p", False),
        ("xdbname=x", False),
        ("", False),
    ],
)
def test_the_form_of_a_dsn_tells_its_engine(dsn: str, expected: bool) -> None:
    assert is_postgres(dsn) is expected


def test_a_sqlite_dsn_names_a_file() -> None:
    assert sqlite_path("sqlite:////tmp/a.db") == "/tmp/a.db"
    check_dsn("sqlite:////tmp/a.db", "profile p")


@pytest.mark.parametrize(
    "dsn",
    [
        "mysql://user:hunter2@host/db",
        "user=u password=hunter2",
        "password=hunter2:x",
        "hunter2",
        "sqlite:///",
        "postgresql://user:hunter2@host:port-hunter2/db",
        "postgresql://user:hunter2%zz@host/db",
        "postgresql://user:p@hunter2/w@host/db",
        "postgresql://user:p/hunter2@host/db",
        "postgresql://user:hunter2/p@host/db",
        "postgresql://user:hunter2@1@host/db",
        "postgresql://user:1@hunter2?p@host/db",
        "postgresql://user:hunter2@host/db?nonsense=hunter2",
        "host=h dbname=d password='hunter2",
        "host=h dbname=d hunter2",
        "host=h dbname=d nonsense=hunter2",
        "postgresql://user:hunter2@[::1/db",
    ],
)
def test_a_dsn_that_cannot_be_used_is_refused_without_being_told(dsn: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ConfigurationError) as refused:
        check_dsn(dsn, "profile p")
    assert "profile p, key 'authority_store_dsn'" in refused.value.place
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


def test_a_missing_driver_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError) as refused:
        check_dsn(uri("hunter2"), "profile p")
    assert "pip install '.[postgres]'" in refused.value.remedy
    assert "psycopg" in refused.value.problem
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("form", [uri, key_value])
@pytest.mark.parametrize("password", PASSWORDS)
def test_no_text_about_a_database_tells_its_password(
    form: Callable[[str], str],
    password: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setattr(
        "scenario_runner.authority.postgres_pool._RETRY", RetryPolicy(0.01, 0.02, deadline_seconds=0.05)
    )
    caplog.set_level("DEBUG")
    dsn = form(password)
    check_dsn(dsn, "profile p")
    with pytest.raises(Unavailable) as failed:
        connect_authority(dsn, "profile p")
    assert "127.0.0.1:9" in failed.value.detail
    assert "the_database" in failed.value.detail
    told = (
        "".join(traceback.format_exception(failed.value))
        + repr(failed.value)
        + caplog.text
        + "".join(capfd.readouterr())
    )
    for spelling in spellings(password):
        assert spelling not in told


@pytest.mark.parametrize("form", [uri, key_value])
@pytest.mark.parametrize("password", PASSWORDS)
def test_a_text_that_holds_the_password_or_the_dsn_is_cleaned(form: Callable[[str], str], password: str) -> None:
    pytest.importorskip("psycopg")
    from scenario_runner.authority.postgres_dsn import PostgresDsn

    dsn = PostgresDsn(form(password), "profile p")
    for secret in (*spellings(password), form(password)):
        assert dsn.redacted(f"before {secret} after") == "before *** after"


def test_what_the_dsn_sets_wins_over_what_is_added() -> None:
    pytest.importorskip("psycopg")
    from scenario_runner.authority.postgres_dsn import PostgresDsn

    plain = PostgresDsn("dbname=d", "p")
    assert plain.parameters["application_name"] == "scenario-runner"
    assert "options" not in plain.parameters, "poolers that keep sessions do not pass them on"
    assert plain.settings["synchronous_commit"] == "on"
    assert plain.settings["statement_timeout"] == "15s"
    own = PostgresDsn(
        "postgresql://h/d?application_name=mine&options=-cstatement_timeout%3D1s%20--lock-timeout%3D2s&sslmode=verify-full"
        "&sslrootcert=/ca.pem",
        "p",
    )
    parameters = own.parameters
    assert (parameters["application_name"], parameters["sslmode"], parameters["sslrootcert"]) == (
        "mine",
        "verify-full",
        "/ca.pem",
    )
    assert parameters["options"] == "-cstatement_timeout=1s --lock-timeout=2s"
    assert own.option_names == ["statement_timeout", "lock_timeout"]
    assert not {"statement_timeout", "lock_timeout"} & set(own.settings)
