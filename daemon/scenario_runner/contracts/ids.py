"""Identities, as contracts.md section 1 derives them. Everything is a pure function of its arguments."""

import hashlib
import re
from typing import Final

from scenario_runner.contracts.canonical import Json, canonical_sha256
from scenario_runner.contracts.errors import UsageError

HEX32: Final = re.compile(r"[0-9a-f]{32}")
HEX64: Final = re.compile(r"[0-9a-f]{64}")


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def run_id_of(run_equivalence_key: str) -> str:
    """hex32 run id of an equivalence key."""
    return _sha("sr_run|" + run_equivalence_key)[:32]


def attempt_id_of(run_id: str, attempt_no: int) -> str:
    """hex32 id of an engine attempt; attempts are numbered from 1."""
    return _sha(f"sr_attempt|{run_id}|{attempt_no}")[:32]


def scenario_set_id(scenarios: list[str]) -> str:
    """Id that stands for a set of scenarios, whatever their order or repetition."""
    return "scnset_" + canonical_sha256(sorted(set(scenarios)))[:16]


def ready_message_id(run_id: str, bundle_hash: str) -> str:
    """hex64 message id of a READY signal (the same for every re-emit)."""
    return _sha(f"ready|{run_id}|{bundle_hash}")


def terminal_message_id(run_id: str, state: str, status: Json) -> str:
    """hex64 message id of a TERMINAL signal; ``status`` is the final run_status document."""
    return _sha(f"terminal|{run_id}|{state}|{canonical_sha256(status)}")


def rejected_message_id(record_key: str) -> str:
    """hex64 message id of a REQUEST_REJECTED signal; one per refused record."""
    return _sha(f"rejected|{record_key}")


def supersedes_message_id(old_run_id: str, new_run_id: str, purpose: str) -> str:
    """hex64 message id of a RUN_SUPERSEDES signal."""
    return _sha(f"supersedes|{old_run_id}|{new_run_id}|{purpose}")


def submission_message_id(run_id: str, request_digest: str) -> str:
    """hex64 message id of a submitted run request; the digest is the sha256 of the canonical request document.

    A request that is submitted again has the same message id.
    """
    return _sha(f"run_request|{run_id}|{request_digest}")


def arrival_message_id(engine_run_root: str, run_id: str) -> str:
    """hex64 message id of the word that evidence has come; ``run_id`` is empty when it is for all that wait there."""
    return _sha(f"evidence_arrived|{engine_run_root}|{run_id}")


def event_id_of(run_id: str, seq: int) -> str:
    """hex64 id of the seq-th event of a run's record; sequences start at 1 and have no gaps."""
    return _sha(f"event|{run_id}|{seq}")


def checked_run_id(text: str) -> str:
    """The run id a person typed.

    Raises:
        UsageError: not 32 lowercase hex characters.
    """
    if HEX32.fullmatch(text) is None:
        raise UsageError(f"{text[:80]!r} is not a run id; a run id is 32 lowercase hex characters")
    return text
