"""Documents rendered from rows: record, status, quarantine, terminal signal. Pure; times come from the rows."""

from scenario_runner.authority.values import RunRow, StoredEvent
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, rendered_again
from scenario_runner.contracts.ids import event_id_of, terminal_message_id
from scenario_runner.contracts.states import ENDINGS, EventKind, RunState
from scenario_runner.contracts.times import format_micros


def status_document(run_id: str, state: RunState, reason_code: str, updated_us: int) -> Json:
    """The run_status document."""
    document: Json = {
        "run_id": run_id,
        "state": state.value,
        "updated_at_utc": format_micros(updated_us),
        "record_ref": refs.record_ref(run_id),
    }
    if reason_code:
        document["reason_code"] = reason_code
    if state is RunState.READY:
        document["facts_view_ref"] = refs.facts_view_ref(run_id)
    return document


def record_bytes(run_id: str, events: tuple[StoredEvent, ...], policy_rev: Json) -> bytes:
    """All lines of a run_record."""
    return b"".join(
        rendered_again(
            {
                "event_id": event_id_of(run_id, event.seq),
                "event_kind": event.kind,
                "run_id": run_id,
                "ts_utc": format_micros(event.ts_us),
                "details": event.details,
                "policy_rev": policy_rev,
            }
        )
        + b"\n"
        for event in events
    )


def terminal_signal(run_id: str, state: RunState, reason_code: str, at_us: int) -> tuple[str, Json]:
    """Message id and payload of TERMINAL."""
    message_id = terminal_message_id(run_id, state.value, status_document(run_id, state, reason_code, at_us))
    return message_id, {
        "run_id": run_id,
        "status_state": state.value,
        "status_ref": refs.status_ref(run_id),
        "record_ref": refs.record_ref(run_id),
        "reason_code": reason_code,
        "reemit_key": message_id,
    }


def ending(events: tuple[StoredEvent, ...]) -> StoredEvent:
    """The event that ended a run; events of re-emits may follow it. The last one where none did."""
    return next((event for event in reversed(events) if event.kind in ENDINGS), events[-1])


def quarantine_document(run: RunRow, events: tuple[StoredEvent, ...]) -> Json:
    """The quarantine object of a run, from its events."""
    last = ending(events)
    return {
        "run_id": run.run_id,
        "reason_code": run.reason_code,
        "detail": str(last.details.get("detail", "")),
        "quarantined_at_utc": format_micros(last.ts_us),
        "record_ref": refs.record_ref(run.run_id),
        "status_ref": refs.status_ref(run.run_id),
        "report": last.details.get("report", {}),
    }


def supersession_document(events: tuple[StoredEvent, ...]) -> Json | None:
    """The supersession object of a run: the payload of its RUN_SUPERSEDES; None when it supersedes no run."""
    found = next((event for event in events if event.kind == EventKind.SUPERSEDES), None)
    return None if found is None else dict(found.details["supersedes"])


def ready_payload(events: tuple[StoredEvent, ...]) -> Json:
    """The READY payload that the deciding event carries."""
    return dict(ending(events).details["ready"])
