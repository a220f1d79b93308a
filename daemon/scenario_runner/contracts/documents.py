"""The v0 wire documents (contracts.md section 2 and 3) as frozen, strict models.

``Model.model_validate(parsed_json)`` is the only way in, ``model.wire()`` the only way out. New information goes
beside a v0 document, never into it.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.times import zones
from scenario_runner.contracts.types import (
    Hex32,
    Hex64,
    Instant,
    Key,
    Name,
    Notes,
    Positive,
    ReasonText,
    Ref,
    RefOrEmpty,
    ScenarioId,
    ShortText,
    TextOrEmpty,
    UInt64,
    WireModel,
    ZoneName,
)
from scenario_runner.contracts.validation import explain_validation

StateName = Literal["OPEN", "PLANNED", "EXECUTING", "VERIFYING", "WAITING_EVIDENCE", "READY", "FAILED", "QUARANTINED"]
StrategyName = Literal["AUTO", "FORCE_INVOKE", "FORCE_REUSE"]
GateStatus = Literal["PASS", "FAIL"]
OpenObject = dict[str, Any]
Model = TypeVar("Model", bound=WireModel)


class Digest(WireModel):
    """A sha256."""

    algo: Literal["sha256"]
    hex: Hex64


class ScenarioBinding(WireModel):
    """Exactly one of a scenario id and a non-empty set of scenario ids."""

    scenario_id: ScenarioId | None = None
    scenario_set: Annotated[list[ScenarioId], Field(min_length=1, max_length=1024)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "ScenarioBinding":
        if (self.scenario_id is None) == (self.scenario_set is None):
            raise ValueError("exactly one of scenario_id and scenario_set is needed")
        return self


class Window(WireModel):
    """The event-time window; start before end, compared in microseconds."""

    window_start_utc: Instant
    window_end_utc: Instant
    window_tz: ZoneName

    @model_validator(mode="after")
    def _start_before_end(self) -> "Window":
        if self.window_start_utc >= self.window_end_utc:
            raise ValueError("window_start_utc must be before window_end_utc")
        return self


class RunRequest(WireModel):
    """run_request: what somebody asks for."""

    request_id: ShortText | None = None
    run_equivalence_key: Key
    manifest_fingerprint: Hex64
    parameter_hash: Hex64
    seed: UInt64
    scenario: ScenarioBinding
    window: Window
    requested_strategy: StrategyName | None = None
    output_ids: Annotated[list[Name], Field(min_length=1, max_length=4096)] | None = None
    engine_run_root: Ref | None = None
    notes: Notes | None = None
    invoker: ShortText | None = None


class PolicyRev(WireModel):
    """Which policy a plan was made under."""

    policy_id: ShortText
    revision: ShortText | UInt64
    content_digest: Hex64


class RunPlan(WireModel):
    """run_plan: what SR will do for one run."""

    run_id: Hex32
    plan_hash: Hex64
    policy_rev: PolicyRev
    strategy: StrategyName
    intended_outputs: list[Name]
    required_gates: list[Name]
    evidence_deadline_utc: Instant
    attempt_limit: Positive
    created_at_utc: Instant


class RunRecordLine(WireModel):
    """One line of run_record."""

    event_id: Hex64
    event_kind: ReasonText
    run_id: Hex32
    ts_utc: Instant
    details: OpenObject
    policy_rev: PolicyRev | None = None


class RunStatus(WireModel):
    """run_status: where a run stands."""

    run_id: Hex32
    state: StateName
    updated_at_utc: Instant
    reason_code: ReasonText | None = None
    record_ref: Ref
    facts_view_ref: Ref | None = None


class Partitions(WireModel):
    """Identity partitions that apply to an artifact; at least one."""

    manifest_fingerprint: Hex64 | None = None
    parameter_hash: Hex64 | None = None
    seed: UInt64 | None = None
    scenario_id: ScenarioId | None = None
    run_id: Hex32 | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> "Partitions":
        values = (self.manifest_fingerprint, self.parameter_hash, self.seed, self.scenario_id, self.run_id)
        if all(value is None for value in values):
            raise ValueError("at least one identity partition is needed")
        return self


class Locator(Partitions):
    """engine_output_locator: where an output is, and what its bytes are."""

    output_id: Name
    path: Ref
    content_digest: Digest | None = None
    schema_ref: Ref | None = None
    dictionary_ref: Ref | None = None
    produced_at_utc: Instant | None = None
    notes: Notes | None = None


class GateScope(WireModel):
    """Identity scope of a gate."""

    manifest_fingerprint: Hex64
    parameter_hash: Hex64 | None = None
    seed: UInt64 | None = None
    scenario_id: ScenarioId | None = None
    run_id: Hex32 | None = None


class GateArtifacts(WireModel):
    """Where a gate's evidence lies."""

    validation_bundle_root: Ref | None = None
    index_path: Ref | None = None
    passed_flag_path: Ref | None = None


