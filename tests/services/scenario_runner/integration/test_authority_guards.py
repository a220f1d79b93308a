"""Every term of a WHERE, over every backend: what a statement must leave alone.

``scripts/delete_guards.py --room authority`` deletes the terms one after the other; each deletion fails a test of this
module, of the contract or of the clocks.
"""

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
    disposed,
    draft,
    failed,
    gates_recorded,
    hex32,
    hex64,
    launched,
    next_attempt,
    ready,
    retried,
    waiting,
)

from scenario_runner.authority.rows import QUIET_PERIOD_US
from scenario_runner.authority.values import UNTIL_RESTART, Claim, ProjectionFailure, RunRow, Sent, SignalRow
from scenario_runner.contracts.errors import LeaseLostError
from scenario_runner.contracts.states import Disposition, RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from scenario_runner.authority.base import Authority
    from scenario_runner.authority.values import Transition

pytestmark = pytest.mark.integration


def two_claims(authority: Authority) -> tuple[Claim, Claim]:
    """Runs a and b, claimed at the same time by the same owner, with equal epochs."""
    authority.admit([asking("a"), asking("b")])
    claims = {claim.run_id: claim for claim in authority.claim("w1", 2, LEASE)}
    return claims[hex32("a")], claims[hex32("b")]


def row(authority: Authority, key: str) -> RunRow:
    found = authority.run(hex32(key))
    assert found is not None
    return found


# --- intake -----------------------------------------------------------------------------------------------------------


def test_a_key_that_is_bound_to_another_run_id_is_a_conflict(authority: Authority) -> None:
    authority.admit([asking("k", "r1")])
    twin = asking("k", "r2")
    assert twin.run is not None
    (answer,) = authority.admit([replace(twin, run_id=hex32("x"), run=replace(twin.run, run_id=hex32("x")))])
    assert answer.disposition is Disposition.CONFLICT
    assert authority.run(hex32("x")) is None


def test_of_many_records_of_a_batch_the_first_under_each_key_decides_what_its_run_is(authority: Authority) -> None:
    records = [asking(f"k{key}", f"{key} {number}", f"{number}") for number in range(12) for key in range(7, 0, -1)]
    answers = authority.admit(records)
    assert [answer.disposition for answer in answers] == [Disposition.ACCEPTED] * 7 + [Disposition.CONFLICT] * 77
    assert {row(authority, f"k{key}").intent["note"] for key in range(1, 8)} == {"0"}
    assert [event.seq for event in authority.events(hex32("k1"))] == [1, 2, 3, 4]


def test_records_of_a_run_are_those_that_name_it(authority: Authority) -> None:
    authority.admit(
        [asking("a", "one"), asking("b", "two"), asking("a", "again"), disposed("none", Disposition.REJECTED)]
    )
    assert [len(authority.records(hex32(key))) for key in ("a", "b", "nobody")] == [2, 1, 0]
    assert {record.record_key for record in authority.records(hex32("a"))} == {"one", "again"}


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_claim_starts_the_verification_of_the_runs_it_leases_and_of_no_other(authority: Authority) -> None:
    authority.admit([asking("a"), asking("b")])
    claim = claim_one(authority)
    (other,) = {hex32("a"), hex32("b")} - {claim.run_id}
    run = authority.run(other)
    assert run is not None
    assert (run.state, run.event_seq, run.lease_epoch, run.updated_us) == (RunState.PLANNED, 4, 0, START)


def test_a_claim_of_a_run_whose_verification_has_started_adds_nothing_to_its_record(
    authority: Authority,
    clock: Clock,
) -> None:
    authority.admit([asking("k")])
    commit(authority, waiting(claim_one(authority), clock.now))
    before = row(authority, "k")
    again = claim_one(authority)
    assert (again.state, again.updated_us) == (RunState.WAITING_EVIDENCE, before.updated_us)
    assert row(authority, "k").event_seq == before.event_seq == len(authority.events(hex32("k")))


