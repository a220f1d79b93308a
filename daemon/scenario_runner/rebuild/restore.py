"""From the documents of a run to its rows, or to the finding that keeps it out.

The ledger is no witness (ADR 0013): whoever can write it could put a run there that never was. So its documents must be
those that SR writes, byte for byte, and agree with each other; what a run on its way still has to show is computed
again from the pack, the roots and the policy that the operator names; and READY needs a witness outside the ledger
(:mod:`~scenario_runner.rebuild.ready`).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.authority.rebuilds import RestoredEvent, RestoredRun, RestoredSignal
from scenario_runner.authority.values import SignalDraft, StoredEvent
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, parse_rendered, rendered_again, sha256_hex
from scenario_runner.contracts.documents import RunStatus
from scenario_runner.contracts.errors import RequestRefused, SequenceError, Unavailable
from scenario_runner.contracts.ids import run_id_of
from scenario_runner.contracts.intent import intent_from_document
from scenario_runner.contracts.plan import PlanInputs, plan_document, plan_hash, plan_inputs_from_document
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import ENDINGS, FINAL_STATES, EventKind, RunState, SignalKind
from scenario_runner.contracts.supersession import supersession_of
from scenario_runner.contracts.times import to_micros
from scenario_runner.ledger.documents import status_document, terminal_signal
from scenario_runner.ledger.records import DamagedRecordError, Record, read_record
from scenario_runner.rebuild.bus import BusWitness
from scenario_runner.rebuild.course import (
    AttemptUnknownError,
    acts_of,
    attempts_of,
    deadline_us,
    decided_event,
    emissions_of,
    first_published,
    missing_paths,
    own_details,
    report_digest,
)
from scenario_runner.rebuild.documents import RunDocuments
from scenario_runner.rebuild.supersessions import Link, details_of, link_of
from scenario_runner.rebuild.values import Admitted, NotRestoredError, Published, ReadyProof, Restored

#: Plan inputs that are kept read: there are as many as sets of outputs that are asked for, and policies.
_INPUTS_KEPT: Final = 1000
_REASONS: Final = frozenset(Reason)
_GOVERNANCE: Final = frozenset(
    {EventKind.GOV_POLICY_REV, EventKind.GOV_PLAN_HASH, EventKind.GOV_BUNDLE_HASH, EventKind.GOV_REEMIT_KEY}
)
_MALFORMED: Final = (ValueError, TypeError, KeyError, AttributeError, IndexError, SequenceError, RequestRefused)
"""What code raises that reads documents of another form than SR's."""


