"""``profile_class: production``: what it refuses, all at once, and what passes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from support import REPO

from scenario_runner.cli import serve
from scenario_runner.cli.doctor import _examine_pack
from scenario_runner.cli.doctor_report import Report
from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.interface_pack.loader import load_pack
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import Wiring, load_wiring, parse_wiring
from scenario_runner.service.loops import Role
from scenario_runner.service.notify import Notifier
from scenario_runner.service.production import (
    EXAMPLE_PACK,
    EXAMPLE_POLICY,
    require_class,
    require_class_of_producer,
    warnings_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from scenario_runner.interface_pack.model import InterfacePack
    from scenario_runner.profiles.policy import Policy

pytestmark = pytest.mark.unit

FILES = {
    "engine_catalogue_path": "c", "gate_map_path": "g", "schema_root": "s", "engine_contracts_root": "e",
}  # fmt: skip
FIT: dict[str, Any] = {
    "profile_id": "p", "profile_class": "production", "object_store_root": "s3://bucket/prefix",
    "authority_store_dsn": "postgresql://u:secret@db/sr?sslmode=verify-full&sslrootcert=/ca.pem",
    "control_bus_kind": "kinesis", "control_bus_stream": "stream", "auth_mode": "allowlist", "auth_allowlist": ["a"],
    "engine_roots": ["s3://bucket/runs"], **FILES,
}  # fmt: skip
FIRST_TRY: dict[str, Any] = {
    "profile_id": "p", "profile_class": "production", "object_store_root": "store", "control_bus_root": "bus",
    "authority_store_dsn": "sqlite:///a.db", "auth_mode": "disabled", "kinesis_timing": "fast", **FILES,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGSSLMODE"):
        monkeypatch.delenv(name, raising=False)


def profile(**changes: Any) -> Wiring:
    return parse_wiring({**FIT, **changes}, "wiring.yaml")


def refusal(wiring: Wiring, env: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as refused:
        require_class(wiring, env or {})
    return refused.value.detail


def test_a_profile_for_a_first_try_is_refused_with_everything_that_does_not_fit() -> None:
    said = refusal(parse_wiring(FIRST_TRY, "wiring.yaml"))
    for key in ("object_store_root", "authority_store_dsn", "control_bus_kind", "auth_mode", "kinesis_timing",
                "engine_roots"):  # fmt: skip
        assert f") {key} " in said, key
    assert "\n" not in said
    assert said.count(": use ") == 4


def test_a_profile_that_fits_passes_and_a_first_try_passes_as_smoke() -> None:
    require_class(profile(), {})
    require_class(parse_wiring({**FIRST_TRY, "profile_class": "smoke"}, "wiring.yaml"), {})
    default = parse_wiring({key: value for key, value in FIRST_TRY.items() if key != "profile_class"}, "wiring.yaml")
    assert default.profile_class == "smoke"
    require_class(default, {})


def test_another_class_is_none() -> None:
    with pytest.raises(ConfigurationError, match="profile_class"):
        profile(profile_class="staging")


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca"])
def test_a_server_that_anybody_can_answer_for_is_refused_and_no_secret_is_said(mode: str) -> None:
    said = refusal(profile(authority_store_dsn=f"postgresql://u:secret@db/sr?sslmode={mode}"))
    assert f"sslmode {mode}" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("dsn", "env", "mode"),
    [
        ("postgresql://u:secret@db/sr", {}, "prefer"),
        ("postgresql://u:secret@db/sr", {"PGSSLMODE": "disable"}, "disable"),
        ("host=/run/postgresql hostaddr=10.0.0.1 dbname=sr", {}, "prefer"),
        ("host=/run/postgresql,db dbname=sr", {}, "prefer"),
        ("dbname=sr", {"PGHOST": "db"}, "prefer"),
        ("host=/run/postgresql dbname=sr", {"PGSERVICE": "elsewhere"}, "prefer"),
    ],
)
def test_what_the_driver_would_do_without_tls_is_refused(dsn: str, env: dict[str, str], mode: str) -> None:
    assert f"sslmode {mode}" in refusal(profile(authority_store_dsn=dsn), env)


@pytest.mark.parametrize(
    ("dsn", "env"),
    [
        ("postgresql://u:secret@db/sr", {"PGSSLMODE": "verify-full"}),
        ("host=/run/postgresql dbname=sr", {}),
        ("postgresql:///sr?host=/run/postgresql", {}),
    ],
)
def test_a_server_that_is_proven_or_lies_behind_a_socket_passes(dsn: str, env: dict[str, str]) -> None:
    require_class(profile(authority_store_dsn=dsn), env)


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("s3_endpoint_url", {}),
        ("control_bus_endpoint_url", {"kinesis_dynamodb_endpoint_url": "https://dynamodb"}),
        ("kinesis_dynamodb_endpoint_url", {}),
        ("engine_ecs_endpoint_url", {
            "engine_invoker": "ecs", "engine_command": ["run"], "engine_ecs_cluster": "c",
            "engine_ecs_task_definition": "d:1", "engine_ecs_container": "e", "engine_ecs_region": "eu-west-1",
        }),
    ],
)  # fmt: skip
def test_an_endpoint_without_tls_is_refused(key: str, more: dict[str, Any]) -> None:
    said = refusal(profile(**more, **{key: "http://localhost:9000"}))
    assert said.count(") ") == said.count(f") {key} has no TLS") == 1
    require_class(profile(**more, **{key: "https://localhost:9000"}), {})


def test_a_variable_that_sets_an_endpoint_is_named_once_with_the_key_that_it_sets(tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "wiring.yaml"
    path.write_text(yaml.safe_dump(FIT), "utf-8")
    env = {"AWS_ENDPOINT_URL_S3": "http://minio:9000", "AWS_ENDPOINT_URL_STS": "http://sts:1"}
    said = refusal(load_wiring(str(path), env), env)
    assert "s3_endpoint_url (from AWS_ENDPOINT_URL_S3) has no TLS" in said
    assert "the variable AWS_ENDPOINT_URL_STS has no TLS" in said
    assert said.count("AWS_ENDPOINT_URL_S3") == 1
    env["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] = "true"
    require_class(load_wiring(str(path), env), env)


def test_the_profile_for_aws_is_a_production_profile() -> None:
    env = {
        "SR_S3_BUCKET": "b", "SR_S3_REGION": "eu-west-1", "SR_PG_USER": "u", "SR_PG_PASSWORD": "p", "SR_PG_HOST": "h",
        "SR_PG_DATABASE": "d", "SR_PG_CA_FILE": "/ca.pem", "SR_KINESIS_STREAM": "s", "SR_KINESIS_REGION": "eu-west-1",
        "SR_KINESIS_APPLICATION": "app", "SR_ENGINE_ROOTS": "s3://engine/runs", "SR_AUTH_ALLOWLIST": "a,b",
    }  # fmt: skip
    wiring = load_wiring(str(REPO / "config/platform/sr/wiring_aws.yaml"), env)
    assert wiring.profile_class == "production"
    require_class(wiring, env)


def test_a_producer_is_refused_for_the_way_to_the_stream_and_for_nothing_else() -> None:
    require_class_of_producer(
        profile(authority_store_dsn="sqlite:///a.db", object_store_root="store", s3_endpoint_url="http://minio:9000"),
        {"AWS_ENDPOINT_URL_S3": "http://minio:9000"},
    )
    require_class_of_producer(parse_wiring({**FIRST_TRY, "profile_class": "smoke"}, "wiring.yaml"), {})
    with pytest.raises(ConfigurationError, match=r"\(1\) control_bus_kind is a spool: use kinesis[^;]*Remedy"):
        require_class_of_producer(parse_wiring(FIRST_TRY, "wiring.yaml"), {})
    with pytest.raises(ConfigurationError, match=r"\(1\) control_bus_endpoint_url has no TLS"):
        require_class_of_producer(profile(control_bus_endpoint_url="http://localhost:4566"), {})
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KINESIS", "AWS_ENDPOINT_URL_STS"):
        with pytest.raises(ConfigurationError, match=rf"\(1\) the variable {name} has no TLS"):
            require_class_of_producer(profile(), {name: "http://localhost:4566"})


INTERFACE = REPO / "config/engine/interface_pack"
SHIPPED = {
    "engine_catalogue_path": str(INTERFACE / "engine_outputs.catalogue.yaml"),
    "gate_map_path": str(INTERFACE / "engine_gates.map.yaml"), "engine_contracts_root": str(INTERFACE / "contracts"),
    "schema_root": str(REPO / "config/platform/contracts/scenario_runner"),
}  # fmt: skip
HEADERS = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret"}


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
@pytest.mark.parametrize("host", ["collector", "10.0.0.1", "127.0.0.1.example.com", "[::2]"])
def test_headers_that_go_to_a_collector_without_tls_are_refused(name: str, host: str) -> None:
    said = refusal(profile(), {name: f"http://{host}:4318", **HEADERS})
    assert f"the variable {name} has no TLS" in said
    assert "secret" not in said


@pytest.mark.parametrize("env", [
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4318", **HEADERS},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", **HEADERS},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", **HEADERS},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1]:4318", **HEADERS},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://b", **HEADERS},
])  # fmt: skip
def test_a_collector_that_gets_no_secret_or_is_on_this_host_or_has_tls_passes(env: dict[str, str]) -> None:
    require_class(profile(), env)


def shipped() -> tuple[InterfacePack, Policy]:
    return (
        load_pack(SHIPPED["engine_catalogue_path"], SHIPPED["gate_map_path"]),
        load_policy(str(REPO / "config/platform/sr/policy_v0.yaml")),
    )


def test_the_examples_that_are_shipped_are_warned_of_in_production() -> None:
    pack, policy = shipped()
    assert (pack.digest, policy.content_digest) == (EXAMPLE_PACK, EXAMPLE_POLICY), (
        "after a change: write the new digests"
    )
    assert [text.partition(" is the example")[0] for text in warnings_of(profile(), pack, policy)] == [
        "the interface pack", "the policy",
    ]  # fmt: skip
    assert len(warnings_of(profile(), pack, None)) == 1
    own = policy.model_copy(update={"content_digest": "0" * 64})
    assert warnings_of(profile(), replace(pack, digest="0" * 64), own) == []
    assert warnings_of(profile(profile_class="smoke"), pack, policy) == []


def test_doctor_and_serve_say_so_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pack, policy = shipped()
    report = Report(lambda _finding: None)
    _examine_pack(report, profile(**SHIPPED), policy)
    said = [item for item in report.findings if item["check"] == "examples"]
    assert [(item["ok"], item["detail"].startswith("warning: ")) for item in said] == [(True, True)] * 2

    def far_enough(*_: Any, **__: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(serve, "Supervisor", far_enough)
    daemon: Any = SimpleNamespace(wiring=profile(), admission=SimpleNamespace(pack=pack, policy=policy))
    with structlog.testing.capture_logs() as logged, pytest.raises(InterruptedError):
        serve._serve(daemon, Role.ALL, Notifier(""), until_idle=True)
    assert len([line for line in logged if "production" in line["event"]]) == 2
