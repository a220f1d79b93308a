"""RFC 3339 instants: parsed strictly with an offset, held as microseconds since the epoch, written in UTC.

Senders write up to nine digits of a second (.NET seven, Java nine). What is finer than a microsecond is cut off, before
anything is compared or hashed.
"""

import re
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final
from zoneinfo import available_timezones

PATTERN: Final = (
    r"^[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
    r"(\.[0-9]{1,9})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
_PARTS = re.compile(PATTERN.rstrip("$"), re.ASCII)
_FINE = re.compile(r"\.([0-9]+)")
#: Nanoseconds, which Java and .NET write.
_MOST_DIGITS: Final = 9
_LEAP_SECOND = re.compile(r"[Tt][0-9]{2}:[0-9]{2}:60")
_TO_MICROSECONDS: Final = len("2026-01-01T00:00:00.000000")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Microseconds in a second.
MICROS: Final = 1_000_000
#: The first year of the pattern: an offset can lead before it, so the instant is checked as well.
_FIRST_YEAR: Final = 1000
#: The last one, likewise: years of the pattern begin with 1 or 2, and any other is a mistake.
_LAST_YEAR: Final = 2999


def parse_instant(text: str) -> datetime:
    """Parse an RFC 3339 instant with an offset and at most nine digits of a second, cut to the microsecond.

    Returns:
        The instant as an aware datetime in UTC.

    Raises:
        ValueError: naive, malformed, a leap second, or not a calendar date.
    """
    if _PARTS.fullmatch(text) is None:
        raise ValueError(_why_not(text))
    stamp, zone = (text[:-1], "Z") if text.endswith(("Z", "z")) else (text[:-6], text[-6:])
    stamp = stamp[:_TO_MICROSECONDS]
    moment = datetime.fromisoformat(stamp).replace(tzinfo=UTC)
    if zone != "Z":
        offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[4:6]))
        moment += offset if zone[0] == "-" else -offset
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise ValueError(f"is not between the years {_FIRST_YEAR} and {_LAST_YEAR} in UTC")
    return moment


def canonical_micros(text: str) -> int:
    """Microseconds since the epoch of a time that :func:`format_instant` wrote.

    Raises:
        ValueError: it writes none like this one.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None or not _FIRST_YEAR <= moment.year <= _LAST_YEAR or format_instant(moment) != text:
        raise ValueError(f"SR writes the time {text!r} in another form")
    return to_micros(moment)


def _why_not(text: str) -> str:
    """What keeps a text from being a time, for a person."""
    digits = _FINE.search(text)
    if digits is not None and len(digits[1]) > _MOST_DIGITS:
        return f"has {len(digits[1])} digits of a second; at most {_MOST_DIGITS} are taken"
    if _LEAP_SECOND.search(text):
        return "is a leap second (:60), which is not taken; write :59 or the next minute"
    return "needs an RFC 3339 time with an offset, e.g. 2026-01-01T00:00:00Z"


def format_instant(moment: datetime) -> str:
    """Write an aware datetime in UTC with microseconds, e.g. ``2026-01-01T00:00:00.000000Z``."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970-01-01T00:00:00Z, exact."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


@cache
def zones() -> frozenset[str]:
    """Names of the tz database; ``localtime`` is a file of this machine and not one of them."""
    return frozenset(available_timezones() - {"localtime"})


def from_micros(micros: int) -> datetime:
    """The UTC instant of so many microseconds since 1970-01-01T00:00:00Z."""
    return _EPOCH + timedelta(microseconds=micros)


def format_micros(micros: int) -> str:
    """Microseconds since the epoch, written as :func:`format_instant` writes."""
    return from_micros(micros).isoformat(timespec="microseconds").replace("+00:00", "Z")
