"""The closed list of reason codes, a sentence each.

Codes are stable: they stand in documents that other teams parse. New codes are appended, none is renamed.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a request was refused, a run ended without READY, or a command failed."""

    # In use since contract version 0.
    UNKNOWN_OUTPUT_ID = "UNKNOWN_OUTPUT_ID"
    UNKNOWN_GATE_ID = "UNKNOWN_GATE_ID"
    EVIDENCE_MISSING_DEADLINE = "EVIDENCE_MISSING_DEADLINE"
    EVIDENCE_CONFLICT = "EVIDENCE_CONFLICT"
    GATE_FAIL = "GATE_FAIL"
    INSTANCE_RECEIPT_DRIFT = "INSTANCE_RECEIPT_DRIFT"
    EQUIV_KEY_COLLISION = "EQUIV_KEY_COLLISION"
    ENGINE_ROOT_MISSING = "ENGINE_ROOT_MISSING"
    ENGINE_COMMAND_MISSING = "ENGINE_COMMAND_MISSING"
    ENGINE_EXIT_NONZERO = "ENGINE_EXIT_NONZERO"
    ENGINE_TIMEOUT = "ENGINE_TIMEOUT"
    ENGINE_RECEIPT_MISSING = "ENGINE_RECEIPT_MISSING"
    ENGINE_RECEIPT_INVALID = "ENGINE_RECEIPT_INVALID"
    ENGINE_RECEIPT_MISMATCH = "ENGINE_RECEIPT_MISMATCH"
    ENGINE_INVOCATION_INVALID = "ENGINE_INVOCATION_INVALID"
    ATTEMPT_LIMIT_EXCEEDED = "ATTEMPT_LIMIT_EXCEEDED"
    LOCATOR_SCHEMA_INVALID = "LOCATOR_SCHEMA_INVALID"
    RECEIPT_SCHEMA_INVALID = "RECEIPT_SCHEMA_INVALID"
    AUTH_DENIED = "AUTH_DENIED"
    REEMIT_READY_ONLY_MISMATCH = "REEMIT_READY_ONLY_MISMATCH"
    REEMIT_TERMINAL_ONLY_MISMATCH = "REEMIT_TERMINAL_ONLY_MISMATCH"
    REEMIT_RATE_LIMIT = "REEMIT_RATE_LIMIT"
    FACTS_VIEW_MISSING = "FACTS_VIEW_MISSING"
    FACTS_VIEW_DRIFT = "FACTS_VIEW_DRIFT"
    PLAN_DRIFT = "PLAN_DRIFT"

    # Intake.
    RECORD_TOO_LARGE = "RECORD_TOO_LARGE"
    RECORD_UNREADABLE = "RECORD_UNREADABLE"
    RECORD_NOT_JSON = "RECORD_NOT_JSON"
    ENVELOPE_INVALID = "ENVELOPE_INVALID"
    KIND_UNKNOWN = "KIND_UNKNOWN"
    KIND_NOT_SERVED = "KIND_NOT_SERVED"
    REQUEST_SCHEMA_INVALID = "REQUEST_SCHEMA_INVALID"
    ENGINE_ROOT_NOT_ALLOWED = "ENGINE_ROOT_NOT_ALLOWED"
    OUTPUT_NOT_ADDRESSABLE = "OUTPUT_NOT_ADDRESSABLE"
    NO_OUTPUTS = "NO_OUTPUTS"
    NO_REQUIRED_GATES = "NO_REQUIRED_GATES"
    REUSE_NOT_ALLOWED = "REUSE_NOT_ALLOWED"
    SUPERSEDED_RUN_NOT_FOUND = "SUPERSEDED_RUN_NOT_FOUND"
    SUPERSEDED_RUN_NOT_ENDED = "SUPERSEDED_RUN_NOT_ENDED"
    SUPERSESSION_CYCLE = "SUPERSESSION_CYCLE"

    # Evidence.
    EVIDENCE_MALFORMED = "EVIDENCE_MALFORMED"
    EVIDENCE_TOO_LARGE = "EVIDENCE_TOO_LARGE"
    EVIDENCE_CHANGED = "EVIDENCE_CHANGED"
    READY_SIGNAL_DRIFT = "READY_SIGNAL_DRIFT"
    QUARANTINE_DRIFT = "QUARANTINE_DRIFT"
    RECORD_DRIFT = "RECORD_DRIFT"
    EVIDENCE_MISSING = "EVIDENCE_MISSING"
    OUTPUT_OF_ANOTHER_RUN = "OUTPUT_OF_ANOTHER_RUN"
    PACK_DRIFT = "PACK_DRIFT"
    SUPERSESSION_DRIFT = "SUPERSESSION_DRIFT"

    # Engine.
    ENGINE_LAUNCH_FAILED = "ENGINE_LAUNCH_FAILED"
    ATTEMPT_LOG_DRIFT = "ATTEMPT_LOG_DRIFT"

    # Acts of operators.
    LETTER_BYTES_NOT_KEPT = "LETTER_BYTES_NOT_KEPT"
    RUN_NOT_QUARANTINED = "RUN_NOT_QUARANTINED"
    RUN_NOT_WAITING = "RUN_NOT_WAITING"

    # Commands and start-up.
    CONFIGURATION_INVALID = "CONFIGURATION_INVALID"
    USAGE = "USAGE"
    RUN_NOT_FOUND = "RUN_NOT_FOUND"
    RUN_NOT_SEEN = "RUN_NOT_SEEN"
    RUN_AMBIGUOUS = "RUN_AMBIGUOUS"
    UNAVAILABLE = "UNAVAILABLE"
    STORE_UNSAFE = "STORE_UNSAFE"
    AUTHORITY_NOT_EMPTY = "AUTHORITY_NOT_EMPTY"
    REBUILD_UNFINISHED = "REBUILD_UNFINISHED"
    DAEMONS_RUN = "DAEMONS_RUN"
    STORE_CHECKSUMS_UNSAFE = "STORE_CHECKSUMS_UNSAFE"
    INTERNAL_ERROR = "INTERNAL_ERROR"


