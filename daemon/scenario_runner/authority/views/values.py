"""What the views are asked for, and the rows that they answer with."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from scenario_runner.contracts.errors import UsageError
from scenario_runner.contracts.states import Disposition, RunState

FOREVER_US: Final = 1 << 62
"""A time after every time that the authority holds."""
#: States that few runs stay in while many pass them, or that a person must see to: they have an index.
INDEXED_STATES: Final = (RunState.WAITING_EVIDENCE, RunState.FAILED, RunState.QUARANTINED)
MOVING_STATES: Final = (RunState.PLANNED, RunState.EXECUTING, RunState.VERIFYING)
"""States of runs that a runner works on or will take next."""


class Order(StrEnum):
    """The order of a list of runs. It follows from the filter: each order is that of an index."""

    ADMITTED = "admitted"
    KEY = "key"
    DUE = "due"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last row of a page: the next page begins after it.

    Attributes:
        order: Of the list.
        at_us: Value of the row in that order; 0 when the order is that of the keys.
        run_id: The row.
    """

    order: Order
    at_us: int
    run_id: str

    def __str__(self) -> str:
        """As a person hands it on, e.g. ``admitted-1767225600000000-0f3c...``."""
        return f"{self.order}-{self.at_us}-{self.run_id}"


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list; everything that is given must hold.

    Attributes:
        state: A state.
        reason: A reason code.
        key: Beginning of the run equivalence key.
        missing: Beginning of a path that is missing, as ``explain`` shows it. Waiting runs only.
        since_us: Admitted then or later.
        until_us: Admitted before.
        by_deadline: Order waiting runs by their deadline, the next one first.
        acked: QUARANTINED runs that somebody has acknowledged, or that nobody has; None for both.
    """

    state: RunState | None = None
    reason: str = ""
    key: str = ""
    missing: str = ""
    since_us: int = 0
    until_us: int = FOREVER_US
    by_deadline: bool = False
    acked: bool | None = None

    def __post_init__(self) -> None:
        """Refuse a filter that no run can meet.

        Raises:
            UsageError: only waiting runs miss evidence and have a deadline that still counts.
        """
        if (self.missing or self.by_deadline) and self.state not in (None, RunState.WAITING_EVIDENCE):
            raise UsageError(f"only runs that wait for evidence have that, and the state asked for is {self.state}")
        if self.acked is not None and self.state is not RunState.QUARANTINED:
            raise UsageError("only runs that are QUARANTINED are acknowledged")
        if self.since_us > self.until_us:
            raise UsageError("the end of the time asked for is before its beginning")

    @property
    def waiting(self) -> bool:
        """True when only waiting runs can meet it, whatever it says of the state."""
        return bool(self.missing) or self.by_deadline or self.state is RunState.WAITING_EVIDENCE

    @property
    def order(self) -> Order:
        """The order of the list."""
        if self.by_deadline:
            return Order.DEADLINE
        if self.waiting or self.reason or self.state in INDEXED_STATES:
            return Order.ADMITTED
        if self.state in MOVING_STATES:
            return Order.DUE
        return Order.KEY if self.key else Order.ADMITTED


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run without what it was asked for."""

    run_id: str
    run_equivalence_key: str
    state: RunState
    reason_code: str
    admitted_us: int
    deadline_us: int
    updated_us: int
    due_us: int | None
    absent_root: str = ""

    def cursor(self, order: Order) -> Cursor:
        """The place after it."""
        places = {Order.ADMITTED: self.admitted_us, Order.DUE: self.due_us or 0, Order.DEADLINE: self.deadline_us}
        return Cursor(order, places.get(order, 0), self.run_id)


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters to list; everything that is given must hold.

    Attributes:
        reason: A reason code.
        record_key: Beginning of the record key, e.g. a stream with a shard.
        since_us: Received then or later.
        until_us: Received before.
    """

    reason: str = ""
    record_key: str = ""
    since_us: int = 0
    until_us: int = FOREVER_US

    def __post_init__(self) -> None:
        """Refuse a filter that no letter can meet.

        Raises:
            UsageError: the time ends before it begins.
        """
        if self.since_us > self.until_us:
            raise UsageError("the end of the time asked for is before its beginning")


@dataclass(frozen=True, slots=True)
class Letter:
    """A record of the control bus that was refused.

    Attributes:
        number: Its number in the authority; grows with time.
        raw_size: Bytes of the record as it was received.
        raw: What is kept of them; None in lists, and when nothing is kept.
        raw_removed_us: When retention removed them; None when it did not.
    """

    number: int
    record_key: str
    message_id: str
    kind: str
    run_id: str
    disposition: Disposition
    reason_code: str
    detail: str
    received_us: int
    raw_sha256: str
    raw_size: int
    raw: bytes | None = None
    raw_removed_us: int | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run that a person may mean.

    Attributes:
        run_id: Its id.
        run_equivalence_key: Its key; empty when only refused requests name the id.
    """

    run_id: str
    run_equivalence_key: str = ""


def prefix_end(prefix: str) -> str:
    """The first text after all that begin with a prefix, in the order of code points, which is that of UTF-8 bytes."""
    highest, low, high = 0x10FFFF, 0xD800, 0xDFFF  # surrogates are no characters
    for index in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[index]) + 1
        if code <= highest:
            return prefix[:index] + chr(high + 1 if low <= code <= high else code)
    return chr(highest) * 600  # longer than any key
