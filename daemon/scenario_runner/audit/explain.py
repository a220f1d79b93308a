"""Explanation of a run from the authority's rows: what was found, what is missing, what happens next."""

from typing import Final

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.arrivals import root_of
from scenario_runner.authority.base import RunReader
from scenario_runner.authority.values import (
    UNTIL_RESTART,
    AttemptRow,
    RecordRow,
    RunRow,
    SignalRow,
    Signals,
    StoredEvent,
    SupersessionRow,
)
from scenario_runner.authority.views.values import RunSummary
from scenario_runner.contracts.canonical import Json, parse_json
from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.contracts.states import REEMIT_EVENTS, REFUSED, Disposition, EventKind, RunState
from scenario_runner.contracts.times import MICROS, format_micros

REJECTED: Final = "REJECTED"
"""State shown for a run id that only refused requests have named; no run exists."""
SCHEDULED: Final = "scheduled"
"""``next_look`` of a run that is examined at ``next_look_utc``."""
ROUNDS: Final = "rounds"
"""``next_look`` of a run whose root is absent: it is examined once something has come there, at the latest at
``next_look_utc``, which is its deadline."""

_AFTER_REFUSAL: Final = "correct the request and submit it again; no run was created"
_AFTER_CONFLICT: Final = "submit the request with a new run_equivalence_key; the run that has this key is untouched"
_NEXT: Final = {
    RunState.PLANNED: "wait: a runner will claim it",
    RunState.EXECUTING: "wait: its engine is running, or is invoked again soon; see the attempts",
    RunState.VERIFYING: "wait: its evidence is being verified",
    RunState.WAITING_EVIDENCE: "provide what is missing before the deadline; the daemon examines it again by itself",
    RunState.READY: "read the facts view; the run is final",
    RunState.FAILED: "the run is final; submit a request with a new run_equivalence_key once the cause is mended",
    RunState.QUARANTINED: "a person must look at the evidence; the run is final, and a new request needs a new key",
}


def supersession_of_run(authority: RunReader, run_id: str) -> Json:
    """``{supersedes, superseded_by}``: both ends of what a run takes part in.

    ``supersedes`` is the run that this one corrects, null when there is none; it is in force once this run is READY.
    ``superseded_by`` lists the READY runs that correct this one.
    """
    rows = authority.supersessions(run_id)
    own = next((row for row in rows if row.new_run_id == run_id), None)
    others = [row for row in rows if row.new_run_id != run_id and row.state is RunState.READY]
    supersedes = None
    if own is not None:
        old = own.supersession.old_run_id
        supersedes = {"run_id": old, **_purpose(own), "in_force": own.state is RunState.READY}
    by = [{"run_id": row.new_run_id, **_purpose(row)} for row in others]
    return {"supersedes": supersedes, "superseded_by": by}


def _purpose(row: SupersessionRow) -> Json:
    return {"purpose": row.supersession.purpose, "reason_code": row.supersession.reason_code or None}


def _reason(code: str) -> Json:
    if not code:
        return {}
    known = SENTENCES[Reason(code)] if code in set(Reason) else "This release does not know this code."
    return {"reason_code": code, "sentence": known}


def _undelivered(run: RunRow) -> Json:
    """``{documents_owed}``: why the run's documents are not in the ledger; empty unless writing them failed."""
    if not run.relay_error or run.projected_seq >= run.event_seq:
        return {}
    found: Json = {"error": run.relay_error, "tries": run.relay_retries}
    if run.relay_retries:
        found["since_utc"] = format_micros(run.relay_since_us)
    if run.relay_until_us >= UNTIL_RESTART:
        found["next_try"] = "when a daemon starts"
    else:
        found["next_try"] = format_micros(run.relay_until_us) if run.relay_until_us else "now"
    found["next_action"] = (
        "remove the cause that the error names; the next try, or the start of a daemon, delivers the documents and "
        "after them the signal"
    )
    return {"documents_owed": found}


