"""The order of an engine's attempt, held without a process or a database: answers in, effects and a transition out."""

import json
from dataclasses import replace
from typing import Any

import pytest
from test_lifecycle import ADMITTED, CONFLICT, INPUTS, INTENT, MISSING, NOW, SECOND, World, claim, events, passed

from scenario_runner.authority.values import AttemptRow, Claim, Transition
from scenario_runner.contracts.documents import EngineAttempt
from scenario_runner.contracts.errors import EngineRefusal, EvidenceRefused, LeaseLostError, LedgerDrift, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import EventKind, RunState, SignalKind, Strategy
from scenario_runner.engine.attempt import launch_of
from scenario_runner.engine.invoker import Job, JobEnd, LaunchFailed
from scenario_runner.evidence.findings import Finding
from scenario_runner.runs.effects import (
    AwaitEnd,
    Effect,
    EndEarlier,
    FindJob,
    LaunchEngine,
    PlanAndExamine,
    Prepared,
    PrepareLaunch,
    ReadClock,
    ReadRunReceipt,
    RecordProgress,
    WriteAttemptLogs,
    WritePlan,
)
from scenario_runner.runs.lifecycle import lifecycle

pytestmark = pytest.mark.unit

FORCED = replace(INPUTS, strategy=Strategy.FORCE_INVOKE)
AT_DEADLINE, AT_ONCE = replace(INPUTS, auto_invoke="at_deadline"), replace(INPUTS, auto_invoke="at_once")
RECEIPT = json.dumps(
    {"run_id": INTENT.run_id, "manifest_fingerprint": "a" * 64, "parameter_hash": "b" * 64, "seed": 7}
).encode()
DONE = JobEnd(succeeded=True, reason_code=None, exit_code=0, stop_code="", detail="exit 0", duration_ms=1500)
BROKE = JobEnd(
    succeeded=False, reason_code=Reason.ENGINE_EXIT_NONZERO, exit_code=3, stop_code="", detail="exit 3",
    stderr=b"one\ntwo\x1b\n", duration_ms=10,
)  # fmt: skip
KILLED = replace(BROKE, exit_code=None, stop_code="STOPPED", detail="it was stopped", another_attempt=True)
LOGS = {"stdout_ref": "o.log", "stderr_ref": "e.log"}
LAUNCH = [
    WritePlan, PrepareLaunch, ReadClock, RecordProgress, LaunchEngine, ReadClock, RecordProgress, AwaitEnd,
]  # fmt: skip
TO_VERIFYING = [*LAUNCH, ReadRunReceipt, WriteAttemptLogs, ReadClock]
AFTER_A_FAILURE = [*LAUNCH, WriteAttemptLogs, ReadClock]


class Engine(World):
    """A world with an engine.

    Args:
        end: How every attempt ends.
        receipt: What lies at the run root after it.
        found: What the backend finds of an attempt that may have been launched.
        finding: What an examination finds.
    """

    def __init__(
        self,
        end: JobEnd = DONE,
        receipt: bytes | None = RECEIPT,
        *,
        found: str | None = "place|7",
        finding: Finding = MISSING,
        **kind: Any,
    ) -> None:
        super().__init__(finding, **kind)
        self.end, self.receipt, self.found = end, receipt, found

    def answer(self, effect: Effect) -> Any:
        if isinstance(effect, PrepareLaunch):
            return Prepared(launch_of(effect.attempt, "/in.json", 60.0), "subprocess", "place")
        if isinstance(effect, LaunchEngine):
            return Job(effect.launch.attempt_id, "place|7", NOW + 5, 60.0)
        if isinstance(effect, FindJob):
            return None if self.found is None else replace(effect.job, handle=self.found)
        if isinstance(effect, AwaitEnd | EndEarlier):
            return self.end if isinstance(effect, AwaitEnd) else None
        if isinstance(effect, ReadRunReceipt):
            return self.receipt
        return LOGS if isinstance(effect, WriteAttemptLogs) else super().answer(effect)

    @property
    def progress(self) -> list[Transition]:
        return [effect.transition for effect in self.asked if isinstance(effect, RecordProgress)]


