"""A run that the ledger knows and the rows do not: after the loss of an authority its truth is read back from there.

Nothing is decided here. What was published stays as it is, to the byte; what is not whole or does not fit the request
is no ground to restore anything.
"""

from typing import Any, Final

import structlog
from pydantic import ValidationError

from scenario_runner.authority.base import Claim, Restored, SignalDraft, StoredEvent
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes, canonical_sha256, parse_json, sha256_hex
from scenario_runner.contracts.documents import RunPlan, RunRecordLine
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.ids import event_id_of
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs, plan_hash
from scenario_runner.contracts.states import TERMINAL, EventKind, RunState, SignalKind, Strategy
from scenario_runner.contracts.times import MICROS, to_micros
from scenario_runner.ledger.documents import terminal_signal
from scenario_runner.ledger.ledger import MAX_DOCUMENT
from scenario_runner.storage.base import ObjectStore, ObjectTooLargeError

_log = structlog.get_logger("runs")
_FIRST: Final = (EventKind.RUN_ADMITTED, EventKind.PLAN_COMMITTED)


def published_run(store: ObjectStore, claim: Claim, intent: Intent, inputs: PlanInputs) -> Restored | None:
    """The run as the ledger tells it.

    Args:
        store: The object store.
        claim: The run, freshly admitted and under lease.
        intent: What the request wants.
        inputs: What admission pinned just now.

    Returns:
        None when the ledger holds no whole plan and record of the same intent. A plan without any record is one of
        which nothing was published yet: the run goes on from its admission.

    Raises:
        Unavailable: the ledger says READY and its facts view is not the one that READY named.
    """
    try:
        return _published(store, claim, intent, inputs)
    except (ValidationError, ValueError, KeyError, TypeError, StopIteration, ObjectTooLargeError) as error:
        _log.warning("the ledger does not tell this run whole", run_id=claim.run_id, why=f"{error!r}"[:300])
        return None


def _published(store: ObjectStore, claim: Claim, intent: Intent, inputs: PlanInputs) -> Restored | None:
    plan = RunPlan.model_validate(parse_json(_read(store, refs.plan_ref(claim.run_id))))
    record = store.read(refs.record_ref(claim.run_id), MAX_DOCUMENT)
    events = _events(claim.run_id, record.data) if record is not None else _first(intent, inputs, plan)
    if events[0].details["fingerprint"] != intent.fingerprint():
        return None
    pinned = _pinned(store, intent, plan, inputs, events)
    if pinned is None:
        return None
    last = events[-1]
    state = RunState(last.details["state"])
    found = _terminal(store, claim.run_id, state, last, events)
    return Restored(
        claim=claim,
        inputs=pinned.document(),
        state=state,
        reason_code=str(last.details.get("reason_code", "")),
        admitted_us=to_micros(plan.created_at_utc),
        deadline_us=to_micros(plan.evidence_deadline_utc),
        updated_us=last.ts_us,
        events=events,
        report_digest=_report_digest(last),
        facts_view_digest=found[1],
        signal=found[0],
    )


def _first(intent: Intent, inputs: PlanInputs, plan: RunPlan) -> tuple[StoredEvent, ...]:
    """The events of an admission at the moment that the plan tells."""
    at_us = to_micros(plan.created_at_utc)
    planned = {
        "plan_hash": plan.plan_hash,
        "plan_ref": refs.plan_ref(intent.run_id),
        "interface_pack_digest": inputs.pack_digest,
    }
    admitted = {"fingerprint": intent.fingerprint(), "seq": 1, "state": RunState.OPEN.value}
    return (
        StoredEvent(1, EventKind.RUN_ADMITTED.value, at_us, admitted),
        StoredEvent(2, EventKind.PLAN_COMMITTED.value, at_us, {**planned, "seq": 2, "state": RunState.PLANNED.value}),
    )


