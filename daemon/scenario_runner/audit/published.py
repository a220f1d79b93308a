"""Checks of what was published: the facts view in itself, its READY signal, and the run's status."""

from collections.abc import Callable

from pydantic import ValidationError

from scenario_runner.audit.documents import PublishedDocuments, PublishedView
from scenario_runner.audit.findings import Findings
from scenario_runner.bus.base import SearchInconclusive
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes, parse_json
from scenario_runner.contracts.documents import Envelope, ReadySignal, RunFactsView
from scenario_runner.contracts.errors import SequenceError
from scenario_runner.contracts.ids import ready_message_id
from scenario_runner.contracts.states import RunState, SignalKind
from scenario_runner.contracts.validation import explain_validation
from scenario_runner.gates.receipts import ABSENT_NOTE, bundle_hash_of

ReadSignal = Callable[[str, str], bytes | SearchInconclusive | None]
"""Envelope bytes on the control bus for a message id and a run id; None when there are none, or why nobody can say."""


def check_form(data: bytes, found: Findings) -> PublishedView | None:
    """Check that some bytes are a facts view in canonical form; None when they are no facts view at all."""
    check = "facts view is well formed"
    try:
        document = parse_json(data)
        RunFactsView.model_validate(document)
        canonical = canonical_bytes(document)
    except ValidationError as error:
        found.expect(check, ok=False, detail=explain_validation(error))
        return None
    except (ValueError, SequenceError) as error:
        found.expect(check, ok=False, detail=str(error))
        return None
    found.expect(check, ok=True)
    found.expect("facts view is canonical", ok=canonical == data, detail="its bytes are not those that SR writes")
    return PublishedView(data, document)


def check_identity(view: PublishedView, found: Findings) -> None:
    """Check that a facts view agrees with itself: one run, its own refs, its own bundle hash, only passed gates."""
    document, run_id = view.document, view.run_id
    found.expect("pins name the run", ok=document["pins"]["run_id"] == run_id)
    wanted = {"plan_ref": refs.plan_ref, "record_ref": refs.record_ref, "status_ref": refs.status_ref}
    for key, ref in wanted.items():
        actual = document[key]
        found.expect(f"{key} is the run's", ok=actual == ref(run_id), detail=f"{actual} is not {ref(run_id)}")
    recomputed = bundle_hash_of(
        document["locators"], document["gate_receipts"], document.get("instance_receipts", []), document["policy_rev"]
    )
    found.expect_equal("bundle_hash recomputes", expected=document["bundle_hash"], actual=recomputed)
    located = {item["output_id"] for item in document["locators"]}
    notes = [note for note in document.get("evidence_notes", []) if note.startswith(ABSENT_NOTE)]
    absent = {note.removeprefix(ABSENT_NOTE) for note in notes}
    found.expect(
        "intended outputs are located or declared absent",
        ok=bool(located) and located | absent == set(view.outputs) and not located & absent,
    )
    passed = all(item["status"] == "PASS" for item in document["gate_receipts"])
    found.expect("every gate receipt is a PASS", ok=passed)


def check_ready(
    view: PublishedView, documents: PublishedDocuments, topic: str, read_signal: ReadSignal, found: Findings
) -> Envelope | None:
    """Check that READY, in the ledger and on the control bus, points at this very facts view.

    Returns:
        READY's envelope; None when it could not be found, or is none.
    """
    expected = {
        "run_id": view.run_id,
        "facts_view_ref": refs.facts_view_ref(view.run_id),
        "bundle_hash": view.document["bundle_hash"],
    }
    stored = documents.read_object(refs.ready_signal_ref(view.run_id))
    found.expect("ready_signal points at this facts view", ok=_is_ready(stored, expected))
    message_id = ready_message_id(view.run_id, view.document["bundle_hash"])
    envelope = _ready_envelope(message_id, view.run_id, read_signal, found)
    if envelope is None:
        return None
    found.expect(
        "READY's envelope is the run's",
        ok=(envelope.topic, envelope.message_id, envelope.partition_key) == (topic, message_id, view.run_id)
        and envelope.attributes.get("kind") in (SignalKind.READY, SignalKind.READY_REEMIT),
    )
    found.expect("READY's payload points at this facts view", ok=_is_ready(envelope.payload, expected))
    claimed = envelope.attributes.get("facts_view_digest")
    found.expect_equal("READY's facts_view_digest is this facts view's", expected=claimed, actual=view.digest)
    return envelope


def _ready_envelope(message_id: str, run_id: str, read_signal: ReadSignal, found: Findings) -> Envelope | None:
    check = "READY is on the control bus"
    raw = read_signal(message_id, run_id)
    if isinstance(raw, SearchInconclusive):
        found.not_possible(check, f"message {message_id}: {raw.why}")
        return None
    found.expect(check, ok=raw is not None, detail=f"no message {message_id}")
    if raw is None:
        return None
    try:
        return Envelope.model_validate(parse_json(raw))
    except ValidationError as error:
        detail = explain_validation(error)
    except ValueError as error:
        detail = str(error)
    found.expect("READY on the control bus is well formed", ok=False, detail=detail)
    return None


def _is_ready(document: Json | None, expected: Json) -> bool:
    try:
        signal = ReadySignal.model_validate(document)
    except ValidationError:
        return False
    return {key: getattr(signal, key) for key in expected} == expected


def check_status(view: PublishedView, documents: PublishedDocuments, found: Findings) -> None:
    """Check that the run's status says READY."""
    status = documents.read_object(refs.status_ref(view.run_id)) or {}
    found.expect("run_status is READY", ok=status.get("state") == RunState.READY)
