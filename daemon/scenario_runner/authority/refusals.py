"""REQUEST_REJECTED: the signal that tells the sender of a record that it was refused. Pure."""

from scenario_runner.authority.values import SignalDraft
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.ids import rejected_message_id
from scenario_runner.contracts.states import Disposition, SignalKind


def request_rejected(
    record_key: str, message_id: str, run_id: str, disposition: Disposition, reason_code: str, detail: str
) -> SignalDraft:
    """The signal.

    Args:
        record_key: The record.
        message_id: Of its envelope; empty without one.
        run_id: The run that it is about.
        disposition: REJECTED or CONFLICT.
        reason_code: Why.
        detail: Why, for a person.
    """
    payload = {
        "run_id": run_id,
        "disposition": disposition.value,
        "reason_code": reason_code,
        "detail": detail,
        "record_key": record_key,
    }
    if message_id:
        payload["request_message_id"] = message_id
    own_id, attributes = rejected_message_id(record_key), {"run_id": run_id}
    return SignalDraft(own_id, SignalKind.REQUEST_REJECTED, run_id, attributes, canonical_bytes(payload))
