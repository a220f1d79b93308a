"""What a driven run comes to: READY, a negative verdict, another look, or another try. Decides, and moves nothing."""

from typing import Final

import structlog

from scenario_runner.authority.base import Claim, Event, Parked, Postponed, SignalDraft, Verdict
from scenario_runner.authority.base import Outcome as RunOutcome
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes, canonical_sha256
from scenario_runner.contracts.errors import LeaseLostError, LedgerDrift, Refusal, Unavailable
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import EventKind, RunState, SignalKind, Strategy
from scenario_runner.gates.receipts import FactsView
from scenario_runner.ledger.documents import terminal_signal
from scenario_runner.retry import RetryPolicy
from scenario_runner.runs.evaluation import Evaluation, Outcome
from scenario_runner.runs.jobs import Job, Proof

#: Between examinations of missing evidence: an hour of waiting is about 60 of them.
_WAIT_FOR_EVIDENCE: Final = RetryPolicy(first_seconds=1, most_seconds=60)
#: Between tries while infrastructure fails: about a lease, so that little is late when it is back.
_WAIT_FOR_INFRASTRUCTURE: Final = RetryPolicy(first_seconds=1, most_seconds=30)
_log = structlog.get_logger("runs")


def outcome_of(job: Job) -> RunOutcome | None:
    """What is to be committed for a job; None when its lease is gone."""
    failure = job.failure
    if isinstance(failure, LeaseLostError):
        _log.warning("lease lost", run_id=job.claim.run_id, detail=failure.detail)
        return None
    if isinstance(failure, Unavailable):
        pause_us = _WAIT_FOR_INFRASTRUCTURE.pause_us(job.claim.retries + 1)
        return Postponed(job.claim, job.clock.us() + pause_us, failure.detail)
    if failure is not None:
        return negative(job, RunState.QUARANTINED, failure.reason, failure.detail, _report_of(job, failure))
    return job.outcome or _ready(job)


def _report_of(job: Job, failure: Refusal) -> Json:
    """What was found of the evidence, and of the object of ours that is not what it should be."""
    report = job.evaluation.report if job.evaluation is not None else {}
    drift = failure.facts() if isinstance(failure, LedgerDrift) else {}
    return {**report, "drift": drift} if drift else report


def _ready(job: Job) -> Verdict:
    """READY: only from a finished verified set whose facts view is in the ledger."""
    assert job.view is not None
    assert job.proof is not None
    view, claim = job.view, job.claim
    signal = SignalDraft(
        view.message_id,
        SignalKind.READY,
        claim.run_id,
        {"facts_view_digest": view.digest},
        canonical_bytes(view.ready),
    )
    unnoted = () if job.noted else (*resumed(claim), gates_passed(job.proof))
    events = (*unnoted, *_ready_events(job.proof, view))
    return Verdict(claim, RunState.READY, "", job.clock.after(claim), events, signal, view.digest)


def negative(job: Job, state: RunState, reason: Reason | None, detail: str, report: Json) -> Verdict:
    """FAILED or QUARANTINED, with its TERMINAL signal."""
    claim, at_us = job.claim, job.clock.after(job.claim)
    code = (reason or Reason.INTERNAL_ERROR).value
    message_id, payload = terminal_signal(claim.run_id, state, code, at_us)
    kind = EventKind.RUN_FAILED if state is RunState.FAILED else EventKind.RUN_QUARANTINED
    event = Event(kind, state, {"reason_code": code, "detail": detail[:2000], "report": report})
    signal = SignalDraft(message_id, SignalKind.TERMINAL, claim.run_id, {}, canonical_bytes(payload))
    return Verdict(claim, state, code, at_us, (*resumed(claim), event), signal)


def wait_or_fail(job: Job, evaluation: Evaluation) -> RunOutcome:
    """Evidence is missing: look again later, or give up when the deadline had passed before this look began."""
    claim = job.claim
    if job.clock.began_us >= claim.deadline_us:
        reason = Reason.EVIDENCE_MISSING_DEADLINE
        return negative(job, RunState.FAILED, reason, evaluation.detail, evaluation.report)
    due = min(claim.deadline_us, job.clock.us() + _WAIT_FOR_EVIDENCE.pause_us(claim.wakes + 1))
    digest = canonical_sha256(evaluation.report)
    if digest == claim.report_digest:
        return Parked(claim, due, claim.updated_us, (), digest)
    code = (evaluation.reason or Reason.EVIDENCE_MISSING).value
    details = {"reason_code": code, "detail": evaluation.detail, "report": evaluation.report}
    waiting = Event(EventKind.EVIDENCE_MISSING, RunState.WAITING_EVIDENCE, details)
    return Parked(claim, due, job.clock.after(claim), (*resumed(claim), waiting), digest)


def settled_without_evidence(intent: Intent, inputs: PlanInputs) -> Evaluation | None:
    """The end of a run that an engine would be needed for; None for every other.

    Intake refuses such requests; earlier releases admitted them. Evidence that lies there already must not make a run
    READY whose policy does not allow reuse.
    """
    if inputs.strategy is Strategy.FORCE_INVOKE:
        return nothing_read(
            Outcome.FAIL,
            Refusal(
                "the strategy is FORCE_INVOKE and this release invokes no engine",
                Reason.ENGINE_COMMAND_MISSING,
            ),
        )
    if not intent.engine_run_root:
        return nothing_read(
            Outcome.FAIL,
            Refusal(
                "the request names no engine_run_root and this release invokes no engine", Reason.ENGINE_ROOT_MISSING
            ),
        )
    return None


def nothing_read(outcome: Outcome, refusal: Refusal) -> Evaluation:
    """An evaluation that ended before anything was read."""
    report: Json = {
        "outcome": outcome.value,
        "reason_code": refusal.reason.value,
        "detail": refusal.detail,
        "gates": [],
        "outputs": [],
    }
    return Evaluation(outcome, refusal.reason, refusal.detail, report, None)


def resumed(claim: Claim) -> tuple[Event, ...]:
    """What goes on record first when a run that waited goes on."""
    if claim.state is RunState.WAITING_EVIDENCE:
        return (Event(EventKind.VERIFICATION_STARTED, RunState.VERIFYING, {}),)
    return ()


def gates_passed(proof: Proof) -> Event:
    """The gates' passes, and the receipts that may follow."""
    return Event(EventKind.GATES_PASSED, RunState.VERIFYING, proof.passed)


def _ready_events(proof: Proof, view: FactsView) -> tuple[Event, ...]:
    run_id = view.document["run_id"]
    state = RunState.VERIFYING
    return (
        Event(EventKind.RECEIPTS_COMMITTED, state, proof.committed),
        Event(
            EventKind.FACTS_VIEW_COMMITTED,
            state,
            {"ref": refs.facts_view_ref(run_id), "digest": view.digest, "bundle_hash": view.bundle_hash},
        ),
        Event(EventKind.RUN_READY, RunState.READY, {"ready": view.ready, "message_id": view.message_id}),
    )
