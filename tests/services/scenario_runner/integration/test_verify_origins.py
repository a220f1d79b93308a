"""``verify`` says who vouches for what a run was required to show, and never passes on the word of the ledger alone."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import PACK, ForkedWorld, World

from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.interface_pack.loader import build_pack

pytestmark = pytest.mark.integration

VOUCHED = "interface pack is named by the operator or pinned by the authority"
CATALOGUE, GATES = PACK / "engine_outputs.catalogue.yaml", PACK / "engine_gates.map.yaml"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return ForkedWorld(tmp_path / "world")


@pytest.fixture
def ready(world: World) -> dict[str, Any]:
    made = world.make_run(outputs=["outlet_catalogue"], members=3, member_bytes=64, part_bytes=64)
    world.drop(made["request"])
    assert world.serve().returncode == 0
    return made


def verify(world: World, target: str, *more: str) -> tuple[int, dict[str, Any]]:
    done = world.command("verify", target, "--wiring", str(world.wiring), "--json", *more)
    assert b"Traceback" not in done.stderr, done.stderr.decode()[-800:]
    return done.returncode, json.loads(done.stdout)


def checks(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["check"]: item for item in document["checks"]}


def failed(document: dict[str, Any]) -> set[str]:
    return {item["check"] for item in document["checks"] if not item["ok"]}


def lose_the_authority(world: World) -> None:
    for path in world.root.glob("authority.db*"):
        path.unlink()


def other_gate_map(world: World) -> str:
    """A gate map in which one gate authorises nothing any more."""
    document = yaml.safe_load(GATES.read_text("utf-8"))
    document["gates"][1]["authorizes_outputs"] = []
    path = world.root / "other.gates.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    return str(path)


def deploy_another_pack(world: World) -> None:
    world.write_profiles(gate_map_path=other_gate_map(world))


def test_a_run_that_the_authority_knows_is_verified_under_what_it_pinned(world: World, ready: dict[str, Any]) -> None:
    view = world.ledger / "run_facts_view" / f"{ready['run_id']}.json"
    for target in (ready["run_id"], str(view)):
        code, document = verify(world, target)
        assert (code, document["outcome"]) == (0, "PASS")
        assert document["pack"]["origin"] == "pinned by the authority"
        assert document["policy"]["origin"] == "pinned by the authority"
        assert document["policy"]["policy_id"] == "test_policy"
        assert not any(item.get("not_possible") for item in document["checks"])
        assert checks(document)[VOUCHED]["digest"] == document["pack"]["digest"]
    deploy_another_pack(world)
    code, later = verify(world, ready["run_id"])
    assert (code, later["pack"]) == (0, document["pack"]), "a deployment changes nothing for a run"
    text = world.command("verify", ready["run_id"], "--wiring", str(world.wiring)).stdout.decode()
    assert f"pack: pinned by the authority  {document['pack']['digest']}\n" in text
    (world.ledger / "interface_pack" / f"{document['pack']['digest']}.json").write_bytes(b"{}")
    code, document = verify(world, ready["run_id"])
    assert (code, failed(document), document["pack"]) == (1, {"interface pack is intact"}, None)


def test_what_the_operator_names_is_what_a_run_is_verified_under(world: World, ready: dict[str, Any]) -> None:
    named = ("--catalogue", str(CATALOGUE), "--gate-map", str(GATES), "--policy", str(world.policy))
    code, document = verify(world, ready["run_id"], *named)
    assert (code, document["pack"]["origin"], document["policy"]["origin"]) == (
        0, "named by the operator", "named by the operator",
    )  # fmt: skip
    code, document = verify(world, ready["run_id"], "--catalogue", str(CATALOGUE), "--gate-map",
                            other_gate_map(world))  # fmt: skip
    assert (code, document["pack"]["origin"]) == (1, "named by the operator")
    assert "interface pack that was named is the one that the authority pinned" in failed(document)
    world.policy_changes = {"revision": "v1"}
    world.write_profiles()
    code, document = verify(world, ready["run_id"], "--policy", str(world.policy))
    assert (code, failed(document)) == (1, {"policy is named by the operator or pinned by the authority"})
    half = world.command("verify", ready["run_id"], "--wiring", str(world.wiring), "--catalogue", str(CATALOGUE))
    assert half.returncode == 2
    assert b"--gate-map" in half.stderr


def test_without_the_authority_the_profile_names_the_pack_and_nobody_the_policy(
    world: World, ready: dict[str, Any]
) -> None:
    view = world.ledger / "run_facts_view" / f"{ready['run_id']}.json"
    lose_the_authority(world)
    code, document = verify(world, str(view))
    assert (code, document["pack"]["origin"]) == (0, "named by the operator")
    assert document["policy"]["origin"] == "vouched for by the ledger only"
    missing = {item["check"] for item in document["checks"] if item.get("not_possible")}
    assert missing == {
        "run is as the authority pinned it", "policy is named by the operator or pinned by the authority",
    }  # fmt: skip
    assert "2 not possible" in document["summary"]
    code, document = verify(world, str(view), "--policy", str(world.policy))
    assert (code, document["policy"]["origin"]) == (0, "named by the operator")


def test_a_pack_that_only_the_ledger_vouches_for_does_not_pass_until_somebody_names_it(
    world: World, ready: dict[str, Any]
) -> None:
    view = world.ledger / "run_facts_view" / f"{ready['run_id']}.json"
    lose_the_authority(world)
    deploy_another_pack(world)
    code, document = verify(world, str(view))
    assert (code, document["pack"]["origin"]) == (1, "vouched for by the ledger only")
    assert failed(document) == {VOUCHED}
    assert "--catalogue" in checks(document)[VOUCHED]["detail"]
    code, document = verify(world, str(view), "--catalogue", str(CATALOGUE), "--gate-map", str(GATES))
    assert (code, document["pack"]["origin"]) == (0, "named by the operator")


def replant(world: World, run_id: str) -> None:
    """Whoever can write the ledger makes one gate of the run's two enough: pack, plan, record, facts view, signal."""
    gate_map = yaml.safe_load(GATES.read_text("utf-8"))
    gate_map["gates"][1]["authorizes_outputs"] = []
    catalogue = yaml.safe_load(CATALOGUE.read_text("utf-8"))
    for output in catalogue["outputs"]:
        output["read_requires_gates"] = []
    pack = build_pack(catalogue, gate_map)
    (world.ledger / "interface_pack" / f"{pack.digest}.json").write_bytes(canonical_bytes(pack.document))
    record = world.ledger / "run_record" / f"{run_id}.jsonl"
    old = json.loads(record.read_bytes().splitlines()[1])["details"]["interface_pack_digest"]
    record.write_bytes(record.read_bytes().replace(old.encode(), pack.digest.encode()))


