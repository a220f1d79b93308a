"""Invariants of rows, records and signals of runs."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final

from invariants_world import HEX64, PREFIX, RUN, TERMINAL, Facts, Json, canonical, is_regular, parse, sha, spool_files

from scenario_runner.contracts.reasons import Reason

NEXT: Final[Mapping[str, frozenset[str]]] = {
    "OPEN": frozenset({"PLANNED"}),
    "PLANNED": frozenset({"EXECUTING", "VERIFYING"}),
    "EXECUTING": frozenset({"VERIFYING", "FAILED"}),
    "VERIFYING": frozenset({"EXECUTING", "WAITING_EVIDENCE"}) | TERMINAL,
    "WAITING_EVIDENCE": frozenset({"VERIFYING"}),
    "READY": frozenset(),
    "FAILED": frozenset(),
    "QUARANTINED": frozenset(),
}
_CONTRACT_REASONS: Final = (
    "UNKNOWN_OUTPUT_ID UNKNOWN_GATE_ID EVIDENCE_MISSING_DEADLINE EVIDENCE_CONFLICT GATE_FAIL INSTANCE_RECEIPT_DRIFT "
    "EQUIV_KEY_COLLISION ENGINE_ROOT_MISSING ENGINE_COMMAND_MISSING ENGINE_EXIT_NONZERO ENGINE_TIMEOUT "
    "ENGINE_RECEIPT_MISSING ENGINE_RECEIPT_INVALID ENGINE_RECEIPT_MISMATCH ENGINE_INVOCATION_INVALID "
    "ATTEMPT_LIMIT_EXCEEDED LOCATOR_SCHEMA_INVALID RECEIPT_SCHEMA_INVALID AUTH_DENIED REEMIT_READY_ONLY_MISMATCH "
    "REEMIT_TERMINAL_ONLY_MISMATCH REEMIT_RATE_LIMIT FACTS_VIEW_MISSING FACTS_VIEW_DRIFT PLAN_DRIFT"
)
REASONS: Final = frozenset(_CONTRACT_REASONS.split()) | {reason.value for reason in Reason}
INFRASTRUCTURE: Final = frozenset(
    {"UNAVAILABLE", "STORE_UNSAFE", "INTERNAL_ERROR", "CONFIGURATION_INVALID", "USAGE", "RUN_NOT_FOUND"}
)
REEMIT_EVENTS: Final = frozenset({"REEMIT_REQUESTED", "REEMIT_DRY_RUN", "REEMIT_PUBLISHED", "REEMIT_FAILED"})
AFTER_THE_END: Final = REEMIT_EVENTS | {"READY_PUBLISHED", "SUPERSEDES", "SUPERSEDED_BY"}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def micros(text: str) -> int:
    """Microseconds since the epoch of an RFC 3339 time with an offset."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no offset")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def fingerprint_of(request: Json) -> str:
    """The intent fingerprint of a raw run request."""
    scenario = request["scenario"]
    scenarios = sorted(set(scenario.get("scenario_set") or ()))
    window = request["window"]
    times = {key: _utc(window[key]) for key in ("window_start_utc", "window_end_utc")}
    return sha(
        canonical(
            {
                "manifest_fingerprint": request["manifest_fingerprint"],
                "parameter_hash": request["parameter_hash"],
                "seed": request["seed"],
                "scenario_id": scenario.get("scenario_id") or "scnset_" + sha(canonical(scenarios))[:16],
                "scenario_set": scenarios,
                "window": times,
                "output_ids": sorted(set(request.get("output_ids") or ())),
                "strategy": request.get("requested_strategy") or "AUTO",
                "engine_run_root": _root(request.get("engine_run_root") or ""),
            }
        )
    )


def _root(text: str) -> str:
    if text.startswith("s3://"):
        return text.rstrip("/")
    return os.path.normpath(text.removeprefix("file://")) if text else ""


