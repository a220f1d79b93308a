"""RFC 3339 instants: parsed strictly with an offset, held as microseconds since the epoch, written in UTC."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

PATTERN: Final = (
    r"^[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
    r"(\.[0-9]{1,6}0{0,3})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
_PARTS = re.compile(PATTERN.rstrip("$"), re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROS: Final = 1_000_000
_FIRST_YEAR: Final = 1000
_LAST_YEAR: Final = 2999


def parse_instant(text: str) -> datetime:
    """Parse an RFC 3339 instant with an offset, exact to the microsecond (zeros may follow).

    Returns:
        The instant as an aware datetime in UTC.

    Raises:
        ValueError: naive, malformed, or not a calendar date.
    """
    if _PARTS.fullmatch(text) is None:
        raise ValueError("needs an RFC 3339 time with an offset, e.g. 2026-01-01T00:00:00Z")
    stamp, zone = (text[:-1], "Z") if text.endswith(("Z", "z")) else (text[:-6], text[-6:])
    moment = datetime.fromisoformat(stamp).replace(tzinfo=UTC)
    if zone != "Z":
        offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[4:6]))
        moment += offset if zone[0] == "-" else -offset
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise ValueError(f"is not between the years {_FIRST_YEAR} and {_LAST_YEAR} in UTC")
    return moment


def format_instant(moment: datetime) -> str:
    """Write an aware datetime in UTC with microseconds, e.g. ``2026-01-01T00:00:00.000000Z``."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970-01-01T00:00:00Z, exact."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_micros(micros: int) -> datetime:
    """The UTC instant of so many microseconds since 1970-01-01T00:00:00Z."""
    return _EPOCH + timedelta(microseconds=micros)


def format_micros(micros: int) -> str:
    """Microseconds since the epoch, written as :func:`format_instant` writes."""
    return format_instant(from_micros(micros))
