"""The attestation key: runs share an attestation only when their own would have the same bytes."""

import dataclasses
import itertools
from typing import Any

import pytest

from scenario_runner.artifacts.base import FileDigest
from scenario_runner.audit.documents import PublishedView
from scenario_runner.audit.findings import Findings
from scenario_runner.audit.published import check_identity
from scenario_runner.contracts.canonical import canonical_bytes, parse_json
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.contracts.states import Strategy
from scenario_runner.gates.laws import GatePaths, Measurement, Members
from scenario_runner.gates.receipts import ABSENT_NOTE, AttestationKey, attestation_key, facts_view, make_attestation
from scenario_runner.gates.verified_set import Verified, VerifiedSet
from scenario_runner.interface_pack.loader import build_pack

pytestmark = pytest.mark.unit

D = "d" * 64
WHERE = "/engine/run"
PLAIN = Intent(
    "1" * 32, "key", "a" * 64, "b" * 64, 7, "baseline", (), "2026-01-01", "2026-01-02", (), Strategy.AUTO, WHERE
)
INPUTS = PlanInputs(D, {"policy_id": "p", "revision": "r1"}, Strategy.AUTO, ("one", "two"), ("g",), ("one",), 60, 3)
INTENTS = {
    "the same": PLAIN,
    "another run": dataclasses.replace(PLAIN, run_id="2" * 32),
    "another seed": dataclasses.replace(PLAIN, seed=8),
    "another scenario": dataclasses.replace(PLAIN, scenario_id="stress"),
    "another fingerprint": dataclasses.replace(PLAIN, manifest_fingerprint="c" * 64),
    "other parameters": dataclasses.replace(PLAIN, parameter_hash="c" * 64),
    "another root": dataclasses.replace(PLAIN, engine_run_root="/engine/copy"),
}
PINNED = {
    "the same": INPUTS,
    "another policy": dataclasses.replace(INPUTS, policy_rev={"policy_id": "p", "revision": "r2"}),
    "other traffic": dataclasses.replace(INPUTS, traffic=("one", "two")),
}


def verified(gate_scope: str, output_scope: str) -> Verified:
    outputs = [
        {"output_id": name, "path_template": f"{name}.json", "scope": scope}
        for name, scope in (("one", output_scope), ("two", "scope_global"))
    ]
    gate = {
        "gate_id": "g", "scope": gate_scope, "passed_flag_path_template": "g/_passed.flag",
        "bundle_root_template": "g/",
        "verification_method": {"kind": "sha256_bundle_digest", "digest_field": "sha256_hex", "ordering": "ascii_lex"},
        "authorizes_outputs": ["one", "two"],
    }  # fmt: skip
    made = VerifiedSet(build_pack({"outputs": outputs}, {"gates": [gate]}), ("g",), ("one", "two"))
    members = Members(D, ("g/x",), (), (), frozenset())
    made.admit_gate("g", GatePaths("g/_passed.flag", "g", ""), members, Measurement(D, {}, 1, 10))
    for name in ("one", "two"):
        made.admit_output(name, f"{name}.json", [FileDigest(f"{name}.json", 3, D)])
    return made.finish()


@pytest.mark.parametrize("gate_scope", ["fingerprint", "fingerprint_scenario_id", "fingerprint_run_id"])
@pytest.mark.parametrize("output_scope", ["scope_global", "scope_seed", "scope_seed_parameter_hash", "scope_run_id"])
def test_runs_share_an_attestation_only_when_sharing_changes_no_byte(gate_scope: str, output_scope: str) -> None:
    evidence = verified(gate_scope, output_scope)
    wanted = list(itertools.product(INTENTS.values(), PINNED.values()))
    keys = [attestation_key(evidence, intent, inputs) for intent, inputs in wanted]
    shared = {key: make_attestation(evidence, key) for key in keys}
    assert 1 < len(shared) < len(wanted), "some runs share, and some do not"
    for (intent, _), key in zip(wanted, keys, strict=True):
        everything = tuple(sorted(intent.identity().items()))
        own = make_attestation(evidence, dataclasses.replace(key, identity=everything))
        theirs = shared[key]
        assert facts_view(own, intent) == facts_view(theirs, intent)
        assert own.receipts == theirs.receipts


def test_a_facts_view_holds_the_bytes_of_its_document() -> None:
    evidence = verified("fingerprint", "scope_seed")
    view = facts_view(make_attestation(evidence, attestation_key(evidence, PLAIN, INPUTS)), PLAIN)
    assert view.data == canonical_bytes(view.document)
    document: dict[str, Any] = parse_json(view.data)
    assert document["pins"]["run_id"] == PLAIN.run_id
    assert document["bundle_hash"] == view.bundle_hash == view.ready["bundle_hash"]


def test_only_outputs_of_one_instance_have_a_receipt_of_their_own() -> None:
    attested = {}
    for scope in ("scope_seed", "scope_global"):
        evidence = verified("fingerprint", scope)
        attested[scope] = make_attestation(evidence, attestation_key(evidence, PLAIN, INPUTS))
    assert [item.output_id for item in attested["scope_seed"].receipts] == ["one"]
    assert attested["scope_global"].receipts == ()


TAMPERED = {
    "location": "/engine/copy",
    "identity": tuple(sorted({**PLAIN.identity(), "manifest_fingerprint": "c" * 64}.items())),
    "outputs": ("one",),
    "traffic": ("one", "two"),
    "policy_rev": canonical_bytes({"policy_id": "p", "revision": "r2"}),
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(AttestationKey)])
def test_each_field_of_the_key_changes_what_is_attested(field: str) -> None:
    """So a key that lacked the field would let runs share an attestation that is not theirs."""
    evidence = verified("fingerprint_scenario_id", "scope_seed")
    key = attestation_key(evidence, PLAIN, INPUTS)
    other = dataclasses.replace(key, **{field: TAMPERED[field]})
    assert key != other
    assert facts_view(make_attestation(evidence, key), PLAIN) != facts_view(make_attestation(evidence, other), PLAIN)


def test_a_note_of_another_kind_declares_no_output_absent() -> None:
    evidence = verified("fingerprint", "scope_seed")
    view = facts_view(make_attestation(evidence, attestation_key(evidence, PLAIN, INPUTS)), PLAIN)
    for notes, ok in (([], True), (["ANOTHER_NOTE:one"], True), ([ABSENT_NOTE + "one"], False)):
        document = {**view.document, "evidence_notes": notes}
        found = Findings()
        check_identity(PublishedView(canonical_bytes(document), document), found)
        assert found.ok is ok
