"""The way of one run, from its claim to its transition. Start reading here.

A lifecycle is a generator. It yields effects (:mod:`~scenario_runner.runs.effects`), is resumed with their answers, and
returns the transition to commit. It does no I/O and knows of no other run, so the order of writes below is the whole
order, and a test checks it without a store or a database. :mod:`~scenario_runner.runs.batch` performs the effects.

======================================  ================================================================
step                                    a crash after it leaves
======================================  ================================================================
1. run_plan written, evidence examined  a plan object that the next attempt finds equal
2. GATES_PASSED committed               the event; the next attempt does not repeat it
3. manifests, instance receipts         objects that the next attempt finds equal
4. run_facts_view written               an object that the next attempt finds equal
5. one transaction: READY, its events   a READY run whose record, status and READY signal are owed; the relay
   and its signal in the outbox; of a   delivers them, and RUN_SUPERSEDES after the READY
   correction also SUPERSEDED_BY in the
   record of the run that it supersedes
======================================  ================================================================

docs/architecture.md has the same order in finer steps, with what intake and relay do before and after.
Every attempt gives the same bytes: plan, receipts and facts view are pure functions of the run's row and of the
evidence. Evidence that changed in between is examined anew; if it passes with other digests, the write-once objects
differ, which is drift: QUARANTINED. Steps 2 and 3 are left out when all receipts were seen in place a moment ago; the
event is then committed in step 5. A run whose engine is invoked goes through :mod:`~scenario_runner.runs.execution`
before it is examined (FORCE_INVOKE), or when its evidence is missing (AUTO).
"""

from collections.abc import Generator
from typing import Any

import structlog

from scenario_runner.authority.values import Claim, Transition
from scenario_runner.contracts.depth import reported_depth
from scenario_runner.contracts.errors import (
    ConfigurationError,
    LeaseLostError,
    LedgerDrift,
    Refusal,
    SequenceError,
    Unavailable,
)
from scenario_runner.contracts.intent import intent_from_document
from scenario_runner.contracts.plan import plan_document, plan_inputs_from_document
from scenario_runner.evidence.examiner import ExaminationDeferred
from scenario_runner.evidence.findings import Finding, Outcome, refused_without_report
from scenario_runner.gates.receipts import attestation_key, facts_view
from scenario_runner.runs.decisions import (
    engine_is_first,
    engine_is_next,
    failed,
    gates_recorded_now,
    quarantined,
    quarantined_by_drift,
    ready,
    retried,
    root_missing,
)
from scenario_runner.runs.effects import (
    Attest,
    Attested,
    Effect,
    Examined,
    FindReceipts,
    FindSuperseded,
    PlanAndExamine,
    ReadClock,
    WriteFactsView,
    WritePlan,
    WriteReceipts,
)
from scenario_runner.runs.execution import ExecutionPlan, execute
from scenario_runner.runs.progress import Progress, record
from scenario_runner.runs.waits import waiting_or_failed

Lifecycle = Generator[Effect, Any, Transition]
_log = structlog.get_logger("runs")


def lifecycle(claim: Claim, launch_retries: int = 0, traceparent: str = "") -> Lifecycle:
    """The lifecycle of a claimed run.

    Infrastructure that fails is a retry, never a verdict. Drift of our own objects is a verdict.

    Args:
        claim: The run under lease.
        launch_retries: How many launches of its engine may fail before the run does.
        traceparent: The trace context that its READY carries; empty for none.

    Raises:
        LeaseLostError: the lease ran out or was taken, or the process stops. No verdict is committed.
        ExaminationDeferred: the examination costs more than a batch may spend, or would have to wait. Nothing is
            committed.
        SequenceError: a defect of SR: the daemon stops. No verdict is committed.
    """
    progress = Progress(claim)
    try:
        return (yield from _drive(progress, launch_retries, traceparent))
    except (LeaseLostError, ExaminationDeferred, SequenceError):
        raise
    except (LedgerDrift, Refusal) as failure:
        now_us = yield ReadClock()
        return quarantined_by_drift(progress.claim, now_us, failure, progress.report)
    except Unavailable as failure:
        now_us = yield ReadClock()
        return retried(progress.claim, now_us, failure.detail)
    except ConfigurationError as failure:  # what a person corrects while we serve, as the credentials of a store
        _log.error(
            "what a run needs is not configured rightly; it is put off", run_id=claim.run_id, detail=failure.detail
        )
        now_us = yield ReadClock()
        return retried(progress.claim, now_us, failure.detail)
    except Exception as defect:  # noqa: BLE001 - one bad run must not end the daemon, nor the runs of its batch
        _log.critical("a defect while driving a run; please report it", run_id=claim.run_id, exc_info=defect)
        now_us = yield ReadClock()
        return retried(progress.claim, now_us, f"a defect, please report it: {type(defect).__name__}: {defect}")


