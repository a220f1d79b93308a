"""The evidence key: each of its fields is there because a finding depends on it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from scenario_runner.contracts.depth import DigestSource
from scenario_runner.contracts.plan import DEFAULT_BOUNDS, EvidenceBounds
from scenario_runner.evidence.key import EvidenceKey, evidence_key
from scenario_runner.interface_pack.loader import build_pack

pytestmark = pytest.mark.unit

TOKENS = {"manifest_fingerprint": "m", "parameter_hash": "p", "seed": "1", "scenario_id": "A", "run_id": "r"}


def pack_with(scope: str = "fingerprint", template: str = "out/x.json", bundle: str = "g/") -> Any:
    gate = {
        "gate_id": "g", "scope": scope, "passed_flag_path_template": "g/_passed.flag", "bundle_root_template": bundle,
        "verification_method": {"kind": "sha256_bundle_digest", "digest_field": "sha256_hex", "ordering": "ascii_lex"},
        "authorizes_outputs": ["out"],
    }  # fmt: skip
    output = {"output_id": "out", "path_template": template, "scope": "scope_global"}
    return build_pack({"outputs": [output]}, {"gates": [gate]})


def key(pack: Any = None, **values: Any) -> EvidenceKey:
    given: dict[str, Any] = {
        "root": "/engine/run", "pack": pack or pack_with(), "tokens": TOKENS, "gates": ("g",), "outputs": ("out",),
        "bounds": DEFAULT_BOUNDS,
    }  # fmt: skip
    return evidence_key(**{**given, **values})


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("root", key(root="/engine/copy")),
        ("pack_digest", key(pack_with(bundle="h/"))),
        ("tokens", key(tokens={**TOKENS, "seed": "2"})),
        ("gates", key(gates=())),
        ("outputs", key(outputs=())),
        ("bounds", key(bounds=EvidenceBounds(max_output_files=1))),
        ("source", key(source=DigestSource.S3_CHECKSUM)),
    ],
)
def test_runs_that_differ_in_a_field_share_no_examination(field: str, other: EvidenceKey) -> None:
    mine = key()
    assert mine != other
    assert [
        item.name for item in dataclasses.fields(mine) if getattr(mine, item.name) != getattr(other, item.name)
    ] == [field]


def test_every_field_is_held_by_the_test_above() -> None:
    named = next(mark for mark in test_runs_that_differ_in_a_field_share_no_examination.pytestmark if mark.args)
    assert [field for field, _ in named.args[1]] == [item.name for item in dataclasses.fields(EvidenceKey)]


@pytest.mark.parametrize(
    ("pack", "used"),
    [
        (pack_with(), set()),
        (pack_with(scope="fingerprint_scenario_id"), {"scenario_id"}),
        (pack_with(scope="fingerprint_run_id"), {"run_id"}),
        (pack_with(template="out/{run_id}/x.json"), {"run_id"}),
        (pack_with(bundle="g/scenario_id={scenario_id}/"), {"scenario_id"}),
    ],
    ids=["neither", "scenario in a scope", "run id in a scope", "run id in an output's path", "scenario in a bundle"],
)
def test_a_token_is_in_the_key_when_a_path_a_flag_or_the_run_receipt_may_name_it(pack: Any, used: set[str]) -> None:
    always = {"manifest_fingerprint", "parameter_hash", "seed"}
    assert set(key(pack).values()) == always | used
    for name in ("scenario_id", "run_id"):
        assert (key(pack) != key(pack, tokens={**TOKENS, name: "B"})) is (name in used)


def test_every_key_is_made_in_one_place() -> None:
    package = Path(__file__).parents[4] / "daemon/scenario_runner"
    makers = [path.name for path in package.rglob("*.py") if "EvidenceKey(" in path.read_text("utf-8")]
    assert makers == ["key.py"]