def forced(**row: Any) -> Claim:
    return claim(replace(INTENT, strategy=Strategy.FORCE_INVOKE), FORCED, **{"state": RunState.PLANNED, **row})


def attempt_row(number: int = 1, **changed: Any) -> AttemptRow:
    row = AttemptRow(number, f"{number:032x}", "subprocess", "place|7", ADMITTED + number, 60 * SECOND)
    return replace(row, **changed)


def over(number: int = 1, outcome: str = "FAILED", **changed: Any) -> AttemptRow:
    return attempt_row(number, ended_us=ADMITTED + 100 + number, outcome=outcome, **changed)


def test_the_row_is_committed_before_the_launch_and_the_handle_after_it() -> None:
    engine = Engine()
    end = engine.live(forced(updated_us=NOW))
    assert engine.kinds == TO_VERIFYING
    requested, submitted = engine.progress
    assert (requested.to_state, requested.keep_lease, events(requested)) == (
        RunState.EXECUTING, True, [EventKind.ENGINE_ATTEMPT_LAUNCH_REQUESTED]
    )  # fmt: skip
    assert requested.attempt is not None
    assert (requested.attempt.attempt_no, requested.attempt.handle, requested.attempt.open) == (1, "place", True)
    assert requested.attempt.timeout_us == 60 * SECOND
    assert submitted.attempt is not None
    assert (submitted.attempt.handle, submitted.attempt.launched_us) == ("place|7", NOW + 5)
    assert (submitted.to_state, submitted.keep_lease, events(submitted)) == (
        RunState.EXECUTING, True, [EventKind.ENGINE_JOB_SUBMITTED]
    )  # fmt: skip
    assert end.claim.attempts == (submitted.attempt,)


def test_after_a_success_the_evidence_is_waited_for_anew_and_examined_at_once() -> None:
    end = Engine().live(forced(wakes=5, report_digest="x"))
    assert (end.to_state, end.keep_lease, end.wakes, end.report_digest) == (RunState.VERIFYING, False, 0, "")
    assert events(end) == [EventKind.ENGINE_ATTEMPT_FINISHED, EventKind.VERIFICATION_STARTED]
    assert (end.due_us, end.deadline_us) == (end.at_us, end.at_us + 3600 * SECOND)
    assert end.attempt is not None
    assert (end.attempt.outcome, end.attempt.reason_code, end.attempt.exit_code) == ("SUCCEEDED", "", 0)
    document = EngineAttempt.model_validate(end.events[0].details)
    assert (document.outcome, document.attempt_no, document.duration_ms) == ("SUCCEEDED", 1, 1500)
    assert (document.run_receipt_ref, document.engine_run_root) == ("/engine/run/run_receipt.json", "/engine/run")
    assert document.logs_ref is not None


@pytest.mark.parametrize(
    ("receipt", "code"),
    [
        (None, "ENGINE_RECEIPT_MISSING"),
        (b"{", "ENGINE_RECEIPT_INVALID"),
        (RECEIPT.replace(INTENT.run_id.encode(), b"2" * 32), "ENGINE_RECEIPT_MISMATCH"),
        (RECEIPT.replace(b": 7", b": 8"), "ENGINE_RECEIPT_MISMATCH"),
    ],
)
def test_exit_status_0_without_the_runs_receipt_is_a_failure(receipt: bytes | None, code: str) -> None:
    engine = Engine(receipt=receipt)
    end = engine.live(forced(attempts=(over(1), over(2))))
    assert engine.kinds == [WritePlan, EndEarlier, EndEarlier, *TO_VERIFYING[1:]]
    assert (end.to_state, end.reason_code) == (RunState.FAILED, code)
    assert end.events[0].details["reason_code"] == code


