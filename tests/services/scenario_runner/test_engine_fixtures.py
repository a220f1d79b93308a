"""Tier 3: the engine runs that lie under ``runs/local_full_run-*``, every gate of the pack over each of them.

``scripts/make_engine_run.py --all-outputs --engine-run-id derived`` makes one, whose id is the engine's
own; a run of the real engine in the same layout does as well. The
folder may be named by SR_ENGINE_FIXTURE_ROOT.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support import PACK, REPO, World

from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.artifacts.local import LocalArtifacts
from scenario_runner.contracts.documents import RunReceipt
from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.plan import DEFAULT_BOUNDS
from scenario_runner.evidence.examine import examine
from scenario_runner.evidence.key import evidence_key
from scenario_runner.interface_pack.closure import required_gates
from scenario_runner.interface_pack.loader import load_pack
from scenario_runner.interface_pack.templates import TOKENS, Shape

pytestmark = pytest.mark.engine_fixture

RUNS = Path(os.environ.get("SR_ENGINE_FIXTURE_ROOT", REPO / "runs"))
FOUND = sorted(path.parent for path in RUNS.glob("local_full_run-*/*/run_receipt.json"))
PACK_VALUE = load_pack(str(PACK / "engine_outputs.catalogue.yaml"), str(PACK / "engine_gates.map.yaml"))
NONE = f"there is no engine run under {RUNS}/local_full_run-*; make one: scripts/run_tests.sh engine_fixture"


@pytest.fixture(params=FOUND or [None], ids=lambda path: path.name if path else "none")
def engine_run(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip(NONE)
    path: Path = request.param
    return path


def identity_of(engine_run: Path) -> dict[str, Any]:
    receipt = json.loads((engine_run / "run_receipt.json").read_bytes())
    RunReceipt.model_validate(receipt)
    return {key: receipt.get(key, "baseline_v1") for key in TOKENS}


def outputs_of(engine_run: Path, identity: dict[str, Any]) -> list[str]:
    """Outputs of the pack that a request can address and that lie in the run."""
    tokens = {key: str(value) for key, value in identity.items()}
    found = []
    for output_id, spec in PACK_VALUE.outputs.items():
        if not spec.template.tokens <= set(TOKENS):
            continue
        path = spec.template.render(tokens)
        folder, name = path.rsplit("/", 1)
        there = engine_run.joinpath(folder).glob(name) if spec.template.shape is Shape.GLOB else [engine_run / path]
        if any(item.exists() for item in there):
            found.append(output_id)
    return found


def test_every_gate_of_the_pack_passes_over_the_run(engine_run: Path) -> None:
    identity = identity_of(engine_run)
    tokens = {key: str(value) for key, value in identity.items()}
    gates = [gate_id for gate_id, gate in PACK_VALUE.gates.items() if (engine_run / gate.flag.render(tokens)).exists()]
    outputs = outputs_of(engine_run, identity)
    assert gates == list(PACK_VALUE.gates), "a full run has all gates of the pack"
    artifacts = LocalArtifacts([str(RUNS)], os.cpu_count() or 1, None)
    try:
        root = artifacts.open(str(engine_run.resolve()), ReadBudget())
        location = str(engine_run.resolve())
        key = evidence_key(location, PACK_VALUE, tokens, sorted(gates), sorted(outputs), DEFAULT_BOUNDS)
        finding, _ = examine(root, PACK_VALUE, key)
        root.close()
    finally:
        artifacts.close()
    wrong = [item for item in (*finding.report["gates"], *finding.report["outputs"]) if item["outcome"] != "PASS"]
    assert wrong == []
    assert finding.verified is not None
    assert {item.gate.gate_id for item in finding.verified.gates} == set(PACK_VALUE.gates)


def request_for(engine_run: Path, identity: dict[str, Any], key: str, outputs: list[str]) -> dict[str, Any]:
    return {
        "run_equivalence_key": f"{key}-{engine_run.name}",
        **{name: identity[name] for name in ("manifest_fingerprint", "parameter_hash", "seed")},
        "scenario": {"scenario_id": identity["scenario_id"]},
        "window": {
            "window_start_utc": "2026-01-01T00:00:00Z",
            "window_end_utc": "2026-01-02T00:00:00Z",
            "window_tz": "UTC",
        },
        "engine_run_root": str(engine_run.resolve()),
        "output_ids": outputs,
    }


def test_a_request_for_an_output_under_the_engines_own_run_id_fails_at_once(engine_run: Path, tmp_path: Path) -> None:
    world = World(tmp_path / "world", wiring_changes={"engine_roots": [str(RUNS)]})
    identity = identity_of(engine_run)
    foreign = [
        item
        for item in outputs_of(engine_run, identity)
        if "run_id" in PACK_VALUE.outputs[item].template.tokens and required_gates_or_none(item)
    ]
    if not foreign:
        pytest.skip("the run holds no output with a run id in its path")
    request = request_for(engine_run, identity, "foreign", foreign[:1])
    world.drop(request)
    world.serve(timeout=600)
    (terminal,) = world.signals("TERMINAL")
    _, status = world.query("status", terminal["payload"]["run_id"])
    assert (status["state"], status["reason_code"]) == ("FAILED", "OUTPUT_OF_ANOTHER_RUN")
    explained = world.query("explain", terminal["payload"]["run_id"])[1]
    assert all(word in explained["detail"] for word in (foreign[0], identity["run_id"], status["run_id"]))


def required_gates_or_none(output_id: str) -> tuple[str, ...]:
    try:
        return tuple(required_gates(PACK_VALUE, [output_id]))
    except RequestRefused:
        return ()


def test_a_request_for_everything_in_the_run_becomes_ready_and_verifies(engine_run: Path, tmp_path: Path) -> None:
    world = World(tmp_path / "world", wiring_changes={"engine_roots": [str(RUNS)]})
    identity = identity_of(engine_run)
    outputs = [  # paths with a run id are of the engine's own run
        item for item in outputs_of(engine_run, identity) if "run_id" not in PACK_VALUE.outputs[item].template.tokens
    ]
    request = request_for(engine_run, identity, "fixture", outputs)
    file = world.root / "request.json"
    file.write_text(json.dumps(request), "utf-8")
    submitted = world.command("submit", str(file), "--wiring", str(world.wiring), "--json")
    run_id = json.loads(submitted.stdout)["run_id"]
    world.serve(timeout=600)
    code, status = world.query("status", run_id)
    assert (code, status["state"]) == (0, "READY"), world.query("explain", run_id)[1]
    view = world.document("run_facts_view", run_id)
    assert {item["gate_id"] for item in view["gate_receipts"]} == set(required_gates(PACK_VALUE, request["output_ids"]))
    assert world.query("verify", run_id)[0] == 0