class GateReceipt(WireModel):
    """gate_receipt: the outcome of one gate."""

    gate_id: Name
    status: GateStatus
    scope: GateScope
    receipt_kind: Literal["passed_flag", "json_receipt", "bundle_flag"] | None = None
    digest: Digest | None = None
    artifacts: GateArtifacts | None = None
    produced_at_utc: Instant | None = None
    notes: Notes | None = None


class ReceiptArtifacts(WireModel):
    """Where an instance receipt lies in the object store."""

    receipt_path: Ref


class InstanceReceipt(WireModel):
    """instance_proof_receipt: SR's own receipt for one instance-scoped output."""

    output_id: Name
    status: GateStatus
    scope: Partitions
    target_ref: Locator
    target_digest: Digest
    bundle_manifest_ref: Ref | None = None
    receipt_kind: Literal["instance_proof"] | None = None
    artifacts: ReceiptArtifacts | None = None
    produced_at_utc: Instant | None = None
    notes: Notes | None = None


class Pins(WireModel):
    """The identity that a facts view is about."""

    manifest_fingerprint: Hex64
    parameter_hash: Hex64
    seed: UInt64
    scenario_id: ScenarioId
    run_id: Hex32


class RunFactsView(WireModel):
    """run_facts_view: the join surface that everything downstream starts from."""

    run_id: Hex32
    pins: Pins
    locators: list[Locator]
    gate_receipts: list[GateReceipt]
    policy_rev: PolicyRev
    bundle_hash: Hex64
    plan_ref: Ref
    record_ref: Ref
    status_ref: Ref
    output_roles: dict[Name, Literal["business_traffic", "non_traffic"]] | None = None
    intended_outputs: list[Name] | None = None
    instance_receipts: list[InstanceReceipt] | None = None
    evidence_notes: list[Notes] | None = None


class ReadySignal(WireModel):
    """run_ready_signal: the payload of READY."""

    run_id: Hex32
    facts_view_ref: Ref
    bundle_hash: Hex64
    emitted_at_utc: Instant | None = None


class TerminalSignal(WireModel):
    """run_terminal_signal: the payload of TERMINAL."""

    run_id: Hex32
    status_state: Literal["FAILED", "QUARANTINED"]
    status_ref: Ref
    record_ref: Ref
    reason_code: ReasonText | None = None
    reemit_key: Hex64
    emitted_at_utc: Instant | None = None


class ReemitRequest(WireModel):
    """reemit_request: ask for a signal to be published again."""

    run_id: Hex32
    reemit_kind: Literal["READY_ONLY", "TERMINAL_ONLY", "BOTH"]
    reason: Notes | None = None
    requested_by: ShortText | None = None
    dry_run: bool | None = None
    requested_at_utc: Instant | None = None


class EvidenceArrived(WireModel):
    """evidence_arrived: somebody says that evidence has come; it proves nothing, and has runs examined sooner."""

    engine_run_root: Ref
    run_id: Hex32 | None = None


class EngineInvocation(WireModel):
    """engine_invocation: what the engine is asked to produce."""

    manifest_fingerprint: Hex64
    parameter_hash: Hex64
    seed: UInt64
    run_id: Hex32
    scenario_binding: ScenarioBinding
    request_id: ShortText | None = None
    invoker: ShortText | None = None
    notes: Notes | None = None
    engine_run_root: Ref | None = None


class AttemptLogs(WireModel):
    """Where an attempt's output was kept."""

    stdout_ref: Ref
    stderr_ref: Ref


class EngineAttempt(WireModel):
    """engine_attempt: one try at running the engine."""

    run_id: Hex32
    attempt_id: Hex32
    attempt_no: Positive
    outcome: Literal["SUCCEEDED", "FAILED"]
    started_at_utc: Instant
    ended_at_utc: Instant
    invocation: OpenObject
    invoker: ShortText | None = None
    reason_code: ReasonText | None = None
    engine_run_root: Ref | None = None
    run_receipt_ref: Ref | None = None
    duration_ms: UInt64 | None = None
    logs_ref: AttemptLogs | None = None


class RunReceipt(WireModel):
    """run_receipt.json, written by the engine at its run root; anything else is allowed beside these."""

    model_config = ConfigDict(extra="allow")

    run_id: Hex32
    manifest_fingerprint: Hex64
    parameter_hash: Hex64
    seed: UInt64