def test_a_receipt_that_is_no_file_is_an_invalid_one() -> None:
    odd = EvidenceRefused("it is a folder", Reason.EVIDENCE_MALFORMED)
    end = Engine(fail={ReadRunReceipt: odd}).live(forced(attempts=(over(1), over(2))))
    assert (end.to_state, end.reason_code) == (RunState.FAILED, "ENGINE_RECEIPT_INVALID")


def test_an_attempt_that_failed_is_followed_by_another_one_after_a_pause() -> None:
    engine = Engine(BROKE)
    end = engine.live(forced())
    assert engine.kinds == AFTER_A_FAILURE
    assert (end.to_state, end.keep_lease, end.due_us) == (RunState.EXECUTING, False, end.at_us + SECOND)
    assert events(end) == [EventKind.ENGINE_ATTEMPT_FINISHED]
    assert end.attempt is not None
    assert (end.attempt.outcome, end.attempt.reason_code, end.attempt.exit_code) == ("FAILED", "ENGINE_EXIT_NONZERO", 3)
    assert end.attempt.stderr_tail == "one\ntwo\\x1b"
    again = Engine(BROKE)
    second = again.live(forced(state=RunState.EXECUTING, attempts=(end.attempt,)))
    assert second.attempt is not None
    assert (second.attempt.attempt_no, second.due_us) == (2, second.at_us + 2 * SECOND)


@pytest.mark.parametrize(
    ("end", "code"), [(BROKE, "ENGINE_EXIT_NONZERO"), (KILLED, "ATTEMPT_LIMIT_EXCEEDED")], ids=["broke", "killed"]
)
def test_the_last_attempt_ends_the_run_with_its_own_code_or_with_the_limit(end: JobEnd, code: str) -> None:
    run = forced(state=RunState.EXECUTING, attempts=(over(1), over(2)))
    last = Engine(end).live(run)
    assert (last.to_state, last.reason_code, last.due_us) == (RunState.FAILED, code, None)
    assert events(last) == [EventKind.ENGINE_ATTEMPT_FINISHED, EventKind.GOV_REEMIT_KEY, EventKind.RUN_FAILED]
    assert last.signal is not None
    assert last.signal.kind is SignalKind.TERMINAL
    assert last.attempt is not None
    assert last.attempt.attempt_no == 3
    assert "attempt 3 of at most 3" in last.events[-1].details["detail"]


def test_launches_that_fail_are_tried_again_as_often_as_the_profile_says() -> None:
    refused = {LaunchEngine: LaunchFailed("no such program")}
    engine = Engine(fail=refused)
    end = engine.live(forced())
    assert engine.kinds == [*LAUNCH[:5], WriteAttemptLogs, ReadClock]
    assert (end.to_state, end.reason_code) == (RunState.FAILED, "ENGINE_LAUNCH_FAILED"), "no retries"
    again = drive(Engine(fail=refused), forced(), launch_retries=1)
    assert again.to_state is RunState.EXECUTING
    failed = over(1, reason_code="ENGINE_LAUNCH_FAILED")
    last = drive(Engine(fail=refused), forced(state=RunState.EXECUTING, attempts=(failed,)), launch_retries=1)
    assert (last.to_state, last.reason_code) == (RunState.FAILED, "ENGINE_LAUNCH_FAILED")