def _utc(text: str) -> str:
    return (_EPOCH + timedelta(microseconds=micros(text))).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def i4_one_terminal_state(w: Facts) -> Iterator[str]:
    """At most one terminal state per run; READY xor TERMINAL; rows, status and record agree."""
    ready = Counter(item["payload"]["run_id"] for item in w.signals_of("READY"))
    ended = Counter(item["payload"]["run_id"] for item in w.signals_of("TERMINAL"))
    for run_id in sorted(set(ready) | set(ended) | set(w.rows)):
        row = w.rows.get(run_id)
        if row is None:
            yield f"the stream holds a signal of {run_id}, which has no row"
            continue
        wanted = (int(row["state"] == "READY"), int(row["state"] in ("FAILED", "QUARANTINED")))
        if (ready[run_id], ended[run_id]) != wanted:
            yield f"{run_id} is {row['state']}, with {ready[run_id]} READY and {ended[run_id]} TERMINAL on the stream"
        yield from _states_agree(w, run_id, row)
    for item in w.signals_of("TERMINAL"):
        yield from _terminal(w, item)
    for key in w.objects:
        run_id = Path(key).stem
        if re.fullmatch(RUN, run_id) and run_id not in w.rows and "/engine_invocations/" not in key:
            yield f"{key} is of a run that has no row"


def _states_agree(w: Facts, run_id: str, row: Json) -> Iterator[str]:
    states = [line["details"]["state"] for line in w.records.get(run_id, [])]
    status = w.document("run_status", run_id)
    if not states or not states[-1] == status["state"] == row["state"]:
        yield f"{run_id}: row {row['state']}, status {status['state']}, record {states[-1:]} do not agree"
    ends = [line for line in w.records.get(run_id, []) if line["event_kind"] not in AFTER_THE_END]
    if sum(line["details"]["state"] in TERMINAL for line in ends) > 1:
        yield f"the record of {run_id} holds more than one terminal state"
    if status.get("reason_code", "") != row["reason_code"] or ("facts_view_ref" in status) != (row["state"] == "READY"):
        yield f"the status of {run_id} does not carry the row's reason code, or points at a facts view wrongly"
    if row["state"] in TERMINAL and micros(status["updated_at_utc"]) != row["updated_us"]:
        yield f"the status of {run_id} has another time than its row"
    plan, inputs = w.document("run_plan", run_id), parse(row["inputs"])
    digest = sha(canonical({"intent": parse(row["intent"]), "inputs": inputs, "run_id": run_id}))
    times = (micros(plan["created_at_utc"]), micros(plan["evidence_deadline_utc"]))
    wait_us = inputs["evidence_wait_seconds"] * 1_000_000
    if plan["plan_hash"] != digest or times != (row["admitted_us"], row["admitted_us"] + wait_us):
        yield f"the plan object of {run_id} is not the plan of its row"
    ends = [one["ended_us"] for one in w.attempts[run_id] if one["outcome"] == "SUCCEEDED"]
    if row["deadline_us"] != (ends or [row["admitted_us"]])[-1] + wait_us:
        yield f"the deadline of {run_id} does not follow from its admission, or from the success of its engine"
    pairs = (("required_gates", "gates"), ("intended_outputs", "outputs"), ("policy_rev", "policy_rev"))
    if any(plan[ours] != inputs[theirs] for ours, theirs in pairs):
        yield f"the plan object of {run_id} has other gates, outputs or policy than its row"


def _terminal(w: Facts, item: Json) -> Iterator[str]:
    payload = item["payload"]
    run_id, state = payload["run_id"], payload["status_state"]
    status = w.document("run_status", run_id)
    message_id = sha(f"terminal|{run_id}|{state}|{sha(canonical(status))}")
    if not item["message_id"] == payload["reemit_key"] == message_id or item["partition_key"] != run_id:
        yield f"the message id of TERMINAL of {run_id} does not derive from its status"
    if (state, payload.get("reason_code", "")) != (status["state"], status.get("reason_code", "")):
        yield f"TERMINAL of {run_id} says {state}, its status says {status['state']}"


