"""Batches as parameters of one statement: a list per column, in the order of the batch."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from psycopg.types.numeric import Int8

from scenario_runner.authority.base import (
    Admission,
    Event,
    Noted,
    Outcome,
    Parked,
    Postponed,
    ProjectionFailure,
    Verdict,
)
from scenario_runner.authority.rows import first_events, settled_as, shortened, storable
from scenario_runner.contracts.canonical import canonical_bytes

Parameters = dict[str, Any]


def _columns(names: str, rows: Iterable[tuple[Any, ...]]) -> Parameters:
    """Columns of rows by name; a batch is never empty."""
    return {name: list(column) for name, column in zip(names.split(), zip(*rows, strict=True), strict=True)}


def details_of(event: Event) -> bytes:
    """An event's details as stored: without its number, which is a column and not known before the commit."""
    return canonical_bytes({**event.details, "state": event.state.value})


_ADMISSION = (
    "record_key message_id kind run_id disposition reason_code detail raw raw_sha256 raw_size "
    "run_equivalence_key fingerprint intent inputs evidence_wait_us admitted planned invoker "
    "signal_id signal_kind partition_key attributes payload"
)


def admission_parameters(records: Sequence[Admission]) -> Parameters:
    """Records with different keys, for ``admit_records``.

    Raises:
        SequenceError: something of a record has no canonical form.
    """
    return _columns(_ADMISSION, map(_admission, records))


def _admission(record: Admission) -> tuple[Any, ...]:
    assert (record.run is None) is (record.disposition is not None)
    disposition = record.disposition.value if record.disposition is not None else ""
    common = (
        record.record_key, storable(record.message_id), storable(record.kind), record.run_id, disposition,
        record.reason_code, storable(record.detail), record.raw, hashlib.sha256(record.raw).hexdigest(),
        Int8(record.raw_size),
    )  # fmt: skip
    return common + _new_run(record) + _refusal(record)


def _new_run(record: Admission) -> tuple[Any, ...]:
    run = record.run
    if run is None:
        return (None,) * 8
    admitted, planned = map(details_of, first_events(run))
    return (
        run.run_equivalence_key, run.fingerprint, canonical_bytes(run.intent), canonical_bytes(run.inputs),
        Int8(run.evidence_wait_us), admitted, planned, storable(run.invoker),
    )  # fmt: skip


def _refusal(record: Admission) -> tuple[Any, ...]:
    signal = record.refusal
    if signal is None:
        return (None,) * 5
    attributes = canonical_bytes(signal.attributes)
    return (signal.message_id, signal.kind.value, storable(signal.partition_key), attributes, signal.payload)


def waves(outcomes: Sequence[Outcome]) -> Iterator[list[int]]:
    """Positions of outcomes that can be settled together: one of each run and, of one run, the earlier ones first."""
    left = list(range(len(outcomes)))
    while left:
        runs: set[str] = set()
        wave: list[int] = []
        later: list[int] = []
        for position in left:
            run_id = outcomes[position].claim.run_id
            (later if run_id in runs else wave).append(position)
            runs.add(run_id)
        yield wave
        left = later


_HELD = "run_id owner epoch settled"


def _held(outcome: Outcome) -> tuple[Any, ...]:
    claim = outcome.claim
    return claim.run_id, claim.owner, Int8(claim.epoch), settled_as(outcome)


def _events(outcomes: Sequence[Verdict | Parked | Noted]) -> Parameters:
    rows = [
        (outcome.claim.run_id, Int8(number), event.kind.value, details_of(event))
        for outcome in outcomes
        for number, event in enumerate(outcome.events, 1)
    ]
    names = "event_run_id event_nth event_kind event_details"
    return _columns(names, rows) if rows else {name: [] for name in names.split()}


def failure_parameters(failures: Sequence[ProjectionFailure]) -> Parameters:
    """For ``postpone_projections``; of one run the last counts."""
    latest = {item.run_id: item for item in failures}
    rows = ((item.run_id, Int8(item.until_us), shortened(item.error)) for item in latest.values())
    return _columns("run_id until_us error", rows)


def retry_parameters(outcomes: Sequence[Postponed]) -> Parameters:
    """For ``retry_runs``."""
    return _columns(f"{_HELD} due_us error", ((*_held(o), Int8(o.due_us), shortened(o.error)) for o in outcomes))


def park_parameters(outcomes: Sequence[Parked]) -> Parameters:
    """For ``park_runs``."""
    rows = ((*_held(o), Int8(o.at_us), Int8(len(o.events)), Int8(o.due_us), o.report_digest) for o in outcomes)
    return _columns(f"{_HELD} at_us count due_us report_digest", rows) | _events(outcomes)


def note_parameters(outcomes: Sequence[Noted]) -> Parameters:
    """For ``note_runs``."""
    rows = ((*_held(o), Int8(o.at_us), Int8(len(o.events)), o.report_digest) for o in outcomes)
    return _columns(f"{_HELD} at_us count report_digest", rows) | _events(outcomes)


def verdict_parameters(outcomes: Sequence[Verdict]) -> Parameters:
    """For ``decide_runs``."""
    rows = (
        (
            *_held(o), Int8(o.at_us), Int8(len(o.events)), o.state.value, o.reason_code, o.facts_view_digest,
            o.signal.message_id, o.signal.kind.value, storable(o.signal.partition_key),
            canonical_bytes(o.signal.attributes), o.signal.payload,
        )
        for o in outcomes
    )  # fmt: skip
    names = "at_us count state reason_code facts_view_digest signal_id signal_kind partition_key attributes payload"
    return _columns(f"{_HELD} {names}", rows) | _events(outcomes)
