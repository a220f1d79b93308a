"""Shapes of what the commands print that do something: requests, acts of operators, and set-up."""

from typing import Final

from scenario_runner.cli.outputs.looking import CHECK, STATUS
from scenario_runner.cli.outputs.shapes import (
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
    MapOf,
    OrNull,
    Shape,
)

# --- requests

SUBMIT: Final = Shape({**STATUS.keys, "state": TEXT_OR_NULL, "message_id": TEXT, "record": TEXT})
"""Without ``--wait`` the keys of ``status`` are null, but for ``run_id``."""
SUBMIT_LINE: Final = Shape({
    "line": INTEGER, "run_id": TEXT_OR_NULL, "message_id": TEXT_OR_NULL, "outcome": TEXT, "record": TEXT_OR_NULL,
    "error": OrNull(Shape({"reason_code": TEXT, "sentence": TEXT, "detail": TEXT})),
})  # fmt: skip
EVIDENCE_ARRIVED: Final = Shape({
    "engine_run_root": TEXT, "run_id": TEXT_OR_NULL, "message_id": TEXT, "record": TEXT,
})  # fmt: skip
RUN: Final = Shape({**STATUS.keys, "disposition": TEXT})
PLAN: Final = Shape({
    "run_id": HEX32, "intent_fingerprint": TEXT, "plan_hash": TEXT, "strategy": TEXT,
    "policy_rev": Shape({"policy_id": TEXT, "revision": TEXT, "content_digest": TEXT}), "interface_pack_digest": TEXT,
    "evidence_wait_seconds": INTEGER, "attempt_limit": INTEGER, "engine_run_root": TEXT, "engine_invoked": TEXT,
    "intended_outputs": ListOf(TEXT), "required_gates": ListOf(TEXT),
    "outputs": ListOf(Shape({"output_id": TEXT, "path": TEXT, "optional": BOOLEAN, "role": TEXT})),
    "gates": ListOf(Shape({"gate_id": TEXT, "law": TEXT, "flag": TEXT, "upstream": ListOf(TEXT)})),
})  # fmt: skip

# --- acts

_OUTCOME: Final[dict[str, Kind]] = {
    "outcome": TEXT, "reason_code": TEXT_OR_NULL, "sentence": TEXT_OR_NULL, "detail": TEXT,
}  # fmt: skip
REEMIT: Final = Shape({
    "run_id": HEX32, **_OUTCOME, "kind": TEXT_OR_NULL, "message_id": TEXT_OR_NULL, "emission": INTEGER_OR_NULL,
    "sent_at_utc": TIME_OR_NULL,
    "receipt": OrNull(Shape({"stream": TEXT, "shard_id": TEXT, "sequence_number": TEXT})),
    "requested_by": TEXT, "dry_run": BOOLEAN, "reemit_kind": TEXT,
})  # fmt: skip
REEMIT_LINE: Final = Shape({"run_id": HEX32, "message_id": TEXT, "first_sent_at_utc": TIME, **_OUTCOME})

_VERDICT: Final[dict[str, Kind]] = {**_OUTCOME, "disposition": TEXT}
REDRIVE: Final = Shape({
    "number": INTEGER, "letter": TEXT, "run_id": TEXT_OR_NULL, "pack_digest": TEXT, "policy_digest": TEXT,
    "predicted": Shape(_VERDICT), "earlier": TEXT_OR_NULL, "dry_run": BOOLEAN, "next_action": TEXT,
    "record_key": TEXT_OR_NULL, "engine_run_root": TEXT_OR_NULL, "note": TEXT_OR_NULL,
    **dict.fromkeys((*_VERDICT, "requested_by"), TEXT_OR_NULL), "repeated": BOOLEAN_OR_NULL, "at_utc": TIME_OR_NULL,
})  # fmt: skip
"""A dry run has ``predicted`` only; what came of a redrive is null then."""
WAKE: Final = Shape({
    "run_id": HEX32, "state": TEXT_OR_NULL, **_OUTCOME, "evidence_deadline_utc": TIME_OR_NULL, "requested_by": TEXT,
    "dry_run": BOOLEAN,
})  # fmt: skip
RETENTION: Final = Shape({
    "policy_id": TEXT, "policy_revision": TEXT, "dry_run": BOOLEAN, "complete": BOOLEAN_OR_NULL,
    "kinds": ListOf(Shape({
        "kind": TEXT, "keep_days": INTEGER_OR_NULL, "before_utc": TIME_OR_NULL, "expired": INTEGER_OR_NULL,
        "more": BOOLEAN_OR_NULL, "oldest_utc": TIME_OR_NULL, "removed": INTEGER_OR_NULL, "outcome": TEXT_OR_NULL,
        "action_key": TEXT_OR_NULL, "longest_batch_ms": NUMBER_OR_NULL, "note": TEXT_OR_NULL,
    })),
})  # fmt: skip