def i5_one_key_one_run(w: Facts) -> Iterator[str]:
    """Run ids derive from keys, fingerprints from intents; a differing request changed nothing."""
    for run_id, row in w.rows.items():
        if run_id != sha("sr_run|" + row["run_equivalence_key"])[:32]:
            yield f"the run id {run_id} does not derive from its key"
        fingerprint = sha(canonical(parse(row["intent"])))
        said = [line["details"].get("fingerprint") for line in w.records.get(run_id, [])[:1]]
        if fingerprint != row["fingerprint"] or said != [fingerprint]:
            yield f"the fingerprint of {run_id} does not derive from its intent, or its record has another"
    requests = [row for row in w.tables["intake_records"] if row["kind"] == "RUN_REQUEST"]
    accepted = Counter(row["run_id"] for row in requests if row["disposition"] == "ACCEPTED")
    for run_id in sorted(set(accepted) | set(w.rows)):
        if accepted[run_id] != 1 or run_id not in w.rows:
            yield f"the run {run_id} was accepted {accepted[run_id]} times"
    raws = _raws(w)
    for row in requests:
        if row["disposition"] in ("ACCEPTED", "DUPLICATE", "CONFLICT") and row["raw_sha256"] in raws:
            yield from _request_matches(w, row, raws[row["raw_sha256"]])


def _raws(w: Facts) -> dict[str, bytes]:
    found = [path.read_bytes() for path in spool_files(w, "consumed") if is_regular(path)]
    found += [bytes(row["raw"]) for row in w.tables["dead_letters"]]
    return {sha(data): data for data in found}


def _request_matches(w: Facts, row: Json, raw: bytes) -> Iterator[str]:
    document = parse(raw)
    request = document.get("payload", document)
    run_id = sha("sr_run|" + request["run_equivalence_key"])[:32]
    if run_id != row["run_id"] or run_id not in w.rows:
        yield f"the record {row['record_key']} asks for {run_id} and was booked for {row['run_id']}"
        return
    same = fingerprint_of(request) == w.rows[run_id]["fingerprint"]
    if same is not (row["disposition"] != "CONFLICT"):
        yield f"the record {row['record_key']} of {run_id} is {row['disposition']}, which its intent is not"


def i6_ready_exactly_when_owed_and_sent(w: Facts) -> Iterator[str]:
    """One READY outbox row per READY run; sent rows are on the stream; nothing is unsent."""
    owed = Counter(row["run_id"] for row in w.tables["outbox"] if row["kind"] == "READY")
    for run_id in sorted(set(owed) | set(w.rows)):
        if owed[run_id] != int(w.rows.get(run_id, {}).get("state") == "READY"):
            yield f"{run_id} has {owed[run_id]} READY outbox rows"
    for row in w.tables["outbox"]:
        item = w.signals.get(_signal_name(row))
        if row["sent_us"] is None:
            yield f"the outbox still owes {row['kind']} of {row['run_id']}"
        elif item is None:
            yield f"{row['kind']} of {row['run_id']} is marked sent and is not on the stream"
        elif item["attributes"] != {"kind": row["kind"], **parse(row["attributes"])}:
            yield f"{row['kind']} of {row['run_id']} is on the stream with other attributes than it was owed with"
    known = set(map(_signal_name, w.tables["outbox"]))
    for name in w.signals:
        if name not in known:
            yield f"the stream holds {name}, which no outbox row owes"
    yield from _emissions(w)
    yield from _supersessions(w)