def _read(store: ObjectStore, ref: str) -> bytes:
    try:
        stored = store.read(ref, MAX_DOCUMENT)
    except ObjectTooLargeError as error:
        raise ValueError(error.detail) from error
    if stored is None:
        raise ValueError(f"{ref} is absent")
    return stored.data


def _events(run_id: str, record: bytes) -> tuple[StoredEvent, ...]:
    """The lines of a record, each checked against its place.

    Raises:
        ValueError: a line is malformed, of another run, or out of sequence.
    """
    events = []
    for seq, raw in enumerate(record.splitlines(), 1):
        line = RunRecordLine.model_validate(parse_json(raw))
        if line.run_id != run_id or line.event_id != event_id_of(run_id, seq) or line.details["seq"] != seq:
            raise ValueError(f"line {seq} of the record is not event {seq} of the run")
        EventKind(line.event_kind)
        RunState(line.details["state"])
        events.append(StoredEvent(seq, line.event_kind, to_micros(line.ts_utc), line.details))
    if tuple(event.kind for event in events[:2]) != _FIRST:
        raise ValueError("the record does not begin with an admission and a plan")
    return tuple(events)


def _pinned(
    store: ObjectStore, intent: Intent, plan: RunPlan, ours: PlanInputs, events: tuple[StoredEvent, ...]
) -> PlanInputs | None:
    """What the plan was made of; None when its hash does not come out."""
    wait_us = to_micros(plan.evidence_deadline_utc) - to_micros(plan.created_at_utc)
    for traffic in (ours.traffic, _traffic(store, intent.run_id)):
        inputs = PlanInputs(
            pack_digest=str(events[1].details["interface_pack_digest"]),
            policy_rev=plan.policy_rev.wire(),
            strategy=Strategy(plan.strategy),
            outputs=tuple(plan.intended_outputs),
            gates=tuple(plan.required_gates),
            traffic=traffic,
            evidence_wait_seconds=wait_us // MICROS,
            attempt_limit=plan.attempt_limit,
        )
        if plan_hash(intent, inputs) == plan.plan_hash:
            return inputs
    return None


def _traffic(store: ObjectStore, run_id: str) -> tuple[str, ...]:
    """Outputs that the facts view calls business traffic; empty when there is none."""
    try:
        view: Any = parse_json(_read(store, refs.facts_view_ref(run_id)))
        roles: Json = view["output_roles"]
        return tuple(sorted(output for output, role in roles.items() if role == "business_traffic"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()


def _report_digest(last: StoredEvent) -> str:
    """What tells the run's next findings from those on record."""
    if last.kind == EventKind.EVIDENCE_MISSING:
        return canonical_sha256(last.details["report"])
    if last.kind == EventKind.GATES_PASSED:
        return canonical_sha256({key: last.details[key] for key in ("gates", "receipts")})
    return ""


def _terminal(
    store: ObjectStore, run_id: str, state: RunState, last: StoredEvent, events: tuple[StoredEvent, ...]
) -> tuple[SignalDraft | None, str]:
    """The signal of a finished run, byte for byte, and the digest of its facts view."""
    if state not in TERMINAL:
        return None, ""
    if state is not RunState.READY:
        message_id, payload = terminal_signal(run_id, state, str(last.details["reason_code"]), last.ts_us)
        return SignalDraft(message_id, SignalKind.TERMINAL, run_id, {}, canonical_bytes(payload)), ""
    committed = next(event for event in reversed(events) if event.kind == EventKind.FACTS_VIEW_COMMITTED)
    digest = str(committed.details["digest"])
    stored = store.read(refs.facts_view_ref(run_id), MAX_DOCUMENT)
    if stored is None or sha256_hex(stored.data) != digest:
        raise Unavailable(f"{store.locate(refs.facts_view_ref(run_id))} is not the facts view of READY; restore it")
    attributes = {"facts_view_digest": digest}
    ready = canonical_bytes(last.details["ready"])
    return SignalDraft(str(last.details["message_id"]), SignalKind.READY, run_id, attributes, ready), digest
