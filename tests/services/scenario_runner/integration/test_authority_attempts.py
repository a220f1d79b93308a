"""Attempts of an engine, over every backend: written with the run's row or not at all, and never twice."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from authority_backends import snapshot
from authority_support import (
    LEASE,
    SECOND,
    START,
    WAIT,
    Clock,
    asking,
    claim_one,
    commit,
    failed,
    finished,
    gates_recorded,
    hex32,
    launched,
    next_attempt,
    ready,
    retried,
    submitted,
    waiting,
)

from scenario_runner.contracts.errors import LeaseLostError
from scenario_runner.contracts.states import EventKind, RunState

if TYPE_CHECKING:
    from authority_backends import Backend

    from scenario_runner.authority.base import Authority
    from scenario_runner.authority.values import Claim, Transition

pytestmark = pytest.mark.integration


def claimed(authority: Authority, key: str = "k", **more: Any) -> Claim:
    authority.admit([asking(key, **more)])
    return claim_one(authority)


def committed(authority: Authority, transition: Transition) -> Claim:
    """The claim after a transition that was committed."""
    commit(authority, transition)
    return transition.claim_after


def counted(backend: Backend) -> list[tuple[Any, ...]]:
    return backend.query("SELECT attempts FROM runs ORDER BY admitted_us")


def epochs(backend: Backend) -> list[tuple[Any, ...]]:
    return backend.query("SELECT attempt_no, epoch FROM engine_attempts ORDER BY attempt_no")


# --- an attempt is written with the run's row -------------------------------------------------------------------------


def test_an_attempt_is_inserted_and_counted_in_the_commit_before_its_launch(
    authority: Authority,
    backend: Backend,
) -> None:
    claim = claimed(authority)
    assert authority.attempts(hex32("k")) == []
    after = committed(authority, launched(claim))
    assert authority.attempts(hex32("k")) == [next_attempt(claim)] == list(after.attempts)
    assert (counted(backend), epochs(backend)) == ([(1,)], [(1, claim.epoch)])
    run = authority.run(hex32("k"))
    assert run is not None
    assert (run.state, run.due_us, run.lease_owner) == (RunState.EXECUTING, START, "w1")
    assert authority.events(hex32("k"))[-1].kind == EventKind.ENGINE_ATTEMPT_LAUNCH_REQUESTED


def test_everything_about_an_attempt_is_kept(authority: Authority) -> None:
    claim = committed(authority, launched(claimed(authority), invoker="ecs", handle="place", timeout_us=2**40))
    claim = committed(authority, submitted(claim, handle="arn:1", launched_us=START + 7))
    claim = committed(
        authority,
        finished(claim, "FAILED", reason_code="ENGINE_EXIT_NONZERO", exit_code=-9, stop_code="SpotInterruption",
                 another_attempt=True, duration_ms=2**33, detail="it was ended", stderr_tail="line\nline\n"),
    )  # fmt: skip
    assert authority.attempts(hex32("k")) == list(claim.attempts)
    (attempt,) = claim.attempts
    assert (attempt.handle, attempt.launched_us, attempt.exit_code, attempt.open) == ("arn:1", START + 7, -9, False)


def test_what_an_engine_says_may_hold_anything(authority: Authority) -> None:
    claim = committed(authority, launched(claimed(authority), handle="a\x00b"))
    claim = committed(authority, finished(claim, stop_code="\ud800", detail="\x00" * 9000, stderr_tail="é\x00\udfff"))
    (attempt,) = authority.attempts(hex32("k"))
    assert (attempt.stop_code, attempt.stderr_tail) == ("\\ud800", "é\\x00\\udfff")
    assert (len(attempt.detail), "\x00" in attempt.detail) == (8000, False)
    commit(authority, failed(claim))


def test_an_attempt_changes_while_it_is_open_and_keeps_the_epoch_of_its_launch(
    authority: Authority,
    backend: Backend,
    clock: Clock,
) -> None:
    first = committed(authority, launched(claimed(authority)))
    clock.pass_seconds(LEASE / SECOND)
    second = claim_one(authority, "w2")
    assert (second.epoch, second.state, second.attempts) == (first.epoch + 1, RunState.EXECUTING, first.attempts)
    second = committed(authority, submitted(second, handle="found again"))
    assert [item.handle for item in authority.attempts(hex32("k"))] == ["found again"]
    second = committed(authority, finished(second))
    second = committed(authority, launched(second))
    assert [item.open for item in authority.attempts(hex32("k"))] == [False, True]
    assert (counted(backend), epochs(backend)) == ([(2,)], [(1, first.epoch), (2, second.epoch)])
    assert list(second.attempts) == authority.attempts(hex32("k"))


def test_an_attempt_whose_end_is_on_record_never_changes(authority: Authority) -> None:
    begun = committed(authority, launched(claimed(authority)))
    ended = committed(authority, finished(begun, reason_code="ENGINE_TIMEOUT"))
    before = authority.attempts(hex32("k"))
    for change in (lambda claim: submitted(claim, handle="other"), lambda claim: finished(claim, "SUCCEEDED")):
        ended = committed(authority, change(replace(ended, attempts=begun.attempts)))
        assert authority.attempts(hex32("k")) == before


def test_only_the_run_of_the_transition_gets_its_attempt(authority: Authority, backend: Backend) -> None:
    authority.admit([asking("a"), asking("b"), asking("c")])
    first, second, third = authority.claim("w1", 3, LEASE)
    commit(authority, launched(first), waiting(second, START + WAIT), launched(third, handle="third"))
    assert [authority.attempts(claim.run_id) for claim in (first, second, third)] == [
        [next_attempt(first)], [], [next_attempt(third, handle="third")]]  # fmt: skip
    assert sorted(counted(backend)) == [(0,), (1,), (1,)]


# --- and not at all when the lease is lost ----------------------------------------------------------------------------

LATE = {
    "a first attempt": ((), launched),
    "the answer of a launch": ((launched,), lambda claim: submitted(claim, handle="late")),
    "the end of an engine": ((launched,), lambda claim: finished(claim, "SUCCEEDED")),
    "another attempt": ((launched, finished), launched),
}


@pytest.mark.parametrize("late", LATE)
def test_whoever_lost_the_lease_writes_nothing_of_an_attempt(
    authority: Authority,
    backend: Backend,
    clock: Clock,
    late: str,
) -> None:
    earlier, last = LATE[late]
    claim = claimed(authority)
    for step in earlier:
        claim = committed(authority, step(claim))
    clock.pass_seconds(LEASE / SECOND)
    new = claim_one(authority, "w2")
    before = snapshot(authority, "k"), counted(backend), epochs(backend)
    assert isinstance(authority.commit([last(claim)])[0], LeaseLostError)
    assert (snapshot(authority, "k"), counted(backend), epochs(backend)) == before
    commit(authority, last(new))


@pytest.mark.parametrize("late", LATE)
def test_a_claim_that_knows_other_attempts_than_the_row_has_lost_its_lease(
    authority: Authority,
    backend: Backend,
    late: str,
) -> None:
    """Otherwise a launch would take the row of a running engine for its own, and the engine would run twice."""
    earlier, last = LATE[late]
    claim = claimed(authority)
    for step in earlier:
        claim = committed(authority, step(claim))
    before = snapshot(authority, "k"), counted(backend)
    ended = replace(next_attempt(claim), ended_us=START, outcome="FAILED")
    for known in (claim.attempts[:-1], (*claim.attempts, ended)):
        if len(known) != len(claim.attempts):
            forged = replace(claim, attempts=known)
            for transition in (launched(forged), gates_recorded(replace(forged, state=RunState.VERIFYING))):
                assert isinstance(authority.commit([transition])[0], LeaseLostError)
    assert (snapshot(authority, "k"), counted(backend)) == before
    commit(authority, last(claim))


@pytest.mark.parametrize("late", LATE)
def test_an_attempt_that_is_committed_again_is_written_and_counted_once(
    authority: Authority,
    backend: Backend,
    late: str,
) -> None:
    earlier, last = LATE[late]
    claim = claimed(authority)
    for step in earlier:
        claim = committed(authority, step(claim))
    commit(authority, last(claim))
    before = snapshot(authority, "k"), counted(backend), epochs(backend)
    commit(authority, last(claim), last(claim))
    assert (snapshot(authority, "k"), counted(backend), epochs(backend)) == before
    changed = last(claim)
    assert changed.attempt is not None
    for other in (replace(changed.attempt, handle="other"), replace(changed.attempt, stderr_tail="other")):
        assert isinstance(authority.commit([replace(changed, attempt=other)])[0], LeaseLostError)
    assert (snapshot(authority, "k"), counted(backend), epochs(backend)) == before


# --- the deadline -----------------------------------------------------------------------------------------------------


def test_a_transition_moves_the_deadline_or_leaves_it(authority: Authority, clock: Clock) -> None:
    claim = claimed(authority)
    assert claim.deadline_us == START + WAIT
    claim = committed(authority, gates_recorded(claim))
    moved = committed(authority, replace(launched(claim), deadline_us=START + 2 * WAIT))
    assert moved.deadline_us == START + 2 * WAIT
    run = authority.run(hex32("k"))
    assert run is not None
    assert run.deadline_us == START + 2 * WAIT
    commit(authority, retried(moved, clock.now, "away"))
    again = claim_one(authority)
    assert again.deadline_us == START + 2 * WAIT
    commit(authority, failed(again))
    run = authority.run(hex32("k"))
    assert run is not None
    assert run.deadline_us == START + 2 * WAIT


# --- claims -----------------------------------------------------------------------------------------------------------


def test_claims_bring_the_attempts_of_each_run_in_their_order(authority: Authority, clock: Clock) -> None:
    authority.admit([asking(key) for key in "abc"])
    wanted = {}
    for claim, number in zip(authority.claim("w1", 3, LEASE), (0, 11, 2), strict=True):
        after = claim
        for _ in range(number):
            after = committed(authority, launched(after))
            after = committed(authority, finished(after))
        wanted[claim.run_id] = after.attempts
    assert sorted(map(len, wanted.values())) == [0, 2, 11]
    clock.pass_seconds(LEASE / SECOND)
    assert {claim.run_id: claim.attempts for claim in authority.claim("w2", 10, LEASE)} == wanted
    clock.pass_seconds(LEASE / SECOND)
    assert {run_id: authority.claim("w3", 1, LEASE, only=run_id)[0].attempts for run_id in wanted} == wanted


def test_runs_without_attempts_are_claimed_without_asking_for_any(
    authority: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No further statement, and so no further round trip."""
    authority.admit([asking("a"), asking("b")])
    monkeypatch.delitem(authority._sql, "attempts_of_runs")
    first, second = authority.claim("w1", 2, LEASE)
    commit(authority, launched(first), waiting(second, START))
    (again,) = authority.claim("w1", 2, LEASE)
    assert again.attempts == ()