def test_launches_that_fail_through_no_fault_of_the_engine_are_bounded_by_the_limit_alone() -> None:
    """A daemon killed in the middle of a launch, or a host without room, must not use up the engine's launches."""
    unlucky = {LaunchEngine: LaunchFailed("no memory", another_attempt=True)}
    before = tuple(over(number, reason_code="ENGINE_LAUNCH_FAILED", another_attempt=True) for number in (1,))
    assert drive(Engine(fail=unlucky), forced(), launch_retries=0).to_state is RunState.EXECUTING
    second = drive(Engine(fail=unlucky), forced(state=RunState.EXECUTING, attempts=before), launch_retries=0)
    assert second.to_state is RunState.EXECUTING
    bad = {LaunchEngine: LaunchFailed("no such program")}
    retried = drive(Engine(fail=bad), forced(state=RunState.EXECUTING, attempts=before), launch_retries=1)
    assert retried.to_state is RunState.EXECUTING, "the one before does not count"
    three = tuple(over(number, reason_code="ENGINE_LAUNCH_FAILED", another_attempt=True) for number in (1, 2))
    last = drive(Engine(fail=unlucky), forced(state=RunState.EXECUTING, attempts=three), launch_retries=9)
    assert (last.to_state, last.reason_code) == (RunState.FAILED, "ENGINE_LAUNCH_FAILED")


def test_launches_that_failed_do_not_count_against_an_engine_that_was_launched() -> None:
    failed = over(1, reason_code="ENGINE_LAUNCH_FAILED")
    end = drive(Engine(BROKE), forced(state=RunState.EXECUTING, attempts=(failed,)), launch_retries=0)
    assert end.to_state is RunState.EXECUTING


def test_a_host_that_could_not_launch_ends_the_last_attempt_as_what_it_is() -> None:
    full = Engine(fail={LaunchEngine: LaunchFailed("no space is left", another_attempt=True)})
    end = full.live(forced(state=RunState.EXECUTING, attempts=(over(1), over(2))))
    assert (end.to_state, end.reason_code) == (RunState.FAILED, "ENGINE_LAUNCH_FAILED")


@pytest.mark.parametrize("attempts", [(attempt_row(),), (over(1),)], ids=["open", "failed"])
def test_a_run_that_may_reuse_goes_on_with_its_engine_once_that_was_invoked(attempts: tuple[AttemptRow, ...]) -> None:
    engine = Engine(finding=passed())
    assert engine.live(claim(inputs=AT_ONCE, state=RunState.EXECUTING, attempts=attempts)).events
    assert PlanAndExamine not in engine.kinds
    assert AwaitEnd in engine.kinds


def test_an_invocation_that_cannot_be_made_ends_the_run_and_counts_no_attempt() -> None:
    engine = Engine(fail={PrepareLaunch: EngineRefusal("not valid")})
    end = engine.live(forced())
    assert engine.kinds == [WritePlan, PrepareLaunch, ReadClock]
    assert (end.to_state, end.reason_code, end.attempt) == (RunState.FAILED, "ENGINE_INVOCATION_INVALID", None)
    assert events(end) == [EventKind.VERIFICATION_STARTED, EventKind.GOV_REEMIT_KEY, EventKind.RUN_FAILED]


def test_an_invocation_that_the_launch_refuses_is_not_tried_again() -> None:
    end = drive(Engine(fail={LaunchEngine: EngineRefusal("begins with '-'")}), forced(), launch_retries=9)
    assert (end.to_state, end.reason_code) == (RunState.FAILED, "ENGINE_INVOCATION_INVALID")
    assert end.attempt is not None


def test_a_launch_whose_answer_was_lost_is_found_and_followed() -> None:
    engine = Engine(fail={LaunchEngine: Unavailable("timeout")})
    end = engine.live(forced())
    assert engine.kinds == [*LAUNCH[:5], FindJob, *LAUNCH[5:], *TO_VERIFYING[len(LAUNCH) :]]
    assert end.to_state is RunState.VERIFYING


@pytest.mark.parametrize("handle", ["place", "place|7"], ids=["before the answer", "after it"])
def test_an_open_attempt_is_found_and_followed_and_not_launched_again(handle: str) -> None:
    engine = Engine()
    end = engine.live(forced(state=RunState.EXECUTING, attempts=(attempt_row(handle=handle),)))
    assert PrepareLaunch not in engine.kinds
    assert LaunchEngine not in engine.kinds
    known = [ReadClock, RecordProgress] if handle == "place" else []
    assert engine.kinds == [FindJob, *known, AwaitEnd, ReadRunReceipt, WriteAttemptLogs, ReadClock]
    assert (end.to_state, end.attempt is not None and end.attempt.attempt_no) == (RunState.VERIFYING, 1)
    (asked,) = [effect.job for effect in engine.asked if isinstance(effect, FindJob)]
    assert asked == Job(f"{1:032x}", handle, ADMITTED + 1, 60.0)