def next_look_of(run: RunRow | RunSummary) -> Json:
    """When a run is examined again, at the latest, and by what; empty when it has ended.

    One that was told of an arrival, or woken, is due before its deadline, and its root may be absent still.
    """
    if run.due_us is None:
        return {}
    in_rounds = run.absent_root and run.due_us == run.deadline_us
    return {"next_look": ROUNDS if in_rounds else SCHEDULED, "next_look_utc": format_micros(run.due_us)}


def status_of(authority: RunReader, run_id: str) -> Json | None:
    """State, reason and times of a run, or of the requests for it that were refused; None when there were none."""
    run = authority.run(run_id)
    if run is None:
        return _refused(authority, run_id)
    document: Json = {
        "run_id": run_id,
        "state": run.state.value,
        **_reason(run.reason_code),
        "updated_at_utc": format_micros(run.updated_us),
        "evidence_deadline_utc": format_micros(run.deadline_us),
    }
    document |= next_look_of(run)
    if run.last_error:
        document |= {"infrastructure_retries": run.retries, "last_infrastructure_error": run.last_error}
    document |= supersession_of_run(authority, run_id)
    return document | _undelivered(run) | (_reemits(authority.signals(run_id)) if run.due_us is None else {})


def status_of_record(authority: RunReader, run_id: str, raw_sha256: str) -> Json | None:
    """Where the run of one record stands, or the refusal of that record; None when no intake has disposed of it yet.

    Args:
        authority: The authority.
        run_id: The run that the record names.
        raw_sha256: sha256 (hex64) of the record's bytes.
    """
    record = next((record for record in authority.records(run_id) if record.raw_sha256 == raw_sha256), None)
    if record is None:
        return None
    return _refusal(run_id, [record]) if record.disposition in REFUSED else status_of(authority, run_id)


def _refused(authority: RunReader, run_id: str) -> Json | None:
    records = authority.records(run_id)
    return _refusal(run_id, records) if records else None


def _refusal(run_id: str, records: list[RecordRow]) -> Json:
    """The status that stands for refused records, the newest last."""
    last = records[-1]
    return {
        "run_id": run_id,
        "state": REJECTED,
        **_reason(last.reason_code),
        "detail": last.detail,
        "updated_at_utc": format_micros(last.received_us),
        "next_action": _AFTER_CONFLICT if last.disposition is Disposition.CONFLICT else _AFTER_REFUSAL,
        "records": _records(records),
    }


def _records(records: list[RecordRow]) -> list[Json]:
    return [
        {
            "record_key": record.record_key,
            "disposition": record.disposition.value,
            **_reason(record.reason_code),
            "detail": record.detail,
            "message_id": record.message_id,
            "received_at_utc": format_micros(record.received_us),
            "raw_sha256": record.raw_sha256,
        }
        for record in records
    ]


def _findings(events: list[StoredEvent]) -> Json:
    """Gates, outputs and documents as the newest events report them."""
    found: Json = {}
    for event in events:
        report = event.details.get("report")
        if report:
            found = {key: report.get(key, []) for key in ("gates", "outputs", "run_receipt", "drift") if key in report}
        if event.kind == EventKind.GATES_PASSED:
            found["gates"] = event.details["gates"]
        if event.kind == EventKind.RECEIPTS_COMMITTED:
            found |= {"outputs": event.details["outputs"], "receipts": event.details["receipts"]}
        if event.kind == EventKind.FACTS_VIEW_COMMITTED:
            found["facts_view"] = {key: event.details[key] for key in ("ref", "digest", "bundle_hash")}
    return found


