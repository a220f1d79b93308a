"""Event notifications of S3: which objects have come, from the body of a message of a queue. Pure.

S3 sends its events to the queue itself, through SNS (as they are, or in an envelope), or through EventBridge; all are
read. An object that was restored from an archive has come too: until then it could not be read. The bytes are hostile:
whoever may write to the queue wrote them. What they name is only looked for among the roots where runs wait.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import unquote_plus

from scenario_runner.contracts.canonical import Json, parse_object
from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.types import TEXT_PATTERN

#: Bytes of the longest key of S3.
_LONGEST_KEY: Final = 1024
#: Events of one message: S3 sends one, and a message of thousands is none of S3.
_MOST_EVENTS: Final = 100
#: Folders of a key, from the allowed root on, that are looked for: engines nest far less, and each costs a look-up.
_MOST_FOLDERS: Final = 16
_CAME: Final = re.compile(r"(s3:)?(ObjectCreated:.*|ObjectRestore:Completed)", re.ASCII | re.DOTALL)
"""``eventName`` of S3's own events; the prefix is that of other makes."""
_CAME_BY_BRIDGE: Final = ("Object Created", "Object Restore Completed")
"""``detail-type`` of the same through EventBridge."""
#: A name of a type in a message is a word; what is longer is none, and would make the log line long.
_LONGEST_TYPE: Final = 60
_PRINTABLE: Final = re.compile(TEXT_PATTERN)


class NoEventError(Exception):
    """A message is no event notification of S3; ``args[0]`` says why."""


def created_objects(body: str) -> list[str]:
    """The objects that a message says have been created, as ``s3://bucket/key``.

    Args:
        body: The body of a message.

    Returns:
        No object where the message is about something else: a removal, or the test event that S3 sends when
        notifications are switched on.

    Raises:
        NoEventError: It is no event notification of S3.
    """
    document = _parse(body)
    if document.get("Type") == "Notification" and "Message" in document:
        document = _parse(document["Message"])
    if document.get("source") == "aws.s3":
        return _of_eventbridge(document)
    if document.get("Event") == "s3:TestEvent":
        return []
    records = document.get("Records")
    if records is None and isinstance(kind := document.get("Type"), str):
        raise NoEventError(f"it is a {kind[:_LONGEST_TYPE]!r} of SNS, which holds no event")
    if not isinstance(records, list) or len(records) > _MOST_EVENTS:
        raise NoEventError(f"it holds no list of at most {_MOST_EVENTS} events")
    return [place for record in records for place in _of_record(record)]


def roots_above(place: str, allowed: Sequence[str]) -> Iterator[str]:
    """Every place that may be the engine run root of an object, in the normal form of ``intake/roots.py``.

    Args:
        place: The object.
        allowed: Absolute paths and ``s3://`` URIs of the allowed engine roots.
    """
    for root in allowed:
        if not place.startswith(root.rstrip("/") + "/"):
            continue
        yield root
        location = root
        for folder in place.removeprefix(root).strip("/").split("/")[:-1][:_MOST_FOLDERS]:
            location = f"{location}/{folder}"
            yield location


def _parse(text: object) -> Json:
    if not isinstance(text, str):
        raise NoEventError("it holds no text")
    try:
        return parse_object(text.encode())
    except RequestRefused as error:
        raise NoEventError(error.detail) from error
    except UnicodeEncodeError as error:
        raise NoEventError("it is no text of UTF-8") from error


def _of_eventbridge(document: Json) -> list[str]:
    if document.get("detail-type") not in _CAME_BY_BRIDGE:
        return []
    return [_place(document.get("detail"), encoded=False)]


def _of_record(record: object) -> list[str]:
    if not isinstance(record, dict) or record.get("eventSource") not in ("aws:s3", "minio:s3"):
        raise NoEventError("an event is not of S3")
    name = record.get("eventName")
    if not isinstance(name, str) or _CAME.fullmatch(name) is None:
        return []
    return [_place(record.get("s3"), encoded=True)]


def _place(about: object, *, encoded: bool) -> str:
    """The object of an event.

    Args:
        about: Where the event names it.
        encoded: Whether its key is encoded as in a URL.
    """
    bucket = _inside(about, "bucket", "name")
    key = _inside(about, "object", "key")
    if encoded:
        try:
            key = unquote_plus(key, errors="strict")
        except UnicodeDecodeError as error:
            raise NoEventError("the key of an object is not UTF-8") from error
    place = f"s3://{bucket}/{key}"
    if not 0 < len(key) <= _LONGEST_KEY or "/" in bucket or _PRINTABLE.fullmatch(place) is None:
        raise NoEventError("an event names no object whose evidence could be waited for")
    try:
        place.encode()
    except UnicodeEncodeError as error:
        raise NoEventError("the key of an object is no text") from error
    return place


def _inside(about: object, part: str, name: str) -> str:
    inner = about.get(part) if isinstance(about, dict) else None
    value = inner.get(name) if isinstance(inner, dict) else None
    if not isinstance(value, str):
        raise NoEventError(f"an event has no {part}.{name}")
    return value
