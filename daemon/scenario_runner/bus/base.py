"""The publishing contract; one contract test runs over every backend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scenario_runner.authority.base import OutboxRow


@dataclass(frozen=True, slots=True)
class Published:
    """What became of one signal.

    Attributes:
        error: Empty when it is durably on the bus.
        lasting: Trying again fails again until somebody acts.
    """

    outbox_id: int
    error: str
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class NotSeen:
    """A message could not be looked for to the end, so nobody can say whether it is on the bus; ``why`` says it."""

    why: str


class SignalPublisher(Protocol):
    """Puts signals on the control bus, at least once, always with the same message id and bytes."""

    def publish(self, rows: Sequence[OutboxRow]) -> list[Published]:
        """Publish signals in order; a failure of one is reported, not raised."""
        ...
