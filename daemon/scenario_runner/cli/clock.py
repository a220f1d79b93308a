"""Times as people read them: ``17:30:06 UTC (42 s ago)``, ``in 33 min``. JSON has them as they are stored."""

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from scenario_runner.audit.explain import ROUNDS
from scenario_runner.contracts.times import MICROS, from_micros, parse_instant, to_micros

#: Seconds of each unit; a day of 24 hours, since these are durations.
_SECOND, _MINUTE, _HOUR, _DAY = 1, 60, 3600, 86_400
#: Units, the largest first, each with the seconds from which it is used: two of a unit say more than one of the next.
_UNITS: Final = ((_DAY, "d", 2 * _DAY), (_HOUR, "h", 2 * _HOUR), (_MINUTE, "min", 2 * _MINUTE), (_SECOND, "s", 0))
#: Names of the fields of status and of lists that hold a time, as people read them.
LABELS: Final = {
    "updated_at_utc": "updated", "admitted_at_utc": "admitted", "received_at_utc": "received",
    "evidence_deadline_utc": "deadline", "next_look_utc": "due", "published_at_utc": "published",
    "last_sent_at_utc": "last_sent",
}  # fmt: skip
IN_ROUNDS: Final = "root looked at in rounds"
"""Stands in the place of the time when a run is due that is examined when something comes to its root."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Writes times against one moment.

    Attributes:
        local: Write them in the zone of this machine.
        now_us: The moment; microseconds since the epoch.
    """

    local: bool = False
    now_us: int = field(default_factory=lambda: time.time_ns() // 1000)

    def moment(self, text: str) -> str:
        """A stored time with how long ago it was, or when it will be."""
        found = _micros(text)
        return text if found is None else f"{self.stamp(text)} ({self._relative(found)})"

    def deadline(self, text: str) -> str:
        """A stored time as the time that is left, or that is over."""
        found = _micros(text)
        if found is None:
            return text
        relative = self._relative(found) if found > self.now_us else f"passed {self._relative(found)}"
        return f"{relative} ({self.stamp(text)})"

    def stamp(self, text: str) -> str:
        """A stored time of day; with the date on another day."""
        found = _micros(text)
        if found is None:
            return text
        at, today = self._zoned(found), self._zoned(self.now_us)
        form = "%H:%M:%S %Z" if at.date() == today.date() else "%Y-%m-%d %H:%M:%S %Z"
        return at.strftime(form)

    def _zoned(self, micros: int) -> datetime:
        return from_micros(micros).astimezone() if self.local else from_micros(micros)

    def _relative(self, micros: int) -> str:
        seconds = (micros - self.now_us) / MICROS
        return f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"

    def readable(self, document: dict[str, Any]) -> dict[str, Any]:
        """A document whose times are written for people, under the names of :data:`LABELS`."""
        found = {LABELS.get(key, key): self._value(key, value) for key, value in document.items()}
        return found | {LABELS["next_look_utc"]: IN_ROUNDS} if document.get("next_look") == ROUNDS else found

    def _value(self, key: str, value: Any) -> Any:  # noqa: ANN401 - a value of a document
        if key not in LABELS or not isinstance(value, str):
            return value
        return self.deadline(value) if key == "evidence_deadline_utc" else self.moment(value)


def duration(seconds: float) -> str:
    """A time span in the largest unit that it has two of, e.g. ``42 s``, ``33 min``."""
    whole = int(seconds)
    unit, name = next((unit, name) for unit, name, least in _UNITS if whole >= least)
    return f"{whole // unit} {name}"


def _micros(text: str) -> int | None:
    """Microseconds since the epoch; None when a text is no time."""
    try:
        return to_micros(parse_instant(text))
    except ValueError:
        return None
