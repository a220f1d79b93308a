"""From the documents of a run to its rows, or to the finding that keeps it out.

The ledger is no witness (ADR 0013): whoever can write it could put a run there that never was. So its documents must be
those that SR writes, byte for byte, and agree with each other; what a run on its way still has to show is computed
again from the pack, the roots and the policy that the operator names; and READY needs a witness outside the ledger
(:mod:`~scenario_runner.rebuild.ready`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import orjson

from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.authority.rebuilds import RestoredRun, RestoredSignal
from scenario_runner.authority.values import SignalDraft, StoredEvent
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, rendered_again, sha256_hex
from scenario_runner.contracts.documents import RunStatus
from scenario_runner.contracts.errors import SequenceError
from scenario_runner.contracts.ids import run_id_of
from scenario_runner.contracts.intent import Intent, intent_from_document
from scenario_runner.contracts.plan import PlanInputs, plan_document, plan_hash, plan_inputs_from_document
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import ENDINGS, FINAL_STATES, RunState, SignalKind
from scenario_runner.contracts.times import to_micros
from scenario_runner.ledger.documents import status_document, terminal_signal
from scenario_runner.ledger.records import DamagedRecordError, read_record
from scenario_runner.rebuild.course import (
    AttemptUnknownError,
    acts_of,
    attempts_of,
    deadline_us,
    decided_event,
    emissions_of,
    missing_paths,
    report_digest,
)
from scenario_runner.rebuild.documents import RunDocuments

#: Plan inputs that are kept read: there are as many as sets of outputs that are asked for, and policies.
_INPUTS_KEPT: Final = 1000
_MALFORMED: Final = (ValueError, TypeError, KeyError, AttributeError, IndexError, SequenceError)
"""What code raises that reads documents of another form than SR's."""


class NotRestoredError(Exception):
    """A run is not restored."""

    def __init__(self, finding: LedgerFinding) -> None:
        self.finding = finding
        super().__init__(finding.detail)


@dataclass(frozen=True, slots=True)
class Admitted:
    """What was admitted, from the record: proven to hang together, by nothing but itself.

    Attributes:
        events: The whole record.
    """

    intent: Intent
    inputs: PlanInputs
    invoker: str
    events: tuple[StoredEvent, ...]

    @property
    def run_id(self) -> str:
        """The run."""
        return self.intent.run_id

    @property
    def admitted_us(self) -> int:
        """When."""
        return self.events[0].ts_us

    @property
    def end(self) -> StoredEvent:
        """The event that changed the run last."""
        return decided_event(self.events)


@dataclass(frozen=True, slots=True)
class ReadyProof:
    """What was found of a READY run: its signal as it was published, and when."""

    facts_view_digest: str
    draft: SignalDraft
    published_us: int