def _supersessions(w: Facts) -> Iterator[str]:
    """A correction that is READY is told by one signal, one object and both records; any other run by none."""
    signals = {row["run_id"]: parse(row["payload"]) for row in w.tables["outbox"] if row["kind"] == "RUN_SUPERSEDES"}
    told = {run_id: [_told(line) for line in lines if _told(line)] for run_id, lines in w.records.items()}
    for run_id, row in w.rows.items():
        ready = row["supersedes"] if row["state"] == "READY" else ""
        stored = w.objects.get(f"{PREFIX}/supersession/{run_id}.json")
        payload = signals.get(run_id)
        if not ready:
            if payload or stored or any(item["new_run_id"] == run_id for item in told.get(run_id, [])):
                yield f"{run_id} supersedes a run without being a READY correction"
            continue
        if payload is None or (payload["old_run_id"], payload["new_run_id"]) != (ready, run_id):
            yield f"{run_id} supersedes {ready}, and its RUN_SUPERSEDES says {payload}"
        elif stored is None or parse(stored) != payload:
            yield f"the supersession object of {run_id} is not what its RUN_SUPERSEDES says"
        elif told[run_id].count(payload) != 1 or told.get(ready, []).count(payload) != 1:
            yield f"the records of {run_id} and {ready} do not both say once that one supersedes the other"


def _told(line: Json) -> Json:
    details = line["details"]
    found: Json = details.get("supersedes", {}) if line["event_kind"] == "SUPERSEDES" else {}
    return details.get("superseded_by", {}) if line["event_kind"] == "SUPERSEDED_BY" else found


def _signal_name(row: Json) -> str:
    """The file of an outbox row: one that repeats a message lies beside the first."""
    return f"{row['message_id']}.reemit-{row['emission']}.json" if row["emission"] else f"{row['message_id']}.json"


def _emissions(w: Facts) -> Iterator[str]:
    """Every signal that was published again repeats a first one, for an act on record, and its run's record says so."""
    rows = {(row["message_id"], row["emission"]): row for row in w.tables["outbox"]}
    acts = {row["action_key"]: row for row in w.tables["operator_actions"]}
    for (message_id, emission), row in rows.items():
        first = rows.get((message_id, 0))
        if emission == 0:
            if row["action_key"]:
                yield f"the first publication of {message_id} is owed to an act"
        elif first is None or (message_id, emission - 1) not in rows or row["kind"] != f"{first['kind']}_REEMIT":
            yield f"{row['kind']} {emission} of {row['run_id']} repeats nothing"
        else:
            yield from _emission(w, row, first, acts.get(row["action_key"], {}))
    for key, act in acts.items():
        if act["outcome"] == "PUBLISHED" and key not in {row["action_key"] for row in rows.values()}:
            yield f"the act {key} says that it published something, and no outbox row does"
        if act["outcome"] == "ACCEPTED":
            yield f"the act {key} is still owed"


def _emission(w: Facts, row: Json, first: Json, act: Json) -> Iterator[str]:
    what = f"{row['kind']} {row['emission']} of {row['run_id']}"
    carried = {**parse(first["attributes"]), "run_id": row["run_id"]}
    if parse(row["attributes"]) != carried or row["payload"] != first["payload"]:
        yield f"{what} differs from what it repeats"
    if (act.get("subject"), act.get("outcome")) != (row["run_id"], "PUBLISHED"):
        yield f"{what} was published for no act that says so"
    lines = w.records.get(row["run_id"], [])
    told = [line["event_kind"] for line in lines if line["details"].get("action_key") == row["action_key"]]
    if told != ["REEMIT_REQUESTED", "REEMIT_PUBLISHED"]:
        yield f"the record says {told} of {what}"


def i7_one_message_id_one_payload(w: Facts) -> Iterator[str]:
    """Records of one message id have equal payload bytes."""
    payloads: dict[str, set[bytes]] = defaultdict(set)
    for name, item in w.signals.items():
        payloads[item["message_id"]].add(canonical(item["payload"]))
        if not re.fullmatch(re.escape(item["message_id"]) + r"(\.reemit-[1-9][0-9]*)?\.json", name):
            yield f"the signal file {name} holds the message {item['message_id']}"
    for row in w.tables["outbox"]:
        payloads[row["message_id"]].add(bytes(row["payload"]))
        if row["kind"] == "READY":
            payloads[row["message_id"]].add(w.objects.get(f"{PREFIX}/ready_signal/{row['run_id']}.json", b""))
    for message_id, found in payloads.items():
        if len(found) > 1:
            yield f"the message {message_id} exists with {len(found)} payloads (stream, outbox, ready_signal)"


