"""From bytes to a judged record, without the authority: what is asked for, or why it is refused."""

import base64
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from scenario_runner.contracts.canonical import Json, parse_object
from scenario_runner.contracts.documents import Envelope, explain_validation
from scenario_runner.contracts.errors import RequestRefused, one_line
from scenario_runner.contracts.ids import run_id_of
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import OWN_SIGNALS, SignalKind
from scenario_runner.contracts.types import KEY_MAX_LENGTH

_ENVELOPE_KEYS = frozenset({"topic", "message_id", "attributes", "payload", "partition_key", "published_at_utc"})
_VERSION_KEYS = ("contract_version", "schema_version", "version")
_LONGEST_KIND: Final = 60
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
"""First bytes of what people send instead of JSON in UTF-8; the longer mark before the one it begins with."""
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_VERSIONS = frozenset({"0", "0.0", "0.0.0"})


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it came from the bus.

    Attributes:
        key: Stable identity of the record on its bus.
        raw: Its bytes, at most the bus's limit.
        size: Its full size in bytes; larger than ``len(raw)`` when it is over the limit.
        unreadable: Why it could not be read at all, or empty.
    """

    key: str
    raw: bytes
    size: int
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a record says it is.

    Attributes:
        document: The payload, or the whole record when it came without an envelope.
        foreign: The topic of an envelope that is not ours; nothing else of it matters then.
    """

    kind: str
    message_id: str
    document: Json
    foreign: str = ""


def decode(record: Record, topic: str, limit: int) -> Decoded:
    """Open a record's envelope, if it has one.

    Raises:
        RequestRefused: unreadable, too large, not one JSON object, a malformed envelope, unknown topic or kind.
    """
    if record.unreadable:
        raise RequestRefused(record.unreadable, Reason.RECORD_UNREADABLE)
    if record.size > limit:
        raise RequestRefused(
            f"the record holds {record.size} bytes, the bus takes at most {limit}", Reason.RECORD_TOO_LARGE
        )
    document = _parse(record.raw)
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
    """What bytes that are not JSON look like, and what to send instead; empty when they look like nothing known."""
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
            f"attributes.kind is {str(kind)[:60]!r}; RUN_REQUEST or REEMIT_REQUEST is expected",
            Reason.KIND_UNKNOWN,
        )
    message_id = document.get("message_id")
    if kind in OWN_SIGNALS:
        return Decoded(kind, one_line(message_id[:256]) if isinstance(message_id, str) else "", document)
    envelope = _envelope(document)
    _refuse_other_versions(envelope.attributes)
    return Decoded(kind, envelope.message_id, envelope.payload)


def _open_foreign(document: Json) -> Decoded:
    """A well-formed envelope of another topic is somebody else's, whatever is in it."""
    envelope = _envelope(document)
    kind = envelope.attributes.get("kind")
    shown = one_line(kind[:_LONGEST_KIND]) if isinstance(kind, str) else ""
    return Decoded(shown, envelope.message_id, {}, foreign=envelope.topic)


def _envelope(document: Json) -> Envelope:
    try:
        return Envelope.model_validate(document)
    except ValidationError as error:
        raise RequestRefused(f"envelope: {explain_validation(error)}", Reason.ENVELOPE_INVALID) from error


def run_id_hint(record: Record) -> str:
    """The run id that a refused record was about, or empty when it does not say."""
    try:
        document = parse_object(record.raw)
    except RequestRefused:
        return ""
    payload = document.get("payload", document)
    key = payload.get("run_equivalence_key") if isinstance(payload, dict) else None
    try:
        return run_id_of(key) if isinstance(key, str) and 0 < len(key) <= KEY_MAX_LENGTH else ""
    except UnicodeEncodeError:
        return ""
