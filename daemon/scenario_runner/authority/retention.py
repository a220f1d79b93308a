"""What retention may remove from an authority, and why nothing is lost or doubled without it (docs/adr/0029).

Runs, events, attempts, acts and verdicts always stay. Of the outbox the first READY and TERMINAL of each run stay: they
are what is published again and what ``verify`` looks for. The rows of refused records stay, and of redrives.

Rows are removed in batches, each a short transaction with the count of the act that it belongs to.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from scenario_runner.authority.rows import Row

ACTION: Final = "retention"
"""``operator_actions.action`` of what retention removed; the subject is the kind."""
RUNNING: Final = "RUNNING"
"""``outcome`` while rows are being removed; it stays when the process is killed."""


class Kind(StrEnum):
    """What is removed. The key of the policy is the kind with ``_days``."""

    INTAKE_RECORDS = "intake_records"
    DEAD_LETTER_RAW = "dead_letter_raw"
    OUTBOX_SENT = "outbox_sent"
    DIGEST_REUSE = "digest_reuse"
    SPOOL_CONSUMED = "spool_consumed"

    @property
    def policy_key(self) -> str:
        """The key of the policy that says how long it is kept."""
        return f"{self.value}_days"


@dataclass(frozen=True, slots=True)
class Expiry:
    """What has expired of a kind.

    Attributes:
        before_us: Whatever is older.
        stream: Of intake records: ``kinesis/NAME/``, the beginning of the record keys of the profile's stream.
        others_before_us: Of intake records: the same for records of any other stream.
    """

    kind: Kind
    before_us: int
    stream: str = ""
    others_before_us: int = 0

    def parameters(self) -> dict[str, int | str]:
        """For the statements of the kind."""
        found: dict[str, int | str] = {"before_us": self.before_us}
        if self.kind is Kind.INTAKE_RECORDS:
            found |= {"stream": self.stream, "others_before_us": self.others_before_us}
        return found


@dataclass(frozen=True, slots=True)
class Removal:
    """What came of a batch.

    Attributes:
        removed: Rows that were removed, or whose bytes were.
        after: Where the next batch begins.
        more: False when nothing is left that has expired.
    """

    removed: int
    after: int
    more: bool


@dataclass(frozen=True, slots=True)
class Expired:
    """How much has expired of a kind, as far as it was counted.

    Attributes:
        count: So many.
        more: There may be more: no more rows were read.
        oldest_us: Time of the oldest; None when there is none.
    """

    count: int
    more: bool
    oldest_us: int | None


def removal_of(row: Row, limit: int, removed: int) -> Removal:
    """What came of a batch.

    Args:
        row: Of its page: ``examined`` rows that were read, ``taken`` of them for this batch, ``older`` of these than
            the retention, and ``last`` for the next batch. Rows lie in the order of time but for clocks that were set
            back, so a page without an older row is the end.
        limit: Most rows of the page.
        removed: What was removed.
    """
    more = row["older"] > 0 and (row["examined"] >= limit or row["taken"] < row["examined"])
    return Removal(removed, row["last"] or 0, more)


def counted(removed: int, what: str) -> str:
    """``detail`` of an act. It begins with the count, which every batch adds to."""
    return f"{removed} {what}"


def count_of(detail: str) -> int:
    """The count that a ``detail`` begins with."""
    return int(detail.split(" ", 1)[0])