def explain_run(authority: RunReader, run_id: str) -> Json | None:
    """Everything that the authority knows of a run id: see :func:`status_of`; None when it knows nothing."""
    run = authority.run(run_id)
    if run is None:
        return _refused(authority, run_id)
    events = authority.events(run_id)
    findings = _findings(events)
    examined = [*findings.get("gates", []), *findings.get("outputs", [])]
    return {
        **(status_of(authority, run_id) or {}),
        "detail": _last_detail(events),
        "next_action": _NEXT[run.state],
        "run_equivalence_key": run.run_equivalence_key,
        "engine_run_root": root_of(run.intent, run.inputs),
        "strategy": run.inputs["strategy"],
        "intended_outputs": run.inputs["outputs"],
        "required_gates": run.inputs["gates"],
        "interface_pack_digest": run.inputs["pack_digest"],
        "policy_rev": run.inputs["policy_rev"],
        "admitted_at_utc": format_micros(run.admitted_us),
        **findings,
        "attempts": [_attempt(row) for row in authority.attempts(run_id)],
        "missing": [item["missing"] for item in examined if item.get("missing")],
        "lease": _lease(run),
        "looks_while_waiting": run.wakes,
        "infrastructure_retries": run.retries,
        "last_infrastructure_error": run.last_error,
        "events": [
            {"seq": event.seq, "event_kind": event.kind, "ts_utc": format_micros(event.ts_us)} for event in events
        ],
        "signals": [_signal(row) for row in authority.signals(run_id).rows],
        "actions": [_action(row) for row in authority.actions(run_id)],
        "records": _records(authority.records(run_id)),
    }


def _signal(row: SignalRow) -> Json:
    """A signal: whether it is on the control bus, and where; ``emission`` counts publications of one message from 0."""
    found: Json = {
        "message_id": row.message_id, "kind": row.kind, "emission": row.emission,
        "sent_at_utc": format_micros(row.sent_us) if row.sent_us else None,
    }  # fmt: skip
    return found | ({"receipt": parse_json(row.receipt.encode())} if row.receipt else {})


def _action(row: ActionRow) -> Json:
    """An act of an operator on the run."""
    return {
        "at_utc": format_micros(row.at_us), "actor": row.actor, "via": row.via, "action": row.action,
        "reason": row.reason, "outcome": row.outcome, "detail": row.detail, "action_key": row.action_key,
    }  # fmt: skip


def _reemits(signals: Signals) -> Json:
    """``{reemits}``: how often the run's signal was published again, and when last; empty when it never was."""
    sent = [row.sent_us for row in signals.rows if row.emission and row.sent_us]
    owed = sum(1 for row in signals.rows if row.emission and not row.sent_us)
    if not sent and not owed:
        return {}
    last = {"last_sent_at_utc": format_micros(max(sent))} if sent else {}
    return {"reemits": {"sent": len(sent), "owed": owed, **last}}


def _attempt(row: AttemptRow) -> Json:
    """An attempt of the engine: how it ended, or how it is found while it runs."""
    found: Json = {
        "attempt_no": row.attempt_no,
        "attempt_id": row.attempt_id,
        "invoker": row.invoker,
        "launched_at_utc": format_micros(row.launched_us),
        "outcome": row.outcome or "RUNNING",
    }
    if row.ended_us is None:
        return found | {"handle": row.handle, "timeout_seconds": row.timeout_us / MICROS}
    found |= {"ended_at_utc": format_micros(row.ended_us), "duration_ms": row.duration_ms, "exit_code": row.exit_code}
    said = {"stop_code": row.stop_code, "detail": row.detail, "stderr_tail": row.stderr_tail}
    return found | _reason(row.reason_code) | {name: value for name, value in said.items() if value}


def _last_detail(events: list[StoredEvent]) -> str:
    """The detail of the newest event that has one; empty for a READY run, whose earlier details are history."""
    for event in reversed(events):
        if event.kind == EventKind.RUN_READY:
            return ""
        if "detail" in event.details and event.kind not in REEMIT_EVENTS:
            return str(event.details["detail"])
    return ""


def _lease(run: RunRow) -> Json:
    if not run.lease_owner:
        return {}
    return {
        "owner": run.lease_owner,
        "epoch": run.lease_epoch,
        "valid_until_utc": format_micros(run.lease_until_us),
    }
