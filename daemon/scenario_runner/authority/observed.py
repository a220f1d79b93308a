"""What is observed of an authority from outside: which daemons work on it, and how much waits in it."""

from dataclasses import dataclass
from typing import Final

from scenario_runner.authority.rows import Row

MOST_COUNTED: Final = 1_000
"""Rows that are counted of each kind: more is an alarm in any case. On a cold disk each row may cost a read."""

DEADLINES: Final = (
    ("overdue", 0), ("5m", 300), ("1h", 3600), ("6h", 6 * 3600), ("1d", 24 * 3600), ("later", None),
)  # fmt: skip
"""Classes of waiting runs by the time left until their evidence deadline: name, and less than so many seconds."""


@dataclass(frozen=True, slots=True)
class DaemonRow:
    """A process of ``serve``, as it reports itself.

    Attributes:
        owner: Its name as an owner of leases.
        role: Which loops it runs.
        version: Its release.
        host: Where it runs.
        started_us: When it started.
        seen_us: When it reported itself last. One that was killed keeps its row for a while.
        now_us: The database's clock when the row was read, as the other times are: clocks of hosts differ.
    """

    owner: str
    role: str
    version: str
    host: str
    started_us: int = 0
    seen_us: int = 0
    now_us: int = 0


@dataclass(frozen=True, slots=True)
class WaitingRuns:
    """The runs that wait for evidence.

    Attributes:
        count: How many; the other values mean nothing when it is 0.
        oldest_us: When the first of them was admitted.
        next_deadline_us: The first of their deadlines.
    """

    count: int
    oldest_us: int
    next_deadline_us: int


@dataclass(frozen=True, slots=True)
class Pending:
    """Whether work is due now, by kind.

    Attributes:
        runs: A run is due, or its engine is invoked again soon.
        projections: A document can be written now, or is being written.
        signals: A signal can be published now, or is being published.
        undelivered: A document or signal of a finished run is not delivered yet, due or not.
        postponed: A run waits for another try because infrastructure failed, due or not.
    """

    runs: bool
    projections: bool
    signals: bool
    undelivered: bool
    postponed: bool

    @property
    def nothing(self) -> bool:
        """True when no work is due."""
        return not (self.runs or self.projections or self.signals)


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much waits in an authority; each number is at most :data:`MOST_COUNTED`.

    Attributes:
        now_us: The database's clock.
        waiting: Runs that wait for evidence, by the classes of :data:`DEADLINES`.
        quarantined: Runs that are QUARANTINED and that nobody has acknowledged, among the newest.
        dead_letters: Refused records whose bytes are kept.
        unsent: Signals that are not on the control bus.
        unsent_since_us: When the oldest of them was put into the outbox; None when there is none.
        unprojected: Runs that have ended or wait, and whose documents are owed.
        unprojected_since_us: When the one of them changed that changed first; None when there is none.
        due_since_us: Since when the run is due that nobody has claimed for longest; None when there is none.
        daemons: Daemons that reported themselves within the last minute.
    """

    now_us: int
    waiting: dict[str, int]
    quarantined: int
    dead_letters: int
    unsent: int
    unsent_since_us: int | None
    unprojected: int
    unprojected_since_us: int | None
    due_since_us: int | None
    daemons: int


def backlog_of(row: Row) -> Backlog:
    """A backlog from the row of the statement of that name."""
    return Backlog(
        row["now"], {name: row[f"waiting_{name}"] for name, _ in DEADLINES}, row["quarantined"], row["dead_letters"],
        row["unsent"], row["unsent_since_us"], row["unprojected"], row["unprojected_since_us"], row["due_since_us"],
        row["daemons"],
    )  # fmt: skip


def daemon_row(row: Row) -> DaemonRow:
    """A daemon as stored."""
    return DaemonRow(
        row["owner"], row["role"], row["version"], row["host"], row["started_us"], row["seen_us"], row["now"]
    )  # fmt: skip
