"""Profiles without an engine: what would need one is refused at intake, and its key stays free."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support import ForkedWorld, World

from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.contracts.intent import intent_from_document
from scenario_runner.contracts.plan import plan_hash, plan_inputs_from_document
from scenario_runner.contracts.states import Strategy
from scenario_runner.intake.decode import Message
from scenario_runner.intake.validate import validate_message
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import make_admission_policy, open_pack

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

SMALL: dict[str, Any] = {"members": 2, "parts": 1}
COMMAND, ROOT = "ENGINE_COMMAND_MISSING", "ENGINE_ROOT_MISSING"

# (reuse_policy, requested_strategy, names a root): the reason code
REFUSED = {
    ("ALLOW", "FORCE_INVOKE", True): COMMAND,
    ("ALLOW", "FORCE_INVOKE", False): COMMAND,
    ("ALLOW", "AUTO", False): ROOT,
    ("ALLOW", None, False): ROOT,
    ("ALLOW", "FORCE_REUSE", False): ROOT,
    ("DENY", "AUTO", True): COMMAND,
    ("DENY", None, True): COMMAND,
    ("DENY", "AUTO", False): COMMAND,
    ("DENY", "FORCE_INVOKE", True): COMMAND,
}
BY_POLICY = {key for key in REFUSED if key[0] == "DENY" and key[2] and key[1] != "FORCE_INVOKE"}


def asked(request: dict[str, Any], strategy: str | None, *, root: bool) -> dict[str, Any]:
    changed = {**request, "requested_strategy": strategy}
    return {key: value for key, value in changed.items() if value is not None and (root or key != "engine_run_root")}


def rows(world: World, statement: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(world.database) as connection:
        return connection.execute(statement).fetchall()


@pytest.fixture(
    params=sorted(REFUSED, key=repr), ids=lambda key: f"{key[0]}-{key[1]}-{'root' if key[2] else 'no root'}"
)
def case(request: pytest.FixtureRequest) -> tuple[str, str | None, bool]:
    return request.param  # type: ignore[no-any-return]


def test_what_needs_an_engine_is_refused_at_intake_and_its_key_stays_free(
    tmp_path: Path, case: tuple[str, str | None, bool]
) -> None:
    reuse, strategy, root = case
    world = ForkedWorld(tmp_path / "w", policy_changes={"reuse_policy": reuse})
    made = world.make_run(**SMALL)
    world.drop(asked(made["request"], strategy, root=root))
    assert world.serve().returncode == 0
    (rejected,) = world.rejected()
    assert rejected["reason_code"] == REFUSED[case]
    assert rows(world, "SELECT count(*) FROM runs") == [(0,)]
    assert rows(world, "SELECT count(*) FROM dead_letters") == [(1,)]
    (signal,) = world.signals()
    assert (signal["attributes"]["kind"], signal["payload"]["disposition"]) == ("REQUEST_REJECTED", "REJECTED")
    assert (signal["payload"]["run_id"], signal["payload"]["reason_code"]) == (made["run_id"], REFUSED[case])
    assert not (world.ledger / "run_plan").exists()

    world.policy_changes["reuse_policy"] = "ALLOW"
    world.write_profiles()
    world.drop(made["request"], "corrected.json")
    assert world.serve().returncode == 0
    assert world.query("status", made["run_id"])[1]["state"] == "READY"


def test_plan_says_the_same_as_intake_and_submit_what_it_can_know(
    tmp_path: Path, case: tuple[str, str | None, bool]
) -> None:
    reuse, strategy, root = case
    world = ForkedWorld(tmp_path / "w", policy_changes={"reuse_policy": reuse})
    request = json.dumps(asked(world.make_run(**SMALL)["request"], strategy, root=root)).encode()
    planned = world.command("plan", "--wiring", str(world.wiring), "--policy", str(world.policy), "-", "--json",
                            stdin=request)  # fmt: skip
    assert planned.returncode == 1
    assert json.loads(planned.stdout)["error"]["reason_code"] == REFUSED[case]
    submitted = world.command("submit", "--wiring", str(world.wiring), "-", "--json", stdin=request)
    if case in BY_POLICY:  # submit reads no policy
        assert submitted.returncode == 0
        assert b"reuse_policy DENY" in planned.stderr
        return
    assert submitted.returncode == 1
    assert json.loads(submitted.stdout)["error"]["reason_code"] in (COMMAND, ROOT)
    assert not list(world.bus.rglob("*.json"))


def test_a_run_that_needs_an_engine_waits_for_a_daemon_that_has_one(tmp_path: Path) -> None:
    """As an earlier release admitted it, or a profile that had an engine then.

    Sealed evidence lies there: it must not make a run READY whose policy allows no reuse. And a profile ends no run.
    """
    world = ForkedWorld(tmp_path / "w")
    made = world.make_run(**SMALL)
    wiring, policy = load_wiring(str(world.wiring)), load_policy(str(world.policy))
    admission = validate_message(
        Message("r", json.dumps(made["request"]).encode(), 1), make_admission_policy(wiring, policy, open_pack(wiring))
    )
    run = admission.run
    assert run is not None
    inputs = replace(plan_inputs_from_document(run.inputs), strategy=Strategy.FORCE_INVOKE)
    intent = intent_from_document(run.run_id, run.run_equivalence_key, run.intent)
    older = replace(run, inputs=inputs.document(), plan_hash=plan_hash(intent, inputs))
    authority = SqliteAuthority(str(world.database))
    authority.admit([replace(admission, run=older)])
    authority.close()
    done = world.serve()
    assert done.returncode == 5
    assert b"runs could not be driven to an end" in done.stderr
    code, status = world.query("status", made["run_id"])
    assert (code, status["state"]) == (3, "PLANNED")
    assert "configures no engine" in status["last_infrastructure_error"]
    assert world.signals() == []