# --- transitions ------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Claim], Transition]] = {
    "gates recorded": gates_recorded,
    "waiting": lambda claim: waiting(claim, START + WAIT),
    "retry": lambda claim: retried(claim, START + WAIT, "away"),
    "READY": ready,
    "FAILED": failed,
    "a launch": launched,
    "another deadline": lambda claim: replace(waiting(claim, START + WAIT), deadline_us=START + 1),
}
FORGED: dict[str, Callable[[Claim], Claim]] = {
    "another run": lambda claim: replace(claim, run_id=hex32("none")),
    "another owner": lambda claim: replace(claim, owner="w2"),
    "no owner": lambda claim: replace(claim, owner=""),
    "an older lease": lambda claim: replace(claim, epoch=claim.epoch - 1),
    "a newer lease": lambda claim: replace(claim, epoch=claim.epoch + 1),
    "another state": lambda claim: replace(claim, state=RunState.WAITING_EVIDENCE),
    "a row that has changed since": lambda claim: replace(claim, updated_us=claim.updated_us - 1),
    "attempts that nobody has made": lambda claim: replace(
        claim, attempts=(next_attempt(claim, ended_us=START, outcome="FAILED"),)
    ),
    "a row that is not there yet": lambda claim: replace(claim, updated_us=claim.updated_us + 1),
}


@pytest.mark.parametrize("forgery", FORGED)
@pytest.mark.parametrize("change", CHANGES)
def test_a_transition_of_a_claim_that_is_not_the_rows_changes_nothing(
    authority: Authority,
    change: str,
    forgery: str,
) -> None:
    claims = two_claims(authority)
    before = snapshot(authority, "a"), snapshot(authority, "b")
    (answer,) = authority.commit([CHANGES[change](FORGED[forgery](claims[0]))])
    assert isinstance(answer, LeaseLostError)
    assert (snapshot(authority, "a"), snapshot(authority, "b")) == before
    commit(authority, CHANGES[change](claims[0]))


@pytest.mark.parametrize("change", CHANGES)
def test_a_transition_changes_its_own_run_and_no_other(authority: Authority, change: str) -> None:
    first, _ = two_claims(authority)
    before = snapshot(authority, "b")
    commit(authority, CHANGES[change](first))
    assert snapshot(authority, "b") == before


def test_an_equal_transition_of_another_run_is_not_taken_for_ones_own(authority: Authority) -> None:
    first, second = two_claims(authority)
    commit(authority, waiting(first, START + WAIT), failed(second))
    (answer,) = authority.commit([waiting(second, START + WAIT)])
    assert isinstance(answer, LeaseLostError)


def test_a_lease_is_kept_as_it_is_while_gates_are_recorded(authority: Authority) -> None:
    first, _ = two_claims(authority)
    before = row(authority, "a")
    commit(authority, gates_recorded(first))
    after = row(authority, "a")
    assert (after.lease_owner, after.lease_epoch, after.lease_until_us) == (
        before.lease_owner,
        before.lease_epoch,
        before.lease_until_us,
    )
    assert (after.due_us, after.retries, after.wakes, after.last_error) == (first.now_us, 0, 0, "")


@pytest.mark.parametrize("state", ["under lease", "due already"])
def test_a_waiting_run_that_is_due_stays_as_it_is_when_waiting_runs_are_made_due(
    authority: Authority,
    clock: Clock,
    state: str,
) -> None:
    authority.admit([asking("k")])
    commit(authority, waiting(claim_one(authority), clock.now))
    if state == "under lease":
        claim_one(authority)
    before = row(authority, "k")
    clock.pass_seconds(1)
    assert authority.make_waiting_due() == 0
    assert row(authority, "k") == before


# --- documents --------------------------------------------------------------------------------------------------------


def unprojected(authority: Authority) -> list[str]:
    return [owed.run.run_id for owed in authority.claim_projections("relay", 10, LEASE)]


def test_only_the_run_that_is_named_is_projected(authority: Authority) -> None:
    commit(authority, *[ready(claim, claim.run_id) for claim in two_claims(authority)])
    assert len(unprojected(authority)) == 2
    authority.mark_projected("relay", [(hex32("a"), 7)])
    assert (row(authority, "a").projected_seq, row(authority, "b").projected_seq) == (7, 0)
    assert (row(authority, "a").relay_until_us, row(authority, "b").relay_until_us) == (0, START + LEASE)


def test_only_the_run_that_is_named_is_put_off(authority: Authority) -> None:
    commit(authority, *[ready(claim, claim.run_id) for claim in two_claims(authority)])
    assert len(unprojected(authority)) == 2
    authority.postpone_projections("relay", [ProjectionFailure(hex32("a"), START + WAIT, "why")])
    assert (row(authority, "a").relay_retries, row(authority, "b").relay_retries) == (1, 0)
    assert row(authority, "b").relay_until_us == START + LEASE