class Restorer:
    """Restores runs. Safe for several threads.

    Args:
        locate: Where an object is, for a person.
        prove_ready: Proves that a run is READY; raises ``NotRestoredError``.
        allow: Checks what a run that goes on was admitted with; raises ``NotRestoredError``.
        launched: Whether something shows that an attempt was prepared, by run id and number.
    """

    def __init__(
        self,
        locate: Callable[[str], str],
        prove_ready: Callable[[Admitted, RunDocuments], ReadyProof],
        allow: Callable[[Admitted], None],
        launched: Callable[[str, int], bool],
    ) -> None:
        self._locate, self._prove_ready, self._allow, self._launched = locate, prove_ready, allow, launched

    def restore(self, documents: RunDocuments) -> RestoredRun:
        """The rows of a run.

        Raises:
            NotRestoredError: why it is left out.
            Unavailable: the store, the control bus or an engine run root does not answer.
        """
        admitted = self._admitted(documents)
        end = admitted.end
        state, run_id = RunState(end.details["state"]), admitted.run_id
        reason = str(end.details.get("reason_code", "")) if state in FINAL_STATES else ""
        projected = self._projected(documents, admitted, state, reason)
        proof, signals = None, list[RestoredSignal]()
        if state is RunState.READY:
            self._check_plan(documents, admitted)
            proof = self._prove_ready(admitted, documents)
            signals = _signals(proof.draft, proof.published_us, admitted)
        elif state in FINAL_STATES:
            signals = _signals(_terminal(run_id, state, reason, end.ts_us), end.ts_us, admitted)
        else:
            self._check_plan(documents, admitted)
            self._allow(admitted)
        try:
            restored = self._rows(admitted, state, reason, signals)
        except AttemptUnknownError as error:
            raise self._not(FindingCode.ATTEMPT_UNKNOWN, run_id, refs.record_ref(run_id), str(error)) from error
        except _MALFORMED as error:
            raise self._not(
                FindingCode.RECORD_DAMAGED, run_id, refs.record_ref(run_id), f"an event lacks what SR records: {error}"
            ) from error
        following = len(restored.attempts) + 1
        if state not in FINAL_STATES and self._launched(run_id, following):
            raise self._not(
                FindingCode.ATTEMPT_UNKNOWN, run_id, refs.record_ref(run_id),
                f"attempt {following} was prepared, and the record does not know it",
            )  # fmt: skip
        digest = proof.facts_view_digest if proof is not None else ""
        return replace(restored, facts_view_digest=digest, projected_seq=projected)

    def _not(
        self, code: FindingCode, run_id: str, key: str, detail: str, expected: str = "", actual: str = ""
    ) -> NotRestoredError:
        return NotRestoredError(LedgerFinding(code, run_id, self._locate(key), detail, expected, actual))

    # --- what was admitted

    def _admitted(self, documents: RunDocuments) -> Admitted:
        run_id, key = documents.run_id, refs.record_ref(documents.run_id)
        if documents.record is None:
            raise self._not(FindingCode.RECORD_MISSING, run_id, key, "the run has documents, and no record")
        try:
            events, policy_rev = read_record(documents.record, run_id)
        except DamagedRecordError as error:
            raise self._not(FindingCode.RECORD_DAMAGED, run_id, key, str(error)) from error
        first = events[0].details
        if "intent" not in first:
            raise self._not(FindingCode.ADMISSION_UNKNOWN, run_id, key, "the record does not hold what was admitted")
        try:
            admitted = _read_admission(run_id, first, events)
            problem = _contradiction(admitted, first, policy_rev)
        except _MALFORMED as error:
            problem = f"what was admitted is malformed: {error}"
        if problem:
            raise self._not(FindingCode.ADMISSION_DRIFT, run_id, key, problem)
        return admitted

    # --- documents

    def _check_plan(self, documents: RunDocuments, admitted: Admitted) -> None:
        run_id, key = admitted.run_id, refs.plan_ref(admitted.run_id)
        wanted = rendered_again(plan_document(admitted.intent, admitted.inputs, admitted.admitted_us))
        if documents.plan is None:
            raise self._not(FindingCode.PLAN_MISSING, run_id, key, "there is no run_plan", sha256_hex(wanted))
        if documents.plan != wanted:
            raise self._not(
                FindingCode.PLAN_DRIFT, run_id, key, "it is not the plan that the record tells of", sha256_hex(wanted),
                sha256_hex(documents.plan),
            )  # fmt: skip

    def _projected(self, documents: RunDocuments, admitted: Admitted, state: RunState, reason: str) -> int:
        """Up to which event the documents are written: the status may be older than the record, but never of READY."""
        run_id, key = admitted.run_id, refs.status_ref(admitted.run_id)
        wanted = rendered_again(status_document(run_id, state, reason, admitted.end.ts_us))
        if documents.status == wanted:
            return len(admitted.events)
        if documents.status is None:
            if state is RunState.READY:
                raise self._not(FindingCode.STATUS_MISSING, run_id, key, "there is no run_status", sha256_hex(wanted))
            return 0
        if state is RunState.READY or not _is_older(documents.status, run_id, admitted.end.ts_us):
            raise self._not(
                FindingCode.STATUS_DRIFT, run_id, key, f"it is not the status of a run that is {state}",
                sha256_hex(wanted), sha256_hex(documents.status),
            )  # fmt: skip
        return 0

    # --- rows

    def _rows(self, admitted: Admitted, state: RunState, reason: str, signals: Sequence[RestoredSignal]) -> RestoredRun:
        events = admitted.events
        first = events[0].details
        return RestoredRun(
            run_id=admitted.run_id, run_equivalence_key=first["run_equivalence_key"], fingerprint=first["fingerprint"],
            intent=first["intent"], inputs=first["inputs"], invoker=admitted.invoker, state=state, reason_code=reason,
            admitted_us=admitted.admitted_us,
            deadline_us=deadline_us(events, admitted.inputs.evidence_wait_seconds), updated_us=admitted.end.ts_us,
            report_digest=report_digest(events), facts_view_digest="", projected_seq=0,
            missing=missing_paths(events), events=events, attempts=attempts_of(admitted.run_id, events),
            signals=tuple(signals), actions=acts_of(admitted.run_id, events),
        )  # fmt: skip