class Restorer:
    """Restores runs. Safe for several threads.

    Args:
        locate: Where an object is, for a person.
        bus: What was published.
        prove_ready: Proves that a run is READY; raises ``NotRestoredError``.
        allow: Checks what a run that goes on was admitted with; raises ``NotRestoredError``.
        launched: Whether something shows that an attempt was prepared, by run id and number.
        latest_us: When the rebuild began, or later: no act is from after it.
    """

    def __init__(
        self,
        locate: Callable[[str], str],
        bus: BusWitness,
        prove_ready: Callable[[Admitted, RunDocuments], ReadyProof],
        allow: Callable[[Admitted], None],
        launched: Callable[[str, int], bool],
        latest_us: int,
    ) -> None:
        self._locate, self._bus, self._prove_ready = locate, bus, prove_ready
        self._allow, self._launched, self._latest_us = allow, launched, latest_us

    def restore(self, documents: RunDocuments) -> Restored:
        """The rows of a run.

        Raises:
            NotRestoredError: why it is left out.
            Unavailable: the store, the control bus or an engine run root does not answer.
        """
        admitted = self._admitted(documents)
        try:
            run = self._restored(documents, admitted)
            return Restored(run, _link(run, admitted))
        except AttemptUnknownError as error:
            code, detail = FindingCode.ATTEMPT_UNKNOWN, str(error)
        except _MALFORMED as error:
            code, detail = FindingCode.RECORD_DAMAGED, f"an event lacks what SR records: {error}"
        raise self._not(code, admitted.run_id, refs.record_ref(admitted.run_id), detail)

    def _restored(self, documents: RunDocuments, admitted: Admitted) -> RestoredRun:
        end = admitted.end
        state, run_id = RunState(end.details["state"]), admitted.run_id
        reason = str(end.details.get("reason_code", "")) if state in FINAL_STATES else ""
        projected = self._projected(documents, admitted, state, reason)
        problem = _wrong_governance(admitted) or _wrong_supersedes(admitted, state)
        if problem:
            raise self._not(FindingCode.RECORD_DAMAGED, run_id, refs.record_ref(run_id), problem)
        self._check_supersession(documents, admitted, state)
        self._check_objects_of_others(documents, state)
        digest, signals = self._signals(documents, admitted, state, reason)
        restored = _rows(admitted, state, reason, signals, digest, projected, self._latest_us)
        following = len(restored.attempts) + 1
        if state not in FINAL_STATES and self._launched(run_id, following):
            raise self._not(
                FindingCode.ATTEMPT_UNKNOWN, run_id, refs.record_ref(run_id),
                f"attempt {following} was prepared, and the record does not know it",
            )  # fmt: skip
        return restored

    def _signals(
        self, documents: RunDocuments, admitted: Admitted, state: RunState, reason: str
    ) -> tuple[str, list[RestoredSignal]]:
        """Signals of a run, and the digest of the facts view of one that is READY.

        Raises:
            NotRestoredError: what the run must show does not hold.
        """
        said = documents.on_bus
        if state is RunState.READY:
            self._check_plan(documents, admitted)
            proof = self._prove_ready(admitted, documents)
            return proof.facts_view_digest, _signals_of(admitted, proof.ready, proof.supersedes)
        if state in FINAL_STATES:
            terminal = self._bus.end(admitted, _terminal(admitted.run_id, state, reason, admitted.end.ts_us), said)
            return "", _signals_of(admitted, terminal, None)
        self._bus.require_on_its_way(admitted.run_id, state, said)
        self._check_plan(documents, admitted)
        self._allow(admitted)
        return "", []

    def _not(
        self, code: FindingCode, run_id: str, key: str, detail: str, expected: str = "", actual: str = ""
    ) -> NotRestoredError:
        return NotRestoredError(LedgerFinding(code, run_id, self._locate(key), detail, expected, actual))

    # --- what was admitted

    def _admitted(self, documents: RunDocuments) -> Admitted:
        run_id, key = documents.run_id, refs.record_ref(documents.run_id)
        data = documents.record.data
        if data is None:
            raise self._not(FindingCode.RECORD_MISSING, run_id, key, "the run has documents, and no record")
        try:
            record = read_record(data, run_id)
        except DamagedRecordError as error:
            raise self._not(FindingCode.RECORD_DAMAGED, run_id, key, str(error)) from error
        first = record.events[0].details
        if "intent" not in first:
            raise self._not(FindingCode.ADMISSION_UNKNOWN, run_id, key, "the record does not hold what was admitted")
        try:
            admitted = _read_admission(run_id, first, record)
            problem = _contradiction(admitted, first, record.policy_rev)
        except _MALFORMED as error:
            problem = f"what was admitted is malformed: {error}"
        if problem:
            raise self._not(FindingCode.ADMISSION_DRIFT, run_id, key, problem)
        return admitted

    # --- documents

    def _check_plan(self, documents: RunDocuments, admitted: Admitted) -> None:
        run_id, key = admitted.run_id, refs.plan_ref(admitted.run_id)
        wanted = rendered_again(plan_document(admitted.intent, admitted.inputs, admitted.admitted_us))
        if documents.plan.holds(wanted):
            return
        found = documents.plan.data
        if found is None:
            raise self._not(FindingCode.PLAN_MISSING, run_id, key, "there is no run_plan", sha256_hex(wanted))
        detail = "it is not the plan that the record tells of"
        raise self._not(FindingCode.PLAN_DRIFT, run_id, key, detail, sha256_hex(wanted), sha256_hex(found))

    def _projected(self, documents: RunDocuments, admitted: Admitted, state: RunState, reason: str) -> int:
        """Up to which event the documents are written: the status may be older than the record, but never of READY."""
        run_id, key = admitted.run_id, refs.status_ref(admitted.run_id)
        wanted = rendered_again(status_document(run_id, state, reason, admitted.end.ts_us))
        if documents.status.holds(wanted):
            # A quarantine object that is not there is written by the relay.
            complete = state is not RunState.QUARANTINED or documents.quarantine.exists
            return len(admitted.events) if complete else 0
        found = documents.status.data
        if found is None:
            if state is RunState.READY:
                raise self._not(FindingCode.STATUS_MISSING, run_id, key, "there is no run_status", sha256_hex(wanted))
            return 0
        if state is RunState.READY or not _is_older(found, run_id, admitted.end.ts_us):
            raise self._not(
                FindingCode.STATUS_DRIFT, run_id, key, f"it is not the status of a run that is {state}",
                sha256_hex(wanted), sha256_hex(found),
            )  # fmt: skip
        return 0

    def _check_objects_of_others(self, documents: RunDocuments, state: RunState) -> None:
        """Objects that only a run of another end has: they are written after its record, which then is an older one."""
        run_id = documents.run_id
        for document, end, code, key in (
            (documents.ready_signal, RunState.READY, FindingCode.READY_SIGNAL_DRIFT, refs.ready_signal_ref(run_id)),
            (documents.quarantine, RunState.QUARANTINED, FindingCode.QUARANTINE_DRIFT, refs.quarantine_ref(run_id)),
        ):
            if state is not end and document.exists:
                detail = f"only a run that is {end} has it, and the record says {state}: it is older, or was changed"
                raise self._not(code, run_id, key, detail, "no object", "an object")

    def _check_supersession(self, documents: RunDocuments, admitted: Admitted, state: RunState) -> None:
        """The own end of a supersession: only the READY of a correction has one, in the record and as an object."""
        run_id, key = admitted.run_id, refs.supersession_ref(admitted.run_id)
        if admitted.supersedes is None:
            if documents.supersession.exists:
                detail = f"the run is {state} and supersedes none; only a READY correction has such an object"
                raise self._not(FindingCode.SUPERSESSION_DRIFT, run_id, key, detail, "no object", "an object")
            return
        wanted = rendered_again(admitted.supersedes["supersedes"])
        if documents.supersession.holds(wanted):
            return
        found = documents.supersession.data
        if found is None:
            detail = "there is no supersession object"
            raise self._not(FindingCode.SUPERSESSION_MISSING, run_id, key, detail, sha256_hex(wanted))
        detail = "it is not the supersession that the record tells of"
        raise self._not(FindingCode.SUPERSESSION_DRIFT, run_id, key, detail, sha256_hex(wanted), sha256_hex(found))


