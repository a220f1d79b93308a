"""Shapes of what the commands that look print: ``status``, ``explain``, ``verify``, and the lists."""

from typing import Final

from scenario_runner.audit.explain import ROUNDS, SCHEDULED
from scenario_runner.cli.outputs.shapes import (
    ANY,
    BOOLEAN,
    BOOLEAN_OR_NULL,
    HEX32,
    INTEGER,
    INTEGER_OR_NULL,
    NUMBER,
    NUMBER_OR_NULL,
    TEXT,
    TEXT_OR_NULL,
    TIME,
    TIME_OR_NULL,
    Kind,
    ListOf,
    ListShape,
    MapOf,
    OrNull,
    Plain,
    Shape,
)

_REASON: Final[dict[str, Kind]] = {"reason_code": TEXT_OR_NULL, "sentence": TEXT_OR_NULL}
_RECORD: Final = Shape({
    "record_key": TEXT, "disposition": TEXT, **_REASON, "detail": TEXT, "message_id": TEXT, "received_at_utc": TIME,
    "raw_sha256": TEXT,
})  # fmt: skip
_NEXT_LOOK: Final[dict[str, Kind]] = {
    "next_look": Plain(("string", "null"), values=(SCHEDULED, ROUNDS)), "next_look_utc": TIME_OR_NULL,
}  # fmt: skip
"""When a run is examined again: at this time, or in ``rounds`` once something has come to its root, and then at the
latest."""

# --- status

STATUS: Final = Shape({
    "run_id": TEXT, "state": TEXT, **_REASON, "detail": TEXT_OR_NULL, "updated_at_utc": TIME_OR_NULL,
    "evidence_deadline_utc": TIME_OR_NULL, **_NEXT_LOOK, "next_action": TEXT_OR_NULL,
    "infrastructure_retries": INTEGER_OR_NULL, "last_infrastructure_error": TEXT_OR_NULL,
    "documents_owed": OrNull(Shape({
        "error": TEXT, "tries": INTEGER, "since_utc": TIME_OR_NULL, "next_try": TEXT, "next_action": TEXT,
    })),
    "reemits": OrNull(Shape({"sent": INTEGER, "owed": INTEGER, "last_sent_at_utc": TIME_OR_NULL})),
    "supersedes": OrNull(Shape({
        "run_id": HEX32, "purpose": TEXT, "reason_code": TEXT_OR_NULL, "in_force": BOOLEAN,
    })),
    "superseded_by": OrNull(ListOf(Shape({"run_id": HEX32, "purpose": TEXT, "reason_code": TEXT_OR_NULL}))),
    "records": OrNull(ListOf(_RECORD)),
})  # fmt: skip
"""``state`` is that of the run, or REJECTED, SUBMITTED or NOT_SEEN where there is none."""

# --- explain