@pytest.mark.parametrize("strategy", ["AUTO", "FORCE_REUSE", "FORCE_INVOKE", ""])
def test_a_run_that_invokes_its_engine_first_stays_planned_when_it_is_claimed(
    authority: Authority,
    strategy: str,
) -> None:
    authority.admit([asking("k", strategy=strategy), asking("other")])
    before = authority.run(hex32("k"))
    claims = {claim.run_id: claim for claim in authority.claim("w1", 2, LEASE)}
    after, claim = authority.run(hex32("k")), claims[hex32("k")]
    assert before is not None
    assert after is not None
    stays = strategy == "FORCE_INVOKE"
    assert claim.state is after.state is (RunState.PLANNED if stays else RunState.VERIFYING)
    assert (claim.updated_us, after.event_seq) == (after.updated_us, 4 if stays else 5)
    assert (after.updated_us == before.updated_us) is stays
    assert [item.kind for item in authority.events(hex32("k"))[4:]] == [EventKind.VERIFICATION_STARTED][stays:]
    assert claims[hex32("other")].state is RunState.VERIFYING


def test_a_run_that_invokes_its_engine_first_goes_on_from_where_it_is(authority: Authority, clock: Clock) -> None:
    claim = claimed(authority, strategy="FORCE_INVOKE")
    commit(authority, retried(claim, clock.now, "the store is away"))
    claim = claim_one(authority)
    assert (claim.state, claim.retries) == (RunState.PLANNED, 1)
    claim = committed(authority, launched(claim))
    claim = committed(authority, finished(claim, "SUCCEEDED"))
    assert claim.state is RunState.VERIFYING
    commit(authority, ready(claim))
    assert [item.details["state"] for item in authority.events(hex32("k"))] == [
        "OPEN", "PLANNED", "PLANNED", "PLANNED", "EXECUTING", "VERIFYING", "VERIFYING", "READY"]  # fmt: skip