def _drive(progress: Progress, launch_retries: int, traceparent: str) -> Lifecycle:
    """From the plan to a verdict, or to the engine."""
    claim = progress.claim
    intent = intent_from_document(claim.run_id, claim.run_equivalence_key, claim.intent)
    inputs = plan_inputs_from_document(claim.inputs)

    plan = plan_document(intent, inputs, claim.admitted_us)
    missing_root = root_missing(intent, inputs)
    if missing_root is not None:
        yield WritePlan(plan)
        return failed(claim, (yield ReadClock()), refused_without_report(Outcome.FAIL, missing_root))
    if engine_is_first(claim, inputs):
        if not claim.has_open_attempt:  # its plan was written before it, and nothing may end its run meanwhile
            yield WritePlan(plan)
        because: dict[str, Any] = {"strategy": inputs.strategy.value}
        return (yield from execute(progress, ExecutionPlan(intent, inputs, launch_retries, because)))

    examined: Examined = yield PlanAndExamine(plan, intent, inputs)
    finding = examined.finding
    progress.report = finding.report
    if finding.outcome is Outcome.MISSING and engine_is_next(claim, inputs, examined):
        because = {"strategy": inputs.strategy.value, "auto_invoke": inputs.auto_invoke, "report": finding.report}
        return (yield from execute(progress, ExecutionPlan(intent, inputs, launch_retries, because)))
    if finding.verified is None:
        return _not_ready(claim, (yield ReadClock()), examined, inputs.root_of(intent))

    attested: Attested = yield Attest(finding, attestation_key(finding.verified, intent, inputs), intent)
    view = facts_view(attested.attestation, intent)
    yield from _put_receipts_in_place(progress, attested)
    yield WriteFactsView(view)
    # Only a correction that becomes READY supersedes: with any other end, the run that it corrects stands as it is.
    old_state = (yield FindSuperseded(claim.supersession.old_run_id)) if claim.supersession is not None else None
    more = ({"traceparent": traceparent} if traceparent else {}) | reported_depth(finding.report["outputs"])
    return ready(progress.claim, (yield ReadClock()), attested, view, old_state, more)


def _put_receipts_in_place(progress: Progress, attested: Attested) -> Generator[Effect, Any, None]:
    """Write the receipts. The passes that allow them are on record before the first receipt of this finding."""
    receipts = attested.attestation.receipts
    if receipts and (yield FindReceipts(receipts)):
        return
    if progress.claim.report_digest != attested.gates_passed_digest:
        now_us = yield ReadClock()
        progress.claim = yield from record(gates_recorded_now(progress.claim, now_us, attested))
    if receipts:
        yield WriteReceipts(receipts)


def _not_ready(claim: Claim, now_us: int, examined: Examined, root: str) -> Transition:
    """The transition of a run whose evidence has not passed."""
    finding: Finding = examined.finding
    if finding.outcome is Outcome.MISSING:
        return waiting_or_failed(claim, now_us, examined, root)
    if finding.outcome is Outcome.FAIL:
        return failed(claim, now_us, finding)
    return quarantined(claim, now_us, finding)
