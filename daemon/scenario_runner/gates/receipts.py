"""Receipts, locators and the facts view, made from a finished verified set and from nothing else. Pure.

The bytes are a function of plan and evidence: no clock, no host, no order of discovery.
"""

from dataclasses import dataclass

from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes, canonical_sha256, sha256_hex
from scenario_runner.contracts.ids import ready_message_id
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.gates.verified_set import GatePass, OutputEvidence, Verified

ABSENT_NOTE = "OPTIONAL_OUTPUT_ABSENT:"


@dataclass(frozen=True, slots=True)
class InstanceReceiptFile:
    """An instance receipt and its bundle manifest, ready to be written once."""

    output_id: str
    ref: str
    document: Json
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


def _at(location: str, path: str) -> str:
    return f"{location.rstrip('/')}/{path}"


def _digest(value: str) -> Json:
    return {"algo": "sha256", "hex": value}


def gate_receipt(passed: GatePass, intent: Intent, location: str) -> Json:
    """The gate_receipt of a passed gate; paths are resolved against the run root's location."""
    identity = intent.identity()
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


def locator(evidence: OutputEvidence, intent: Intent, location: str) -> Json:
    """The engine_output_locator of an output."""
    identity = intent.identity()
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


def instance_receipt(evidence: OutputEvidence, intent: Intent, location: str) -> InstanceReceiptFile:
    """SR's own receipt for one instance-scoped output."""
    identity = intent.identity()
    spec = evidence.spec
    ref = refs.receipt_ref(spec.output_id, spec.scope, identity)
    manifest_ref = refs.manifest_ref(spec.output_id, spec.scope, identity) if evidence.manifest else ""
    document: Json = {
        "output_id": spec.output_id,
        "status": "PASS",
        "scope": {key: identity[key] for key in spec.scope},
        "target_ref": locator(evidence, intent, location),
        "target_digest": _digest(evidence.digest),
        "receipt_kind": "instance_proof",
        "artifacts": {"receipt_path": ref},
    }
    if manifest_ref:
        document["bundle_manifest_ref"] = manifest_ref
    return InstanceReceiptFile(spec.output_id, ref, document, manifest_ref, evidence.manifest)


def instance_receipts(verified: Verified, intent: Intent, location: str) -> list[InstanceReceiptFile]:
    """Receipts for every output of one instance, in order of the output id."""
    return [instance_receipt(item, intent, location) for item in verified.outputs if item.spec.instance_scoped]


def bundle_hash_of(locators: list[Json], receipts: list[Json], instances: list[Json], policy_rev: Json) -> str:
    """``bundle_hash`` as contracts.md section 1 derives it."""
    content: Json = {
        "locators": sorted(locators, key=lambda item: str(item["output_id"])),
        "receipts": sorted(receipts, key=lambda item: str(item["gate_id"])),
        "instance_receipts": sorted(instances, key=lambda item: str(item["output_id"])),
        "policy_rev": policy_rev,
    }
    return canonical_sha256(content)


def facts_view(
    verified: Verified,
    intent: Intent,
    inputs: PlanInputs,
    location: str,
    instances: list[InstanceReceiptFile],
) -> FactsView:
    """The facts view and the READY signal that points at it."""
    run_id = intent.run_id
    locators = [locator(item, intent, location) for item in verified.outputs]
    receipts = [gate_receipt(passed, intent, location) for passed in verified.gates]
    proofs = [item.document for item in instances]
    bundle_hash = bundle_hash_of(locators, receipts, proofs, inputs.policy_rev)
    document: Json = {
        "run_id": run_id,
        "pins": intent.identity(),
        "locators": locators,
        "gate_receipts": receipts,
        "instance_receipts": proofs,
        "policy_rev": inputs.policy_rev,
        "bundle_hash": bundle_hash,
        "plan_ref": refs.plan_ref(run_id),
        "record_ref": refs.record_ref(run_id),
        "status_ref": refs.status_ref(run_id),
        "intended_outputs": list(inputs.outputs),
        "output_roles": {
            output: "business_traffic" if output in inputs.traffic else "non_traffic" for output in inputs.outputs
        },
    }
    if verified.absent:
        document["evidence_notes"] = [ABSENT_NOTE + output for output in verified.absent]
    data = canonical_bytes(document)
    ready = {"run_id": run_id, "facts_view_ref": refs.facts_view_ref(run_id), "bundle_hash": bundle_hash}
    return FactsView(document, data, sha256_hex(data), bundle_hash, ready, ready_message_id(run_id, bundle_hash))
