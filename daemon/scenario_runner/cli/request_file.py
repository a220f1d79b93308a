"""A run request that a person holds in a file, for ``submit`` and ``plan``."""

import sys
from typing import NamedTuple

from scenario_runner.bus.spool import MAX_RECORD_BYTES
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.documents import RunRequest, parse_run_request
from scenario_runner.contracts.errors import RequestRefused, UsageError
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import SignalKind
from scenario_runner.contracts.supersession import Supersession
from scenario_runner.intake.decode import Message, decode


class Requested(NamedTuple):
    """A request that was checked.

    Attributes:
        document: The request as it was written.
        supersession: What its envelope says of a run that it corrects.
    """

    request: RunRequest
    document: Json
    supersession: Supersession | None = None


def read_request(file: str, topic: str) -> Requested:
    """The request in a file, bare or in an envelope, checked.

    Args:
        file: A path; ``-`` reads standard input.
        topic: The control topic of the profile.

    Raises:
        RequestRefused: the document is not a valid run request of this topic.
        UsageError: the file cannot be read.
    """
    raw = read_bytes(file)
    return checked_request(Message(file, raw, len(raw)), topic)


def checked_request(message: Message, topic: str) -> Requested:
    """The request in a message, bare or in an envelope, checked.

    Raises:
        RequestRefused: the document is not a valid run request of this topic.
    """
    decoded = decode(message, topic, MAX_RECORD_BYTES)
    if decoded.foreign:
        raise RequestRefused(
            f"the envelope's topic is {decoded.foreign!r}; this profile serves {topic!r}", Reason.KIND_UNKNOWN
        )
    if decoded.kind != SignalKind.RUN_REQUEST:
        raise RequestRefused(f"the document is a {decoded.kind}, a run request is needed", Reason.KIND_NOT_SERVED)
    return Requested(parse_run_request(decoded.document), decoded.document, decoded.supersession)


def read_bytes(file: str) -> bytes:
    """The bytes of a file, or of standard input for ``-``: at most one more than the control bus takes.

    Raises:
        UsageError: the file cannot be read.
    """
    most = MAX_RECORD_BYTES + 1  # one byte too many shows that it is too large; the rest of it is of no use
    if file == "-":
        return sys.stdin.buffer.read(most)
    try:
        with open(file, "rb") as stream:
            return stream.read(most)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
