"""The engine simulator: what it writes, in which order, and that it stays a second opinion."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import PACK, REPO

from sr_tools.engine import DAMAGE_KINDS, GATE_DAMAGES, OUTPUT_DAMAGES, MakeRunError, law_digest, make_run
from sr_tools.engine.damage import ROOT_MISSING, choose_target
from sr_tools.engine.files import CHUNK, RunFolder, output_files, payload
from sr_tools.engine.identity import DERIVED, Identity, sha256_hex
from sr_tools.engine.laws import files_below, index_entries
from sr_tools.engine.pack import BUNDLE_LAW, CONCAT_LAW, INDEX_LAW, Gate, load_pack, parse_pack
from sr_tools.engine.plan import Plan, choose_outputs, make_plan
from sr_tools.engine.seal import seal_run

pytestmark = pytest.mark.unit

COMMAND = REPO / "scripts/make_engine_run.py"
HEX64 = "0" * 64
IDENTITY = Identity("key", 7, HEX64, HEX64, "baseline_v1")
GATE = Gate("g", 0, BUNDLE_LAW, "sha256_hex", False, False, frozenset({"_passed.flag"}), "b/_passed.flag", None, "b/",
            frozenset(), ())  # fmt: skip
DEFAULT_RUN = "fa25848f91c705a10037f77f59ddd9c3386139cebbb85c5969fc901b4600a813"


def tree_digest(root: Path) -> str:
    """One digest over the relative path and the bytes of every file."""
    lines = [f"{path.relative_to(root)} {sha256_hex(path.read_bytes())}" for path in files_below(root)]
    return sha256_hex("\n".join(lines).encode())


def plan_of(outputs: list[str] | None = None) -> Plan:
    pack = load_pack(PACK, None, None)
    return make_plan(pack, choose_outputs(pack, outputs, all_outputs=False), IDENTITY)


def fill(root: Path, **files: bytes) -> None:
    for name, data in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


# --- a second opinion -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((REPO / "scripts").rglob("*.py")), ids=lambda path: path.stem)
def test_no_tool_imports_what_it_measures_or_checks(path: Path) -> None:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [item.name for item in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    assert [name for name in names if name.partition(".")[0] == "scenario_runner"] == []


def test_the_same_options_write_the_same_bytes_as_ever(tmp_path: Path) -> None:
    made = make_run(runs=tmp_path / "one")
    assert tree_digest(Path(made["engine_run_root"])) == DEFAULT_RUN
    again = make_run(runs=tmp_path / "two")
    assert tree_digest(Path(again["engine_run_root"])) == DEFAULT_RUN
    other = make_run(runs=tmp_path / "three", data_seed=2)
    assert tree_digest(Path(other["engine_run_root"])) != DEFAULT_RUN


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["-I"], ["-P"]], ids=["plain", "isolated", "safe path"])
def test_the_command_runs_from_any_folder(tmp_path: Path, flags: list[str]) -> None:
    if flags == ["-P"] and sys.version_info < (3, 11):
        pytest.skip("Python 3.11 brought -P")
    done = subprocess.run([sys.executable, *flags, COMMAND, "--json"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert Path(made["engine_run_root"]).parent == tmp_path / "runs/local_full_run-1"


def test_the_file_can_be_loaded_by_importlib_where_scripts_is_not_on_the_path(tmp_path: Path) -> None:
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('make_engine_run', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['make_engine_run'] = module\n"
        "spec.loader.exec_module(module)\n"
        "print(module.make_run(runs='here')['run_id'], len(module.DAMAGE_KINDS))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, COMMAND], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [Identity("local-demo-1", 7, "", "", "").run_id.encode(), b"40"]


def test_usage_and_file_system_have_exit_codes_of_their_own(tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, bytes]:
        done = subprocess.run([sys.executable, COMMAND, *arguments], cwd=tmp_path, capture_output=True, check=False)
        return done.returncode, done.stderr

    (tmp_path / "file").touch()
    assert run("--damage", "nothing")[0] == 2
    assert run("--part-bytes", "many")[0] == 2
    code, said = run("--runs", "file/below")
    assert code == 5
    assert said.startswith(b"make_engine_run.py: ")
    assert b"Traceback" not in said


# --- what is written, and in which order ----------------------------------------------------------------------------


def test_a_flag_is_written_after_its_members_and_the_receipt_last(tmp_path: Path) -> None:
    folder, plan = RunFolder(tmp_path, 1, 2, 16, 1, 16), plan_of()
    seal_run(folder, plan, IDENTITY, skip_optional=False)
    order = list(folder.sizes)
    assert order[-1] == "run_receipt.json"
    for gate in plan.gates:
        inside = [place for place, rel in enumerate(order) if rel.startswith(gate.bundle)]
        assert order.index(gate.flag) == max(inside)


def test_every_flag_is_the_laws_digest_of_its_bundle(tmp_path: Path) -> None:
    folder, plan = RunFolder(tmp_path, 1, 4, 16, 2, 16), plan_of()
    seal_run(folder, plan, IDENTITY, skip_optional=False)
    for gate in plan.gates:
        assert law_digest(tmp_path, gate) in (tmp_path / gate.flag).read_text("ascii")


def test_a_run_that_is_there_is_replaced_by_force_only(tmp_path: Path) -> None:
    root = Path(make_run(runs=tmp_path)["engine_run_root"])
    (root / "mark").touch()
    with pytest.raises(MakeRunError, match="--force"):
        make_run(runs=tmp_path)
    assert (root / "mark").exists()
    make_run(runs=tmp_path, force=True)
    assert not (root / "mark").exists()


def test_the_engine_may_know_a_run_by_an_id_of_its_own(tmp_path: Path) -> None:
    made = make_run(runs=tmp_path, engine_run_id=DERIVED)
    assert made["engine_run_id"] != made["run_id"]
    assert Path(made["engine_run_root"]).name == made["engine_run_id"]
    receipt = json.loads((Path(made["engine_run_root"]) / "run_receipt.json").read_bytes())
    assert receipt["run_id"] == made["engine_run_id"]


@pytest.mark.parametrize("size", [1, 63, 64, 65, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + 64, 2 * CHUNK])
def test_payload_has_the_size_asked_for_and_follows_from_seed_and_label(size: int) -> None:
    def taken(seed: int, label: str) -> bytes:
        return b"".join(payload(seed, label, size))

    assert len(taken(1, "a")) == size
    assert taken(1, "a") == taken(1, "a")
    if size >= 64:
        assert len({taken(1, "a"), taken(2, "a"), taken(1, "b")}) == 3


def test_the_files_of_an_output_follow_from_its_form() -> None:
    assert output_files("a/", 2) == ["a/part-00000.bin", "a/part-00001.bin"]
    assert output_files("a/x-*.bin", 2) == ["a/x-00000.bin", "a/x-00001.bin"]
    assert output_files("a/b.json", 2) == ["a/b.json"]


# --- the laws -------------------------------------------------------------------------------------------------------


def test_the_bundle_law_hashes_in_byte_order_and_leaves_names_out_at_the_top_only(tmp_path: Path) -> None:
    fill(tmp_path, b__a=b"4", b__Z=b"2", **{"b__a-1": b"5", "b___passed.flag": b"x", "b__0___passed.flag": b"1"})
    assert law_digest(tmp_path, GATE) == sha256_hex(b"1245")


def test_the_bundle_law_orders_whole_paths_and_not_their_parts(tmp_path: Path) -> None:
    fill(tmp_path, **{"b__a-1": b"1", "b__a__z": b"2"})
    assert law_digest(tmp_path, GATE) == sha256_hex(b"12")


@pytest.mark.parametrize(("by_path", "expected"), [(True, b"12"), (False, b"21")])
def test_the_index_law_takes_its_order_from_the_gate(tmp_path: Path, by_path: bool, expected: bytes) -> None:
    index = json.dumps({"items": [{"path": "b"}, {"path": "a"}, {"sha256_hex": HEX64}]}).encode()
    fill(tmp_path, b__a=b"1", b__b=b"2", **{"b__index.json": index})
    gate = replace(GATE, law=INDEX_LAW, by_path=by_path, index="b/index.json")
    assert law_digest(tmp_path, gate) == sha256_hex(expected)


def test_the_index_law_can_start_paths_at_the_run_root(tmp_path: Path) -> None:
    fill(tmp_path, else__a=b"1", **{"b__index.json": b'[{"path": "else/a"}]'})
    gate = replace(GATE, law=INDEX_LAW, run_root=True, by_path=True, index="b/index.json")
    assert law_digest(tmp_path, gate) == sha256_hex(b"1")


def test_the_concatenation_law_hashes_the_text_of_listed_digests(tmp_path: Path) -> None:
    rows = [{"path": "b", "d": "22"}, {"path": "a", "d": "11"}, {"path": "c"}]
    fill(tmp_path, **{"b__index.json": json.dumps(rows).encode()})
    gate = replace(GATE, law=CONCAT_LAW, digest_field="d", index="b/index.json")
    assert law_digest(tmp_path, gate) == hashlib.sha256(b"2211").hexdigest()


def test_entries_are_found_in_an_index_of_any_shape() -> None:
    rows = [{"path": "a"}]
    for document in (rows, {"items": rows}, {"gate_id": "g", "entries": rows}, {"files": rows}, {"members": rows}):
        assert index_entries(document) is rows


# --- pack, identity, plan -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "md5"}, "law 'md5'"),
        ({"path_base": "elsewhere"}, "path_base 'elsewhere'"),
        ({"kind": INDEX_LAW, "ordering": "any"}, "ordering 'any'"),
        ({"kind": INDEX_LAW, "ordering": "ascii_lex"}, "needs an index_path_template"),
    ],
)
def test_a_gate_that_cannot_be_sealed_is_refused(change: dict[str, Any], said: str) -> None:
    gate = {
        "gate_id": "g",
        "verification_method": {"kind": BUNDLE_LAW, "digest_field": "d", **change},
        "passed_flag_path_template": "b/flag",
        "bundle_root_template": "b",
    }
    with pytest.raises(MakeRunError, match=said):
        parse_pack("outputs: []", json.dumps({"gates": [gate]}))


def test_a_pack_that_is_not_there_or_malformed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MakeRunError, match="cannot read"):
        load_pack(tmp_path, None, None)
    (tmp_path / "catalogue").write_text("outputs: [{}]")
    (tmp_path / "gates").write_text("gates: []")
    with pytest.raises(MakeRunError, match="malformed"):
        load_pack(tmp_path, tmp_path / "catalogue", tmp_path / "gates")


@pytest.mark.parametrize("template", ["a/{world}/b", "/a/{seed}", "a/../b", "s3://{run_id}"])
def test_a_template_that_leaves_the_run_root_or_asks_for_more_is_refused(template: str) -> None:
    with pytest.raises(MakeRunError):
        IDENTITY.fill(template)


@pytest.mark.parametrize(
    "change",
    [
        {"manifest_fingerprint": "A" * 64},
        {"parameter_hash": "0" * 63},
        {"engine_run_id": "x"},
        {"seed": -1},
        {"seed": 2**64},
        {"scenario_id": ".hidden"},
        {"scenario_id": "a b"},
        {"run_key": ""},
    ],
)
def test_an_identity_that_no_request_could_carry_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MakeRunError):
        replace(IDENTITY, **change).check()
    IDENTITY.check()


def test_a_plan_holds_the_gates_of_its_outputs_and_those_upstream_in_map_order() -> None:
    pack = load_pack(PACK, None, None)
    plan = plan_of(["s3_flow_anchor_with_fraud_6B"])
    held = {gate.gate_id for gate in plan.gates}
    assert set(pack.outputs["s3_flow_anchor_with_fraud_6B"].gates) <= held
    assert {upstream for gate in plan.gates for upstream in gate.upstream} <= held
    assert [gate.gate_id for gate in plan.gates] == [gate_id for gate_id in pack.gates if gate_id in held]


def test_an_output_that_the_catalogue_lacks_is_refused() -> None:
    with pytest.raises(MakeRunError, match="no output nothing_1A"):
        plan_of(["nothing_1A"])


# --- damage ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_damage_is_described_and_done() -> None:
    assert set(DAMAGE_KINDS) == {*GATE_DAMAGES, *OUTPUT_DAMAGES, ROOT_MISSING}
    assert len(DAMAGE_KINDS) == len(GATE_DAMAGES) + len(OUTPUT_DAMAGES) + 1


@pytest.mark.parametrize(
    ("kind", "target", "said"),
    [
        (None, "gate.layer1.1A.validation", "goes with a --damage"),
        ("root_missing", "gate.layer1.1A.validation", "goes with a --damage that has a target"),
        ("nothing", None, "no damage 'nothing'"),
        ("flag_missing", "arrival_events_5B", "cannot go to arrival_events_5B"),
        ("bundle_empty", "gate.layer1.3A.validation", "only to: "),
    ],
)
def test_a_damage_goes_only_where_it_applies(kind: str | None, target: str | None, said: str) -> None:
    with pytest.raises(MakeRunError, match=said):
        choose_target(kind, target, plan_of(), skip_optional=False)


def test_index_damage_prefers_a_gate_whose_law_reads_the_index() -> None:
    plan = plan_of()
    target = choose_target("index_huge", None, plan, skip_optional=False)
    assert next(gate for gate in plan.gates if gate.gate_id == target).law == INDEX_LAW


@pytest.mark.parametrize("kind", ["member_tampered_flag_follows", "index_wrong_listed_digest", "concat_shift"])
def test_damage_that_a_flag_does_not_show_leaves_flag_and_law_in_agreement(tmp_path: Path, kind: str) -> None:
    made = make_run(runs=tmp_path, run_key="key", damage=kind, manifest_fingerprint=HEX64, parameter_hash=HEX64)
    gate = next(gate for gate in plan_of().gates if gate.gate_id == made["damage_target"])
    root = Path(made["engine_run_root"])
    assert law_digest(root, gate) in (root / gate.flag).read_text("ascii")


def test_the_root_is_missing_only_when_asked(tmp_path: Path) -> None:
    made = make_run(runs=tmp_path, damage=ROOT_MISSING, request=tmp_path / "request.json")
    assert not Path(made["engine_run_root"]).exists()
    assert json.loads((tmp_path / "request.json").read_bytes())["engine_run_root"] == made["engine_run_root"]
    assert os.listdir(tmp_path / "runs" if (tmp_path / "runs").exists() else tmp_path / "local_full_run-1") == []
