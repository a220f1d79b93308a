"""What a lifecycle asks for: one frozen value per effect, each with the answer that comes back.

An effect is performed by :mod:`~scenario_runner.runs.batch`. A failure comes back as an exception, which is raised in
the lifecycle where the effect was asked for.
"""

from dataclasses import dataclass

from scenario_runner.authority.base import Transition
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.evidence.findings import Finding
from scenario_runner.gates.receipts import Attestation, AttestationKey, FactsView, InstanceReceiptFile


@dataclass(frozen=True, slots=True)
class WritePlan:
    """Write the run_plan object once, under a valid lease. Answer: None.

    Raises in the lifecycle:
        LedgerDrift: ``PLAN_DRIFT``.
        LeaseLostError: the lease ran out; nothing was written.
        Unavailable: the store does not answer.
    """

    plan: Json


@dataclass(frozen=True, slots=True)
class Examine:
    """Examine the evidence. Answer: :class:`Examined`.

    Raises in the lifecycle:
        LedgerDrift: ``PACK_DRIFT``.
        Unavailable: the evidence cannot be read.
        LeaseLostError: the lease ran out meanwhile.
        ExaminationDeferred: the examination costs more than a batch may spend, or would have to wait.
    """

    intent: Intent
    inputs: PlanInputs


@dataclass(frozen=True, slots=True)
class Examined:
    """The answer to :class:`Examine`.

    Attributes:
        began_us: The database's clock when the batch was claimed, or when the turn of a deferred run began. The
            deadline is compared with it.
    """

    finding: Finding
    began_us: int


@dataclass(frozen=True, slots=True)
class Attest:
    """Make the attestation of a passed finding and check a facts view of it against its schema.

    Answer: :class:`Attested`.

    Raises in the lifecycle:
        LedgerDrift: ``LOCATOR_SCHEMA_INVALID`` or ``RECEIPT_SCHEMA_INVALID``.
    """

    finding: Finding
    key: AttestationKey
    intent: Intent


@dataclass(frozen=True, slots=True)
class Attested:
    """The answer to :class:`Attest`, equal for all runs with the same finding and attestation key.

    Attributes:
        gates_passed: Details of the event GATES_PASSED; ``gates_passed_digest`` is their sha256.
        receipts_committed: Details of the event RECEIPTS_COMMITTED.
    """

    attestation: Attestation
    gates_passed: Json
    gates_passed_digest: str
    receipts_committed: Json


@dataclass(frozen=True, slots=True)
class FindReceipts:
    """Ask whether these receipts were seen in place a moment ago. Answer: bool."""

    receipts: tuple[InstanceReceiptFile, ...]


@dataclass(frozen=True, slots=True)
class ReadClock:
    """Read the database's clock. Answer: microseconds since the epoch.

    Raises in the lifecycle:
        Unavailable: the authority does not answer.
    """


@dataclass(frozen=True, slots=True)
class RecordProgress:
    """Commit a transition that keeps the lease. Answer: the claim as it is afterwards.

    Raises in the lifecycle:
        LeaseLostError: another worker owns the run; nothing was committed.
        Unavailable: the authority does not answer; whether it was committed is not known.
    """

    transition: Transition


@dataclass(frozen=True, slots=True)
class WriteReceipts:
    """Write bundle manifests and instance receipts once, under a valid lease. Answer: None.

    Raises in the lifecycle:
        LedgerDrift: ``INSTANCE_RECEIPT_DRIFT``.
        LeaseLostError: the lease ran out; nothing was written.
        Unavailable: the store does not answer.
    """

    receipts: tuple[InstanceReceiptFile, ...]


@dataclass(frozen=True, slots=True)
class WriteFactsView:
    """Write the run_facts_view object once, under a valid lease. Answer: None.

    Raises in the lifecycle:
        LedgerDrift: ``FACTS_VIEW_DRIFT``.
        LeaseLostError: the lease ran out; nothing was written.
        Unavailable: the store does not answer.
    """

    view: FactsView


Effect = WritePlan | Examine | Attest | FindReceipts | ReadClock | RecordProgress | WriteReceipts | WriteFactsView
