"""What a lifecycle asks for: one frozen value per effect, each with the answer that comes back.

An effect is performed by :mod:`~scenario_runner.runs.batch`, one of the engine by
:mod:`~scenario_runner.runs.engine_effects`. A failure comes back as an exception, which is raised in
the lifecycle where the effect was asked for.
"""

from dataclasses import dataclass
from typing import Final

from scenario_runner.authority.values import Transition
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.engine.attempt import Attempt
from scenario_runner.engine.invoker import Job, JobEnd, Launch
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
class PlanAndExamine:
    """Write the run_plan object as :class:`WritePlan` does, and examine the evidence meanwhile.

    Both are done when the answer comes: :class:`Examined`. One waits for the store that plans go to, the other for the
    one that evidence comes from, so a run is READY one round trip earlier (docs/benchmarks.md has the figure).

    Raises in the lifecycle:
        LedgerDrift: ``PLAN_DRIFT`` or ``PACK_DRIFT``.
        Unavailable: the plan cannot be written, or the evidence cannot be read.
        LeaseLostError: the lease ran out meanwhile.
        ExaminationDeferred: the examination costs more than a batch may spend, or would have to wait.
    """

    plan: Json
    intent: Intent
    inputs: PlanInputs


@dataclass(frozen=True, slots=True)
class Examined:
    """The answer to :class:`PlanAndExamine`.

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
    """Ask whether this process has seen these receipts in place a moment ago; nothing is read. Answer: bool."""

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


@dataclass(frozen=True, slots=True)
class FindSuperseded:
    """Ask in which state the run ended that this one corrects. Answer: its final state, which never changes.

    Raises in the lifecycle:
        Unavailable: the authority does not answer.
    """

    run_id: str


@dataclass(frozen=True, slots=True)
class EndEarlier:
    """Make sure that nothing runs of an attempt whose end is on record, before another one may be launched.

    Its row is not asked where it ran: rows may come from a ledger that others can write, and the backend knows its own
    attempts by their ids. Answer: None.

    Raises in the lifecycle:
        LeaseLostError: the lease ran out; nothing was ended.
        Unavailable: something of the attempt may still run.
    """

    attempt_id: str


@dataclass(frozen=True, slots=True)
class PrepareLaunch:
    """Put the invocation document where the engine reads it. Nothing is launched. Answer: :class:`Prepared`.

    Raises in the lifecycle:
        EngineRefusal: the engine cannot be asked for this run.
        Unavailable: this daemon has no engine, or may not use the run's root, or the document cannot be written.
    """

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Prepared:
    """The answer to :class:`PrepareLaunch`.

    Attributes:
        launch: What :class:`LaunchEngine` takes.
        invoker: Name of the backend.
        place: Handle of the attempt until its launch has answered.
    """

    launch: Launch
    invoker: str
    place: str


@dataclass(frozen=True, slots=True)
class LaunchEngine:
    """Launch an attempt whose row is committed. Answer: the :class:`~scenario_runner.engine.invoker.Job`.

    Raises in the lifecycle:
        LaunchFailed, EngineRefusal: nothing was launched, and nothing will be.
        Unavailable: it is not known whether something was launched.
    """

    launch: Launch


@dataclass(frozen=True, slots=True)
class FindJob:
    """Find out what became of an attempt that may have been launched; ask until that is known.

    Answer: the job, running or ended; None when nothing of the attempt runs or will run.

    Attributes:
        job: The attempt as its row holds it.
        invoker: Name of the backend that launched it. No other one can say that nothing of it runs.

    Raises in the lifecycle:
        LeaseLostError: the lease ran out before it was known. A backend that does not answer is asked again.
    """

    job: Job
    invoker: str


@dataclass(frozen=True, slots=True)
class AwaitEnd:
    """Wait until nothing of an attempt runs any more, without holding a thread. Answer: the :class:`JobEnd`.

    Raises in the lifecycle:
        LeaseLostError: the lease ran out meanwhile; an engine that is bound to its lease is ended.
    """

    job: Job


@dataclass(frozen=True, slots=True)
class ReadRunReceipt:
    """Read the run receipt that an engine left. Answer: its bytes, or None when there is none.

    Raises in the lifecycle:
        EvidenceRefused: it is no regular file, or too large.
        Unavailable: it cannot be read.
    """

    engine_run_root: str


@dataclass(frozen=True, slots=True)
class WriteAttemptLogs:
    """Write what an attempt wrote once. Answer: ``stdout_ref`` and ``stderr_ref``; empty when nothing is kept.

    Raises in the lifecycle:
        LeaseLostError: the lease ran out; nothing was written.
        Unavailable: the store does not answer.
    """

    attempt: Attempt
    end: JobEnd


#: The effects with which the part of a lifecycle begins that has an engine.
ENGINE_BEGINS: Final = (EndEarlier, PrepareLaunch, FindJob)

EngineEffect = EndEarlier | PrepareLaunch | LaunchEngine | FindJob | AwaitEnd | ReadRunReceipt | WriteAttemptLogs
Effect = (
    WritePlan
    | PlanAndExamine
    | Attest
    | FindReceipts
    | ReadClock
    | RecordProgress
    | WriteReceipts
    | WriteFactsView
    | FindSuperseded
    | EngineEffect
)
