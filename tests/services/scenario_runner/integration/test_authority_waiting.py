"""The authority contract, over every backend: runs that wait for evidence, and the roots that are not there yet."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from authority_backends import Backend
from authority_support import (
    LEASE,
    SECOND,
    START,
    WAIT,
    Clock,
    asking,
    claim_one,
    commit,
    event,
    failed,
    hex32,
    ready,
    retried,
    waiting,
)

from scenario_runner.authority.acts import WakeAct
from scenario_runner.authority.base import Authority
from scenario_runner.authority.observed import WaitingRuns
from scenario_runner.authority.values import Claim, Transition
from scenario_runner.contracts.states import EventKind, RunState
from scenario_runner.runs.waits import MOST_ROOT_BYTES

pytestmark = pytest.mark.integration


def test_waiting_runs_can_be_woken_and_others_stay_as_they_are(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("waits"), asking("waits too")])
    for claim in authority.claim("w1", 2, LEASE):
        commit(authority, waiting(claim, START + WAIT))
    authority.admit([asking("postponed")])
    commit(authority, retried(claim_one(authority), START + WAIT, "x"))
    assert authority.claim("w1", 10, LEASE) == []
    assert authority.make_waiting_due() == 2
    assert {claim.run_id for claim in authority.claim("w1", 10, LEASE)} == {hex32("waits"), hex32("waits too")}
    assert authority.make_waiting_due() == 0


def test_waiting_runs_are_counted_with_the_oldest_and_the_next_deadline(authority: Authority, clock: Clock) -> None:
    assert authority.waiting_runs().count == 0
    for key, pause in (("first", 0), ("second", 5), ("final", 5)):
        clock.pass_seconds(pause)
        authority.admit([asking(key)])
    claims = {claim.run_equivalence_key: claim for claim in authority.claim("w1", 3, LEASE)}
    commit(authority, ready(claims.pop("final")), *(waiting(claim, START + WAIT) for claim in claims.values()))
    first = authority.run(hex32("first"))
    assert first is not None
    assert authority.waiting_runs() == WaitingRuns(2, first.admitted_us, first.deadline_us)


# --- waiting for a root that is absent --------------------------------------------------------------------------------


def wait_for(authority: Authority, roots: dict[str, str], due_us: int = START + WAIT) -> None:
    """Admit runs by their keys, and let each wait for its root."""
    authority.admit([asking(key) for key in roots])
    for claim in authority.claim("w1", 100, LEASE):
        commit(authority, waiting(claim, due_us, root=roots[claim.run_equivalence_key]))


def due_now(authority: Authority) -> set[str]:
    return {claim.run_equivalence_key for claim in authority.claim("w1", 100, LEASE)}


def test_absent_roots_are_listed_once_each_a_page_after_the_other_in_byte_order(authority: Authority) -> None:
    assert authority.absent_roots("", 10) == []
    wait_for(authority, {"a": "/r/b", "b": "/r/B", "c": "/r/b", "d": "/r/\u00e9", "e": "/r/b-", "f": "", "g": "/r/~"})
    assert authority.absent_roots("", 10) == ["/r/B", "/r/b", "/r/b-", "/r/~", "/r/\u00e9"]
    assert authority.absent_roots("", 2) == ["/r/B", "/r/b"]
    assert authority.absent_roots("/r/b", 2) == ["/r/b-", "/r/~"]
    assert authority.absent_roots("/r/\u00e9", 2) == []


def test_the_absent_root_of_one_run_can_be_asked_for(authority: Authority) -> None:
    wait_for(authority, {"a": "/r/a", "b": "/r/b", "c": ""})
    assert authority.absent_roots("", 10, hex32("b")) == ["/r/b"]
    assert authority.absent_roots("/r/b", 10, hex32("b")) == []
    assert authority.absent_roots("", 10, hex32("c")) == []


def test_the_runs_of_a_root_that_has_come_are_due_now_and_nothing_else_of_them_changes(
    authority: Authority, clock: Clock
) -> None:
    wait_for(authority, {"a": "/r/one", "b": "/r/one", "c": "/r/two", "d": ""})
    before = [authority.run(hex32(key)) for key in "ab"]
    clock.pass_seconds(5)
    assert due_now(authority) == set()
    assert authority.wake_waiting_for_roots([], 10) == 0
    assert authority.wake_waiting_for_roots(["/r/one", "/r/none"], 10) == 2
    assert authority.wake_waiting_for_roots(["/r/one", ""], 10) == 0, "the others wait for no root"
    assert authority.absent_roots("", 10) == ["/r/two"]
    for run, was in zip([authority.run(hex32(key)) for key in "ab"], before, strict=True):
        assert was is not None
        assert run == replace(was, due_us=clock.now, absent_root="")
    assert due_now(authority) == {"a", "b"}


def test_a_root_may_be_as_long_as_rounds_take_it(authority: Authority) -> None:
    longest = "".join(hashlib.sha256(b"%d" % number).hexdigest() for number in range(40))[:MOST_ROOT_BYTES]
    wait_for(authority, {"a": longest})
    assert authority.absent_roots("", 10) == [longest]
    assert authority.wake_waiting_for_roots([longest], 10) == 1


def test_only_so_many_runs_are_woken_at_a_time(authority: Authority) -> None:
    wait_for(authority, dict.fromkeys("abcde", "/r/one"))
    assert [authority.wake_waiting_for_roots(["/r/one"], 2) for _ in range(4)] == [2, 2, 1, 0]


def test_the_one_run_of_a_root_that_is_asked_for_is_woken_and_no_other(authority: Authority) -> None:
    wait_for(authority, {"a": "/r/one", "b": "/r/one", "c": "/r/two"})
    assert authority.wake_waiting_for_roots(["/r/one", "/r/two"], 10, hex32("b")) == 1
    assert authority.wake_waiting_for_roots(["/r/one"], 10, hex32("c")) == 0
    assert due_now(authority) == {"b"}
    assert authority.absent_roots("", 10) == ["/r/one", "/r/two"]


def test_a_run_is_due_at_its_deadline_whatever_becomes_of_its_root(authority: Authority, clock: Clock) -> None:
    wait_for(authority, {"a": "/r/one"})
    clock.pass_seconds(WAIT / SECOND - 1)
    assert due_now(authority) == set()
    clock.pass_seconds(1)
    assert due_now(authority) == {"a"}


def test_a_run_that_is_due_already_stays_due_since_then(authority: Authority, clock: Clock) -> None:
    wait_for(authority, {"a": "/r/one"}, due_us=START + 5 * SECOND)
    clock.pass_seconds(10)
    assert authority.wake_waiting_for_roots(["/r/one"], 10) == 1
    run = authority.run(hex32("a"))
    assert run is not None
    assert run.due_us == START + 5 * SECOND


def test_a_run_under_lease_waits_for_no_root_and_its_owner_is_known(authority: Authority, clock: Clock) -> None:
    wait_for(authority, {"a": "/r/one"})
    clock.pass_seconds(WAIT / SECOND)
    claim = claim_one(authority, "w2")
    assert authority.absent_roots("", 10) == []
    assert authority.wake_waiting_for_roots(["/r/one"], 10) == 0
    assert authority.owners() == {"w2"}
    commit(authority, waiting(claim, START + 2 * WAIT, root="/r/one"))
    assert authority.absent_roots("", 10) == ["/r/one"]
    assert authority.owners() == set()


def test_the_lease_of_a_dead_owner_of_a_run_that_waited_for_its_root_ends_at_once(
    authority: Authority, clock: Clock
) -> None:
    wait_for(authority, {"a": "/r/one"})
    clock.pass_seconds(WAIT / SECOND)
    claim = claim_one(authority, "dead")
    authority.expire_owner("dead")
    assert claim_one(authority, "w2").epoch == claim.epoch + 1


@pytest.mark.parametrize("after", [ready, failed])
def test_a_run_that_has_ended_waits_for_no_root(
    authority: Authority, clock: Clock, after: Callable[[Claim], Transition]
) -> None:
    wait_for(authority, {"a": "/r/one"})
    authority.wake_waiting_for_roots(["/r/one"], 10)
    claim = claim_one(authority)
    events = (event(EventKind.VERIFICATION_STARTED, RunState.VERIFYING),)
    made = after(claim)
    made = replace(made, events=(*events, *made.events)) if after is ready else made
    commit(authority, made)
    assert authority.absent_roots("", 10) == []


def test_a_root_that_an_older_release_left_in_the_row_of_an_ended_run_wakes_nothing(
    authority: Authority, backend: Backend
) -> None:
    authority.admit([asking("a")])
    commit(authority, ready(claim_one(authority)))
    backend.query("UPDATE runs SET absent_root = '/r/one'")
    assert authority.absent_roots("", 10) == []
    assert authority.wake_waiting_for_roots(["/r/one"], 10) == 0
    run = authority.run(hex32("a"))
    assert run is not None
    assert run.due_us is None


def test_a_run_whose_lease_an_older_release_holds_beside_its_root_is_claimed_when_that_ends(
    authority: Authority, backend: Backend, clock: Clock
) -> None:
    wait_for(authority, {"a": "/r/one"})
    clock.pass_seconds(WAIT / SECOND)
    claim = claim_one(authority, "older")
    backend.query("UPDATE runs SET absent_root = '/r/one'")  # its claim does not clear it
    assert due_now(authority) == set()
    assert authority.renew("older", [(claim.run_id, claim.epoch)], LEASE) == {(claim.run_id, claim.epoch)}
    assert authority.wake_waiting_for_roots(["/r/one"], 10) == 1
    assert authority.owners() == {"older"}, "the next round mends the row, and the lease is left alone"
    backend.query("UPDATE runs SET absent_root = '/r/one'")
    clock.pass_seconds(LEASE / SECOND)
    assert claim_one(authority, "w2").epoch == claim.epoch + 1
    assert authority.absent_roots("", 10) == []


def test_a_woken_run_and_all_waiting_runs_are_due_though_they_wait_for_a_root(authority: Authority) -> None:
    wait_for(authority, {"a": "/r/one", "b": "/r/two"})
    acts = [WakeAct(key="act", run_id=hex32("a"), actor="me", reason="why")]
    assert authority.wake(acts) == {hex32("a"): "WOKEN"}
    assert due_now(authority) == {"a"}
    assert authority.make_waiting_due() == 1
    assert due_now(authority) == {"b"}