_FOUND: Final[dict[str, Kind]] = {
    "outcome": TEXT, "reason_code": TEXT_OR_NULL, "detail": TEXT_OR_NULL, "expected": TEXT_OR_NULL,
    "actual": TEXT_OR_NULL, "missing": TEXT_OR_NULL, "path": TEXT_OR_NULL,
}  # fmt: skip
"""What is said of anything that was examined."""
_GATE: Final[dict[str, Kind]] = {
    "gate_id": TEXT, "law": TEXT, "flag": TEXT, "index": TEXT_OR_NULL, "bundle_root": TEXT, **_FOUND,
    "blocked_by": OrNull(ListOf(TEXT)), "files": INTEGER_OR_NULL, "bytes": INTEGER_OR_NULL,
    "matched_forms": OrNull(MapOf(TEXT)),
}  # fmt: skip
_OUTPUT: Final[dict[str, Kind]] = {
    "output_id": TEXT, **_FOUND, "digest": TEXT_OR_NULL, "files": INTEGER_OR_NULL, "bytes": INTEGER_OR_NULL,
    "versions": OrNull(MapOf(TEXT)), "verification_depth": TEXT_OR_NULL, "read_files": OrNull(ListOf(TEXT)),
}  # fmt: skip
_DRIFT: Final[dict[str, Kind]] = {"object": TEXT, "expected": TEXT, "actual": TEXT}
_RECEIPT: Final = Shape({"stream": TEXT, "shard_id": TEXT, "sequence_number": TEXT})
_SIGNAL: Final = Shape({
    "message_id": TEXT, "kind": TEXT, "emission": INTEGER, "sent_at_utc": TIME_OR_NULL, "receipt": OrNull(_RECEIPT),
})  # fmt: skip
_ATTEMPT: Final = Shape({
    "attempt_no": INTEGER, "attempt_id": TEXT, "invoker": TEXT, "launched_at_utc": TIME, "outcome": TEXT,
    "handle": TEXT_OR_NULL, "timeout_seconds": NUMBER_OR_NULL, "ended_at_utc": TIME_OR_NULL,
    "duration_ms": INTEGER_OR_NULL, "exit_code": INTEGER_OR_NULL, "stop_code": TEXT_OR_NULL, **_REASON,
    "detail": TEXT_OR_NULL, "stderr_tail": TEXT_OR_NULL,
})  # fmt: skip
_ACTION: Final = Shape({
    "at_utc": TIME, "actor": TEXT, "via": TEXT, "action": TEXT, "reason": TEXT, "outcome": TEXT, "detail": TEXT,
    "action_key": TEXT,
})  # fmt: skip
_POLICY: Final[dict[str, Kind]] = {"policy_id": TEXT, "revision": TEXT, "content_digest": TEXT}
_PINNED: Final[dict[str, Kind]] = {
    "run_equivalence_key": TEXT_OR_NULL, "engine_run_root": TEXT_OR_NULL, "interface_pack_digest": TEXT_OR_NULL,
    "policy_rev": OrNull(Shape(_POLICY)), "admitted_at_utc": TIME_OR_NULL,
}  # fmt: skip

EXPLAIN: Final = Shape({
    **STATUS.keys, **_PINNED, "strategy": TEXT_OR_NULL, "intended_outputs": OrNull(ListOf(TEXT)),
    "required_gates": OrNull(ListOf(TEXT)),
    "gates": OrNull(ListOf(Shape(_GATE))), "outputs": OrNull(ListOf(Shape(_OUTPUT))),
    "run_receipt": OrNull(Shape(_FOUND)), "drift": OrNull(Shape(_DRIFT)), "missing": OrNull(ListOf(TEXT)),
    "receipts": OrNull(MapOf(TEXT)),
    "facts_view": OrNull(Shape({"ref": TEXT, "digest": TEXT, "bundle_hash": TEXT})),
    "attempts": OrNull(ListOf(_ATTEMPT)),
    "lease": OrNull(Shape({"owner": TEXT, "epoch": INTEGER, "valid_until_utc": TIME})),
    "looks_while_waiting": INTEGER_OR_NULL,
    "events": OrNull(ListOf(Shape({"seq": INTEGER, "event_kind": TEXT, "ts_utc": TIME}))),
    "signals": OrNull(ListOf(_SIGNAL)), "actions": OrNull(ListOf(_ACTION)),
})  # fmt: skip
"""``status`` with what was found for each gate and output, and what happened. Lists are null where there is no run."""

# --- lists

_RUN: Final = Shape({
    "run_id": HEX32, "run_equivalence_key": TEXT, "state": TEXT, "reason_code": TEXT_OR_NULL,
    "admitted_at_utc": TIME_OR_NULL, "updated_at_utc": TIME_OR_NULL, "evidence_deadline_utc": TIME_OR_NULL,
    **_NEXT_LOOK, "supersedes": TEXT_OR_NULL, "superseded_by": ListOf(HEX32),
})  # fmt: skip
RUNS_LIST: Final = ListShape("runs", _RUN)
_DAEMON: Final = Shape({
    "owner": TEXT, "role": TEXT, "version": TEXT, "host": TEXT, "started_at_utc": TIME, "seen_at_utc": TIME,
    "seconds_since_seen": NUMBER, "state": Plain(("string",), values=("RUNNING", "NOT_SEEN")),
})  # fmt: skip
DAEMONS: Final = ListShape("daemons", _DAEMON)
HEALTHCHECK: Final = Shape({
    "status": TEXT, "detail": TEXT_OR_NULL, "draining": BOOLEAN_OR_NULL, "stuck": OrNull(ListOf(TEXT)),
    "checks": OrNull(MapOf(Shape({
        "ok": BOOLEAN, "detail": TEXT_OR_NULL, "age_seconds": NUMBER_OR_NULL,
        "seconds_since_progress": NUMBER_OR_NULL, "limit_seconds": NUMBER_OR_NULL,
    }))),
})  # fmt: skip
_ACK: Final[dict[str, Kind]] = {"acked_by": TEXT_OR_NULL, "acked_at_utc": TIME_OR_NULL, "ack_reason": TEXT_OR_NULL}
QUARANTINE_LIST: Final = ListShape("runs", Shape({**_RUN.keys, **_ACK}))
QUARANTINE_ACK: Final = Shape({"run_id": HEX32, "state": TEXT, "repeated": BOOLEAN, **_ACK})