def _rows(
    admitted: Admitted, state: RunState, reason: str, signals: Sequence[RestoredSignal], facts_view_digest: str,
    projected: int, latest_us: int,
) -> RestoredRun:  # fmt: skip
    events = admitted.events
    first = events[0].details
    return RestoredRun(
        run_id=admitted.run_id, run_equivalence_key=first["run_equivalence_key"], fingerprint=first["fingerprint"],
        intent=admitted.intent.rendered, inputs=rendered_again(first["inputs"]), invoker=admitted.invoker,
        strategy=str(first["inputs"].get("strategy", "")), state=state, reason_code=reason,
        admitted_us=admitted.admitted_us,
        deadline_us=deadline_us(events, admitted.inputs.evidence_wait_seconds), updated_us=admitted.end.ts_us,
        report_digest=report_digest(events), facts_view_digest=facts_view_digest, projected_seq=projected,
        missing=missing_paths(events), events=tuple(map(_event, events, admitted.details)),
        attempts=attempts_of(admitted.run_id, events),
        signals=tuple(signals), actions=acts_of(admitted.run_id, events, latest_us), supersession=admitted.supersession,
    )  # fmt: skip


def _event(event: StoredEvent, details: bytes) -> RestoredEvent:
    return RestoredEvent(event.seq, event.kind, event.ts_us, details)


def _read_admission(run_id: str, details: Json, record: Record) -> Admitted:
    intent = intent_from_document(run_id, str(details["run_equivalence_key"]), details["intent"])
    inputs = _read_inputs(rendered_again(details["inputs"]))
    end = decided_event(record.events)
    return Admitted(
        intent, inputs, str(details["invoker"]), record.events, record.details, end, supersession_of(details)
    )


@lru_cache(_INPUTS_KEPT)
def _read_inputs(data: bytes) -> PlanInputs:
    """Plan inputs, read once for the runs that share them.

    Raises:
        ValueError: there is more in them, or less.
    """
    document = parse_rendered(data)
    try:
        inputs = plan_inputs_from_document(document)
    except Unavailable as error:  # a finding of this run: the others are restored all the same
        raise ValueError(error.detail) from error
    if inputs.document() != document:
        raise ValueError("inputs hold more or less than plan inputs")
    return inputs


