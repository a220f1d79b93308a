"""From bytes to a judged record, without the authority: what is asked for, or why it is refused."""

from dataclasses import dataclass

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
    """

    kind: str
    message_id: str
    document: Json


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
    document = parse_object(record.raw)
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


def _open(document: Json, topic: str) -> Decoded:
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
    try:
        envelope = Envelope.model_validate(document)
    except ValidationError as error:
        raise RequestRefused(f"envelope: {explain_validation(error)}", Reason.ENVELOPE_INVALID) from error
    _refuse_other_versions(envelope.attributes)
    if envelope.topic != topic:
        raise RequestRefused(
            f"the envelope's topic is {envelope.topic[:80]!r}; this daemon serves {topic!r}",
            Reason.KIND_UNKNOWN,
        )
    return Decoded(kind, envelope.message_id, envelope.payload)


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
