"""``engine_command``: what is refused when it is loaded, how it is rendered, and what stands in the environment."""

import pytest
from engine_support import launch_of
from hypothesis import given
from hypothesis import strategies as st

from scenario_runner.contracts.errors import ConfigurationError, EngineRefusal
from scenario_runner.contracts.reasons import Reason
from scenario_runner.engine.command import (
    PLACEHOLDERS,
    check_allow_list,
    environment_of,
    own_variables,
    parse_command,
    placeholder_values,
)

pytestmark = pytest.mark.unit

VALUES = placeholder_values(launch_of())


def test_the_placeholders_are_those_of_the_contract_and_each_has_a_value() -> None:
    assert sorted(PLACEHOLDERS) == sorted(
        ["manifest_fingerprint", "parameter_hash", "seed", "run_id", "scenario_id", "scenario_set", "engine_run_root",
         "invocation_json", "invocation_path", "attempt_id", "attempt_no"]
    )  # fmt: skip
    assert set(VALUES) == set(PLACEHOLDERS)


def test_an_argument_may_be_a_placeholder_hold_some_or_none() -> None:
    command = parse_command(["engine", "{seed}", "--root={engine_run_root}/{attempt_no}", "--plain"], "test")
    assert command.render(VALUES) == ["engine", "7", "--root=/runs/r1/1", "--plain"]


def test_a_value_that_looks_like_a_placeholder_stays_as_it_is() -> None:
    command = parse_command(["engine", "x{scenario_id}{seed}"], "test")
    assert command.render({**VALUES, "scenario_id": "{seed}{run_id}"}) == ["engine", "x{seed}{run_id}7"]


@given(st.dictionaries(st.sampled_from(PLACEHOLDERS), st.text(st.characters(exclude_characters="\0", codec="utf-8"))))
def test_every_value_stands_where_its_placeholder_stood(values: dict[str, str]) -> None:
    command = parse_command(["engine", *(f"={{{name}}}" for name in values)], "test")
    assert command.render(values) == ["engine", *(f"={value}" for value in values.values())]


@pytest.mark.parametrize("argument", ["{scenario_id}", "{scenario_id}.json"])
def test_a_value_that_would_be_an_option_is_refused(argument: str) -> None:
    command = parse_command(["engine", argument], "test")
    with pytest.raises(EngineRefusal, match="begins with '-'") as refused:
        command.render({**VALUES, "scenario_id": "--rm"})
    assert refused.value.reason is Reason.ENGINE_INVOCATION_INVALID


def test_a_value_that_begins_with_a_dash_is_taken_where_it_cannot_be_an_option() -> None:
    assert parse_command(["engine", "id={scenario_id}"], "test").render({**VALUES, "scenario_id": "-x"})[1] == "id=-x"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "no command"), ([""], "no command"), (["{run_id}"], "placeholder"), (["./{run_id}/engine"], "placeholder"),
        (["engine", "{release_tag}"], "{release_tag} is not known"), (["engine", "{}"], "braces"),
        (["engine", "{Seed}"], "braces"), (["engine", "{seed"], "braces"), (["engine", "{{seed}}"], "braces"),
        (["engine", '{"a": 1}'], "braces"), (["engine", "a\0b"], "zero byte"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_work_is_refused_when_it_is_loaded(arguments: list[str], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as refused:
        parse_command(arguments, "key 'engine_command'")
    assert refused.value.place == "key 'engine_command'"


def test_the_invocation_itself_is_refused_where_only_its_path_can_be_passed() -> None:
    with pytest.raises(ConfigurationError, match="invocation_path"):
        parse_command(["engine", "{invocation_json}"], "test", by_path_only=True)
    assert parse_command(["engine", "{invocation_path}"], "test", by_path_only=True)


def test_what_is_longer_than_the_system_can_pass_is_refused() -> None:
    command = parse_command(["engine", "{invocation_json}"], "test")
    assert command.render({**VALUES, "invocation_json": "x" * 131071})
    with pytest.raises(EngineRefusal, match="131071 bytes"):
        command.render({**VALUES, "invocation_json": "x" * 131072})
    with pytest.raises(EngineRefusal, match="SR_ENGINE_INVOCATION_JSON"):
        own_variables(launch_of(invocation=b"x" * 131071))


def test_a_value_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(EngineRefusal, match="zero byte"):
        parse_command(["engine", "x{scenario_id}"], "test").render({**VALUES, "scenario_id": "a\0b"})


def test_the_environment_is_the_allow_list_and_the_five_variables() -> None:
    source = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "secret", "SR_PG_DSN": "secret"}
    launch = launch_of()
    assert environment_of(launch, ["PATH", "HOME"], source) == {
        "PATH": "/bin",
        "SR_ENGINE_INVOCATION_JSON": launch.invocation.decode(),
        "SR_ENGINE_INVOCATION_PATH": launch.invocation_path,
        "SR_ENGINE_RUN_ROOT": launch.engine_run_root,
        "SR_ATTEMPT_ID": launch.attempt_id,
        "TRACEPARENT": launch.traceparent,
    }
    assert "TRACEPARENT" not in environment_of(launch_of(traceparent=""), [], source)


@pytest.mark.parametrize("name", ["A=B", "", "1A", "A B", "SR_ATTEMPT_ID", "TRACEPARENT"])
def test_an_allow_list_holds_names_of_variables_that_sr_does_not_set(name: str) -> None:
    with pytest.raises(ConfigurationError):
        check_allow_list(["PATH", name], "key 'engine_env_allowlist'")
    assert check_allow_list(["PATH", "_x1"], "test") == ("PATH", "_x1")