def _contradiction(admitted: Admitted, details: Json, policy_rev: Json) -> str:
    """What of an admission contradicts the rest of its record; empty when nothing does."""
    intent, inputs, planned = admitted.intent, admitted.inputs, admitted.events[1].details
    key = intent.run_equivalence_key
    checks = {
        "run_equivalence_key gives another run id": run_id_of(key) == admitted.run_id,
        "intent holds more or less than an intent": intent.rendered == rendered_again(details["intent"]),
        "fingerprint is not that of the intent": details["fingerprint"] == intent.fingerprint(),
        "policy_rev is not that of the lines": inputs.policy_rev == policy_rev,
        "plan_hash is not that of intent and inputs": planned["plan_hash"] == plan_hash(intent, inputs),
        "plan_ref is not the run's": planned["plan_ref"] == refs.plan_ref(admitted.run_id),
        "interface_pack_digest is not that of the inputs": planned["interface_pack_digest"] == inputs.pack_digest,
        "the run supersedes itself": admitted.supersession is None
        or admitted.supersession.old_run_id != admitted.run_id,
    }
    end = admitted.end
    if end.kind in ENDINGS and end.details["state"] != RunState.READY:
        checks["reason_code is not of the closed list"] = end.details["reason_code"] in _REASONS
    return next((problem for problem, holds in checks.items() if not holds), "")


def _wrong_governance(admitted: Admitted) -> str:
    """Which governance event says something else than the event whose fact it repeats; empty when none does."""
    planned, end = admitted.events[1].details, admitted.end.details
    for event in admitted.events:
        if event.kind not in _GOVERNANCE:
            continue
        if event.kind == EventKind.GOV_POLICY_REV:
            wanted = admitted.inputs.policy_rev
        elif event.kind == EventKind.GOV_PLAN_HASH:
            wanted = {"plan_hash": planned["plan_hash"]}
        elif event.kind == EventKind.GOV_BUNDLE_HASH:
            wanted = {"bundle_hash": end["ready"]["bundle_hash"]}
        else:
            wanted = _reemit_key(admitted)
        if own_details(event) != wanted:
            return f"{event.kind} of event {event.seq} is not that of the run"
    return ""


def _reemit_key(admitted: Admitted) -> Json:
    end = admitted.end
    if end.kind == EventKind.RUN_READY:
        return {"kind": SignalKind.READY.value, "reemit_key": end.details["message_id"]}
    state, reason = RunState(end.details["state"]), end.details["reason_code"]
    message_id, _ = terminal_signal(admitted.run_id, state, reason, end.ts_us)
    return {"kind": SignalKind.TERMINAL.value, "reemit_key": message_id}


def _is_older(status: bytes, run_id: str, updated_us: int) -> bool:
    """Whether bytes are the status of the run at an earlier time, when it had not ended."""
    try:
        found = RunStatus.model_validate_json(status)
        earlier = to_micros(found.updated_at_utc) <= updated_us
    except _MALFORMED:
        return False
    return found.run_id == run_id and found.state not in FINAL_STATES and earlier


def _link(run: RestoredRun, admitted: Admitted) -> Link | None:
    by = tuple(own_details(event) for event in admitted.events if event.kind == EventKind.SUPERSEDED_BY)
    return link_of(run, admitted.supersedes, by) if by or admitted.supersession is not None else None


def _wrong_supersedes(admitted: Admitted, state: RunState) -> str:
    """What is wrong with SUPERSEDES of a record: it comes with the READY of a correction, and nowhere else.

    How the run ended that is superseded is compared when that run is known (rebuild/supersessions.py).
    """
    found = [event for event in admitted.events if event.kind == EventKind.SUPERSEDES]
    supersession, end = admitted.supersession, admitted.end
    if supersession is None or state is not RunState.READY:
        return "it has SUPERSEDES, and is no READY correction" if found else ""
    if [(event.seq, event.ts_us) for event in found] != [(end.seq + 1, end.ts_us)]:
        return "a correction that is READY has one SUPERSEDES, in the transaction of its READY"
    states = (RunState.READY, RunState.FAILED)
    if own_details(found[0]) not in [details_of("supersedes", supersession, admitted.run_id, old) for old in states]:
        return "its SUPERSEDES is not what it was admitted with"
    return ""


def _terminal(run_id: str, state: RunState, reason: str, at_us: int) -> SignalDraft:
    message_id, payload = terminal_signal(run_id, state, reason, at_us)
    attributes = {"run_id": run_id, "state": state.value}
    return SignalDraft(message_id, SignalKind.TERMINAL, run_id, attributes, rendered_again(payload))


def _signals_of(admitted: Admitted, first: Published, supersedes: Published | None) -> list[RestoredSignal]:
    """A run's signal, RUN_SUPERSEDES, and those that repeat the first one."""
    end, events = admitted.end, admitted.events
    # Signals need the whole transaction of the end: SUPERSEDES follows the event that ends a correction.
    needs_seq = end.seq + (supersedes is not None)
    own = [RestoredSignal(item.draft, end.ts_us, needs_seq, item.at_us) for item in (first, supersedes) if item]
    own[0] = first_published(own[0], events)
    return [*own, *emissions_of(first.draft, needs_seq, events)]
