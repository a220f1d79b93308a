"""The contract between the service and a consumer of the control bus."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class IntakeLag:
    """How far the intake is behind its bus, in seconds.

    Attributes:
        shard: The shard of the stream; ``spool`` for a spool.
        behind_seconds: How far the last read was behind the end.
        oldest_seconds: Age of the oldest record that is not disposed of.
        checkpoint_seconds: Since when something is disposed of and not checkpointed; 0 on a spool.
        silent_seconds: Since when the process that reads the shard has reported nothing; None where no other process
            does.
        busy: Whether it was at work then; else it was waiting for records.
    """

    shard: str
    behind_seconds: float
    oldest_seconds: float
    checkpoint_seconds: float = 0.0
    silent_seconds: float | None = None
    busy: bool = False


class Intake(Protocol):
    """Turns messages of the control bus into rows of the authority.

    A message is removed from the bus, or checkpointed, only after it is durably disposed of.
    """

    def open(self) -> None:
        """Check what is needed, and finish what an earlier process began; called before any loop runs.

        Raises:
            ConfigurationError: An operator must change something first.
            Unavailable: The bus does not answer.
        """
        ...

    def step(self) -> int:
        """Do what can be done now.

        Returns:
            How many messages were disposed of; 0 means that there is nothing to do at the moment.

        Raises:
            ConfigurationError: The bus is not the one that was opened.
            Unavailable: The authority or the bus does not answer; no message was lost.
        """
        ...

    def empty(self) -> bool:
        """Whether no message waits on the bus."""
        ...

    def lags(self) -> list[IntakeLag]:
        """How far this process is behind, by shard; an observation that costs little, and decides nothing.

        Raises:
            Unavailable: The bus does not answer.
        """
        ...

    def sweep(self) -> int:
        """Remove what killed processes left behind; returns how much."""
        ...

    def close(self) -> None:
        """Let what is in progress finish, and release the bus."""
        ...
