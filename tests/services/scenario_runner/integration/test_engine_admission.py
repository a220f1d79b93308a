"""Which requests a profile with an engine admits, what is pinned for them, and what ``plan`` and ``submit`` say."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from support import ForkedWorld

from scenario_runner.contracts.documents import parse_run_request
from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.ids import run_id_of
from scenario_runner.contracts.plan import PlanInputs, plan_hash, plan_inputs_from_document
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import Strategy
from scenario_runner.intake.admission_policy import plan_request
from scenario_runner.intake.decode import Message
from scenario_runner.intake.validate import validate_message
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import make_admission_policy, open_pack

if TYPE_CHECKING:
    from pathlib import Path

    from scenario_runner.contracts.intent import Intent
    from scenario_runner.intake.admission_policy import AdmissionPolicy

pytestmark = pytest.mark.integration

COMMAND = {"engine_command": ["/bin/engine", "{invocation_path}"]}
REQUEST: dict[str, Any] = {
    "run_equivalence_key": "k1", "manifest_fingerprint": "a" * 64, "parameter_hash": "b" * 64, "seed": 7,
    "scenario": {"scenario_id": "base"}, "output_ids": ["arrival_events_5B"], "invoker": "ops",
    "window": {"window_start_utc": "2026-01-01T00:00:00Z", "window_end_utc": "2026-01-02T00:00:00Z",
               "window_tz": "UTC"},
}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> ForkedWorld:
    return ForkedWorld(tmp_path / "w")


def rules(world: ForkedWorld, keys: dict[str, Any] | None = None, **policy: Any) -> AdmissionPolicy:
    """The admission rules of a profile with these keys."""
    world.policy_changes = policy
    world.write_profiles(**(keys or {}))
    wiring = load_wiring(str(world.wiring))
    return make_admission_policy(wiring, load_policy(str(world.policy)), open_pack(wiring))


def with_template(world: ForkedWorld, name: str = "{run_id}") -> dict[str, Any]:
    return COMMAND | {"engine_run_root_template": f"{world.runs}/{name}"}


def planned(admission: AdmissionPolicy, **changes: Any) -> tuple[Intent, PlanInputs]:
    document = {key: value for key, value in (REQUEST | changes).items() if value is not None}
    return plan_request(parse_run_request(document), admission)


def refused(admission: AdmissionPolicy, **changes: Any) -> RequestRefused:
    with pytest.raises(RequestRefused) as refusal:
        planned(admission, **changes)
    return refusal.value


# --- without an engine


@pytest.mark.parametrize("strategy", [None, "AUTO", "FORCE_REUSE"])
@pytest.mark.parametrize("auto_invoke", [{}, {"auto_invoke": "at_once"}])
def test_without_an_engine_nothing_new_is_pinned(
    world: ForkedWorld, strategy: str | None, auto_invoke: dict[str, str]
) -> None:
    """Plan hashes of earlier releases stay what they are."""
    _, inputs = planned(rules(world, **auto_invoke), engine_run_root=f"{world.runs}/r", requested_strategy=strategy)
    assert (inputs.auto_invoke, inputs.engine_run_root) == ("", "")
    assert not {"auto_invoke", "engine_run_root"} & inputs.document().keys()


def test_a_plan_hash_is_that_of_earlier_releases_where_the_engine_is_not_asked_for(world: ForkedWorld) -> None:
    changes = {"engine_run_root": f"{world.runs}/r", "requested_strategy": "FORCE_REUSE"}
    without, having = planned(rules(world), **changes), planned(rules(world, with_template(world)), **changes)
    assert plan_hash(*without) == plan_hash(*having)


# --- with an engine


@pytest.mark.parametrize("root", [True, False])
def test_force_invoke_is_admitted_and_pins_no_time(world: ForkedWorld, *, root: bool) -> None:
    named = {"engine_run_root": f"{world.runs}/named" if root else None}
    intent, inputs = planned(rules(world, with_template(world)), requested_strategy="FORCE_INVOKE", **named)
    assert inputs.strategy is Strategy.FORCE_INVOKE
    assert inputs.auto_invoke == ""
    assert inputs.engine_run_root == ("" if root else f"{world.runs}/{intent.run_id}")
    assert inputs.root_of(intent) == f"{world.runs}/{'named' if root else intent.run_id}"


@pytest.mark.parametrize("auto_invoke", ["at_deadline", "at_once"])
@pytest.mark.parametrize("strategy", [None, "AUTO"])
def test_auto_pins_when_the_engine_is_invoked(world: ForkedWorld, strategy: str | None, auto_invoke: str) -> None:
    admission = rules(world, with_template(world), auto_invoke=auto_invoke)
    for named in (None, f"{world.runs}/named"):
        _, inputs = planned(admission, requested_strategy=strategy, engine_run_root=named)
        assert inputs.auto_invoke == auto_invoke
        assert plan_inputs_from_document(inputs.document()) == inputs


def test_auto_under_a_policy_that_denies_reuse_invokes_the_engine_first(world: ForkedWorld) -> None:
    _, inputs = planned(rules(world, with_template(world), reuse_policy="DENY"))
    assert (inputs.strategy, inputs.auto_invoke) == (Strategy.FORCE_INVOKE, "")


@pytest.mark.parametrize("strategy", [None, "AUTO", "FORCE_INVOKE"])
def test_a_request_without_a_root_needs_a_template(world: ForkedWorld, strategy: str | None) -> None:
    refusal = refused(rules(world, COMMAND), requested_strategy=strategy)
    assert refusal.reason is Reason.ENGINE_ROOT_MISSING
    assert "engine_run_root_template" in refusal.detail


@pytest.mark.parametrize("template", [True, False])
def test_force_reuse_names_its_root_whatever_the_profile_has(world: ForkedWorld, *, template: bool) -> None:
    refusal = refused(rules(world, with_template(world) if template else COMMAND), requested_strategy="FORCE_REUSE")
    assert refusal.reason is Reason.ENGINE_ROOT_MISSING
    assert "FORCE_REUSE never invokes" in refusal.detail


def test_every_value_of_the_identity_may_stand_in_a_root(world: ForkedWorld) -> None:
    name = "{manifest_fingerprint}/{parameter_hash}/{seed}/{scenario_id}/{run_id}/"
    _, inputs = planned(rules(world, with_template(world, name)))
    assert inputs.engine_run_root == f"{world.runs}/{'a' * 64}/{'b' * 64}/7/base/{run_id_of('k1')}"


def test_a_scenario_set_stands_in_a_root_by_its_id(world: ForkedWorld) -> None:
    intent, inputs = planned(rules(world, with_template(world, "{scenario_id}")), scenario={"scenario_set": ["b", "a"]})
    assert inputs.engine_run_root == f"{world.runs}/{intent.scenario_id}"
    assert intent.scenario_id.startswith("scnset_")


def test_no_two_runs_share_a_pinned_root_by_way_of_the_cache(world: ForkedWorld) -> None:
    admission = rules(world, with_template(world))
    first, named, second = (
        planned(admission), planned(admission, run_equivalence_key="k2", engine_run_root=f"{world.runs}/x"),
        planned(admission, run_equivalence_key="k3"),
    )  # fmt: skip
    assert first[1].engine_run_root == f"{world.runs}/{run_id_of('k1')}"
    assert named[1].engine_run_root == ""
    assert second[1].engine_run_root == f"{world.runs}/{run_id_of('k3')}"
    assert orjson.loads(orjson.dumps(first[1].rendered)) == first[1].document()
    assert "engine_run_root" not in named[1].document()


def test_the_root_is_not_part_of_the_intent_when_the_request_names_none(world: ForkedWorld) -> None:
    """So a later template does not make the same request another intent, and the plan hash shows the root."""
    one, other = planned(rules(world, with_template(world))), planned(rules(world, with_template(world, "o/{run_id}")))
    assert one[0].fingerprint() == other[0].fingerprint()
    assert plan_hash(*one) != plan_hash(*other)


def test_a_rendered_root_is_checked_again(world: ForkedWorld) -> None:
    """The sample of start-up says nothing about links and roots of another time."""
    admission = replace(rules(world, with_template(world)), engine_roots=["/elsewhere"])
    assert refused(admission).reason is Reason.ENGINE_ROOT_NOT_ALLOWED


def test_a_relative_template_is_relative_to_the_working_directory(
    world: ForkedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.root)
    _, inputs = planned(rules(world, COMMAND | {"engine_run_root_template": "runs/{run_id}"}))
    assert inputs.engine_run_root == f"{os.path.realpath(world.root)}/runs/{run_id_of('k1')}"


# --- an engine that could never be launched


@pytest.mark.parametrize("strategy", ["AUTO", "FORCE_INVOKE"])
@pytest.mark.parametrize(
    ("keys", "changes", "said"),
    [
        ({"engine_command": ["/bin/engine", "{scenario_id}"]}, {"scenario": {"scenario_id": "-rf"}}, "begins with '-'"),
        ({"engine_command": ["/bin/engine", "{scenario_set}"]}, {"scenario": {"scenario_set": ["-x", "a"]}}, "'-'"),
        ({}, {"engine_run_root": "r/" * 1020}, "engine_run_root"),
        ({}, {"scenario": {"scenario_set": [f"{n:0128d}" for n in range(1024)]}}, "bytes"),
    ],
    ids=["option", "option of a set", "long root", "long invocation"],
)  # fmt: skip
def test_a_request_for_which_the_engine_could_never_be_launched_is_refused(
    world: ForkedWorld, monkeypatch: pytest.MonkeyPatch, strategy: str, keys: dict[str, Any], changes: dict[str, Any],
    said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(world.runs)
    admission = rules(world, with_template(world) | keys)
    refusal = refused(admission, requested_strategy=strategy, **changes)
    assert refusal.reason is Reason.ENGINE_INVOCATION_INVALID
    assert said in refusal.detail
    assert "FORCE_REUSE" in refusal.detail
    root = changes.get("engine_run_root", f"{world.runs}/r")
    assert planned(admission, **changes | {"requested_strategy": "FORCE_REUSE", "engine_run_root": root})


def test_a_task_whose_overrides_would_be_too_long_is_refused(world: ForkedWorld) -> None:
    ecs = with_template(world) | {
        "engine_command": ["engine", "{scenario_set}"], "engine_invoker": "ecs", "engine_ecs_cluster": "c",
        "engine_ecs_task_definition": "engine:3", "engine_ecs_container": "engine", "engine_ecs_region": "eu-west-1",
    }  # fmt: skip
    admission = rules(world, ecs)
    assert planned(admission)
    refusal = refused(admission, scenario={"scenario_set": [f"{n:0100d}" for n in range(90)]})
    assert refusal.reason is Reason.ENGINE_INVOCATION_INVALID
    assert "8192" in refusal.detail


def test_the_refusal_of_a_message_leaves_the_key_free(world: ForkedWorld) -> None:
    admission = rules(world, with_template(world) | {"engine_command": ["/bin/engine", "{scenario_id}"]})
    refusal = validate_message(
        Message("r", json.dumps(REQUEST | {"scenario": {"scenario_id": "-rf"}}).encode(), 1), admission
    )
    assert (refusal.run, refusal.reason_code) == (None, "ENGINE_INVOCATION_INVALID")
    run = validate_message(Message("r", json.dumps(REQUEST).encode(), 1), admission).run
    assert run is not None
    assert run.inputs["engine_run_root"] == f"{world.runs}/{run.run_id}"
    assert run.intent["engine_run_root"] == ""


# --- plan and submit


@pytest.mark.parametrize(
    ("strategy", "policy", "invoked", "said"),
    [
        ("FORCE_INVOKE", {}, "first", b"invoked first"),
        ("AUTO", {"reuse_policy": "DENY"}, "first", b"invoked first"),
        ("AUTO", {}, "at_deadline", b"at the deadline"),
        ("AUTO", {"auto_invoke": "at_once"}, "at_once", b"as soon as evidence is missing"),
        ("FORCE_REUSE", {}, "never", b"never invoked"),
    ],
)
def test_plan_shows_the_root_and_when_the_engine_is_invoked(
    world: ForkedWorld, strategy: str, policy: dict[str, str], invoked: str, said: bytes
) -> None:
    rules(world, with_template(world), **policy)
    root = {"engine_run_root": str(world.runs / "named")} if strategy == "FORCE_REUSE" else {}
    request = json.dumps(REQUEST | root | {"requested_strategy": strategy}).encode()
    command = ("plan", "--wiring", str(world.wiring), "--policy", str(world.policy), "-")
    shown = json.loads(world.command(*command, "--json", stdin=request).stdout)
    expected = root.get("engine_run_root", f"{world.runs}/{run_id_of('k1')}")
    assert (shown["engine_invoked"], shown["engine_run_root"]) == (invoked, expected)
    assert {item["path"].startswith(expected + "/") for item in shown["outputs"]} == {True}
    assert {item["flag"].startswith(expected + "/") for item in shown["gates"]} == {True}
    text = world.command(*command, stdin=request).stdout
    assert said in text
    assert expected.encode() in text


def test_plan_says_never_where_no_engine_is_configured(world: ForkedWorld) -> None:
    request = json.dumps(REQUEST | {"engine_run_root": str(world.runs / "named")}).encode()
    command = ("plan", "--wiring", str(world.wiring), "--policy", str(world.policy), "-", "--json")
    assert json.loads(world.command(*command, stdin=request).stdout)["engine_invoked"] == "never"


@pytest.mark.parametrize(
    ("strategy", "root", "template", "code"),
    [
        ("FORCE_INVOKE", True, False, None), ("FORCE_INVOKE", False, True, None), ("AUTO", False, True, None),
        ("AUTO", False, False, "ENGINE_ROOT_MISSING"), ("FORCE_INVOKE", False, False, "ENGINE_ROOT_MISSING"),
        ("FORCE_REUSE", False, True, "ENGINE_ROOT_MISSING"),
    ],
)  # fmt: skip
def test_submit_sends_what_a_profile_with_an_engine_may_admit(
    world: ForkedWorld, strategy: str, code: str | None, *, root: bool, template: bool
) -> None:
    rules(world, with_template(world) if template else COMMAND)
    named = {"engine_run_root": str(world.runs / "r")} if root else {}
    request = json.dumps(REQUEST | named | {"requested_strategy": strategy}).encode()
    sent = world.command("submit", "--wiring", str(world.wiring), "-", "--json", stdin=request)
    answer = json.loads(sent.stdout)
    assert (sent.returncode, answer.get("error", {}).get("reason_code")) == (1 if code else 0, code)
    assert len(list(world.bus.glob("requests/*.json"))) == (0 if code else 1)