def test_an_open_attempt_of_which_nothing_is_found_is_lost_and_followed_by_another_one() -> None:
    engine = Engine(found=None)
    end = engine.live(forced(state=RunState.EXECUTING, attempts=(attempt_row(),)))
    assert engine.kinds == [FindJob, WriteAttemptLogs, ReadClock]
    assert end.attempt is not None
    assert (end.to_state, end.attempt.attempt_no, end.attempt.stop_code) == (RunState.EXECUTING, 1, "LOST")


def test_a_run_that_may_not_reuse_is_verified_only_after_an_attempt_that_succeeded() -> None:
    engine = Engine(finding=passed())
    assert engine.live(forced(state=RunState.VERIFYING, attempts=(over(1),))).to_state is RunState.VERIFYING
    assert PlanAndExamine not in engine.kinds
    verified = Engine(finding=passed())
    assert verified.live(forced(state=RunState.VERIFYING, attempts=(over(1, "SUCCEEDED"),))).to_state is RunState.READY
    assert PrepareLaunch not in verified.kinds


def test_a_run_that_may_reuse_invokes_the_engine_at_its_deadline_and_once() -> None:
    deadline = ADMITTED + 3600 * SECOND
    assert Engine(began_us=deadline - 1).live(claim(inputs=AT_DEADLINE)).to_state is RunState.WAITING_EVIDENCE
    for state in (RunState.VERIFYING, RunState.WAITING_EVIDENCE):
        engine = Engine(began_us=deadline)
        end = engine.live(claim(inputs=AT_DEADLINE, state=state))
        assert engine.kinds == [PlanAndExamine, *TO_VERIFYING[1:]]
        assert end.to_state is RunState.VERIFYING
        resumed = [EventKind.VERIFICATION_STARTED] if state is RunState.WAITING_EVIDENCE else []
        assert events(engine.progress[0]) == [*resumed, EventKind.ENGINE_ATTEMPT_LAUNCH_REQUESTED]
        assert engine.progress[0].events[-1].details["report"] == MISSING.report
    after = claim(inputs=AT_DEADLINE, attempts=(over(1, "SUCCEEDED"),))
    end = Engine(began_us=deadline).live(after)
    assert (end.to_state, end.reason_code) == (RunState.FAILED, "EVIDENCE_MISSING_DEADLINE")


def test_a_policy_may_invoke_the_engine_at_once() -> None:
    engine = Engine(began_us=ADMITTED + 1)
    assert engine.live(claim(inputs=AT_ONCE)).to_state is RunState.VERIFYING
    assert LaunchEngine in engine.kinds


@pytest.mark.parametrize("strategy", [Strategy.FORCE_REUSE, Strategy.AUTO])
def test_without_a_pinned_engine_the_deadline_ends_the_run(strategy: Strategy) -> None:
    engine = Engine(began_us=ADMITTED + 3600 * SECOND)
    pinned = "at_once" if strategy is Strategy.FORCE_REUSE else ""
    end = engine.live(claim(inputs=replace(INPUTS, strategy=strategy, auto_invoke=pinned)))
    assert (end.to_state, end.reason_code) == (RunState.FAILED, "EVIDENCE_MISSING_DEADLINE")
    assert PrepareLaunch not in engine.kinds


def test_evidence_that_contradicts_itself_invokes_nothing() -> None:
    engine = Engine(finding=CONFLICT, began_us=ADMITTED + 3600 * SECOND)
    assert engine.live(claim(inputs=AT_ONCE)).to_state is RunState.QUARANTINED
    assert PrepareLaunch not in engine.kinds


