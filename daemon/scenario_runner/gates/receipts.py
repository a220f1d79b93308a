"""Receipts, locators and the facts view, made from a finished verified set and from nothing else. Pure.

The bytes are a function of plan and evidence: no clock, no host, no order of discovery.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import (
    Json,
    canonical_bytes,
    canonical_part,
    canonical_sha256,
    parse_json,
    sha256_hex,
)
from scenario_runner.contracts.ids import ready_message_id
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.gates.verified_set import GatePass, OutputEvidence, Verified

ABSENT_NOTE = "OPTIONAL_OUTPUT_ABSENT:"

Identity = Mapping[str, Any]
"""Values of the identity partitions by name, as :meth:`Intent.identity` gives them."""


@dataclass(frozen=True, slots=True)
class InstanceReceiptFile:
    """An instance receipt (``data`` is the document's bytes) and its bundle manifest, ready to be written once."""

    output_id: str
    ref: str
    document: Json
    data: bytes
    manifest_ref: str
    manifest: bytes


@dataclass(frozen=True, slots=True)
class FactsView:
    """The facts view of a run that may become READY.

    Attributes:
        digest: sha256 of ``data``, the ``facts_view_digest`` of the READY envelope.
        ready: The READY payload.
        message_id: The READY message id.
    """

    document: Json
    data: bytes
    digest: str
    bundle_hash: str
    ready: Json
    message_id: str


@dataclass(frozen=True, slots=True)
class AttestationKey:
    """Everything of a run, beside its verified set, that its attestation depends on.

    An attestation is made from a verified set and this key, and from nothing else of a run. So runs with the same
    verified set and equal keys share one: a field that is left out here cannot be read there.

    Attributes:
        location: The engine run root, normalised at admission; paths in receipts and locators begin with it.
        identity: Name and value of each identity partition that a gate's or output's scope names, sorted.
        outputs: Intended outputs, sorted.
        traffic: Those of them that the policy calls business traffic, sorted.
        policy_rev: Canonical JSON of ``{policy_id, revision, content_digest}``.
    """

    location: str
    identity: tuple[tuple[str, Any], ...]
    outputs: tuple[str, ...]
    traffic: tuple[str, ...]
    policy_rev: bytes


@dataclass(frozen=True, slots=True)
class Attestation:
    """The part of a facts view that is equal for all runs with the same verified set and attestation key.

    Attributes:
        receipts: Instance receipts, in order of the output id.
        fields: The fields of the facts view.
        canonical_fields: The same fields, each written as canonical JSON.
    """

    receipts: tuple[InstanceReceiptFile, ...]
    bundle_hash: str
    fields: Json
    canonical_fields: Json


def _at(location: str, path: str) -> str:
    return f"{location.rstrip('/')}/{path}"


def _digest(value: str) -> Json:
    return {"algo": "sha256", "hex": value}


def gate_receipt(passed: GatePass, identity: Identity, location: str) -> Json:
    """The gate_receipt of a passed gate; paths are resolved against the run root's location."""
    artifacts: Json = {
        "validation_bundle_root": _at(location, passed.paths.bundle_root) + "/",
        "passed_flag_path": _at(location, passed.paths.flag),
    }
    if passed.paths.index:
        artifacts["index_path"] = _at(location, passed.paths.index)
    return {
        "gate_id": passed.gate.gate_id,
        "status": "PASS",
        "scope": {key: identity[key] for key in dict.fromkeys(("manifest_fingerprint", *passed.gate.scope))},
        "receipt_kind": "passed_flag",
        "digest": _digest(passed.digest),
        "artifacts": artifacts,
    }


def locator(evidence: OutputEvidence, identity: Identity, location: str) -> Json:
    """The engine_output_locator of an output."""
    spec = evidence.spec
    document: Json = {key: identity[key] for key in spec.scope or ("manifest_fingerprint",)}
    document["output_id"] = spec.output_id
    document["path"] = _at(location, evidence.path)
    document["content_digest"] = _digest(evidence.digest)
    if spec.schema_ref:
        document["schema_ref"] = spec.schema_ref
    if spec.dictionary_ref:
        document["dictionary_ref"] = spec.dictionary_ref
    return document


def instance_receipt(evidence: OutputEvidence, identity: Identity, location: str) -> InstanceReceiptFile:
    """SR's own receipt for one instance-scoped output."""
    spec = evidence.spec
    ref = refs.receipt_ref(spec.output_id, spec.scope, identity)
    manifest_ref = refs.manifest_ref(spec.output_id, spec.scope, identity) if evidence.manifest else ""
    document: Json = {
        "output_id": spec.output_id,
        "status": "PASS",
        "scope": {key: identity[key] for key in spec.scope},
        "target_ref": locator(evidence, identity, location),
        "target_digest": _digest(evidence.digest),
        "receipt_kind": "instance_proof",
        "artifacts": {"receipt_path": ref},
    }
    if manifest_ref:
        document["bundle_manifest_ref"] = manifest_ref
    return InstanceReceiptFile(
        spec.output_id, ref, document, canonical_bytes(document), manifest_ref, evidence.manifest
    )


def instance_receipts(verified: Verified, identity: Identity, location: str) -> list[InstanceReceiptFile]:
    """Receipts for every output of one instance, in order of the output id."""
    return [instance_receipt(item, identity, location) for item in verified.outputs if item.spec.instance_scoped]


def bundle_hash_of(locators: list[Json], receipts: list[Json], instances: list[Json], policy_rev: Json) -> str:
    """``bundle_hash`` as contracts.md section 1 derives it."""
    content: Json = {
        "locators": sorted(locators, key=lambda item: str(item["output_id"])),
        "receipts": sorted(receipts, key=lambda item: str(item["gate_id"])),
        "instance_receipts": sorted(instances, key=lambda item: str(item["output_id"])),
        "policy_rev": policy_rev,
    }
    return canonical_sha256(content)


def attestation_key(verified: Verified, intent: Intent, inputs: PlanInputs) -> AttestationKey:
    """The key under which the run's attestation may be shared."""
    names = {name for passed in verified.gates for name in passed.gate.scope}
    names |= {name for evidence in verified.outputs for name in evidence.spec.scope}
    identity = intent.identity()
    named = tuple((name, identity[name]) for name in sorted(names | {"manifest_fingerprint"}))
    return AttestationKey(
        inputs.root_of(intent), named, inputs.outputs, inputs.traffic, canonical_bytes(inputs.policy_rev)
    )


def make_attestation(verified: Verified, key: AttestationKey) -> Attestation:
    """The attestation of a finished verified set."""
    identity, location, policy_rev = dict(key.identity), key.location, parse_json(key.policy_rev)
    locators = [locator(item, identity, location) for item in verified.outputs]
    receipts = [gate_receipt(passed, identity, location) for passed in verified.gates]
    instances = instance_receipts(verified, identity, location)
    instance_documents = [item.document for item in instances]
    bundle_hash = bundle_hash_of(locators, receipts, instance_documents, policy_rev)
    fields: Json = {
        "locators": locators,
        "gate_receipts": receipts,
        "instance_receipts": instance_documents,
        "policy_rev": policy_rev,
        "bundle_hash": bundle_hash,
        "intended_outputs": list(key.outputs),
        "output_roles": {
            output: "business_traffic" if output in key.traffic else "non_traffic" for output in key.outputs
        },
    }
    if verified.absent:
        fields["evidence_notes"] = [ABSENT_NOTE + output for output in verified.absent]
    canonical_fields = {name: canonical_part(value) for name, value in fields.items()}
    return Attestation(tuple(instances), bundle_hash, fields, canonical_fields)


def facts_view(attestation: Attestation, intent: Intent) -> FactsView:
    """The facts view of a run, and the READY signal that points at it."""
    run_id, bundle_hash = intent.run_id, attestation.bundle_hash
    own: Json = {
        "run_id": run_id,
        "pins": intent.identity(),
        "plan_ref": refs.plan_ref(run_id),
        "record_ref": refs.record_ref(run_id),
        "status_ref": refs.status_ref(run_id),
    }
    data = canonical_bytes(own | attestation.canonical_fields)
    ready = {"run_id": run_id, "facts_view_ref": refs.facts_view_ref(run_id), "bundle_hash": bundle_hash}
    message_id = ready_message_id(run_id, bundle_hash)
    return FactsView(own | attestation.fields, data, sha256_hex(data), bundle_hash, ready, message_id)