class BundleManifestEntry(WireModel):
    """One file of a multi-file output; the manifest is the JSON array of these, sorted by path bytes."""

    path: Ref
    bytes: UInt64
    sha256: Hex64


class QuarantineRecord(WireModel):
    """quarantine: why a person must look at a run."""

    run_id: Hex32
    reason_code: ReasonText
    detail: Notes
    quarantined_at_utc: Instant
    record_ref: Ref
    status_ref: Ref
    report: OpenObject


class RequestRejected(WireModel):
    """Payload of REQUEST_REJECTED: which request was refused, and why."""

    run_id: Hex32
    disposition: Literal["REJECTED", "CONFLICT"]
    reason_code: ReasonText
    detail: Notes
    record_key: Ref
    request_message_id: ShortText | None = None


class SupersessionAttributes(WireModel):
    """Attributes of a RUN_REQUEST that corrects a run which has ended."""

    supersedes_run_id: Hex32
    supersession_purpose: ShortText
    supersession_reason_code: ShortText | None = None


class RunSupersedes(WireModel):
    """run_supersedes_signal: payload of RUN_SUPERSEDES, and the supersession object; every field is always there."""

    old_run_id: Hex32
    new_run_id: Hex32
    purpose: ShortText
    reason_code: TextOrEmpty
    old_facts_view_ref: RefOrEmpty
    new_facts_view_ref: Ref


class Envelope(WireModel):
    """The control-bus envelope around every payload."""

    topic: ShortText
    message_id: ShortText
    published_at_utc: Instant
    attributes: OpenObject
    partition_key: ShortText
    payload: OpenObject


DOCUMENTS: dict[str, type[WireModel]] = {
    "run_request": RunRequest,
    "run_plan": RunPlan,
    "run_record": RunRecordLine,
    "run_status": RunStatus,
    "run_facts_view": RunFactsView,
    "run_ready_signal": ReadySignal,
    "run_terminal_signal": TerminalSignal,
    "reemit_request": ReemitRequest,
    "evidence_arrived": EvidenceArrived,
    "engine_attempt": EngineAttempt,
    "control_bus_envelope": Envelope,
    "quarantine_record": QuarantineRecord,
    "request_rejected": RequestRejected,
    "run_supersedes_signal": RunSupersedes,
}
"""Schema name (file ``NAME.schema.yaml`` under ``schema_root``) to model: SR's own documents."""

BOUNDARY_DOCUMENTS: dict[str, type[WireModel]] = {
    "engine_output_locator": Locator,
    "gate_receipt": GateReceipt,
    "instance_proof_receipt": InstanceReceipt,
    "engine_invocation": EngineInvocation,
    "run_receipt": RunReceipt,
    "bundle_manifest_entry": BundleManifestEntry,
}
"""Schema name (file ``NAME.schema.yaml`` under ``engine_contracts_root``) to model: the engine boundary."""

OWN_DOCUMENTS: frozenset[str] = frozenset(
    {
        "control_bus_envelope",
        "quarantine_record",
        "request_rejected",
        "run_supersedes_signal",
        "bundle_manifest_entry",
        "evidence_arrived",
    }
)
"""Documents that only SR writes and reads: packs of others do not bring their schemas."""


def parse_reemit_request(document: Json) -> ReemitRequest:
    """Validate a request to publish a signal again; errors as those of :func:`_validated`."""
    return _validated(ReemitRequest, document, "reemit request")


def parse_evidence_arrived(document: Json) -> EvidenceArrived:
    """Validate the word that evidence has come; errors as those of :func:`_validated`."""
    return _validated(EvidenceArrived, document, "evidence arrived")


def parse_run_request(document: Json) -> RunRequest:
    """Validate a run request; its zone must be one of the tz database, which no schema can say.

    Raises:
        RequestRefused: ``REQUEST_SCHEMA_INVALID`` naming the fields.
    """
    request = _validated(RunRequest, document, "run request")
    if request.window.window_tz not in zones():
        raise RequestRefused(
            "run request: window.window_tz: is not a zone of the tz database, e.g. UTC or Europe/London",
            Reason.REQUEST_SCHEMA_INVALID,
        )
    return request


def _validated(model: type[Model], document: Json, what: str) -> Model:
    """A document as its model.

    Raises:
        RequestRefused: ``REQUEST_SCHEMA_INVALID`` naming the fields.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise RequestRefused(f"{what}: {explain_validation(error)}", Reason.REQUEST_SCHEMA_INVALID) from error
