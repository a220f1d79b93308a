"""Batches as parameters of one statement: a list per column, in the order of the batch."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from psycopg.types.numeric import Int8

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.refusals import request_rejected
from scenario_runner.authority.rows import (
    action_columns,
    first_events,
    searchable,
    shortened,
    storable,
    storable_attempt,
    token_of,
)
from scenario_runner.authority.values import (
    Admission,
    AttemptRow,
    Event,
    OutboxRow,
    ProjectionFailure,
    SignalDraft,
    Superseding,
    Transition,
)
from scenario_runner.contracts.canonical import Json, canonical_bytes
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import Disposition
from scenario_runner.contracts.supersession import Supersession, not_ended, not_found

Parameters = dict[str, Any]


def columns(names: str, rows: Iterable[tuple[Any, ...]]) -> Parameters:
    """Columns of rows by name; empty ones where there is no row."""
    found = list(zip(*rows, strict=True)) or [()] * len(names.split())
    return {name: list(column) for name, column in zip(names.split(), found, strict=True)}


def details_of(event: Event) -> bytes:
    """An event's details as stored: without its number, which is a column and not known before the commit."""
    return canonical_bytes({**event.details, "state": event.state.value})


_ADMISSION = (
    "record_key message_id kind run_id disposition reason_code detail raw raw_sha256 raw_size "
    "run_equivalence_key fingerprint intent inputs evidence_wait_us admitted planned policy_rev plan_hash "
    "invoker strategy signal_id signal_kind partition_key attributes payload"
)


def admission_parameters(records: Sequence[Admission]) -> Parameters:
    """Records with different keys, for ``admit_records``.

    Raises:
        SequenceError: something of a record has no canonical form.
    """
    corrections = [_correction(item, item.run.supersession) for item in records if item.run and item.run.supersession]
    return columns(_ADMISSION, map(_admission, records)) | {"corrections": canonical_bytes(corrections).decode()}


def _correction(record: Admission, supersession: Supersession) -> Json:
    """A record whose run corrects another, with both refusals: which of them is true only the statement sees."""
    return {
        "record_key": record.record_key, "supersedes": supersession.old_run_id, "supersession": supersession.text(),
        "not_found": _refusal(record, *not_found(supersession)),
        "not_ended": _refusal(record, *not_ended(supersession)),
    }  # fmt: skip


def _refusal(record: Admission, reason: Reason, detail: str) -> Json:
    message_id = storable(record.message_id)
    signal = request_rejected(record.record_key, message_id, record.run_id, Disposition.REJECTED, reason.value, detail)
    return {"reason_code": reason.value, "detail": detail, "payload": signal.payload.decode()}


def _admission(record: Admission) -> tuple[Any, ...]:
    assert (record.run is None) is (record.disposition is not None)
    disposition = record.disposition.value if record.disposition is not None else ""
    common = (
        record.record_key, storable(record.message_id), storable(record.kind), record.run_id, disposition,
        record.reason_code, storable(record.detail), record.raw, hashlib.sha256(record.raw).hexdigest(),
        Int8(record.raw_size),
    )  # fmt: skip
    return common + _new_run(record) + signal_columns(record.refusal)


def action_parameters(by: ActionRow | None) -> Parameters:
    """The act of an operator that asks for a record, for ``admit_records_by`` and ``commit_reemits_by``."""
    if by is None:
        return {}
    names = ("actor", "via", "action", "subject", "reason")
    texts = action_columns(by)
    return {"by_key": texts["action_key"], **{f"by_{name}": texts[name] for name in names}}


def _new_run(record: Admission) -> tuple[Any, ...]:
    run = record.run
    if run is None:
        return (None,) * 11
    run.run_equivalence_key.encode()  # a key that no text can hold came from outside, so the record is refused for it;
    # within an event it would be a document of our own that has no canonical form, which is a defect
    events = map(details_of, first_events(run))
    return (
        run.run_equivalence_key, run.fingerprint, canonical_bytes(run.intent), canonical_bytes(run.inputs),
        Int8(run.evidence_wait_us), *events, storable(run.invoker),
        run.inputs.get("strategy", ""),
    )  # fmt: skip


