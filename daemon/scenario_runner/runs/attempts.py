"""The transitions of a run whose engine is invoked: requested, submitted, ended. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from scenario_runner.authority.values import AttemptRow, Claim, Event, Transition
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import EvidenceRefused, printable
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import EventKind, RunState
from scenario_runner.contracts.times import MICROS
from scenario_runner.engine.attempt import Attempt, attempt_document
from scenario_runner.engine.invoker import JobEnd
from scenario_runner.engine.run_receipt import RUN_RECEIPT
from scenario_runner.evidence.findings import Outcome, refused_without_report
from scenario_runner.retry import RetryPolicy
from scenario_runner.runs.decisions import later_than, negative, resumed

LOST: Final = JobEnd(
    succeeded=False, reason_code=Reason.ENGINE_EXIT_NONZERO, exit_code=None, stop_code="LOST",
    detail="the daemon that followed the attempt ended, and nothing is known of how the attempt did",
    another_attempt=True,
)  # fmt: skip
"""The end of an attempt of which nothing runs and nothing is known."""

#: A host or a capacity that was lost is back after a minute at most; a failing launch must not spin.
_NEXT_ATTEMPT: Final = RetryPolicy(first_seconds=1, most_seconds=60)
#: Of stderr: what a person reads first.
_TAIL_LINES: Final = 20
#: And no more than an event holds of a detail.
_TAIL_CHARACTERS: Final = 2000


def launch_requested(claim: Claim, now_us: int, row: AttemptRow, because: Json) -> Transition:
    """EXECUTING: an attempt is on record, and counted, before its launch."""
    details = {
        "attempt_id": row.attempt_id,
        "attempt_no": row.attempt_no,
        "invoker": row.invoker,
        "handle": row.handle,
        "timeout_seconds": row.timeout_us // MICROS,
        **because,
    }
    # A run that waited passes VERIFYING: its evidence was examined once more.
    events = (
        *(resumed(claim) if claim.state is RunState.WAITING_EVIDENCE else ()),
        Event(EventKind.ENGINE_ATTEMPT_LAUNCH_REQUESTED, RunState.EXECUTING, details),
    )
    return _executing(claim, now_us, events, row)


def job_submitted(claim: Claim, now_us: int, row: AttemptRow) -> Transition:
    """The attempt has been launched, and its row says how it is found."""
    details = {"attempt_id": row.attempt_id, "attempt_no": row.attempt_no, "handle": row.handle}
    return _executing(claim, now_us, (Event(EventKind.ENGINE_JOB_SUBMITTED, RunState.EXECUTING, details),), row)


def _executing(claim: Claim, now_us: int, events: tuple[Event, ...], row: AttemptRow) -> Transition:
    return Transition(
        claim, RunState.EXECUTING, later_than(claim, now_us), due_us=claim.now_us, keep_lease=True, wakes=claim.wakes,
        retries=0, last_error="", report_digest=claim.report_digest, events=events, attempt=row,
    )  # fmt: skip


def attempt_ended(
    claim: Claim, now_us: int, attempt: Attempt, end: JobEnd, refusal: EvidenceRefused | None,
    logs: Mapping[str, str], inputs: PlanInputs, launch_retries: int,
) -> Transition:  # fmt: skip
    """What follows the end of an attempt: the evidence is verified, the engine is invoked again, or the run has failed.

    Args:
        claim: The run under lease, with the attempt open.
        now_us: The database's clock.
        attempt: The attempt.
        end: How its engine ended.
        refusal: What is wrong with its run receipt; None when it was accepted or not asked for.
        logs: Where its output lies; empty when nothing is kept.
        inputs: What was pinned for the run.
        launch_retries: How many launches may fail before the run does.
    """
    at_us = later_than(claim, now_us)
    reason = end.reason_code if refusal is None else refusal.reason
    detail = end.detail if refusal is None else refusal.detail
    row = replace(
        claim.attempts[-1], ended_us=at_us, outcome="FAILED" if reason else "SUCCEEDED", reason_code=reason or "",
        exit_code=end.exit_code, stop_code=end.stop_code, another_attempt=end.another_attempt,
        duration_ms=end.duration_ms, detail=detail, stderr_tail=tail(end.stderr),
    )  # fmt: skip
    document = attempt_document(
        attempt, end, row.invoker, started_us=row.launched_us, ended_us=at_us,
        receipt_reason=refusal.reason if refusal else None,
        run_receipt_ref="" if reason else f"{attempt.engine_run_root}/{RUN_RECEIPT}", logs_ref=logs or None,
    )  # fmt: skip
    finished = Event(EventKind.ENGINE_ATTEMPT_FINISHED, RunState.EXECUTING, document)
    if reason is None:
        return _verify(claim, at_us, finished, row, inputs)
    if _may_follow(claim, row, inputs, launch_retries):
        return Transition(
            claim, RunState.EXECUTING, at_us, due_us=at_us + _NEXT_ATTEMPT.pause_us(row.attempt_no), keep_lease=False,
            wakes=claim.wakes, retries=0, last_error="", report_digest=claim.report_digest, events=(finished,),
            attempt=row,
        )  # fmt: skip
    return _fail(claim, at_us, finished, row, inputs)


def _verify(claim: Claim, at_us: int, finished: Event, row: AttemptRow, inputs: PlanInputs) -> Transition:
    """The engine has made its run: a new wait for evidence begins, and the first examination is due at once."""
    started = Event(EventKind.VERIFICATION_STARTED, RunState.VERIFYING, {})
    return Transition(
        claim, RunState.VERIFYING, at_us, due_us=at_us, keep_lease=False, wakes=0, retries=0, last_error="",
        report_digest="", events=(finished, started), attempt=row,
        deadline_us=at_us + inputs.evidence_wait_seconds * MICROS,
    )  # fmt: skip


def _may_follow(claim: Claim, row: AttemptRow, inputs: PlanInputs, launch_retries: int) -> bool:
    """Whether another attempt may follow one that failed."""
    if row.reason_code == Reason.ENGINE_INVOCATION_INVALID:
        return False  # the same request gives the same invocation
    launches_failed = sum(_is_bad_launch(known) for known in (*claim.attempts[:-1], row))
    if _is_bad_launch(row) and launches_failed > launch_retries:
        return False
    return row.attempt_no < inputs.attempt_limit


def _is_bad_launch(row: AttemptRow) -> bool:
    """Whether an engine could not be launched for a reason of its own, as where its program is not there.

    A daemon that was killed in the middle of a launch, or a host without room, says nothing about the engine.
    """
    return row.reason_code == Reason.ENGINE_LAUNCH_FAILED and not row.another_attempt


def _fail(claim: Claim, at_us: int, finished: Event, row: AttemptRow, inputs: PlanInputs) -> Transition:
    """FAILED: with the engine's own reason, or that of the limit where the engine was not at fault."""
    reason = Reason(row.reason_code)
    if row.another_attempt and reason is not Reason.ENGINE_LAUNCH_FAILED:
        reason = Reason.ATTEMPT_LIMIT_EXCEEDED
    detail = f"attempt {row.attempt_no} of at most {inputs.attempt_limit}: {row.detail}"
    finding = refused_without_report(Outcome.FAIL, EvidenceRefused(detail, reason))
    return replace(
        negative(claim, at_us, RunState.FAILED, finding.reason, finding.detail, finding.report, before=(finished,)),
        attempt=row,
    )


def tail(output: bytes) -> str:
    """The last lines of an output as text, each printable."""
    lines = output.decode("utf-8", "replace").splitlines()[-_TAIL_LINES:]
    return "\n".join(printable(line) for line in lines)[-_TAIL_CHARACTERS:]
