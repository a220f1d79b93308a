"""Times on the command line: ``2026-11-26T17:30:00Z``, ``2026-11-26`` (midnight UTC), or ``2h`` (so long ago)."""

import re
import time
from typing import Final

from scenario_runner.contracts.errors import UsageError
from scenario_runner.contracts.times import MICROS, parse_instant, to_micros

_AGO: Final = re.compile(r"([0-9]{1,6})(s|m|h|d)", re.ASCII)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def micros_of(option: str, text: str | None, default: int) -> int:
    """Microseconds since the epoch of a time that a person gives.

    Args:
        option: Its name, for messages.
        text: The time; None when none is given.
        default: What is meant then.

    Raises:
        UsageError: it is no time.
    """
    if text is None:
        return default
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return time.time_ns() // 1000 - int(ago[1]) * _SECONDS[ago[2]] * MICROS
    try:
        return to_micros(parse_instant(f"{text}T00:00:00Z" if _DATE.fullmatch(text) else text))
    except ValueError as error:
        raise UsageError(
            f"{option} {text[:40]!r} {error}; a date (2026-01-31), or so long ago (90s, 15m, 2h, 7d) is taken too"
        ) from error
