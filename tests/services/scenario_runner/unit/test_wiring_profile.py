"""The wiring profile: read strictly; a mistake in it refuses start-up and never weakens anything."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from profile_support import VALID

import scenario_runner
from scenario_runner.contracts import refs
from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.profiles.policy import Policy
from scenario_runner.profiles.wiring import Wiring, load_wiring, parse_wiring

pytestmark = pytest.mark.unit

REPO = Path(__file__).resolve().parents[4]
COMMITTED = REPO / "config/platform/sr/wiring_local.yaml"


def wiring(**changes: Any) -> Wiring:
    return parse_wiring(VALID | changes, "profile.yaml")


def refusal(document: object) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as refused:
        parse_wiring(document, "profile.yaml")
    assert refused.value.place == "profile.yaml"
    assert refused.value.remedy
    return refused.value


# --- the committed profile --------------------------------------------------------------------------------------------


def test_the_committed_local_profile_loads_with_an_empty_environment() -> None:
    loaded = load_wiring(str(COMMITTED), env={})
    assert loaded.profile_id == "local"
    assert loaded.bus_kind == "spool"
    assert loaded.object_store_root == ".local/object-store"
    assert loaded.authority_store_dsn == "sqlite:///.local/authority.db"
    assert loaded.engine_roots == ["runs"]
    assert loaded.auth_mode == "disabled"


def test_the_local_profile_with_an_engine_differs_from_the_one_without_in_the_engine_only() -> None:
    environment = {"SR_LOCAL_ROOT": "/data/sr", "SR_ENGINE_ROOT": "/data/runs"}
    names = ("wiring_local.yaml", "wiring_local_engine.yaml")
    without, with_engine = (load_wiring(str(COMMITTED.parent / name), env=environment) for name in names)
    assert (without.engine_backend, with_engine.engine_backend) == ("", "subprocess")
    assert with_engine.profile_id == "local_engine"
    engines = {key for key in Wiring.model_fields if key.startswith("engine_")} - {"engine_roots"}
    kept = {"engine_catalogue_path", "engine_contracts_root"}
    changed = {key for key in Wiring.model_fields if getattr(without, key) != getattr(with_engine, key)}
    assert changed - {"profile_id"} <= engines - kept
    assert with_engine.engine_attempts_dir == "/data/sr/engine"
    assert with_engine.engine_run_root_template == "/data/runs/invoked/{run_id}"


def test_the_committed_local_profile_follows_the_environment() -> None:
    loaded = load_wiring(str(COMMITTED), env={"SR_LOCAL_ROOT": "/data/sr", "SR_ENGINE_ROOT": "/data/runs"})
    assert loaded.object_store_root == "/data/sr/object-store"
    assert loaded.control_bus_root == "/data/sr/control-bus"
    assert loaded.engine_roots == ["/data/runs"]


def test_the_committed_local_profile_names_files_that_are_there() -> None:
    loaded = load_wiring(str(COMMITTED), env={})
    for path in (loaded.engine_catalogue_path, loaded.gate_map_path, loaded.engine_contracts_root, loaded.schema_root):
        assert (REPO / path).exists(), path


def test_the_committed_local_profile_says_its_authentication_aloud() -> None:
    assert "auth_mode" in yaml.safe_load(COMMITTED.read_text("utf-8"))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["auth_mod", "AUTH_MODE", "auth-mode", "engine_root", "lease_second", "unknown", "<<", ""]
)
def test_an_unknown_key_is_refused_by_name(key: str) -> None:
    error = refusal(VALID | {key: "strict"})
    assert key in error.problem


@pytest.mark.parametrize("key", sorted(set(VALID) - {"control_bus_root"}))
@pytest.mark.parametrize("how", ["left out", "null", "empty", "a number", "a list"])
def test_every_key_without_a_default_must_be_there_and_be_text(key: str, how: str) -> None:
    document = dict(VALID)
    value = {"left out": None, "null": None, "empty": "", "a number": 7, "a list": ["x"]}[how]
    if how == "left out":
        del document[key]
    else:
        document[key] = value
    assert key in refusal(document).problem


@pytest.mark.parametrize("value", ["strict", "Disabled", "off", False, True, "none", 0])
def test_only_the_known_ways_of_authentication_are_taken(value: object) -> None:
    assert "auth_mode" in refusal(VALID | {"auth_mode": value}).problem


@pytest.mark.parametrize("allowlist", [[], "", " , ", None])
def test_an_allowlist_without_names_is_refused_instead_of_refusing_everybody_later(allowlist: object) -> None:
    assert "auth_allowlist" in refusal(VALID | {"auth_mode": "allowlist", "auth_allowlist": allowlist}).problem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("state_mode", "0700"), ("state_mode", "public"), ("state_mode", 448),
        ("control_bus_kind", "kafka"), ("control_bus_kind", "SPOOL"), ("digest_reuse", "on"), ("digest_reuse", False),
        ("lease_seconds", 1), ("lease_seconds", 0), ("lease_seconds", "30"), ("lease_seconds", 30.0),
        ("lease_seconds", True), ("lease_seconds", 3601), ("shutdown_seconds", 0), ("shutdown_seconds", 111),
        ("shutdown_seconds", "20"), ("runner_workers", 0), ("runner_workers", -1),
        ("runner_workers", 257), ("hash_workers", 0), ("hash_workers", "four"), ("poll_seconds", 0),
        ("poll_seconds", -1), ("poll_seconds", float("nan")), ("poll_seconds", float("inf")), ("poll_seconds", "0.2"),
        ("poll_seconds", True),
        ("engine_roots", {"a": 1}), ("engine_roots", [1]), ("engine_roots", [None]), ("s3_path_style", "yes"),
        ("control_bus_topic", "a/b"), ("control_bus_topic", ".."), ("control_bus_topic", ".private"),
        ("control_bus_topic", "requests"), ("control_bus_topic", "consumed"), ("control_bus_topic", "rejected"),
        ("control_bus_topic", ""), ("control_bus_topic", "a\nb"), ("control_bus_topic", " a"),
        ("object_store_root", " /tmp/x"), ("object_store_root", "/tmp/x\n"), ("profile_id", "a\x00b"),
        ("authority_store_dsn", "sqlite:///x.db\n"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_naming_its_key(key: str, value: object) -> None:
    assert key in refusal(VALID | {key: value}).problem


@pytest.mark.parametrize("document", [None, [], "x", 7, [VALID]], ids=repr)
def test_a_profile_that_is_not_a_mapping_is_refused(document: object) -> None:
    refusal(document)


def test_a_spool_needs_its_root_and_a_stream_its_name() -> None:
    assert "control_bus_root" in refusal({k: v for k, v in VALID.items() if k != "control_bus_root"}).problem
    assert "control_bus_root" in refusal(VALID | {"control_bus_root": ""}).problem
    assert "control_bus_stream" in refusal(VALID | {"control_bus_kind": "kinesis"}).problem
    assert wiring(control_bus_kind="kinesis", control_bus_stream="s", control_bus_root=None).bus_kind == "kinesis"


def test_several_mistakes_are_named_together() -> None:
    error = refusal(VALID | {"auth_mode": "strict", "lease_seconds": 0, "unknown": 1})
    assert all(key in error.problem for key in ("auth_mode", "lease_seconds", "unknown"))


def test_values_are_not_echoed_because_a_dsn_may_hold_a_password() -> None:
    error = refusal(VALID | {"authority_store_dsn": "postgresql://u:p@ss:w0rd@host/db\n", "lease_seconds": "s3cret"})
    assert "p@ss" not in str(error)
    assert "s3cret" not in str(error)


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "wiring.yaml"
    path.write_text(yaml.safe_dump(VALID | {"auth_mod": "allowlist"}), "utf-8")
    with pytest.raises(ConfigurationError) as refused:
        load_wiring(str(path), env={})
    assert refused.value.place == str(path)
    path.write_text("auth_mode: allowlist\nauth_mode: disabled\n", "utf-8")
    with pytest.raises(ConfigurationError) as twice:
        load_wiring(str(path), env={})
    assert twice.value.place == f"{path}, line 2"


def test_an_unset_variable_refuses_start_up(tmp_path: Path) -> None:
    path = tmp_path / "wiring.yaml"
    path.write_text(yaml.safe_dump(VALID) + "s3_region: ${SR_TEST_REGION}\n", "utf-8")
    with pytest.raises(ConfigurationError, match="SR_TEST_REGION"):
        load_wiring(str(path), env={})
    assert load_wiring(str(path), env={"SR_TEST_REGION": "eu-west-1"}).s3_region == "eu-west-1"


def test_the_environment_is_the_process_own_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wiring.yaml"
    path.write_text(yaml.safe_dump(VALID) + "s3_region: ${SR_TEST_REGION}\n", "utf-8")
    monkeypatch.setenv("SR_TEST_REGION", "eu-central-1")
    assert load_wiring(str(path)).s3_region == "eu-central-1"


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_null_key_is_the_same_as_a_missing_one() -> None:
    assert wiring(lease_seconds=None, engine_roots=None, s3_region=None) == wiring()


@pytest.mark.parametrize(
    ("given", "read"),
    [(["a", "b"], ["a", "b"]), ("a", ["a"]), ("a,b", ["a", "b"]), (" a , b ,", ["a", "b"]), ("", []), ([], [])],
)
def test_lists_may_be_written_as_text_with_commas(given: object, read: list[str]) -> None:
    assert wiring(engine_roots=given).engine_roots == read
    assert wiring(auth_allowlist=given).auth_allowlist == read


def test_the_older_name_of_the_spool_is_understood() -> None:
    assert wiring(control_bus_kind="file").bus_kind == "spool"


def test_a_profile_cannot_be_changed_after_it_was_read() -> None:
    loaded = wiring()
    with pytest.raises(Exception, match="frozen"):
        loaded.auth_mode = "allowlist"  # type: ignore[misc]


def test_hash_threads_default_to_the_number_of_cores() -> None:
    assert wiring().hash_threads == (os.cpu_count() or 1)
    assert wiring(hash_workers=3).hash_threads == 3


def test_whole_seconds_are_fine_where_fractions_are() -> None:
    assert wiring(poll_seconds=1).poll_seconds == 1.0


# --- the root of the object store -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "root",
    [
        "/data/store", "/data/store/", "/data/store/fraud-platform/sr", "/data/store/fraud-platform/sr/",
        "/data/store//", "/data/store/fraud-platform/sr//", "/data/store//fraud-platform/sr",
        "/data/store/fraud-platform//sr", "/data/store/./fraud-platform/sr", "/data/store/fraud-platform/sr/.",
        "/data/store/x/../fraud-platform/sr",
    ],
)  # fmt: skip
def test_a_root_that_ends_in_the_prefix_is_not_doubled(root: str) -> None:
    key = os.path.normpath(f"{wiring(object_store_root=root).store_root}/{refs.plan_ref('x')}")
    assert key == "/data/store/fraud-platform/sr/run_plan/x.json"


@pytest.mark.parametrize("root", ["fraud-platform/sr", "./fraud-platform/sr", "fraud-platform/sr/"])
def test_a_relative_root_that_is_the_prefix_is_not_doubled(root: str) -> None:
    key = os.path.normpath(os.path.join(wiring(object_store_root=root).store_root, refs.plan_ref("x")))
    assert key == "fraud-platform/sr/run_plan/x.json"


@pytest.mark.parametrize("root", ["/fraud-platform/sr", "/"])
def test_a_root_at_the_top_of_the_file_system_is_not_doubled(root: str) -> None:
    key = os.path.normpath(f"{wiring(object_store_root=root).store_root}/{refs.plan_ref('x')}")
    assert os.path.join("/", key.lstrip("/")) == "/fraud-platform/sr/run_plan/x.json"


@pytest.mark.parametrize(
    "root", ["s3://bucket", "s3://bucket/", "s3://bucket/fraud-platform/sr", "s3://bucket/fraud-platform/sr/"]
)
def test_a_bucket_that_ends_in_the_prefix_is_not_doubled(root: str) -> None:
    assert wiring(object_store_root=root).store_root == "s3://bucket"


@pytest.mark.parametrize(
    "root", ["/data/my-fraud-platform/sr", "/data/fraud-platform/sr2", "/data/fraud-platform/sr/more"]
)
def test_a_root_that_only_resembles_the_prefix_is_left_alone(root: str) -> None:
    assert wiring(object_store_root=root).store_root == root


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [*Wiring.model_fields, *Policy.model_fields])
def test_every_key_of_a_profile_is_read_by_something(key: str) -> None:
    """A key that is accepted and has no effect is a promise that is not kept."""
    package = Path(scenario_runner.__file__).parent
    sources = [path.read_text("utf-8") for path in package.rglob("*.py")]
    assert any(re.search(rf"\b(self|wiring|_wiring|policy)\.{key}\b", source) for source in sources)


# --- re-emits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "callers"),
    [
        ({}, None),
        ({"auth_allowlist": ["a"]}, None),
        ({"auth_mode": "allowlist", "auth_allowlist": ["a"]}, {"a"}),
        ({"auth_mode": "allowlist", "auth_allowlist": ["a"], "reemit_allowlist": ["b"]}, {"b"}),
        ({"reemit_allowlist": ["b"]}, {"b"}),
        ({"reemit_allowlist": "b, c"}, {"b", "c"}),
    ],
)
def test_who_may_publish_again_is_the_list_of_reemits_or_else_the_general_one(
    changes: dict[str, Any], callers: set[str] | None
) -> None:
    assert wiring(**changes).reemit_callers == callers


@pytest.mark.parametrize("key", ["reemit_rate_limit_max", "reemit_rate_limit_window_seconds"])
@pytest.mark.parametrize("value", [0, -1, "5", 1.5, True, 10**9])
def test_a_rate_limit_is_a_number_within_its_bounds(key: str, value: object) -> None:
    assert key in refusal(VALID | {key: value}).problem


def test_a_rate_limit_holds_without_being_set() -> None:
    assert (wiring().reemit_rate_limit_max, wiring().reemit_rate_limit_window_seconds) == (10, 3600)
