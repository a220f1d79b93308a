"""Driving runs from their claim to a commit: plan object, evidence, receipts, facts view, verdict.

The order of writes is that of architecture.md section 3; killing the process between any two leads to the same bytes
when the run is driven again. Infrastructure errors end in a retry, never in a verdict.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import structlog

from scenario_runner.artifacts.base import Artifacts
from scenario_runner.artifacts.budget import (
    BATCH_SHARE,
    UNLIMITED,
    ExaminationTooLongError,
    ReadBudget,
    ReadBudgetExceeded,
    Share,
)
from scenario_runner.authority.base import (
    Authority,
    Claim,
    Transition,
)
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import (
    EvidenceChanged,
    EvidenceMissing,
    EvidenceRefused,
    LeaseLostError,
    LedgerDrift,
    Refusal,
    SequenceError,
    Unavailable,
)
from scenario_runner.contracts.intent import intent_from_document
from scenario_runner.contracts.plan import PlanInputs, plan_document, plan_inputs_from_document
from scenario_runner.contracts.states import RunState
from scenario_runner.counters import count
from scenario_runner.gates.receipts import alike, attest, facts_view
from scenario_runner.gates.verified_set import Verified
from scenario_runner.ledger.ledger import Failure, Ledger
from scenario_runner.runs.evaluation import Evaluation, EvaluationMemory, Outcome, evaluate, used_tokens
from scenario_runner.runs.jobs import BatchClock, Job, Proof, proof_of
from scenario_runner.runs.known_large import Deferred, KnownLarge
from scenario_runner.runs.leases import Leases
from scenario_runner.runs.outcomes import (
    gates_passed,
    negative,
    nothing_read,
    outcome_of,
    resumed,
    settled_without_evidence,
    wait_or_fail,
)
from scenario_runner.runs.packs import Packs
from scenario_runner.runs.transitions import gates_recorded

LOOK_AGAIN_SECONDS: Final = (0.1, 0.4)
"""Pauses before evidence that changed while it was read is looked at again; after the last it is refused."""

_log = structlog.get_logger("runs")


class RunDriver:
    """Drives claimed runs, a batch at a time: runs share round trips and commits, never each other's fate.

    Args:
        authority: Where decisions are committed.
        ledger: Where documents are written.
        artifacts: Where evidence is read.
        packs: Interface packs by digest.
        leases: Leases of this process.
        memory: Evaluations that may be believed again; None judges everything afresh.
        sleep: Waits some seconds before a second look.
        beside: Threads that write plan objects while the evidence is looked at.
        looks: Threads that look at the evidence of several runs at the same time, where it lies behind a network.
    """

    def __init__(
        self,
        authority: Authority,
        ledger: Ledger,
        artifacts: Artifacts,
        packs: Packs,
        leases: Leases,
        memory: EvaluationMemory | None,
        sleep: Callable[[float], None],
        beside: ThreadPoolExecutor,
        looks: ThreadPoolExecutor | None = None,
    ) -> None:
        self._authority, self._ledger, self._artifacts = authority, ledger, artifacts
        self._beside, self._looks = beside, looks
        self._packs, self._leases, self._memory, self._sleep = packs, leases, memory, sleep
        self._large = KnownLarge()

    def drive(self, claims: Sequence[Claim], share: Share = UNLIMITED) -> list[Deferred]:
        """Drive runs as far as they go now, commit what came of them and give their leases back.

        Args:
            claims: Runs under lease.
            share: Most that the examination of one run may cost.

        Returns:
            Runs whose examination costs more: still under lease, to be driven again with another share.

        Raises:
            Unavailable: the authority does not answer; nothing was decided, and the leases run out by themselves.
        """
        try:
            return self._drive(claims, share)
        except BaseException:
            for claim in claims:
                self._leases.release(claim)
            raise

    def _drive(self, claims: Sequence[Claim], share: Share) -> list[Deferred]:
        clock = BatchClock(self._authority.now_us, self._began_us(claims, share))
        inputs = _inputs_of(claims)
        jobs = [
            Job(claim, intent_from_document(claim.run_id, claim.run_equivalence_key, claim.intent), pinned, clock)
            for claim, pinned in zip(claims, inputs, strict=True)
        ]
        documents = [plan_document(job.intent, job.inputs, job.claim.admitted_us) for job in jobs]
        planning = self._beside.submit(self._ledger.write_plans, documents)
        groups = self._examine_all(jobs, share)
        self._require_plans(jobs, planning.result())
        for group in groups:
            self._conclude([job for job in group if job.open])
        self._put_receipts_in_place([job for job in jobs if job.open])
        self._write_facts_views([job for job in jobs if job.open])
        clock.next_stage()
        self._commit([job for job in jobs if not job.long])
        return [Deferred(job.claim, job.evidence) for job in jobs if job.long]

    def _began_us(self, claims: Sequence[Claim], share: Share) -> int:
        """When the examination began: a batch's when it is claimed; the long lane may keep a run waiting."""
        return self._authority.now_us() if share.patient else max((claim.now_us for claim in claims), default=0)

    @staticmethod
    def _guarded(job: Job, step: Callable[[], None]) -> None:
        """Let a step fail for its own run only; an order of steps that is wrong still stops the worker."""
        try:
            step()
        except (Refusal, Unavailable, LeaseLostError) as failure:
            job.failure = failure
        except SequenceError:
            raise
        except Exception as defect:  # noqa: BLE001 - one bad run must not end the daemon, nor its batch
            _log.critical("a defect while driving a run; please report it", run_id=job.claim.run_id, exc_info=defect)
            job.failure = Unavailable(f"a defect, please report it: {type(defect).__name__}: {defect}")

    def _require_plans(self, jobs: list[Job], failures: Sequence[Failure | None]) -> None:
        """Nothing of a run goes on before its plan object is in place; another plan there ends it, whatever else."""
        for job, failure in zip(jobs, failures, strict=True):
            if failure is not None and not isinstance(job.failure, LeaseLostError):
                job.fail(failure)

    # --- evidence

    def _examine_all(self, jobs: list[Job], share: Share) -> list[list[Job]]:
        """Look at the evidence of a batch; returns the runs grouped by what they ask for: one look serves a group."""
        asking: dict[Hashable, list[Job]] = {}
        for job in jobs:
            job.evidence = self._asked(job)
            asking.setdefault(job.evidence, []).append(job)
        together = self._looks.map if self._looks is not None and not share.patient else map
        list(together(partial(self._evaluate_alike, share), asking.values()))
        return list(asking.values())

    def _asked(self, job: Job) -> Hashable:
        """What a run asks of the evidence; runs with an equal answer get an equal evaluation."""
        inputs = job.inputs
        try:
            pack = self._packs.get(inputs.pack_digest)
        except (LedgerDrift, Unavailable):
            return job.claim.run_id
        tokens = used_tokens(pack, job.intent.tokens(), inputs.gates, inputs.outputs)
        root, bounds = job.intent.engine_run_root, inputs.bounds
        return root, inputs.strategy, pack.digest, tokens, inputs.gates, inputs.outputs, bounds

    def _evaluate_alike(self, share: Share, jobs: list[Job]) -> None:
        """Let the first of some runs look for all; the next one when the first lost its lease meanwhile."""
        first, *others = jobs
        self._guarded(first, partial(self._look_for, first, share))
        if isinstance(first.failure, LeaseLostError) and others:
            self._evaluate_alike(share, others)
            return
        for job in others:
            job.evaluation, job.failure, job.long = first.evaluation, first.failure, first.long

    def _look_for(self, job: Job, share: Share) -> None:
        job.evaluation = settled_without_evidence(job.intent, job.inputs) or self._look_until_still(job, share)
        job.long = job.evaluation is None

    def _conclude(self, jobs: list[Job]) -> None:
        """Say what the evidence means for each run of a group: verified, waiting, or a negative verdict dated now."""
        proofs: dict[Hashable, Proof] = {}
        for job in jobs:
            self._guarded(job, partial(self._conclude_one, job, proofs))

    def _conclude_one(self, job: Job, proofs: dict[Hashable, Proof]) -> None:
        """Conclude for one run; ``proofs`` are those of its group, and a new one is added to them."""
        assert job.evaluation is not None
        if job.evaluation.verified is not None:
            self._prove(job, job.evaluation.verified, job.evaluation.report, proofs)
        elif job.evaluation.outcome is Outcome.MISSING:
            job.outcome = wait_or_fail(job, job.evaluation)
        else:
            state = RunState.FAILED if job.evaluation.outcome is Outcome.FAIL else RunState.QUARANTINED
            reason = job.evaluation.reason
            job.outcome = negative(job, state, reason, job.evaluation.detail, job.evaluation.report)

    def _prove(self, job: Job, verified: Verified, report: Json, proofs: dict[Hashable, Proof]) -> None:
        key = alike(verified, job.intent, job.inputs)
        proof = proofs.get(key)
        if proof is not None:
            job.proof, job.view = proof, facts_view(proof.attested, job.intent)
            return
        attested = attest(verified, job.intent, job.inputs, job.intent.engine_run_root)
        job.view = facts_view(attested, job.intent)
        self._ledger.check_facts_view(job.view)  # for all that share it: they differ in their run ids
        job.proof = proofs[key] = proof_of(attested, report)

    def _look_until_still(self, job: Job, share: Share) -> Evaluation | None:
        """Examine the evidence until nothing changes meanwhile; None when that costs more than the share."""
        if not share.patient and job.evidence in self._large:
            return None
        for pause in (*LOOK_AGAIN_SECONDS, None):
            try:
                return self._look(job, share)
            except ReadBudgetExceeded:
                self._large.add(job.evidence)
                return None
            except ExaminationTooLongError as refusal:
                return nothing_read(Outcome.CONFLICT, EvidenceRefused(refusal.detail, refusal.reason))
            except EvidenceChanged as changed:
                if pause is None:
                    return nothing_read(Outcome.CONFLICT, changed)
                if not share.patient:
                    return None  # the pauses are not the batch's to wait for
                self._sleep(pause)
        raise AssertionError

    def _look(self, job: Job, share: Share) -> Evaluation:
        with ReadBudget(lambda _hashed: self._leases.check(job.claim), share, job.inputs.bounds) as budget:
            evaluation = self._examine(job, budget)
            if share.patient and budget.fits(BATCH_SHARE):
                self._large.discard(job.evidence)
            return evaluation

    def _examine(self, job: Job, budget: ReadBudget) -> Evaluation:
        pack, inputs = self._packs.get(job.inputs.pack_digest), job.inputs
        try:
            root = self._artifacts.open(job.intent.engine_run_root, budget)
        except EvidenceMissing as missing:
            return nothing_read(Outcome.MISSING, missing)
        except EvidenceRefused as refused:
            return nothing_read(Outcome.CONFLICT, refused)
        try:
            return evaluate(root, pack, job.intent.tokens(), inputs.gates, inputs.outputs, self._memory)
        finally:
            root.close()

    # --- documents of a READY run

    def _put_receipts_in_place(self, jobs: list[Job]) -> None:
        """Write the receipts that are not in place; before the first, the passes that allow it go on record."""
        jobs = [job for job in jobs if not job.receipts or not self._ledger.remembers(job.receipts)]
        self._note_passed_gates(jobs)
        self._write_receipts([job for job in jobs if job.open and job.receipts])

    def _note_passed_gates(self, jobs: list[Job]) -> None:
        """Put the gates' passes, and the receipts that may now follow, on record: once, also when driven again."""
        notes: list[tuple[Job, Transition]] = []
        for job in jobs:
            if not job.noted:
                assert job.proof is not None
                at_us, events = job.clock.after(job.claim), (*resumed(job.claim), gates_passed(job.proof))
                notes.append((job, gates_recorded(job.claim, at_us, events, job.proof.passed_digest)))
        try:
            losses = self._authority.commit([note for _, note in notes]) if notes else []
        except Unavailable as error:
            for job, _ in notes:
                job.failure = error
            return
        for (job, note), lost in zip(notes, losses, strict=True):
            job.failure = lost
            job.claim = note.claim_after

    def _write_receipts(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._guarded(job, partial(self._leases.check, job.claim))
        jobs = [job for job in jobs if job.open]
        failures = iter(self._ledger.write_receipts([receipt for job in jobs for receipt in job.receipts]))
        for job in jobs:
            for failure in [next(failures) for _ in job.receipts]:
                job.failure = job.failure or failure

    def _write_facts_views(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._guarded(job, partial(self._leases.check, job.claim))
        jobs = [job for job in jobs if job.open]
        failures = self._ledger.write_facts_views([job.view for job in jobs if job.view is not None])
        for job, failure in zip(jobs, failures, strict=True):
            job.failure = failure

    # --- decisions

    def _commit(self, jobs: list[Job]) -> None:
        try:
            outcomes = [outcome for job in jobs if (outcome := outcome_of(job)) is not None]
            losses = self._authority.commit(outcomes) if outcomes else []
        except Unavailable as error:
            _log.warning("outcomes could not be committed; their leases will run out", detail=error.detail)
        else:
            for outcome, lost in zip(outcomes, losses, strict=True):
                _report(outcome, lost)
        finally:
            for job in jobs:
                self._leases.release(job.claim)


def _inputs_of(claims: Sequence[Claim]) -> Iterator[PlanInputs]:
    """Plan inputs of claims; neighbours that have the same share one."""
    document, inputs = None, None
    for claim in claims:
        if inputs is None or claim.inputs != document:
            document, inputs = claim.inputs, plan_inputs_from_document(claim.inputs)
        yield inputs


def _report(transition: Transition, lost: LeaseLostError | None) -> None:
    log, state = _log.bind(run_id=transition.claim.run_id), transition.to_state
    if lost is not None:
        log.warning("lease lost", detail=lost.detail)
    elif transition.retries > transition.claim.retries:
        count("runs.postponed")
        log.warning(
            "infrastructure failed; the run will be tried again", detail=transition.last_error, tries=transition.retries
        )
    elif state is RunState.WAITING_EVIDENCE:
        news = bool(transition.events)
        (log.info if news else log.debug)("run waits for evidence", new_findings=news)
    elif state is RunState.READY:
        log.info("run is READY")
    else:
        detail = transition.events[-1].details["detail"]
        log.warning("run ended", state=state, reason_code=transition.reason_code, detail=detail)