def i9_leases_are_given_back(w: Facts) -> Iterator[str]:
    """Every look was under a lease; at rest nobody holds one. (That epochs only grow is for a Watch to see.)"""
    for run_id, row in w.rows.items():
        looked = any(event["kind"] == "VERIFICATION_STARTED" for event in w.events[run_id])
        if looked and row["lease_epoch"] < 1:
            yield f"{run_id} was driven without a lease"
        if row["lease_owner"] or row["lease_until_us"]:
            yield f"{run_id} is at rest under a lease of {row['lease_owner']}"


def i12_records_have_no_gaps(w: Facts) -> Iterator[str]:
    """Sequences without gaps, legal transitions, unique event ids; rows and record lines are equal."""
    for event_id, count in Counter(line["event_id"] for lines in w.records.values() for line in lines).items():
        if count != 1 or not HEX64.fullmatch(event_id):
            yield f"the event id {event_id} is used {count} times or is no hex64"
    for run_id, row in w.rows.items():
        lines, events = w.records.get(run_id, []), w.events[run_id]
        if [line["details"]["seq"] for line in lines] != list(range(1, len(lines) + 1)):
            yield f"the record of {run_id} has gaps, repeats or another order"
        if not len(lines) == len(events) == row["event_seq"] == row["projected_seq"]:
            yield f"{run_id}: {len(lines)} lines, {len(events)} events, seq {row['event_seq']}/{row['projected_seq']}"
        for line, event in zip(lines, events, strict=False):
            ours = (line["event_kind"], line["details"], micros(line["ts_utc"]), line["run_id"])
            if ours != (event["kind"], parse(event["details"]), event["ts_us"], run_id):
                yield f"line {event['seq']} of the record of {run_id} is not the row's event"
        yield from _transitions(run_id, lines)
    for run_id in set(w.records) | set(w.events):
        if run_id not in w.rows:
            yield f"there are events of {run_id}, which has no row"


def _transitions(run_id: str, lines: list[Json]) -> Iterator[str]:
    states = [line["details"]["state"] for line in lines]
    if states[:1] != ["OPEN"]:
        yield f"the record of {run_id} starts in {states[:1]}"
    for before, after in pairwise(states):
        if after != before and after not in NEXT.get(before, frozenset()):
            yield f"{run_id} went from {before} to {after}"
    for before, line in pairwise(lines):
        if before["details"]["state"] in TERMINAL and line["event_kind"] not in AFTER_THE_END:
            yield f"the record of {run_id} goes on after {before['details']['state']}"
    for line in lines:
        if line["event_kind"] in AFTER_THE_END and line["details"]["state"] not in TERMINAL:
            yield f"the record of {run_id} tells of {line['event_kind']} before its end"
    times = [micros(line["ts_utc"]) for line in lines]
    if times != sorted(times):
        yield f"the times in the record of {run_id} go back"


def i13_quarantine_and_reasons(w: Facts) -> Iterator[str]:
    """A quarantine object exactly for QUARANTINED; reasons are of the closed list and never infrastructure."""
    objects = {Path(key).stem for key in w.objects if key.startswith(f"{PREFIX}/quarantine/")}
    quarantined = {run_id for run_id, row in w.rows.items() if row["state"] == "QUARANTINED"}
    for run_id in sorted(objects ^ quarantined):
        yield f"{run_id} is QUARANTINED or has a quarantine object, not both"
    for run_id in objects & quarantined:
        if w.document("quarantine", run_id)["reason_code"] != w.rows[run_id]["reason_code"]:
            yield f"the quarantine object of {run_id} has another reason than its row"
    for run_id, row in w.rows.items():
        if (row["state"] in ("FAILED", "QUARANTINED")) != bool(row["reason_code"]):
            yield f"{run_id} is {row['state']} with the reason {row['reason_code']!r}"
        if row["reason_code"] in INFRASTRUCTURE:
            yield f"{run_id} ended with the infrastructure error {row['reason_code']}"
    for place, code in _codes(w):
        if code not in REASONS:
            yield f"{place} carries the reason {code!r}, which is not on the closed list"