# --- authority and ledger

LEDGER_FINDING: Final = Shape({
    "code": TEXT, "object": TEXT, "run_id": TEXT_OR_NULL, "detail": TEXT, "expected": TEXT_OR_NULL,
    "actual": TEXT_OR_NULL, "remedy": TEXT,
})  # fmt: skip
_COUNTED: Final[dict[str, Kind]] = {
    "outcome": TEXT, "ledger": TEXT, "runs": INTEGER, "by_state": MapOf(INTEGER), "findings": INTEGER,
    "findings_by_code": MapOf(INTEGER), "seconds": NUMBER,
}  # fmt: skip
LEDGER_SUMMARY: Final = Shape({
    "summary": Shape({
        **_COUNTED, "since": TEXT_OR_NULL, "run_id": TEXT_OR_NULL, "objects": MapOf(INTEGER), "owed": INTEGER,
    }),
})  # fmt: skip
REBUILD_REPORT: Final = Shape({
    "report": Shape({
        **_COUNTED, "dry_run": BOOLEAN, "action_key": TEXT_OR_NULL, "requested_by": TEXT, "reason": TEXT,
        "stores": ListOf(Shape({"store": TEXT, "identity": TEXT})), "witness": TEXT, "restored": INTEGER,
        "events": INTEGER, "attempts": INTEGER, "signals": INTEGER, "cannot_know": ListOf(TEXT),
        "next": ListOf(TEXT),
    }),
})  # fmt: skip

SCRUB_LINE: Final = Shape({
    "run_id": HEX32, "outcome": TEXT, "detail": TEXT, "repeated": BOOLEAN, "checks": ListOf(CHECK),
})  # fmt: skip
SCRUB_SUMMARY: Final = Shape({
    "summary": Shape({
        "scrub_id": TEXT, "outcome": TEXT, "runs": INTEGER, "drifted": INTEGER, "superseded": INTEGER,
        "unreadable": INTEGER, "since_utc": TIME_OR_NULL, "until_utc": TIME, "evidence_read": INTEGER,
        "bytes_read": INTEGER, "seconds": NUMBER, "requested_by": TEXT,
    }),
})  # fmt: skip

# --- set-up

DOCTOR: Final = Shape({
    "ok": BOOLEAN,
    "checks": ListOf(Shape({
        "check": TEXT, "ok": BOOLEAN, "detail": TEXT, "remedy": TEXT_OR_NULL, "exit": INTEGER_OR_NULL,
        "endpoint": TEXT_OR_NULL, "identity": TEXT_OR_NULL,
    })),
})  # fmt: skip
STORES_ADOPT: Final = Shape({
    "stores": ListOf(Shape({"store": TEXT, "where": TEXT, "old": TEXT, "new": TEXT, "adopted": BOOLEAN})),
})  # fmt: skip
POLICY_DIGEST: Final = Shape({"content_digest": TEXT})
CONTRACTS_EXPORT: Final = Shape({"written": ListOf(TEXT)})
STREAM_ADOPT: Final = Shape({
    "stream": TEXT, "former_stream": TEXT, "lease_table": TEXT, "leases_forgotten": INTEGER, "begins_at": TEXT,
    "outcome": TEXT,
})  # fmt: skip
