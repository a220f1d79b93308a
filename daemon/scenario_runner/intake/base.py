"""The contract between the service and a consumer of the control bus."""

from typing import Protocol


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

    def sweep(self) -> int:
        """Remove what killed processes left behind; returns how much."""
        ...

    def close(self) -> None:
        """Let what is in progress finish, and release the bus."""
        ...