def _codes(w: Facts) -> Iterator[tuple[str, str]]:
    for row in w.tables["runs"] + w.tables["intake_records"]:
        if row["reason_code"]:
            yield str(row.get("run_id")), row["reason_code"]
    values = [*w.documents.items(), *w.records.items(), *w.signals.items()]
    for place, value in values:
        yield from ((place, code) for code in _said(value))


def _said(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if "reason_code" in value and "new_run_id" not in value:  # a correction carries its sender's own code
            yield str(value["reason_code"])
        for item in value.values():
            yield from _said(item)
    elif isinstance(value, list):
        for item in value:
            yield from _said(item)


def i14_attempts_are_bounded(w: Facts) -> Iterator[str]:
    """Attempts stay within the limit, one at a time, each on record; no engine process outlives its run or lease."""
    for run_id in sorted(set(w.attempts) | set(w.rows)):
        if run_id not in w.rows:
            yield f"there are attempts of {run_id}, which has no row"
            continue
        yield from _attempt_rows(w, run_id, w.attempts[run_id])
        yield from _attempt_events(w, run_id, w.attempts[run_id])
    yield from _attempt_logs(w)
    yield from _invocations(w)
    roots = [os.path.realpath(root) for root in w.paths.engine_roots]
    ours = {row["attempt_id"] for row in w.tables["engine_attempts"]}
    for pid, where, attempt_id in _processes():
        if any(where == root or where.startswith(root + "/") for root in roots):
            yield f"the process {pid} still works in {where}"
        if attempt_id in ours:
            yield f"the process {pid} of the attempt {attempt_id} is alive"


def _attempt_rows(w: Facts, run_id: str, rows: list[Json]) -> Iterator[str]:
    run, limit = w.rows[run_id], w.document("run_plan", run_id)["attempt_limit"]
    numbers = [row["attempt_no"] for row in rows]
    if len(rows) > limit or numbers != list(range(1, run["attempts"] + 1)):
        yield f"{run_id} counts {run['attempts']} attempts, with the rows {numbers}; its plan allows {limit}"
    for row in rows:
        if row["attempt_id"] != sha(f"sr_attempt|{run_id}|{row['attempt_no']}")[:32]:
            yield f"the id of the attempt {row['attempt_no']} of {run_id} does not derive from its run and number"
        if row["ended_us"] is None and (row is not rows[-1] or run["state"] != "EXECUTING"):
            yield f"the attempt {row['attempt_no']} of {run_id} is open, and the run is {run['state']}"
        if row["outcome"] == "SUCCEEDED" and (row is not rows[-1] or row["exit_code"] != 0):
            yield f"the attempt {row['attempt_no']} of {run_id} succeeded, with status {row['exit_code']}, or goes on"
    epochs = [row["epoch"] for row in rows]
    if epochs != sorted(epochs) or any(not 0 < epoch <= run["lease_epoch"] for epoch in epochs):
        yield f"the attempts of {run_id} were launched under the epochs {epochs} of {run['lease_epoch']}"
    for before, after in pairwise(rows):
        if before["ended_us"] is None or after["launched_us"] < before["ended_us"]:
            yield f"the attempt {after['attempt_no']} of {run_id} was launched before the one before it had ended"
    forced = parse(run["inputs"])["strategy"] == "FORCE_INVOKE"
    if forced and run["state"] == "READY" and [row["outcome"] for row in rows][-1:] != ["SUCCEEDED"]:
        yield f"{run_id} is READY, and no engine that it had to invoke has succeeded"


_LAUNCHED: Final = "ENGINE_ATTEMPT_LAUNCH_REQUESTED"
_SUBMITTED: Final = "ENGINE_JOB_SUBMITTED"
_FINISHED: Final = "ENGINE_ATTEMPT_FINISHED"


def _attempt_events(w: Facts, run_id: str, rows: list[Json]) -> Iterator[str]:
    """The record tells of each attempt: requested once, submitted in between, finished once, as its row says."""
    told = [line for line in w.records.get(run_id, []) if line["event_kind"] in (_LAUNCHED, _SUBMITTED, _FINISHED)]
    wanted = [(kind, row["attempt_no"]) for row in rows for kind in (_LAUNCHED, _FINISHED)]
    if rows and rows[-1]["ended_us"] is None:
        wanted.pop()
    said = [(line["event_kind"], line["details"]["attempt_no"]) for line in told if line["event_kind"] != _SUBMITTED]
    if said != wanted:
        yield f"the record of {run_id} tells of the attempts {said}, its rows are {wanted}"
        return
    by_number, open_number = {row["attempt_no"]: row for row in rows}, 0
    for line in told:
        kind, details = line["event_kind"], line["details"]
        row = by_number[details["attempt_no"]]
        if details["attempt_id"] != row["attempt_id"] or details["state"] != "EXECUTING":
            yield f"the {kind} of the attempt {row['attempt_no']} of {run_id} is of another attempt or state"
        if kind == _SUBMITTED and details["attempt_no"] != open_number:
            yield f"the attempt {row['attempt_no']} of {run_id} was submitted while it was not open"
        open_number = 0 if kind == _FINISHED else row["attempt_no"]
        if kind == _FINISHED:
            ours = (row["outcome"], row["reason_code"], row["invoker"], row["duration_ms"], row["ended_us"])
            ended_us = micros(details["ended_at_utc"])
            theirs = (details["outcome"], details.get("reason_code", ""), details["invoker"], details["duration_ms"])
            if ours != (*theirs, ended_us) or micros(details["started_at_utc"]) != row["launched_us"]:
                yield f"the document of the attempt {row['attempt_no']} of {run_id} is not what its row says"


def _invocations(w: Facts) -> Iterator[str]:
    """An invocation object is of an attempt on record, or of the next one, if a daemon was killed before its row."""
    for key, value in w.documents.items():
        if "/engine_invocations/" not in key:
            continue
        run_id, attempt_id = value.get("run_id"), Path(key).stem
        count = w.rows[run_id]["attempts"] + 1 if run_id in w.rows else 0
        known = {sha(f"sr_attempt|{run_id}|{number}")[:32] for number in range(1, count + 1)}
        if value.get("request_id") != attempt_id or attempt_id not in known:
            yield f"{key} is of no attempt"


def _attempt_logs(w: Facts) -> Iterator[str]:
    logs: dict[str, set[int]] = defaultdict(set)
    for key in w.objects:
        match = re.fullmatch(rf"{PREFIX}/engine_attempt_logs/run_id=({RUN})/attempt_no=([0-9]+)/\w+\.log", key)
        if match:
            logs[match[1]].add(int(match[2]))
    for run_id, numbers in logs.items():
        known = {row["attempt_no"] for row in w.attempts[run_id]}
        if not numbers <= known:
            yield f"there are logs of the attempts {sorted(numbers)} of {run_id}, whose rows are {sorted(known)}"
    for run_id, rows in w.attempts.items():
        for line in w.records.get(run_id, []):
            for key in (line["details"].get("logs_ref") or {}).values():
                if key not in w.objects:
                    yield f"the record of {run_id} names the log {key}, which is not there ({len(rows)} attempts)"


def _processes() -> Iterator[tuple[int, str, str]]:
    """Process id, working directory, and the attempt that a process bears the mark of, of every other process."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                where = os.readlink(f"/proc/{name}/cwd")  # a process that has ended has none
                variables = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            marks = [one.partition(b"=")[2].decode() for one in variables if one.startswith(b"SR_ATTEMPT_ID=")]
            yield int(name), where, (marks or [""])[0]
