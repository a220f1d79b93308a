"""The contract of publishing; one contract test runs over every backend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scenario_runner.authority.values import OutboxRow


@dataclass(frozen=True, slots=True)
class PublishResult:
    """The result of publishing one signal.

    Attributes:
        outbox_id: The signal.
        error: Why it is not on the bus; empty when it is, durably.
        permanent: Whether it fails again until an operator acts.
        receipt: What a stream answered, as JSON of ``{stream, shard_id, sequence_number}``: where the record lies.
            Empty on a spool, where the message id and the number of the emission name the file.
    """

    outbox_id: int
    error: str
    permanent: bool = False
    receipt: str = ""


@dataclass(frozen=True, slots=True)
class SearchInconclusive:
    """A search that ended early, so that nobody can say whether the message is on the bus.

    Attributes:
        why: Why it ended.
    """

    why: str


class SignalPublisher(Protocol):
    """Puts signals on the control bus, at least once, always with the same message id and the same bytes."""

    def publish(self, rows: Sequence[OutboxRow]) -> list[PublishResult]:
        """Publish signals; those of one run in their order.

        Args:
            rows: Rows of the outbox, at least one.

        Returns:
            One result for each row, in the order of the rows. A failure is a result, not an exception.
        """
        ...

    def check(self) -> None:
        """Check that the bus is there, with one cheap question; nothing is published.

        Raises:
            ConfigurationError: An operator must change something first.
            Unavailable: The bus does not answer.
        """
        ...
