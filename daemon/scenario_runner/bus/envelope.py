"""The envelope around every payload.

The envelope of a signal is a pure function of its outbox row, so sending it again gives the same bytes.
"""

from orjson import Fragment

from scenario_runner.authority.values import OutboxRow
from scenario_runner.contracts.canonical import Json, canonical_bytes, parse_json
from scenario_runner.contracts.errors import SequenceError
from scenario_runner.contracts.states import SignalKind
from scenario_runner.contracts.supersession import Supersession
from scenario_runner.contracts.times import format_micros


def envelope(topic: str, message_id: str, at_us: int, attributes: Json, partition_key: str, payload: Json) -> bytes:
    """Canonical bytes of an envelope.

    Args:
        topic: The topic.
        message_id: The message id.
        at_us: When it was published, in microseconds since the epoch.
        attributes: The attributes.
        partition_key: The partition key.
        payload: The payload.
    """
    return canonical_bytes(envelope_document(topic, message_id, at_us, attributes, partition_key, payload))


def envelope_document(
    topic: str, message_id: str, at_us: int, attributes: Json, partition_key: str, payload: Json | Fragment
) -> Json:
    """An envelope before it is rendered; arguments as those of :func:`envelope`, or with a payload that is rendered."""
    return {
        "topic": topic,
        "message_id": message_id,
        "published_at_utc": format_micros(at_us),
        "attributes": attributes,
        "partition_key": partition_key,
        "payload": payload,
    }


def signal_envelope(topic: str, row: OutboxRow) -> bytes:
    """The envelope of a signal."""
    attributes: Json = {"kind": row.kind.value, **row.attributes}
    return envelope(topic, row.message_id, row.created_us, attributes, row.partition_key, parse_json(row.payload))


def signal_file_name(message_id: str, emission: int) -> str:
    """Name of a signal's file in the topic's folder of a spool; one that repeats a message lies beside the first."""
    return f"{message_id}.reemit-{emission}.json" if emission else f"{message_id}.json"


def request_envelope(
    topic: str, message_id: str, at_us: int, run_id: str, request: Json, supersession: Supersession | None = None
) -> bytes:
    """The envelope of a run request, with the run that it corrects."""
    attributes: Json = {"kind": SignalKind.RUN_REQUEST.value, "run_id": run_id}
    if supersession is not None:
        attributes |= supersession.attributes()
    return envelope(topic, message_id, at_us, attributes, run_id, request)


def arrival_envelope(topic: str, message_id: str, at_us: int, partition_key: str, payload: Json) -> bytes:
    """The envelope of the word that evidence has come; arguments as those of :func:`envelope`."""
    return envelope(topic, message_id, at_us, {"kind": SignalKind.EVIDENCE_ARRIVED.value}, partition_key, payload)


def without_publication_time(data: bytes) -> bytes:
    """An envelope without ``published_at_utc``, the only field that may differ between two sendings of one message.

    Args:
        data: Bytes that lie on the bus. Bytes that are not an envelope are returned as they are.
    """
    try:
        value = parse_json(data)
        return canonical_bytes({**value, "published_at_utc": ""}) if isinstance(value, dict) else data
    except (ValueError, SequenceError):
        return data
