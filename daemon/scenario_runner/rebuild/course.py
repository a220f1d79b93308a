"""What the events of a run say of its rows. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.rebuilds import RestoredSignal
from scenario_runner.authority.reemits import ACCEPTED, ACTION, DRY_RUN, PUBLISHED, is_reemit_key
from scenario_runner.authority.values import AttemptRow, SignalDraft, StoredEvent
from scenario_runner.contracts.canonical import Json, rendered_again, sha256_hex
from scenario_runner.contracts.ids import attempt_id_of
from scenario_runner.contracts.reasons import CODES
from scenario_runner.contracts.states import ENDINGS, REEMIT_EVENTS, REPEATED_BY, EventKind, RunState
from scenario_runner.contracts.times import MICROS, parse_instant, to_micros

_SUCCEEDED: Final = "SUCCEEDED"
#: Added by every event; not part of what was recorded.
_OF_EVENTS: Final = ("seq", "state")
#: What says of evidence what was found.
_REPORTED: Final = frozenset({EventKind.EVIDENCE_MISSING, EventKind.GATES_PASSED, EventKind.ENGINE_ATTEMPT_FINISHED})
#: What tells of a signal after the end of its run.
_TOLD: Final = REEMIT_EVENTS | {EventKind.READY_PUBLISHED}
#: Outcomes of acts; one that failed has a reason code, and so has a dry run that would fail.
_OUTCOMES: Final[dict[str, str]] = {
    EventKind.REEMIT_REQUESTED: ACCEPTED, EventKind.REEMIT_DRY_RUN: DRY_RUN, EventKind.REEMIT_PUBLISHED: PUBLISHED,
}  # fmt: skip


class AttemptUnknownError(ValueError):
    """The record does not say where an attempt that may run is found."""


def decided_event(events: Sequence[StoredEvent]) -> StoredEvent:
    """The event that changed the run last: what follows the end of a run tells of acts, and changes nothing of it."""
    return next((event for event in events if event.kind in ENDINGS), events[-1])


def own_details(event: StoredEvent) -> Json:
    """What was recorded with an event."""
    return {name: value for name, value in event.details.items() if name not in _OF_EVENTS}


def report_digest(events: Sequence[StoredEvent]) -> str:
    """Digest of what was found of the evidence and put on record last, in a transaction before the end of the run."""
    digest = ""
    end = decided_event(events)
    for event in events:
        if event.kind not in _REPORTED:
            continue
        if event.kind == EventKind.EVIDENCE_MISSING:
            digest = sha256_hex(rendered_again(event.details["report"]))
        elif event.kind == EventKind.GATES_PASSED and not (end.kind in ENDINGS and event.ts_us == end.ts_us):
            digest = sha256_hex(rendered_again(own_details(event)))
        elif _is_success(event):
            digest = ""
    return digest


def _is_success(event: StoredEvent) -> bool:
    return event.kind == EventKind.ENGINE_ATTEMPT_FINISHED and event.details["outcome"] == _SUCCEEDED


def deadline_us(events: Sequence[StoredEvent], evidence_wait_seconds: int) -> int:
    """The evidence deadline: a wait from the admission, or from the success of the engine."""
    began = [event.ts_us for event in events if event.kind == EventKind.RUN_ADMITTED or _is_success(event)]
    return began[-1] + evidence_wait_seconds * MICROS


def missing_paths(events: Sequence[StoredEvent]) -> tuple[str, ...]:
    """Paths that a waiting run waits for."""
    last = events[-1]
    if last.details["state"] != RunState.WAITING_EVIDENCE:
        return ()
    found = [event.details["report"] for event in events if event.kind == EventKind.EVIDENCE_MISSING]
    if not found:
        raise ValueError("the run waits for evidence, and no event says for what")
    report = found[-1]
    return tuple(str(item["missing"]) for item in (*report["gates"], *report["outputs"]) if item.get("missing"))


def attempts_of(run_id: str, events: Sequence[StoredEvent]) -> tuple[AttemptRow, ...]:
    """The attempts of a run's engine, as far as its record knows them.

    Of an attempt that has ended, the exit code and the last lines of its output are not on record. An attempt of which
    they would decide whether another one follows counts as a failure of the engine.

    Raises:
        AttemptUnknownError: an attempt may run, and nothing says where; or the attempts are not those of this run.
    """
    attempts: list[AttemptRow] = []
    for event in events:
        if event.kind == EventKind.ENGINE_ATTEMPT_LAUNCH_REQUESTED:
            attempts.append(_launched(run_id, event, len(attempts) + 1))
        elif event.kind in (EventKind.ENGINE_JOB_SUBMITTED, EventKind.ENGINE_ATTEMPT_FINISHED):
            if not attempts or attempts[-1].attempt_id != event.details["attempt_id"] or not attempts[-1].open:
                raise AttemptUnknownError(f"event {event.seq} is of an attempt that was not launched before")
            attempts[-1] = _changed(attempts[-1], event)
    if attempts and attempts[-1].open and not attempts[-1].handle:
        raise AttemptUnknownError(f"attempt {attempts[-1].attempt_no} has not ended, and the record has no handle")
    return tuple(attempts)


def _launched(run_id: str, event: StoredEvent, number: int) -> AttemptRow:
    details = event.details
    if (details["attempt_no"], details["attempt_id"]) != (number, attempt_id_of(run_id, number)):
        raise AttemptUnknownError(f"event {event.seq} is not of attempt {number} of this run")
    return AttemptRow(
        number, details["attempt_id"], details["invoker"], str(details.get("handle", "")), event.ts_us,
        int(details["timeout_seconds"]) * MICROS,
    )  # fmt: skip


def _changed(attempt: AttemptRow, event: StoredEvent) -> AttemptRow:
    details = event.details
    if event.kind == EventKind.ENGINE_JOB_SUBMITTED:
        return replace(attempt, handle=details["handle"])
    return replace(
        attempt, launched_us=to_micros(parse_instant(details["started_at_utc"])), ended_us=event.ts_us,
        outcome=details["outcome"], reason_code=details.get("reason_code", ""),
        duration_ms=int(details.get("duration_ms", 0)),
    )  # fmt: skip


def acts_of(run_id: str, events: Sequence[StoredEvent], latest_us: int) -> tuple[ActionRow, ...]:
    """Re-emits as a record tells of them. What became of one that was owed when the database was lost is not known.

    Args:
        run_id: The run.
        events: Its record.
        latest_us: No event of an act is later: the rate limit would count one for too long.

    Raises:
        ValueError: an event is none of a re-emit; its key may be that of another act, which then were not carried out.
    """
    acts: dict[str, ActionRow] = {}
    for event in events:
        details = event.details
        if event.kind not in REEMIT_EVENTS:
            continue
        if event.ts_us > latest_us:
            raise ValueError(f"event {event.seq} is later than the rebuild")
        if event.kind in (EventKind.REEMIT_REQUESTED, EventKind.REEMIT_DRY_RUN):
            key, via = _text(details["action_key"]), _text(details["via"])
            if not is_reemit_key(key, via, run_id):
                raise ValueError(f"event {event.seq} has no key of a re-emit")
            acts[key] = ActionRow(
                key, event.ts_us, _text(details["requested_by"]), via, ACTION, run_id, _text(details["reason"]),
                _outcome(event), _text(details.get("detail", "")),
            )  # fmt: skip
        elif details["action_key"] in acts:
            act = acts[details["action_key"]]
            acts[act.action_key] = replace(act, outcome=_outcome(event), detail=_text(details.get("detail", "")))
    return tuple(acts.values())


def _outcome(event: StoredEvent) -> str:
    """What an act came to by an event.

    Raises:
        ValueError: it is not of the closed list.
    """
    outcome = _text(event.details.get("reason_code", _OUTCOMES.get(event.kind, "")))
    if outcome not in CODES and outcome != _OUTCOMES.get(event.kind):
        raise ValueError(f"event {event.seq} has no outcome of a re-emit")
    return outcome


def _text(value: object) -> str:
    """A value that a row holds as text.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, str):
        raise TypeError(f"a text is needed in the place of {str(value)[:100]!r}")
    return value