SENTENCES: dict[Reason, str] = {
    Reason.UNKNOWN_OUTPUT_ID: "The request names an output that the interface pack does not list.",
    Reason.UNKNOWN_GATE_ID: "An output or gate depends on a gate that the interface pack does not define.",
    Reason.EVIDENCE_MISSING_DEADLINE: "Evidence was still missing when the plan's evidence deadline passed.",
    Reason.EVIDENCE_CONFLICT: "The evidence contradicts itself: a digest or an entry does not match the bytes.",
    Reason.GATE_FAIL: "A gate's own flag says that the gate did not pass.",
    Reason.INSTANCE_RECEIPT_DRIFT: "An instance receipt for the same scope already exists with another digest.",
    Reason.EQUIV_KEY_COLLISION: "The run equivalence key is already bound to a different intent.",
    Reason.ENGINE_ROOT_MISSING: "The run has no engine run root to look for evidence in.",
    Reason.ENGINE_COMMAND_MISSING: "The strategy needs the engine to be invoked and no engine is configured.",
    Reason.ENGINE_EXIT_NONZERO: "The engine process ended with a non-zero exit status.",
    Reason.ENGINE_TIMEOUT: "The engine process did not end within its time limit and was stopped.",
    Reason.ENGINE_RECEIPT_MISSING: "The engine left no run_receipt.json at its run root.",
    Reason.ENGINE_RECEIPT_INVALID: "The engine's run_receipt.json is not a valid run receipt.",
    Reason.ENGINE_RECEIPT_MISMATCH: "The engine's run_receipt.json names another run identity.",
    Reason.ENGINE_INVOCATION_INVALID: "The invocation document for the engine is not valid.",
    Reason.ATTEMPT_LIMIT_EXCEEDED: "The engine was invoked as often as the plan allows without a result.",
    Reason.LOCATOR_SCHEMA_INVALID: "A locator would not satisfy the engine boundary schema.",
    Reason.RECEIPT_SCHEMA_INVALID: "A receipt would not satisfy the engine boundary schema.",
    Reason.AUTH_DENIED: "The invoker is not on the allow-list.",
    Reason.REEMIT_READY_ONLY_MISMATCH: "READY was asked to be re-emitted for a run that is not READY.",
    Reason.REEMIT_TERMINAL_ONLY_MISMATCH: "TERMINAL was asked to be re-emitted for a run without one.",
    Reason.REEMIT_RATE_LIMIT: "The run was re-emitted as often as the rate limit allows.",
    Reason.FACTS_VIEW_MISSING: "The facts view that READY points at is not in the object store.",
    Reason.FACTS_VIEW_DRIFT: "The facts view in the object store has other bytes than those that belong to the run.",
    Reason.PLAN_DRIFT: "A run plan already exists for the run with other bytes.",
    Reason.RECORD_TOO_LARGE: "The record is larger than the control bus allows.",
    Reason.RECORD_UNREADABLE: "The record is not a regular, readable file.",
    Reason.RECORD_NOT_JSON: "The record is not one well-formed JSON object in UTF-8.",
    Reason.ENVELOPE_INVALID: "The record's envelope has missing, unknown or malformed fields.",
    Reason.KIND_UNKNOWN: "The record's kind or contract version is not known.",
    Reason.KIND_NOT_SERVED: "The record's kind is known but this daemon does not serve it.",
    Reason.REQUEST_SCHEMA_INVALID: "The run request has missing, unknown or malformed fields.",
    Reason.ENGINE_ROOT_NOT_ALLOWED: "The engine run root is not under any of the allowed engine roots.",
    Reason.OUTPUT_NOT_ADDRESSABLE: "The output's path needs a value that a run request does not carry.",
    Reason.NO_OUTPUTS: "The request names no outputs and the policy has no default ones.",
    Reason.NO_REQUIRED_GATES: "No gate authorises any of the requested outputs, so nothing could be verified.",
    Reason.REUSE_NOT_ALLOWED: "The request insists on reusing evidence and the policy does not allow reuse.",
    Reason.SUPERSEDED_RUN_NOT_FOUND: "The request supersedes a run that is not known.",
    Reason.SUPERSEDED_RUN_NOT_ENDED: "The request supersedes a run that has not ended; wait until it has.",
    Reason.SUPERSESSION_CYCLE: "A run cannot supersede itself, directly or through other runs.",
    Reason.EVIDENCE_MALFORMED: "A flag, index or artifact is not of the form that the gate map declares.",
    Reason.EVIDENCE_TOO_LARGE: "Evidence is larger, or takes longer to examine, than a bound that the detail names.",
    Reason.EVIDENCE_CHANGED: "An artifact kept changing while it was being read.",
    Reason.READY_SIGNAL_DRIFT: "A ready signal already exists for the run with other bytes.",
    Reason.QUARANTINE_DRIFT: "A quarantine object already exists for the run with other bytes.",
    Reason.RECORD_DRIFT: "The run record in the object store is not a prefix of the run's events.",
    Reason.EVIDENCE_MISSING: "Evidence is not there yet; the run waits for it until its evidence deadline.",
    Reason.OUTPUT_OF_ANOTHER_RUN: "An output's path needs the run id, and the engine run at the root has another one.",
    Reason.PACK_DRIFT: "The pinned interface pack in the object store is not the one that the run was admitted with.",
    Reason.SUPERSESSION_DRIFT: "A supersession object already exists for the run with other bytes.",
    Reason.ENGINE_LAUNCH_FAILED: "The engine could not be started.",
    Reason.ATTEMPT_LOG_DRIFT: "Logs of an attempt already exist in the object store with other bytes.",
    Reason.LETTER_BYTES_NOT_KEPT: "The bytes of the refused record are not kept whole, so it cannot be judged again.",
    Reason.RUN_NOT_QUARANTINED: "Only a run that is QUARANTINED can be acknowledged.",
    Reason.RUN_NOT_WAITING: "Only a run that waits for evidence can be woken.",
    Reason.CONFIGURATION_INVALID: "A profile, policy or interface pack is not valid; the daemon does not start.",
    Reason.USAGE: "The command was called with arguments it cannot use.",
    Reason.RUN_NOT_FOUND: "No run and no refused request is known under this run id.",
    Reason.RUN_NOT_SEEN: "No run is known under this id yet; a request for it may still lie on the control bus.",
    Reason.RUN_AMBIGUOUS: "More than one run id begins with what was given.",
    Reason.UNAVAILABLE: "A store, database or stream could not be reached; nothing was decided.",
    Reason.STORE_UNSAFE: "The object store does not honour conditional writes; write-once cannot be kept.",
    Reason.AUTHORITY_NOT_EMPTY: "An authority that has rows already is not rebuilt from the ledger.",
    Reason.REBUILD_UNFINISHED: "A rebuild of the authority from the ledger has begun and not ended; begin it again.",
    Reason.DAEMONS_RUN: "An authority that daemons work on is not rebuilt from the ledger; stop them first.",
    Reason.STORE_CHECKSUMS_UNSAFE: "The store does not prove that its checksums are true, and the policy takes them.",
    Reason.INTERNAL_ERROR: "Scenario Runner broke one of its own rules; this is a defect to report.",
}

CODES: frozenset[str] = frozenset(SENTENCES)
"""All codes, to tell them from other words: a row of another release may hold one that this one does not know."""