def test_whatever_runs_of_earlier_attempts_is_ended_before_another_one_is_on_record() -> None:
    """Their ends may come from a ledger that others can write."""
    engine = Engine()
    engine.live(forced(state=RunState.EXECUTING, attempts=(over(1), over(2))))
    assert engine.kinds == [WritePlan, EndEarlier, EndEarlier, *TO_VERIFYING[1:]]
    ended = [effect.attempt_id for effect in engine.asked if isinstance(effect, EndEarlier)]
    assert ended == [f"{1:032x}", f"{2:032x}"]
    deadline = ADMITTED + 3600 * SECOND
    reused = Engine(began_us=deadline)
    reused.live(claim(inputs=AT_DEADLINE, attempts=(over(1),)))
    assert reused.kinds[:3] == [PlanAndExamine, EndEarlier, PrepareLaunch]


def test_nothing_is_launched_while_an_earlier_attempt_may_run() -> None:
    engine = Engine(fail={EndEarlier: Unavailable("it does not end")})
    end = engine.live(forced(state=RunState.EXECUTING, attempts=(over(1),)))
    assert engine.kinds == [WritePlan, EndEarlier, ReadClock]
    assert (end.events, end.attempt, end.retries, end.last_error) == ((), None, 1, "it does not end")


@pytest.mark.parametrize("kind", [PrepareLaunch, ReadRunReceipt, WriteAttemptLogs], ids=lambda kind: kind.__name__)
def test_infrastructure_that_fails_leaves_the_attempt_as_it_is(kind: type) -> None:
    engine = Engine(fail={kind: Unavailable("away")})
    end = engine.live(forced())
    assert (end.events, end.attempt, end.retries) == ((), None, 1)
    assert end.to_state is (RunState.PLANNED if kind is PrepareLaunch else RunState.EXECUTING)
    assert end.claim.attempts == (() if kind is PrepareLaunch else end.claim.attempts[:1])


@pytest.mark.parametrize("kind", dict.fromkeys(TO_VERIFYING), ids=lambda kind: kind.__name__)
def test_a_lost_lease_ends_the_execution_without_a_transition(kind: type) -> None:
    engine = Engine(fail={kind: LeaseLostError("another worker")})
    with pytest.raises(LeaseLostError):
        engine.live(forced())
    assert engine.kinds[-1] is kind


def test_drift_of_the_plan_does_not_keep_an_engine_from_being_followed() -> None:
    """The run would end, and its engine would run on with nobody to see its end."""
    drift = LedgerDrift("other bytes", Reason.PLAN_DRIFT, place="/x", expected="a", actual="b")
    engine = Engine(fail={WritePlan: drift})
    end = engine.live(forced(state=RunState.EXECUTING, attempts=(attempt_row(),)))
    assert end.to_state is RunState.VERIFYING


def test_drift_of_the_plan_ends_a_run_before_its_engine() -> None:
    drift = LedgerDrift("other bytes", Reason.PLAN_DRIFT, place="/x", expected="a", actual="b")
    for run in (forced(), forced(state=RunState.EXECUTING, attempts=(over(1),))):
        engine = Engine(fail={WritePlan: drift})
        end = engine.live(run)
        assert engine.kinds == [WritePlan, ReadClock]
        assert (end.to_state, events(end)[0]) == (RunState.QUARANTINED, EventKind.VERIFICATION_STARTED)


def drive(engine: Engine, run: Claim, launch_retries: int) -> Transition:
    """Like ``Engine.live``, with launches that may be tried again."""
    steps = lifecycle(run, launch_retries)
    effect = next(steps)
    try:
        while True:
            failures = engine.fail.get(type(effect))
            effect = steps.throw(failures.pop()) if failures else steps.send(engine.answer(effect))
    except StopIteration as end:
        transition = end.value
        assert isinstance(transition, Transition)
        return transition