def emissions_of(first: SignalDraft, needs_seq: int, events: Sequence[StoredEvent]) -> list[RestoredSignal]:
    """Signals that repeat the first one, as a record tells of them.

    One that was owed when the database was lost counts as published: its number is never given to another one.
    """
    found: dict[int, RestoredSignal] = {}
    if all(event.kind not in REEMIT_EVENTS for event in events):
        return []  # most runs
    attributes = {**first.attributes, "run_id": first.partition_key}
    draft = replace(first, kind=REPEATED_BY[first.kind], attributes=attributes)
    for event in events:
        number = _emission(event)
        if event.kind == EventKind.REEMIT_REQUESTED and number:
            key = event.details["action_key"]
            found[number] = RestoredSignal(draft, event.ts_us, needs_seq, event.ts_us, number, action_key=key)
        elif event.kind == EventKind.REEMIT_PUBLISHED and number in found:
            found[number] = replace(found[number], sent_us=event.ts_us, receipt=_receipt(event))
        elif event.kind == EventKind.REEMIT_FAILED and number in found:
            del found[number]  # it left the outbox, and its number is free
    return list(found.values())


def first_published(signal: RestoredSignal, events: Sequence[StoredEvent]) -> RestoredSignal:
    """A first signal with what a record tells of it: its receipt, and the highest number that a repetition had.

    Raises:
        ValueError: the record tells of another READY, or of a repetition that nobody asked for.
    """
    if _TOLD.isdisjoint(event.kind for event in events):
        return signal  # most runs of a spool
    highest = max(map(_emission, events))
    asked = sum(event.kind == EventKind.REEMIT_REQUESTED for event in events)
    if highest > asked:  # each request takes the number after the highest one, which is free again after a failure
        raise ValueError(f"it names emission {highest}, and {asked} were requested")
    signal = replace(signal, removed_emission=highest) if highest else signal
    for event in events:
        if event.kind == EventKind.READY_PUBLISHED:
            if (event.details["kind"], event.details["message_id"]) != (signal.draft.kind, signal.draft.message_id):
                raise ValueError(f"event {event.seq} is of another READY")
            signal = replace(signal, sent_us=event.ts_us, receipt=_receipt(event))
    return signal


def emissions_published(events: Sequence[StoredEvent]) -> list[int]:
    """Numbers of the repetitions that were published."""
    return [number for event in events if event.kind == EventKind.REEMIT_PUBLISHED and (number := _emission(event))]


def _emission(event: StoredEvent) -> int:
    """The number of the repetition that an event of a re-emit tells of; 0 when there is none."""
    number: Any = event.details.get("emission", 0) if event.kind in REEMIT_EVENTS else 0
    if type(number) is not int or number < 0:
        raise ValueError(f"event {event.seq} has no number of an emission")
    return number


def _receipt(event: StoredEvent) -> str:
    receipt = event.details.get("receipt")
    return rendered_again(receipt).decode() if receipt else ""