def _read_admission(run_id: str, details: Json, events: tuple[StoredEvent, ...]) -> Admitted:
    intent = intent_from_document(run_id, str(details["run_equivalence_key"]), details["intent"])
    return Admitted(intent, _read_inputs(rendered_again(details["inputs"])), str(details["invoker"]), events)


@lru_cache(_INPUTS_KEPT)
def _read_inputs(data: bytes) -> PlanInputs:
    """Plan inputs, read once for the runs that share them.

    Raises:
        ValueError: there is more in them, or less.
    """
    document = orjson.loads(data)
    inputs = plan_inputs_from_document(document)
    if inputs.document() != document:
        raise ValueError("inputs hold more or less than plan inputs")
    return inputs


def _contradiction(admitted: Admitted, details: Json, policy_rev: Json) -> str:
    """What of an admission contradicts the rest of its record; empty when nothing does."""
    intent, inputs, planned = admitted.intent, admitted.inputs, admitted.events[1].details
    key = intent.run_equivalence_key
    checks = {
        "run_equivalence_key gives another run id": run_id_of(key) == admitted.run_id,
        "intent holds more or less than an intent": intent.document() == details["intent"],
        "fingerprint is not that of the intent": details["fingerprint"] == intent.fingerprint(),
        "policy_rev is not that of the lines": inputs.policy_rev == policy_rev,
        "plan_hash is not that of intent and inputs": planned["plan_hash"] == plan_hash(intent, inputs),
        "plan_ref is not the run's": planned["plan_ref"] == refs.plan_ref(admitted.run_id),
        "interface_pack_digest is not that of the inputs": planned["interface_pack_digest"] == inputs.pack_digest,
    }
    end = admitted.end
    if end.kind in ENDINGS and end.details["state"] != RunState.READY:
        checks["reason_code is not of the closed list"] = end.details["reason_code"] in set(Reason)
    return next((problem for problem, holds in checks.items() if not holds), "")


def _is_older(status: bytes, run_id: str, updated_us: int) -> bool:
    """Whether bytes are the status of the run at an earlier time, when it had not ended."""
    try:
        found = RunStatus.model_validate_json(status)
        earlier = to_micros(found.updated_at_utc) <= updated_us
    except _MALFORMED:
        return False
    return found.run_id == run_id and found.state not in FINAL_STATES and earlier


def _terminal(run_id: str, state: RunState, reason: str, at_us: int) -> SignalDraft:
    message_id, payload = terminal_signal(run_id, state, reason, at_us)
    return SignalDraft(message_id, SignalKind.TERMINAL, run_id, {}, rendered_again(payload))


def _signals(first: SignalDraft, published_us: int, admitted: Admitted) -> list[RestoredSignal]:
    """A run's signal, and those that repeat it."""
    end = admitted.end
    signal = RestoredSignal(first, end.ts_us, end.seq, published_us)
    return [signal, *emissions_of(first, end.seq, admitted.events)]