@pytest.mark.parametrize("reader", ["with the authority", "without the authority"])
def test_a_planted_pack_and_record_never_pass_as_the_runs_own(world: World, ready: dict[str, Any], reader: str) -> None:
    replant(world, ready["run_id"])
    view = world.ledger / "run_facts_view" / f"{ready['run_id']}.json"
    if reader == "without the authority":
        lose_the_authority(world)
        code, document = verify(world, str(view))
        assert (code, document["outcome"]) == (1, "FAIL")
        assert VOUCHED in failed(document)
        return
    code, document = verify(world, str(view))
    assert (code, document["pack"]["origin"]) == (0, "pinned by the authority"), "the ledger's record decides nothing"


def test_plan_facts_view_and_status_are_compared_with_the_authoritys_row(world: World, ready: dict[str, Any]) -> None:
    run_id = ready["run_id"]
    plan = world.ledger / "run_plan" / f"{run_id}.json"
    plan.write_text(json.dumps(json.loads(plan.read_bytes()), indent=2))
    code, document = verify(world, run_id)
    assert (code, failed(document)) == (1, {"run_plan is the one that the authority pinned"})
    found = checks(document)["run_plan is the one that the authority pinned"]
    assert found["actual"] == hashlib.sha256(plan.read_bytes()).hexdigest()
    other = world.make_run("other", outputs=["outlet_catalogue"], data_seed=9)
    next(Path(other["engine_run_root"]).glob("data/layer*/1A/validation/*/_passed.flag")).unlink()
    world.drop(other["request"])
    world.serve()
    shutil.copy(world.ledger / "run_facts_view" / f"{run_id}.json", forged := world.root / "forged.json")
    forged.write_text(forged.read_text().replace(run_id, other["run_id"]))
    code, document = verify(world, str(forged))
    assert code == 1
    assert {
        "authority says READY",
        "facts view is the one that the authority announced",
        "READY is on the control bus",
    } <= failed(document)


def test_an_authority_that_cannot_be_read_is_said_and_is_no_error(world: World, ready: dict[str, Any]) -> None:
    world.database.rename(world.root / "kept.db")
    world.database.mkdir()
    code, document = verify(world, ready["run_id"])
    assert code == 0
    assert "cannot be read" in checks(document)["run is as the authority pinned it"]["detail"]
