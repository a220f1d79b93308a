"""Lines of a file or pipe that may never end, in bounded memory."""

import select
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from typing import Final

from scenario_runner.bus.spool import MAX_RECORD_BYTES
from scenario_runner.contracts.errors import UsageError

#: Bytes of one read: a thousand requests of an ordinary size.
_CHUNK: Final = 1 << 20
#: One byte too many shows that a line is too large; the rest of it is of no use.
_MOST: Final = MAX_RECORD_BYTES + 1


@dataclass(frozen=True, slots=True)
class Line:
    """A line.

    Attributes:
        number: From 1.
        raw: Its bytes without the line feed, at most one more than a record may hold.
        size: Its full size in bytes.
    """

    number: int
    raw: bytes
    size: int

    @property
    def is_empty(self) -> bool:
        """Whether it holds white space only."""
        return len(self.raw) == self.size and not self.raw.strip()


def read_lines(file: str) -> Iterator[Line | None]:
    """Read the lines of a file.

    Args:
        file: A path; ``-`` reads standard input.

    Yields:
        Each line, and None whenever no more has come yet: the next line may be long in coming.

    Raises:
        UsageError: The file cannot be read.
    """
    rest, size, number = b"", 0, 0  # the begin of a line whose end has not come yet, and how much of it has come
    try:
        with FileIO(0 if file == "-" else file, closefd=file != "-") as source:
            while chunk := _read(source):
                *ended, last = chunk.split(b"\n")
                for part in ended:
                    number += 1
                    yield Line(number, _joined(rest, part), size + len(part))
                    rest, size = b"", 0
                rest, size = _joined(rest, last), size + len(last)
                if not _is_ready(source):
                    yield None
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    if size:
        yield Line(number + 1, rest, size)


def _read(source: FileIO) -> bytes:
    """The next bytes that have come; empty at the end."""
    while (chunk := source.read(_CHUNK)) is None:  # whoever shares a pipe with us may have made it non-blocking
        select.select([source], [], [])
    return chunk


def _joined(rest: bytes, part: bytes) -> bytes:
    return rest if len(rest) >= _MOST else (rest + part)[:_MOST]


def _is_ready(source: FileIO) -> bool:
    """Whether a read would return at once."""
    try:
        return bool(select.select([source], [], [], 0)[0])
    except (OSError, ValueError):
        return True  # Windows can select sockets only