def test_a_run_that_is_being_driven_is_projected_only_when_it_has_been_quiet_for_long(
    authority: Authority,
    clock: Clock,
) -> None:
    """What is put on record in quick succession is projected once, at its end."""
    authority.admit([asking("k")])
    assert unprojected(authority) == [], "a run that nobody drives yet"
    quiet_at = claim_one(authority, lease_us=100 * SECOND).updated_us + QUIET_PERIOD_US
    clock.now = quiet_at - 1
    assert unprojected(authority) == []
    clock.now = quiet_at
    assert unprojected(authority) == [hex32("k")]


def test_a_run_whose_lease_has_run_out_is_not_projected_before_somebody_goes_on_with_it(
    authority: Authority,
    clock: Clock,
) -> None:
    authority.admit([asking("k")])
    claim_one(authority)
    clock.now = START + LEASE
    assert unprojected(authority) == []


@pytest.mark.parametrize("change", ["waiting", "READY"])
def test_a_run_that_waits_or_has_ended_is_projected_at_once(authority: Authority, change: str) -> None:
    first, _ = two_claims(authority)
    commit(authority, CHANGES[change](first))
    assert unprojected(authority) == [hex32("a")]


def test_no_more_runs_are_claimed_for_projection_than_asked_for(authority: Authority) -> None:
    commit(authority, *[ready(claim, claim.run_id) for claim in two_claims(authority)])
    assert len(authority.claim_projections("relay", 1, LEASE)) == 1


def test_nothing_is_resumed_that_was_not_put_off(authority: Authority) -> None:
    commit(authority, *[ready(claim, claim.run_id) for claim in two_claims(authority)])
    authority.mark_projected("relay", [(hex32("a"), 7)])
    assert authority.resume_deliveries() == 0


def test_only_times_that_lie_too_far_ahead_are_corrected_and_counted(authority: Authority) -> None:
    first, _ = two_claims(authority)
    authority.admit([asking("unprojected"), asking("left")])
    for claim in authority.claim("w2", 2, LEASE):
        commit(authority, ready(claim, claim.run_id))
    assert len(unprojected(authority)) == 2
    authority.postpone_projections("relay", [ProjectionFailure(hex32("unprojected"), START + SECOND, "away")])
    authority.postpone_projections("relay", [ProjectionFailure(hex32("left"), UNTIL_RESTART, "drift")])
    (later, never, _) = refusals(authority, "later", "never", "fresh")
    authority.postpone_signals([later], START + SECOND)
    authority.postpone_signals([never], UNTIL_RESTART)
    commit(authority, waiting(first, START + WAIT))
    before = row(authority, "b"), row(authority, "unprojected"), row(authority, "left")
    assert authority.pull_in_times() == 1
    assert (row(authority, "b"), row(authority, "unprojected"), row(authority, "left")) == before
    assert row(authority, "a").due_us == START
    assert authority.pull_in_times() == 0


def test_of_several_signals_only_those_that_lie_too_far_ahead_are_corrected_and_counted(authority: Authority) -> None:
    far, *others = refusals(authority, "far", "near", "nearer")
    authority.postpone_signals([far], START + 1000 * WAIT)
    authority.postpone_signals(others, START + SECOND)
    assert authority.pull_in_times() == 1
    assert [item.message_id for item in authority.claim_signals("p", 10, LEASE)] == [hex64("far")]


# --- signals ----------------------------------------------------------------------------------------------------------


def refusals(authority: Authority, *names: str) -> list[Any]:
    """Signals that wait for no documents, claimed."""
    authority.admit([disposed(name, Disposition.REJECTED, hex32(name), draft(name)) for name in names])
    return authority.claim_signals("p", 10, LEASE)


def test_only_the_signals_that_are_named_are_sent(authority: Authority, clock: Clock) -> None:
    first, _ = refusals(authority, "a", "b")
    authority.mark_sent([Sent(first)])
    assert authority.signals(hex32("a")).rows == (SignalRow(hex64("a"), "REQUEST_REJECTED", START),)
    assert authority.signals(hex32("b")).rows == (SignalRow(hex64("b"), "REQUEST_REJECTED", None),)
    clock.pass_seconds(LEASE / SECOND)
    assert [item.message_id for item in authority.claim_signals("p", 10, LEASE)] == [hex64("b")]


