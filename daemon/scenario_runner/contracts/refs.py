"""Keys of SR's documents under the object-store root (contracts.md section 2). Refs in documents are these keys."""

from collections.abc import Mapping, Sequence
from typing import Final

PREFIX: Final = "fraud-platform/sr"
PRIVATE: Final = f"{PREFIX}/.private"
"""Temporary files, locks and probes: never part of the published truth."""


def plan_ref(run_id: str) -> str:
    """run_plan, write-once."""
    return f"{PREFIX}/run_plan/{run_id}.json"


def record_ref(run_id: str) -> str:
    """run_record, append-only."""
    return f"{PREFIX}/run_record/{run_id}.jsonl"


def status_ref(run_id: str) -> str:
    """run_status, monotonic."""
    return f"{PREFIX}/run_status/{run_id}.json"


def facts_view_ref(run_id: str) -> str:
    """run_facts_view, write-once."""
    return f"{PREFIX}/run_facts_view/{run_id}.json"


def ready_signal_ref(run_id: str) -> str:
    """ready_signal, write-once."""
    return f"{PREFIX}/ready_signal/{run_id}.json"


def quarantine_ref(run_id: str) -> str:
    """quarantine, write-once."""
    return f"{PREFIX}/quarantine/{run_id}.json"


def supersession_ref(run_id: str) -> str:
    """Which run this one corrects, write-once: beside the v0 documents."""
    return f"{PREFIX}/supersession/{run_id}.json"


def attempt_log_ref(run_id: str, attempt_no: int, stream: str) -> str:
    """What an attempt of an engine wrote to a stream (``stdout`` or ``stderr``), write-once."""
    return f"{PREFIX}/engine_attempt_logs/run_id={run_id}/attempt_no={attempt_no}/{stream}.log"


def pack_ref(digest: str) -> str:
    """The interface pack that plans are pinned to, write-once: beside the v0 documents."""
    return f"{PREFIX}/interface_pack/{digest}.json"


def engine_invocation_ref(attempt_id: str) -> str:
    """The invocation document of an attempt, write-once, for engines that read the object store."""
    return f"{PREFIX}/engine_invocations/{attempt_id}.json"


def receipt_folder(output_id: str, scope: Sequence[str], identity: Mapping[str, object]) -> str:
    """Folder of an instance receipt; ``scope`` is in the fixed order of the partitions."""
    partitions = "".join(f"/{key}={identity[key]}" for key in scope)
    return f"{PREFIX}/instance_receipts/output_id={output_id}{partitions}"


def receipt_ref(output_id: str, scope: Sequence[str], identity: Mapping[str, object]) -> str:
    """The instance receipt of an output, write-once."""
    return receipt_folder(output_id, scope, identity) + "/instance_receipt.json"


def manifest_ref(output_id: str, scope: Sequence[str], identity: Mapping[str, object]) -> str:
    """Bundle manifest beside an instance receipt, write-once."""
    return receipt_folder(output_id, scope, identity) + "/bundle_manifest.json"
