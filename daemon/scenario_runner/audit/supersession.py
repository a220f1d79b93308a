"""Checks of a correction, and both ends of what a run supersedes, as the ledger tells them."""

from typing import Final

from scenario_runner.audit.documents import PublishedDocuments
from scenario_runner.audit.findings import Findings
from scenario_runner.audit.published import ReadSignal
from scenario_runner.bus.base import SearchInconclusive
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, parse_json
from scenario_runner.contracts.ids import supersedes_message_id
from scenario_runner.contracts.states import EventKind, SignalKind

_ENDS: Final = (EventKind.SUPERSEDES.value, EventKind.SUPERSEDED_BY.value)


def ends_of(documents: PublishedDocuments, run_id: str) -> Json:
    """``{supersedes, superseded_by}`` from a run's record: payloads of RUN_SUPERSEDES with this run at either end."""
    found: Json = {"supersedes": None, "superseded_by": []}
    for line in (documents.read_bytes(refs.record_ref(run_id)) or b"").splitlines():
        if any(kind.encode() in line for kind in _ENDS):
            _add(line, found)
    return found


def _add(line: bytes, found: Json) -> None:
    try:
        event = parse_json(line)
        kind, details = event["event_kind"], event["details"]
        if kind == EventKind.SUPERSEDES:
            found["supersedes"] = dict(details["supersedes"])
        elif kind == EventKind.SUPERSEDED_BY:
            found["superseded_by"].append(dict(details["superseded_by"]))
    except (ValueError, TypeError, KeyError):
        return  # a record that is damaged tells nothing; it is compared with the rows elsewhere


def check_supersession(
    run_id: str, documents: PublishedDocuments, read_signal: ReadSignal, ends: Json, found: Findings
) -> None:
    """Check that the object and the signal of a correction say what its record does; nothing for any other run."""
    stored = documents.read_object(refs.supersession_ref(run_id))
    recorded = ends["supersedes"]
    if stored is None and recorded is None:
        return
    found.expect("supersession object is what the record says", ok=stored == recorded)
    payload: Json = recorded or stored or {}
    own = payload.get("new_run_id") == run_id and isinstance(payload.get("old_run_id"), str)
    found.expect("supersession is the run's", ok=own)
    if not own:
        return
    message_id = supersedes_message_id(payload["old_run_id"], run_id, str(payload.get("purpose")))
    raw = read_signal(message_id, run_id)
    check = "RUN_SUPERSEDES on the control bus says the same"
    if isinstance(raw, SearchInconclusive):
        found.not_possible(check, f"message {message_id}: {raw.why}")
        return
    detail = f"message {message_id} is absent" if raw is None else f"message {message_id} says something else"
    found.expect(check, ok=raw is not None and _says(raw, message_id, payload), detail=detail)


def _says(raw: bytes, message_id: str, payload: Json) -> bool:
    try:
        envelope = parse_json(raw)
        kind = envelope["attributes"]["kind"]
        return (kind, envelope["message_id"], envelope["payload"]) == (
            SignalKind.RUN_SUPERSEDES, message_id, payload,
        )  # fmt: skip
    except (ValueError, TypeError, KeyError):
        return False