def test_a_signal_that_was_sent_keeps_the_time_of_its_first_mark(authority: Authority, clock: Clock) -> None:
    (only,) = refusals(authority, "a")
    authority.mark_sent([Sent(only)])
    clock.pass_seconds(1)
    authority.mark_sent([Sent(only)])
    assert authority.signals(hex32("a")).rows == (SignalRow(hex64("a"), "REQUEST_REJECTED", START),)


def test_only_the_signals_that_are_named_are_put_off(authority: Authority) -> None:
    first, second = refusals(authority, "a", "b")
    authority.postpone_signals([first], START)
    assert [item.outbox_id for item in authority.claim_signals("p", 10, LEASE)] == [first.outbox_id]
    assert second.attempts == 1


def test_no_more_signals_are_claimed_than_asked_for(authority: Authority) -> None:
    authority.admit([disposed(name, Disposition.REJECTED, hex32(name), draft(name)) for name in "abc"])
    assert len(authority.claim_signals("p", 2, LEASE)) == 2


def test_leases_of_other_owners_stay_when_an_owner_is_expired(authority: Authority) -> None:
    commit(authority, *[ready(claim, claim.run_id) for claim in two_claims(authority)])
    assert len(authority.claim_projections("relay", 10, LEASE)) == 2
    refusals(authority, "x")
    authority.admit([asking("k")])
    claim_one(authority, "w3")
    authority.expire_owner("somebody else")
    assert authority.owners() == {"relay", "p", "w3"}
    assert authority.claim("w4", 10, LEASE) == []
    assert authority.claim_projections("other", 10, LEASE) == []
    assert authority.claim_signals("other", 10, LEASE) == []


def test_documents_are_pending_when_they_can_be_written_or_are_being_written(
    authority: Authority,
    clock: Clock,
) -> None:
    authority.admit([asking("k")])
    assert authority.pending().projections is False, "nobody drives the run yet"
    claim = claim_one(authority)
    assert authority.pending().projections is False, "it is being driven"
    commit(authority, ready(claim))
    assert authority.pending().projections is True
    assert unprojected(authority) == [hex32("k")]
    assert authority.pending().projections is True, "they are being written"
    authority.postpone_projections("relay", [ProjectionFailure(hex32("k"), START + SECOND, "away")])
    assert authority.pending().projections is False
    clock.pass_seconds(1)
    assert authority.pending().projections is True


def test_documents_of_a_run_that_waits_are_pending_until_they_are_written(authority: Authority) -> None:
    first, _ = two_claims(authority)
    commit(authority, waiting(first, START + WAIT))
    assert authority.pending().projections is True
    (task,) = authority.claim_projections("relay", 10, LEASE)
    authority.mark_projected("relay", [(task.run.run_id, task.run.event_seq)])
    assert authority.pending().projections is False


def test_a_run_is_postponed_as_long_as_infrastructure_keeps_it_from_its_end(authority: Authority) -> None:
    authority.admit([asking("k")])
    claim = claim_one(authority)
    assert authority.pending().postponed is False
    commit(authority, retried(claim, START, "the store is away"))
    assert authority.pending().postponed is True
    commit(authority, ready(claim_one(authority)))
    assert row(authority, "k").retries == 1
    assert authority.pending().postponed is False


def test_the_refusal_of_a_record_that_names_no_known_run_is_pending(authority: Authority) -> None:
    authority.admit([disposed("r1", Disposition.REJECTED, hex32("k"), draft("no"))])
    assert authority.pending().signals is True


@pytest.mark.parametrize("kind", ["documents", "signals"])
def test_an_owner_whose_lease_has_run_out_is_none(authority: Authority, clock: Clock, kind: str) -> None:
    if kind == "signals":
        refusals(authority, "x")
    else:
        commit(authority, ready(two_claims(authority)[0]))
        authority.expire_owner("w1")
        assert unprojected(authority) == [hex32("a")]
    assert authority.owners() == {"p" if kind == "signals" else "relay"}
    clock.pass_seconds(LEASE / SECOND)
    assert authority.owners() == set()


# --- idle -------------------------------------------------------------------------------------------------------------


