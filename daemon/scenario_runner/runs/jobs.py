"""A claimed run on its way through a batch, and the clock that the batch shares."""

from collections.abc import Callable
from dataclasses import dataclass, field

from scenario_runner.authority.base import Claim, Restored
from scenario_runner.authority.base import Outcome as RunOutcome
from scenario_runner.contracts.errors import LeaseLostError, Refusal, Unavailable
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.gates.receipts import FactsView, InstanceReceiptFile
from scenario_runner.runs.evaluation import Evaluation


class BatchClock:
    """The database's clock, read once for a stage of a batch."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self._us: int | None = None

    def us(self) -> int:
        """Microseconds since the epoch, as first read in this stage."""
        if self._us is None:
            self._us = self._read()
        return self._us

    def after(self, claim: Claim) -> int:
        """Now, but later than anything that is on record for the run."""
        return max(self.us(), claim.updated_us + 1)

    def next_stage(self) -> None:
        """Time has passed: the next question reads the clock again."""
        self._us = None


@dataclass(slots=True)
class Job:
    """A claimed run on its way to an outcome.

    Attributes:
        failure: Why it cannot go on; decides the outcome.
        outcome: What is to be committed.
        long: There is more to read than a batch should wait for.
        told: READY as the ledger tells of it, when the rows were lost.
        restored: Its rows are as the ledger tells them again, and its lease is given back.
    """

    claim: Claim
    intent: Intent
    inputs: PlanInputs
    clock: BatchClock
    evaluation: Evaluation | None = None
    receipts: list[InstanceReceiptFile] = field(default_factory=list)
    view: FactsView | None = None
    failure: Refusal | Unavailable | LeaseLostError | None = None
    outcome: RunOutcome | None = None
    long: bool = False
    told: Restored | None = None
    restored: bool = False

    @property
    def open(self) -> bool:
        """True while it goes on from stage to stage."""
        return self.failure is None and self.outcome is None and not self.long and not self.restored
