"""The part of a lifecycle that has an engine: an attempt, from its row before the launch to the transition after it.

======================================  ================================================================
step                                    a crash after it leaves
======================================  ================================================================
0. earlier attempts seen to have ended  nothing new
1. invocation document written          a document that nobody reads
2. EXECUTING committed, with the row    an attempt that counts; nothing of it is found, so it is lost
   of the attempt
3. engine launched                      an engine that the next owner of the run finds by the row, and
                                        follows; its backend ends it when its daemon is gone for good
4. its handle committed                 the same
5. engine ended                         its end, which the next owner of the run finds
6. run receipt read, logs written       logs that the next owner finds equal
7. one transaction: the attempt's end   a run that is verified, or has another attempt, or has ended
   and where the run goes from there
======================================  ================================================================

An attempt is never launched twice: its row is committed before the launch, and whoever finds a row without an end asks
the backend what became of it. So an attempt runs only under the lease of the run, and at most one at a time. That does
not rest on the rows alone, which may have been restored from a ledger that others can write (ADR 0030): before an
attempt is put on record, the backend ends what runs of those before it.
"""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from scenario_runner.authority.values import AttemptRow, Transition
from scenario_runner.contracts.errors import EngineRefusal, EvidenceRefused, Unavailable
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.times import MICROS
from scenario_runner.engine.attempt import Attempt
from scenario_runner.engine.invoker import Job, JobEnd, LaunchFailed
from scenario_runner.engine.run_receipt import check_invoked_run
from scenario_runner.evidence.findings import Outcome, refused_without_report
from scenario_runner.runs.attempts import LOST, attempt_ended, job_submitted, launch_requested
from scenario_runner.runs.decisions import failed
from scenario_runner.runs.effects import (
    AwaitEnd,
    Effect,
    EndEarlier,
    FindJob,
    LaunchEngine,
    Prepared,
    PrepareLaunch,
    ReadClock,
    ReadRunReceipt,
    WriteAttemptLogs,
)
from scenario_runner.runs.progress import Progress, record

Execution = Generator[Effect, Any, Transition]


@dataclass(frozen=True, slots=True)
class ExecutionPlan:
    """What an execution takes from its run.

    Attributes:
        launch_retries: How many launches of the run's engine may fail before the run does.
        because: Why the engine is invoked, for the record.
    """

    intent: Intent
    inputs: PlanInputs
    launch_retries: int
    because: dict[str, Any]


def execute(progress: Progress, plan: ExecutionPlan) -> Execution:
    """Follow the open attempt of a run to its end, or launch the next one and follow that.

    Raises:
        Unavailable: infrastructure failed; nothing was decided.
    """
    claim = progress.claim
    number = len(claim.attempts) if claim.has_open_attempt else len(claim.attempts) + 1
    attempt = Attempt(plan.intent, number, plan.inputs.root_of(plan.intent), claim.invoker)
    if claim.has_open_attempt:
        job = yield from _find(progress)
        end: JobEnd = LOST if job is None else (yield AwaitEnd(job))
    else:
        for earlier in claim.attempts:
            yield EndEarlier(earlier.attempt_id)
        try:
            prepared: Prepared = yield PrepareLaunch(attempt)
        except EngineRefusal as refusal:
            return failed(progress.claim, (yield ReadClock()), refused_without_report(Outcome.FAIL, refusal))
        end = yield from _launch(progress, plan, attempt, prepared)
    return (yield from _judge(progress, plan, attempt, end))


def _launch(
    progress: Progress, plan: ExecutionPlan, attempt: Attempt, prepared: Prepared
) -> Generator[Effect, Any, JobEnd]:
    """Put the attempt on record, then launch it, then follow it."""
    now_us = yield ReadClock()
    row = AttemptRow(
        attempt_no=attempt.attempt_no, attempt_id=attempt.attempt_id, invoker=prepared.invoker, handle=prepared.place,
        launched_us=now_us, timeout_us=round(prepared.launch.timeout_seconds * MICROS),
    )  # fmt: skip
    progress.claim = yield from record(launch_requested(progress.claim, now_us, row, plan.because))
    job: Job | None
    try:
        job = launched = yield LaunchEngine(prepared.launch)
    except (LaunchFailed, EngineRefusal) as failure:
        another_attempt = isinstance(failure, LaunchFailed) and failure.another_attempt
        return JobEnd(
            succeeded=False, reason_code=failure.reason, exit_code=None, stop_code="", detail=failure.detail,
            another_attempt=another_attempt,
        )  # fmt: skip
    except Unavailable:
        job = yield from _find(progress)
    else:
        yield from _record_job(progress, launched)
    return LOST if job is None else (yield AwaitEnd(job))


def _find(progress: Progress) -> Generator[Effect, Any, Job | None]:
    """Find the job of the open attempt, which may have been launched by another process."""
    row = progress.claim.attempts[-1]
    known = Job(row.attempt_id, row.handle, row.launched_us, row.timeout_us / MICROS)
    job: Job | None = yield FindJob(known, row.invoker)
    if job is not None:
        yield from _record_job(progress, job)
    return job


def _record_job(progress: Progress, job: Job) -> Generator[Effect, Any, None]:
    """Keep the handle of a job in its row, unless it is there already."""
    row = progress.claim.attempts[-1]
    if job.handle != row.handle:
        now_us = yield ReadClock()
        known = replace(row, handle=job.handle, launched_us=job.launched_us)
        progress.claim = yield from record(job_submitted(progress.claim, now_us, known))


def _judge(progress: Progress, plan: ExecutionPlan, attempt: Attempt, end: JobEnd) -> Execution:
    """The transition after the end of an attempt."""
    refusal = None
    if end.succeeded:
        try:
            check_invoked_run((yield ReadRunReceipt(attempt.engine_run_root)), plan.intent.tokens())
        except EvidenceRefused as refused:
            refusal = _about_the_receipt(refused)
    logs = yield WriteAttemptLogs(attempt, end)
    now_us = yield ReadClock()
    return attempt_ended(progress.claim, now_us, attempt, end, refusal, logs, plan.inputs, plan.launch_retries)


def _about_the_receipt(refused: EvidenceRefused) -> EvidenceRefused:
    """A receipt that is no file or too large is an invalid one, whatever its reader calls that."""
    if refused.reason in (
        Reason.ENGINE_RECEIPT_MISSING, Reason.ENGINE_RECEIPT_INVALID, Reason.ENGINE_RECEIPT_MISMATCH,
    ):  # fmt: skip
        return refused
    return EvidenceRefused(refused.detail, Reason.ENGINE_RECEIPT_INVALID)
