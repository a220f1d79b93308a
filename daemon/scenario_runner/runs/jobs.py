"""A claimed run on its way through a batch, and the clock that the batch shares."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from scenario_runner.authority.base import Claim, Transition
from scenario_runner.contracts.canonical import Json, canonical_part, canonical_sha256
from scenario_runner.contracts.errors import LeaseLostError, Refusal, Unavailable
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.gates.receipts import Attested, FactsView, InstanceReceiptFile
from scenario_runner.runs.evaluation import Evaluation

Failed = Refusal | Unavailable | LeaseLostError


class BatchClock:
    """The database's clock: when the examination of a batch began, and what it shows later, read once for each stage.

    Deadlines are compared with ``began_us``; what is put on record carries a time that was read after the examination.

    Args:
        read: Reads it.
        began_us: When the examination began, microseconds since the epoch.
    """

    def __init__(self, read: Callable[[], int], began_us: int) -> None:
        self._read = read
        self.began_us = began_us
        self._us: int | None = None

    def us(self) -> int:
        """Microseconds since the epoch in this stage."""
        if self._us is None:
            self._us = self._read()
        return self._us

    def after(self, claim: Claim) -> int:
        """Now, but later than anything that is on record for the run."""
        return max(self.us(), claim.updated_us + 1)

    def next_stage(self) -> None:
        """Time has passed: the next question reads the clock again."""
        self._us = None


@dataclass(frozen=True, slots=True)
class Proof:
    """What runs with the same evidence put on record alike, made once for all of a batch.

    Attributes:
        passed: Details of GATES_PASSED; ``passed_digest`` is theirs.
        committed: Details of RECEIPTS_COMMITTED.
    """

    attested: Attested
    passed: Json
    passed_digest: str
    committed: Json


def proof_of(attested: Attested, report: Json) -> Proof:
    """The proof that an evaluation's report and what it attests give."""
    receipts = canonical_part({item.output_id: item.ref for item in attested.receipts})
    passed = {"gates": canonical_part(report["gates"]), "receipts": receipts}
    committed = {"outputs": canonical_part(report["outputs"]), "receipts": receipts}
    return Proof(attested, passed, canonical_sha256(passed), committed)


@dataclass(slots=True)
class Job:
    """A claimed run on its way to an outcome.

    Attributes:
        failure: Why it cannot go on; decides the outcome.
        outcome: What is to be committed.
        long: There is more to examine than a batch should wait for.
        evidence: What it asks of the evidence: runs with equal ones share an examination.
    """

    claim: Claim
    intent: Intent
    inputs: PlanInputs
    clock: BatchClock
    evaluation: Evaluation | None = None
    proof: Proof | None = None
    view: FactsView | None = None
    failure: Failed | None = None
    outcome: Transition | None = None
    long: bool = False
    evidence: Hashable = None

    @property
    def receipts(self) -> list[InstanceReceiptFile]:
        """Instance receipts of a run whose evidence passed."""
        return self.proof.attested.receipts if self.proof is not None else []

    @property
    def noted(self) -> bool:
        """True when the passes of its gates are on record already."""
        return self.proof is not None and self.proof.passed_digest == self.claim.report_digest

    def fail(self, failure: Failed) -> None:
        """Let a failure decide, whatever the evidence came to."""
        self.evaluation = None
        self.failure, self.long = failure, False

    @property
    def open(self) -> bool:
        """True while it goes on from stage to stage."""
        return self.failure is None and self.outcome is None and not self.long
