"""Decodes a message: opens its envelope and says what kind of message it is, or why it is refused."""

import base64
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from scenario_runner.contracts.canonical import Json, parse_object
from scenario_runner.contracts.documents import Envelope
from scenario_runner.contracts.errors import RequestRefused, one_line
from scenario_runner.contracts.ids import HEX32, run_id_of
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import OWN_SIGNALS, SignalKind
from scenario_runner.contracts.supersession import Supersession, supersession_of
from scenario_runner.contracts.types import KEY_MAX_LENGTH
from scenario_runner.contracts.validation import explain_validation
from scenario_runner.tracing import Context, caller_of

_ENVELOPE_KEYS = frozenset({"topic", "message_id", "attributes", "payload", "partition_key", "published_at_utc"})
_VERSION_KEYS = ("contract_version", "schema_version", "version")
#: Kinds are short words; of a longer one the begin is enough to find its sender.
_LONGEST_KIND: Final = 60
#: The same for a message id, which is 64 characters long in every message of SR.
_LONGEST_MESSAGE_ID: Final = 256
_MARKS: Final = (
    (b"\xef\xbb\xbf", "starts with a UTF-8 byte order mark; send UTF-8 without one"),
    (b"\xff\xfe\0\0", "starts with a UTF-32 byte order mark; send UTF-8"),
    (b"\0\0\xfe\xff", "starts with a UTF-32 byte order mark; send UTF-8"),
    (b"\xff\xfe", "starts with a UTF-16 byte order mark; send UTF-8"),
    (b"\xfe\xff", "starts with a UTF-16 byte order mark; send UTF-8"),
    (b"\x1f\x8b", "is compressed with gzip; send the JSON itself"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; send the JSON itself"),
    (b"PK\x03\x04", "is a zip archive; send the JSON itself"),
)
"""First bytes of what people send instead of JSON in UTF-8; a mark stands before every mark that it begins with."""
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_VERSIONS = frozenset({"0", "0.0", "0.0.0"})


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it came from the control bus.

    Attributes:
        key: Stable identity of the message on its bus (``record_key`` of the authority).
        raw: Its bytes, at most as many as the bus allows.
        size: Its full size in bytes; larger than ``len(raw)`` when it is over the limit.
        unreadable: Why it could not be read at all; empty when it could.
    """

    key: str
    raw: bytes
    size: int
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a message says about itself.

    Attributes:
        kind: ``attributes.kind``; RUN_REQUEST for a request without an envelope.
        message_id: ``message_id`` of the envelope; empty without one.
        document: The payload, or the whole message when it came without an envelope.
        supersession: What its attributes say of a run that it corrects.
        caller: The trace context in its attributes; one that is malformed is no reason to refuse a request.
        foreign: The topic of an envelope of another topic than ours; empty otherwise. The document is then empty.
    """

    kind: str
    message_id: str
    document: Json
    foreign: str = ""
    supersession: Supersession | None = None
    caller: Context | None = None


def decode(message: Message, topic: str, limit: int) -> Decoded:
    """Open the envelope of a message, if it has one.

    Args:
        message: The message.
        topic: The control topic.
        limit: Size of the largest message in bytes.

    Raises:
        RequestRefused: Unreadable, too large, not one JSON object, a malformed envelope, unknown topic or kind.
    """
    if message.unreadable:
        raise RequestRefused(message.unreadable, Reason.RECORD_UNREADABLE)
    if message.size > limit:
        raise RequestRefused(
            f"the record holds {message.size} bytes, the bus takes at most {limit}", Reason.RECORD_TOO_LARGE
        )
    document = _parse(message.raw)
    if _ENVELOPE_KEYS.isdisjoint(document):
        return Decoded(SignalKind.RUN_REQUEST.value, "", document)
    return _open(document, topic)


def _refuse_other_versions(attributes: Json) -> None:
    for key in _VERSION_KEYS:
        if key in attributes and str(attributes[key]).removeprefix("v") not in _VERSIONS:
            raise RequestRefused(
                f"attributes.{key} is {str(attributes[key])[:40]!r}; this daemon speaks contract version 0",
                Reason.KIND_UNKNOWN,
            )


def _parse(raw: bytes) -> Json:
    try:
        return parse_object(raw)
    except RequestRefused as refused:
        seen = _recognised(raw)
        if not seen:
            raise
        raise RequestRefused(f"{seen} ({refused.detail})", Reason.RECORD_NOT_JSON) from refused


def _recognised(raw: bytes) -> str:
    """What bytes that are not JSON look like, and what to send instead; empty when that is not recognised."""
    for mark, seen in _MARKS:
        if raw.startswith(mark):
            return seen
    if not raw.strip():
        return "the record is empty; send one JSON object"
    if b"\0" in raw[:4] and b"{" in raw[:4]:
        return "looks like UTF-16 or UTF-32 without a byte order mark; send UTF-8"
    return "looks like base64 of JSON; send the JSON itself" if _is_base64_of_json(raw) else ""


def _is_base64_of_json(raw: bytes) -> bool:
    text = b"".join(raw.strip().strip(b'"').split()).translate(_URL_SAFE)
    try:
        inside = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError:
        return False
    return inside.lstrip().startswith((b"{", b"["))


def _open(document: Json, topic: str) -> Decoded:
    if document.get("topic", topic) != topic:
        return _open_foreign(document)
    attributes = document.get("attributes")
    kind = attributes.get("kind") if isinstance(attributes, dict) else None
    if not isinstance(kind, str) or kind not in set(SignalKind):
        raise RequestRefused(
            f"attributes.kind is {str(kind)[:60]!r}; RUN_REQUEST, REEMIT_REQUEST or EVIDENCE_ARRIVED is expected",
            Reason.KIND_UNKNOWN,
        )
    message_id = document.get("message_id")
    if kind in OWN_SIGNALS:
        return Decoded(
            kind, one_line(message_id[:_LONGEST_MESSAGE_ID]) if isinstance(message_id, str) else "", document
        )
    envelope = _envelope(document)
    _refuse_other_versions(envelope.attributes)
    supersession = supersession_of(envelope.attributes) if kind == SignalKind.RUN_REQUEST else None
    return Decoded(
        kind, envelope.message_id, envelope.payload, supersession=supersession, caller=caller_of(envelope.attributes)
    )


def _open_foreign(document: Json) -> Decoded:
    """Decode an envelope of another topic: the stream is shared, so its payload is none of our business."""
    envelope = _envelope(document)
    kind = envelope.attributes.get("kind")
    shown = one_line(kind[:_LONGEST_KIND]) if isinstance(kind, str) else ""
    return Decoded(shown, envelope.message_id, {}, foreign=envelope.topic)


def _envelope(document: Json) -> Envelope:
    try:
        return Envelope.model_validate(document)
    except ValidationError as error:
        raise RequestRefused(f"envelope: {explain_validation(error)}", Reason.ENVELOPE_INVALID) from error


def run_id_hint(message: Message) -> str:
    """The run id that a refused message was about; empty when it does not say."""
    try:
        document = parse_object(message.raw)
    except RequestRefused:
        return ""
    payload = document.get("payload", document)
    attributes = document.get("attributes")
    if isinstance(attributes, dict) and attributes.get("kind") == SignalKind.REEMIT_REQUEST:
        run_id = payload.get("run_id") if isinstance(payload, dict) else None
        return run_id if isinstance(run_id, str) and HEX32.fullmatch(run_id) else ""
    if isinstance(attributes, dict) and attributes.get("kind") == SignalKind.EVIDENCE_ARRIVED:
        return ""  # it asks for nothing, so nobody waits to hear of a refusal
    key = payload.get("run_equivalence_key") if isinstance(payload, dict) else None
    try:
        return run_id_of(key) if isinstance(key, str) and 0 < len(key) <= KEY_MAX_LENGTH else ""
    except UnicodeEncodeError:
        return ""