def test_an_executing_run_whose_lease_has_run_out_is_claimed_as_it_is(authority: Authority, clock: Clock) -> None:
    claim = committed(authority, launched(claimed(authority, strategy="FORCE_INVOKE")))
    assert authority.claim("w2", 10, LEASE) == []
    assert authority.owners() == {"w1"}
    clock.pass_seconds(LEASE / SECOND)
    assert authority.pending().runs is True
    again = claim_one(authority, "w2")
    assert (again.state, again.updated_us, again.attempts) == (RunState.EXECUTING, claim.updated_us, claim.attempts)
    assert len(authority.events(hex32("k"))) == 5


def test_the_documents_of_an_executing_run_are_written_under_its_lease_and_wait_between_two(
    authority: Authority,
    clock: Clock,
) -> None:
    claim = committed(authority, launched(claimed(authority)))
    clock.pass_seconds(10)
    (owed,) = authority.claim_projections("relay", 10, LEASE)
    assert (owed.run.run_id, owed.run.state) == (claim.run_id, RunState.EXECUTING)
    authority.mark_projected("relay", [(owed.run.run_id, owed.run.event_seq)])
    commit(authority, replace(finished(claim), keep_lease=False))
    clock.pass_seconds(10)
    assert authority.claim_projections("relay", 10, LEASE) == []
    claim_one(authority, "w2")
    assert len(authority.claim_projections("relay", 10, LEASE)) == 1


def test_a_run_between_two_attempts_is_pending_work_although_it_is_not_due(
    authority: Authority,
    clock: Clock,
) -> None:
    commit(authority, launched(claimed(authority)))
    claim = claimed_again(authority, clock)
    later = START + 100 * SECOND
    commit(authority, replace(finished(claim), keep_lease=False, due_us=later))
    assert authority.claim("w3", 10, LEASE) == []
    assert (authority.pending().runs, authority.pending(only=claim.run_id).runs) == (True, True)
    assert authority.pending(only=hex32("another")).runs is False


def test_a_run_that_waits_for_evidence_is_no_pending_work_before_it_is_due(authority: Authority) -> None:
    commit(authority, waiting(claimed(authority), START + 100 * SECOND))
    assert authority.pending().runs is False


def test_a_run_whose_engine_runs_is_no_pending_work_of_others(authority: Authority) -> None:
    commit(authority, replace(launched(claimed(authority)), due_us=START + SECOND))
    assert authority.pending().runs is False


def claimed_again(authority: Authority, clock: Clock) -> Claim:
    clock.pass_seconds(LEASE / SECOND)
    return claim_one(authority, "w2")