def test_work_that_is_not_due_takes_no_write_lock(locked: tuple[Authority, Callable[[], None]]) -> None:
    authority, lock = locked
    commit(authority, waiting(two_claims(authority)[0], START + SECOND))
    authority.admit([asking("done"), disposed("refused", Disposition.REJECTED, hex32("x"), draft("refused"))])
    commit(authority, ready(claim_one(authority, "w2"), "done"))
    claimed = authority.claim_projections("relay", 10, LEASE)
    authority.mark_projected("relay", [(item.run.run_id, item.run.event_seq) for item in claimed])
    (sent, later) = authority.claim_signals("p", 10, LEASE)
    authority.mark_sent([Sent(sent)])
    authority.postpone_signals([later], START + SECOND)
    lock()
    assert authority.claim_signals("p", 10, LEASE) == []
    assert authority.pull_in_times() == 0


def test_what_is_left_until_a_daemon_starts_takes_no_write_lock_either(
    locked: tuple[Authority, Callable[[], None]],
) -> None:
    authority, lock = locked
    for claim, name in zip(two_claims(authority), ("first", "second"), strict=True):
        commit(authority, ready(claim, name))
    first, second = authority.claim_projections("relay", 10, LEASE)
    authority.postpone_projections("relay", [ProjectionFailure(first.run.run_id, UNTIL_RESTART, "drift")])
    authority.mark_projected("relay", [(second.run.run_id, second.run.event_seq)])
    (row,) = authority.claim_signals("p", 10, LEASE)
    authority.postpone_signals([row], UNTIL_RESTART)
    lock()
    assert authority.pull_in_times() == 0


def test_times_that_are_as_they_should_be_are_corrected_without_a_write_lock(
    locked: tuple[Authority, Callable[[], None]],
) -> None:
    authority, lock = locked
    first, second = two_claims(authority)
    commit(authority, waiting(first, START + SECOND), ready(second, "ready"))
    authority.admit([disposed("refused", Disposition.REJECTED, hex32("x"), draft("refused"))])
    lock()
    assert authority.pull_in_times() == 0


def test_a_run_that_waits_for_its_deadline_while_its_root_is_looked_at_takes_no_write_lock(
    locked: tuple[Authority, Callable[[], None]],
) -> None:
    authority, lock = locked
    authority.admit([asking("k")])
    commit(authority, waiting(claim_one(authority), START + 1000 * WAIT, root="/runs/one"))
    lock()
    assert authority.pull_in_times() == 0


def test_a_signal_that_one_put_off_and_another_published_is_left_without_a_write_lock(
    locked: tuple[Authority, Callable[[], None]],
) -> None:
    authority, lock = locked
    (first,) = refusals(authority, "a")
    authority.expire_owner("p")
    (again,) = authority.claim_signals("later", 10, LEASE)
    authority.postpone_signals([again], START + 1000 * WAIT)
    authority.mark_sent([Sent(first)])
    lock()
    assert authority.pull_in_times() == 0


def test_a_run_that_is_not_due_is_not_claimed_and_takes_no_write_lock(
    locked: tuple[Authority, Callable[[], None]],
) -> None:
    authority, lock = locked
    authority.admit([asking("later")])
    commit(authority, waiting(claim_one(authority), START + SECOND))
    lock()
    assert authority.claim("w1", 10, LEASE) == []


def test_another_run_that_is_due_takes_no_write_lock_when_one_is_named(
    locked: tuple[Authority, Callable[[], None]],
) -> None:
    authority, lock = locked
    authority.admit([asking("later")])
    commit(authority, waiting(claim_one(authority), START + SECOND))
    authority.admit([asking("due")])
    lock()
    assert authority.claim("w1", 10, LEASE, hex32("later")) == []


def test_a_database_without_work_is_asked_for_it_without_a_write_lock(
    locked: tuple[Authority, Callable[[], None]],
) -> None:
    authority, lock = locked
    authority.admit([asking("k")])
    commit(authority, ready(claim_one(authority)))
    assert unprojected(authority) == [hex32("k")]
    authority.mark_projected("relay", [(hex32("k"), 7)])
    (row_,) = authority.claim_signals("p", 10, LEASE)
    authority.mark_sent([Sent(row_)])
    lock()
    assert authority.claim("w1", 10, LEASE) == []
    assert authority.claim_projections("relay", 10, LEASE) == []
    assert authority.claim_signals("p", 10, LEASE) == []
