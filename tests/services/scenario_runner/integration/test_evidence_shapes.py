"""Outputs and gates of every shape that a pack allows: scopes, optional outputs, laws, files outside a bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hostile_evidence_support import (
    CONFLICT,
    MALFORMED,
    MISSING,
    OUTPUT_TARGETS,
    drain,
    entries_of,
    explain,
    flag_of,
    make,
    state_of,
)
from support import PACK, ForkedWorld, World

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.integration


@pytest.fixture
def world(tmp_path: Path) -> World:
    return ForkedWorld(tmp_path / "world")


# --- scopes, optional outputs, whole packs


def test_every_addressable_output_of_the_pack_becomes_ready_and_verifies(world: World) -> None:
    made = make(world, "all", outputs=None, all_outputs=True)
    assert len(made["output_ids"]) > 40
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made) == ("READY", "")
    code, verified = world.query("verify", made["run_id"])
    assert (code, verified["outcome"]) == (0, "PASS")
    view = world.document("run_facts_view", made["run_id"])
    assert {item["output_id"] for item in view["locators"]} == set(made["output_ids"])
    assert all(item["content_digest"] for item in view["locators"])


def test_optional_outputs_may_be_absent_but_not_all_and_not_half(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "w", policy_changes={"evidence_wait_seconds": 0})
    absent = make(world, "absent", outputs=["site_locations", "rng_event_site_jitter_1B"], skip_optional=True)
    alone = make(world, "alone", outputs=["rng_event_site_jitter_1B"], skip_optional=True)
    empty = make(world, "empty", outputs=["site_locations", "s4_case_timeline_6B"], skip_optional=True)
    half = make(
        world,
        "half",
        outputs=["site_locations", "rng_event_site_jitter_1B"],
        damage="output_part_is_directory",
        damage_target="rng_event_site_jitter_1B",
    )
    shared = make(world, "global", outputs=["iso_country_reference"])
    timeline = (
        f"data/layer3/6B/s4_case_timeline_6B/parameter_hash={empty['parameter_hash']}/manifest_fingerprint="
        f"{empty['manifest_fingerprint']}/seed=7/scenario_id={empty['scenario_id']}"
    )
    Path(empty["engine_run_root"], timeline).mkdir(parents=True)
    for name, item in {"absent": absent, "alone": alone, "empty": empty, "half": half, "shared": shared}.items():
        world.drop(item["request"], f"{name}.json")
    drain(world)
    assert state_of(world, absent) == ("READY", "")
    view = world.document("run_facts_view", absent["run_id"])
    assert [item["output_id"] for item in view["locators"]] == ["site_locations"]
    assert any("rng_event_site_jitter_1B" in note for note in view["evidence_notes"])
    assert state_of(world, alone) == ("FAILED", MISSING)
    assert state_of(world, empty) == ("FAILED", MISSING)
    assert state_of(world, half) == ("QUARANTINED", MALFORMED)
    assert state_of(world, shared) == ("READY", "")
    view = world.document("run_facts_view", shared["run_id"])
    assert view["instance_receipts"] == []
    assert view["locators"][0]["manifest_fingerprint"] == shared["manifest_fingerprint"]
    for item in (absent, shared):
        assert world.query("verify", item["run_id"])[0] == 0


def custom_pack(world: World, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> dict[str, Any]:
    """A pack of one output and one gate, changed; returns the options for making a run of it."""
    outputs = yaml.safe_load((PACK / "engine_outputs.catalogue.yaml").read_text("utf-8"))["outputs"]
    gates = yaml.safe_load((PACK / "engine_gates.map.yaml").read_text("utf-8"))["gates"]
    output = next(item for item in outputs if item["output_id"] == "outlet_catalogue")
    gate = gates[0] | {"authorizes_outputs": ["outlet_catalogue"]}
    change(output, gate)
    catalogue, gate_map = world.root / "catalogue.yaml", world.root / "gates.yaml"
    catalogue.write_text(yaml.safe_dump({"version": "1", "outputs": [output]}), "utf-8")
    gate_map.write_text(yaml.safe_dump({"version": "1", "gates": [gate]}), "utf-8")
    world.write_profiles(engine_catalogue_path=str(catalogue), gate_map_path=str(gate_map))
    return {"catalogue": catalogue, "gate_map": gate_map}


@pytest.mark.parametrize("output", OUTPUT_TARGETS, ids=["glob", "directory", "file"])
def test_an_output_of_another_shape_than_its_path_template_is_refused_as_that(world: World, output: str) -> None:
    made = make(world, "shape", outputs=[output])
    files = (path for path in sorted(Path(made["engine_run_root"]).rglob("*")) if path.is_file())
    file = next(path for path in files if output in str(path))
    if output == OUTPUT_TARGETS[-1]:
        file.unlink()
        file.mkdir()
    else:
        shutil.rmtree(file.parent)
        file.parent.touch()
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made) == ("QUARANTINED", MALFORMED)
    assert "which the path template does not mean" in explain(world, made)["detail"]


@pytest.mark.parametrize("template", ["part-*.parquet\n", "parts/\n", "whole.parquet\n"], ids=str.strip)
@pytest.mark.parametrize("availability", ["required", "optional"])
def test_outputs_at_the_run_root_itself_are_found(world: World, availability: str, template: str) -> None:
    pack = custom_pack(world, lambda output, _: output.update(path_template=template, availability=availability))
    made = make(world, "top", **pack)
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made) == ("READY", ""), explain(world, made)["detail"]


def test_an_index_outside_its_bundle_is_read_too(world: World) -> None:
    """The bundle law with the index elsewhere: a wrong listed digest is a contradiction all the same."""
    pack = custom_pack(world, lambda _, gate: gate.update(index_path_template="index/{manifest_fingerprint}.json"))
    made = make(world, "outside", **pack)
    path = Path(made["engine_run_root"], f"index/{made['manifest_fingerprint']}.json")
    document = json.loads(path.read_bytes())
    entries_of(document)[0]["sha256_hex"] = "0" * 64
    path.write_text(json.dumps(document), "utf-8")
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made) == ("QUARANTINED", CONFLICT)


CANONICAL_ONLY = b'{ "b": 1, "a": 2 }'
OUTSIDE: dict[str, tuple[dict[str, str], str]] = {
    "nothing more": ({}, "READY"),
    "a file with the digest of its bytes": (
        {"path": "more.json", "sha256_hex": hashlib.sha256(CANONICAL_ONLY).hexdigest()},
        "READY",
    ),
    "a file with the digest of its canonical form, which is for another law": (
        {"path": "more.json", "sha256_hex": hashlib.sha256(b'{"a":2,"b":1}').hexdigest()},
        CONFLICT,
    ),
    "a file that is not there": ({"path": "absent.json"}, CONFLICT),
    "a folder": ({"path": "folder"}, MALFORMED),
    "a folder with a digest": ({"path": "folder", "sha256_hex": hashlib.sha256(b"x").hexdigest()}, MALFORMED),
}


@pytest.mark.parametrize("more", OUTSIDE)
def test_what_an_index_names_beside_the_bundle_is_read_under_the_bundles_own_law(world: World, more: str) -> None:
    entry, wanted = OUTSIDE[more]

    def index_outside(_: dict[str, Any], gate: dict[str, Any]) -> None:
        gate["index_path_template"] = "index/{manifest_fingerprint}.json"

    def from_the_run_root(_: dict[str, Any], gate: dict[str, Any]) -> None:
        index_outside(_, gate)
        gate["verification_method"] = gate["verification_method"] | {"path_base": "run_root"}

    made = make(world, "outside", **custom_pack(world, index_outside))
    custom_pack(world, from_the_run_root)
    root = Path(made["engine_run_root"])
    (root / "more.json").write_bytes(CANONICAL_ONLY)
    (root / "folder").mkdir()
    (root / "folder" / "x").write_bytes(b"x")
    path = root / f"index/{made['manifest_fingerprint']}.json"
    document = json.loads(path.read_bytes())
    for item in entries_of(document):
        item["path"] = str((flag_of(made).parent / item["path"]).relative_to(root))
    entries_of(document).extend([entry] if entry else [])
    path.write_text(json.dumps(document), "utf-8")
    world.drop(made["request"])
    drain(world)
    assert wanted in state_of(world, made), explain(world, made)["detail"]


def test_a_gate_of_the_bundle_law_needs_no_index_in_the_pack_either(world: World) -> None:
    made = make(world, "none", **custom_pack(world, lambda _, gate: gate.pop("index_path_template")))
    world.drop(made["request"])
    drain(world)
    assert state_of(world, made) == ("READY", ""), explain(world, made)["detail"]


def test_a_bundle_without_an_index_passes_by_its_law_and_its_receipt_names_no_index(world: World) -> None:
    made = make(
        world, "k", outputs=["outlet_catalogue"], damage="index_missing", damage_target="gate.layer1.1A.validation"
    )
    world.drop(made["request"])
    drain(world)
    (receipt,) = world.document("run_facts_view", made["run_id"])["gate_receipts"]
    assert receipt["status"] == "PASS"
    assert "index_path" not in receipt["artifacts"]
    assert world.query("verify", made["run_id"])[0] == 0
