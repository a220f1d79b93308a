"""What the service wants of a consumer of the control bus, whichever bus it is."""

from typing import Protocol


class Intake(Protocol):
    """Turns records into rows. Nothing is taken from the bus before it is durably disposed of."""

    def open(self) -> None:
        """Check what is needed, before any loop runs.

        Raises:
            ConfigurationError: a person must change something first.
            Unavailable: the bus does not answer.
        """
        ...

    def step(self) -> int:
        """Do what can be done now; returns how many records were disposed of.

        Raises:
            Unavailable: the authority or the bus does not answer; nothing was lost.
        """
        ...

    def empty(self) -> bool:
        """True when no record waits on the bus."""
        ...

    def sweep(self) -> int:
        """Remove what killed processes left behind."""
        ...

    def close(self) -> None:
        """Let what is in flight finish, and give the bus back."""
        ...