_LETTER: Final[dict[str, Kind]] = {
    "number": INTEGER, "record_key": TEXT, "disposition": TEXT, "reason_code": TEXT, "sentence": TEXT, "detail": TEXT,
    "kind": TEXT, "message_id": TEXT, "run_id": TEXT, "received_at_utc": TIME, "raw_sha256": TEXT, "raw_size": INTEGER,
    "raw_removed_at_utc": TIME_OR_NULL,
}  # fmt: skip
DEAD_LETTER_LIST: Final = ListShape("dead_letters", Shape(_LETTER))
DEAD_LETTER_SHOW: Final = Shape({
    **_LETTER, "kept": TEXT, "raw_base64": TEXT_OR_NULL, "raw_text": TEXT_OR_NULL, "next_action": TEXT,
    "redrives": ListOf(Shape({
        "record_key": TEXT, "at_utc": TIME, "requested_by": TEXT, "reason": TEXT, "outcome": TEXT, "detail": TEXT,
    })),
})  # fmt: skip
QUARANTINE_SHOW: Final = Shape({
    "run_id": HEX32, "state": TEXT, **_REASON, "detail": TEXT_OR_NULL, "updated_at_utc": TIME, **_PINNED,
    "signals": ListOf(_SIGNAL),
    "findings": ListOf(Shape({**dict.fromkeys({**_GATE, **_OUTPUT, **_DRIFT}, ANY), "kind": TEXT})),
    "held_by": ListOf(Shape({"run_id": HEX32, "run_equivalence_key": TEXT, "state": TEXT})), **_ACK,
    "next_action": TEXT,
})  # fmt: skip
"""A finding has the keys of a gate, of an output and of an object that drifts; ``kind`` says which of them apply."""

# --- verify

CHECK: Final = Shape({
    "check": TEXT, "ok": BOOLEAN, "not_possible": BOOLEAN_OR_NULL, "detail": TEXT_OR_NULL, "expected": ANY,
    "actual": ANY, "law": TEXT_OR_NULL, "origin": TEXT_OR_NULL, "digest": TEXT_OR_NULL, "object": TEXT_OR_NULL,
    "parts": OrNull(ListOf(Shape({
        "path": TEXT, "drift": TEXT, "expected": TEXT_OR_NULL, "actual": TEXT_OR_NULL,
    }))),
})  # fmt: skip
_CORRECTION: Final = Shape({
    **dict.fromkeys(("old_run_id", "new_run_id", "purpose", "reason_code"), TEXT_OR_NULL), "old_facts_view_ref": ANY,
    "new_facts_view_ref": ANY,
})  # fmt: skip
_DEPTH: Final = Shape({"output_id": TEXT, "verification_depth": TEXT, "read_files": OrNull(ListOf(TEXT))})
VERIFY: Final = Shape({
    "run_id": TEXT, "outcome": TEXT, "summary": TEXT, "checks": ListOf(CHECK),
    "pack": OrNull(Shape({"origin": TEXT, "digest": TEXT})), "policy": OrNull(Shape({"origin": TEXT, **_POLICY})),
    "verification_depth": TEXT_OR_NULL, "depths": OrNull(ListOf(_DEPTH)),
    "supersedes": OrNull(_CORRECTION), "superseded_by": OrNull(ListOf(_CORRECTION)),
})  # fmt: skip