def signal_columns(signal: SignalDraft | None) -> tuple[Any, ...]:
    """Columns of a signal: message id, kind, partition key, attributes, payload."""
    if signal is None:
        return (None,) * 5
    attributes = canonical_bytes(signal.attributes)
    return (signal.message_id, signal.kind.value, storable(signal.partition_key), attributes, signal.payload)


def claimed_columns(rows: Sequence[OutboxRow]) -> Parameters:
    """By what claimed signals are found: their rows, their messages, and whose they are."""
    found = ((Int8(row.outbox_id), row.message_id, Int8(row.emission), row.owner) for row in rows)
    return columns("outbox_id message_id emission owner", found)


_TRANSITION = (
    "run_id owner epoch from_state from_us to_state at_us due_us keep_lease wakes retries last_error report_digest "
    "reason_code facts_view_digest count token signal_id signal_kind partition_key attributes payload "
    "deadline_us attempts launches missing absent_root claimed_us"
)
_EVENT = "event_run_id event_nth event_kind event_details"


def transition_parameters(transitions: Sequence[Transition]) -> Parameters:
    """Transitions of different runs, for ``commit_runs``.

    Raises:
        SequenceError: something of an event or a signal has no canonical form.
    """
    events = [
        (item.claim.run_id, Int8(number), event.kind.value, details_of(event))
        for item in transitions
        for number, event in enumerate(item.events, 1)
    ]
    attempts = [_attempt(item, item.attempt) for item in transitions if item.attempt is not None]
    tried = {"tried": canonical_bytes(attempts).decode()}
    corrected = [_superseding(item, item.superseding) for item in transitions if item.superseding is not None]
    superseding = {"superseding": canonical_bytes(corrected).decode()}
    return columns(_TRANSITION, map(_transition, transitions)) | columns(_EVENT, events) | tried | superseding


def _superseding(item: Transition, superseding: Superseding) -> Json:
    signal = superseding.signal
    return {
        "run_id": item.claim.run_id, "old_run_id": superseding.old_run_id,
        "details": details_of(superseding.event).decode(), "signal_id": signal.message_id,
        "partition_key": signal.partition_key, "attributes": canonical_bytes(signal.attributes).decode(),
        "payload": signal.payload.decode(),
    }  # fmt: skip


def _transition(item: Transition) -> tuple[Any, ...]:
    claim = item.claim
    return (
        claim.run_id, claim.owner, Int8(claim.epoch), claim.state.value, Int8(claim.updated_us), item.to_state.value,
        Int8(item.at_us), bigint(item.due_us), item.keep_lease, Int8(item.wakes),
        Int8(item.retries), shortened(item.last_error), item.report_digest, item.reason_code, item.facts_view_digest,
        Int8(len(item.events)), token_of(item), *signal_columns(item.signal), bigint(item.deadline_us),
        Int8(len(claim.attempts)), Int8(item.launches), searchable(item.missing), item.absent_root, Int8(claim.now_us),
    )  # fmt: skip


def _attempt(item: Transition, attempt: AttemptRow) -> Json:
    return {"run_id": item.claim.run_id, **asdict(storable_attempt(attempt))}


def bigint(value: int | None) -> Int8 | None:
    """A number that may be absent, as the driver sends it."""
    return None if value is None else Int8(value)


def failure_parameters(failures: Sequence[ProjectionFailure]) -> Parameters:
    """For ``postpone_projections``; of one run the last counts."""
    latest = {item.run_id: item for item in failures}
    rows = ((item.run_id, Int8(item.until_us), shortened(item.error)) for item in latest.values())
    return columns("run_id until_us error", rows)
