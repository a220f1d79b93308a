"""The authority contract, over every backend: transitions of claimed runs, and the leases under which they are made."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from authority_backends import Backend, snapshot
from authority_support import (
    LEASE,
    SECOND,
    START,
    WAIT,
    Clock,
    asking,
    claim_one,
    commit,
    draft,
    event,
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

from scenario_runner.authority.base import Authority
from scenario_runner.authority.values import Claim, Sent, SignalRow, Transition
from scenario_runner.contracts.errors import LeaseLostError, SequenceError
from scenario_runner.contracts.states import EventKind, RunState, SignalKind

pytestmark = pytest.mark.integration


def test_a_decision_writes_state_events_and_signal_and_gives_the_lease_back(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("k")])
    claim = claim_one(authority)
    clock.pass_seconds(2)
    commit(authority, ready(claim))
    run = authority.run(hex32("k"))
    assert run is not None
    assert (run.state, run.reason_code, run.due_us, run.lease_owner) == (RunState.READY, "", None, "")
    assert (run.facts_view_digest, run.updated_us, run.event_seq) == (hex64("view"), claim.updated_us + 1, 7)
    events = authority.events(hex32("k"))
    assert [item.kind for item in events][5:] == [EventKind.GATES_PASSED, EventKind.RUN_READY]
    assert events[-1].details == {"seq": 7, "state": "READY"}
    assert authority.signals(hex32("k")).rows == (SignalRow(hex64("ready"), "READY", None),)
    assert authority.claim("w2", 10, LEASE) == []


def test_a_decision_that_cannot_be_written_whole_is_not_written_at_all(authority: Authority) -> None:
    authority.admit([asking("k")])
    claim = claim_one(authority)
    before = snapshot(authority, "k")
    broken = replace(
        ready(claim), events=(*ready(claim).events, event(EventKind.RUN_READY, RunState.READY, a_float=0.5))
    )
    with pytest.raises(SequenceError):
        authority.commit([broken])
    assert snapshot(authority, "k") == before
    commit(authority, ready(claim))


def test_a_run_without_evidence_waits_until_it_is_due(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("k")])
    claim = claim_one(authority)
    due = clock.now + 10 * SECOND
    commit(authority, waiting(claim, due, [event(missing=["x"])]))
    run = authority.run(hex32("k"))
    assert run is not None
    assert (run.state, run.due_us, run.lease_owner, run.wakes) == (RunState.WAITING_EVIDENCE, due, "", 1)
    assert [item.kind for item in authority.events(hex32("k"))][5:] == [EventKind.EVIDENCE_MISSING]
    clock.now = due - 1
    assert authority.claim("w2", 10, LEASE) == []
    clock.now = due
    again = claim_one(authority, "w2")
    assert (again.state, again.wakes, again.report_digest, again.epoch) == (RunState.WAITING_EVIDENCE, 1, "report", 2)


def test_a_run_that_waits_without_news_gets_no_new_event(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("k")])
    for number in range(4):
        claim = claim_one(authority)
        commit(authority, waiting(claim, clock.pass_seconds(1), [event()] if number == 0 else []))
    run = authority.run(hex32("k"))
    assert run is not None
    assert (run.wakes, run.event_seq) == (4, 6)
    assert len(authority.events(hex32("k"))) == 6


def test_an_infrastructure_error_leaves_the_state_and_counts_a_try(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("k")])
    for number in range(1, 4):
        claim = claim_one(authority)
        assert claim.retries == number - 1
        commit(authority, retried(claim, clock.now + SECOND, f"the store is away ({number})"))
        run = authority.run(hex32("k"))
        assert run is not None
        assert (run.state, run.retries, run.last_error) == (RunState.VERIFYING, number, f"the store is away ({number})")
        assert authority.claim("w2", 1, LEASE) == []
        clock.pass_seconds(1)
    commit(authority, waiting(claim_one(authority), clock.now + SECOND))
    run = authority.run(hex32("k"))
    assert run is not None
    assert (run.retries, run.last_error) == (0, "")


OUTCOMES: dict[str, Callable[[Claim], Transition]] = {
    "park": lambda claim: waiting(claim, START + WAIT, [event()]),
    "retry later": lambda claim: retried(claim, START + WAIT, "an old worker's error"),
    "decide READY": ready,
    "decide FAILED": failed,
}


@pytest.mark.parametrize("late", OUTCOMES)
def test_whoever_lost_the_lease_changes_nothing(
    authority: Authority, backend: Backend, clock: Clock, late: str
) -> None:
    authority.admit([asking("k")])
    old = claim_one(authority, "w1")
    clock.pass_seconds(31)
    new = claim_one(backend.open(), "w2")
    assert new.epoch > old.epoch
    before = snapshot(authority, "k")
    (answer,) = authority.commit([OUTCOMES[late](old)])
    assert isinstance(answer, LeaseLostError)
    assert hex32("k") in answer.detail
    assert snapshot(authority, "k") == before
    commit(authority, failed(new))


@pytest.mark.parametrize("late", OUTCOMES)
@pytest.mark.parametrize("terminal", [ready, failed])
def test_a_terminal_run_is_never_changed_again(
    authority: Authority, clock: Clock, terminal: Callable[[Claim], Transition], late: str
) -> None:
    authority.admit([asking("k", "r1")])
    claim = claim_one(authority)
    commit(authority, terminal(claim))
    run, events, signals, *_ = snapshot(authority, "k")
    clock.pass_seconds(10_000)
    (answer,) = authority.commit([OUTCOMES[late](claim)])
    assert isinstance(answer, LeaseLostError) is (OUTCOMES[late] is not terminal)
    assert authority.make_waiting_due() == 0
    authority.expire_owner("w1")
    assert authority.renew("w1", held(claim), LEASE) == set()
    assert authority.claim("w1", 10, LEASE) == []
    assert [
        result.disposition.value
        for result in authority.admit([asking("k", "r2"), asking("k", "r3", fingerprint="two")])
    ] == ["DUPLICATE", "CONFLICT"]
    assert snapshot(authority, "k")[:2] == (run, events)
    assert [row for row in authority.signals(hex32("k")).rows if row[1] != "REQUEST_REJECTED"] == list(signals.rows)


@pytest.mark.parametrize("late", OUTCOMES)
def test_only_the_owner_and_the_epoch_of_the_lease_may_settle(authority: Authority, late: str) -> None:
    authority.admit([asking("k")])
    claim = claim_one(authority)
    before = snapshot(authority, "k")
    for forged in (replace(claim, owner="w2"), replace(claim, owner=""), replace(claim, epoch=claim.epoch + 1),
                   replace(claim, epoch=claim.epoch - 1), replace(claim, run_id=hex32("other"))):  # fmt: skip
        (answer,) = authority.commit([OUTCOMES[late](forged)])
        assert isinstance(answer, LeaseLostError)
    assert snapshot(authority, "k") == before
    commit(authority, OUTCOMES[late](claim))


@pytest.mark.parametrize("first", OUTCOMES)
@pytest.mark.parametrize("second", OUTCOMES)
def test_a_claim_is_settled_once(authority: Authority, first: str, second: str) -> None:
    authority.admit([asking("k")])
    claim = claim_one(authority)
    commit(authority, OUTCOMES[first](claim))
    before = snapshot(authority, "k")
    (answer,) = authority.commit([OUTCOMES[second](claim)])
    assert isinstance(answer, LeaseLostError) is (first != second), "only the very same outcome is known to be there"
    assert snapshot(authority, "k") == before


FIRST: dict[str, Callable[[Claim], Transition]] = {
    "READY": ready,
    "FAILED": failed,
    "waiting": lambda claim: waiting(claim, START + WAIT),
    "retry": lambda claim: retried(claim, START + WAIT, "one"),
    "gates": gates_recorded,
    "launch": launched,
}
NEARLY: dict[str, tuple[str, Callable[[Transition], Transition]]] = {
    "a later time": ("READY", lambda first: replace(first, at_us=first.at_us + 1)),
    "another end": ("FAILED", lambda first: replace(first, to_state=RunState.QUARANTINED, events=quarantined)),
    "another signal": ("READY", lambda first: replace(first, signal=draft("other", SignalKind.READY))),
    "a signal of another kind": ("READY", lambda first: replace(first, signal=draft("ready", SignalKind.TERMINAL))),
    "another facts view": ("READY", lambda first: replace(first, facts_view_digest=hex64("another"))),
    "another reason": ("FAILED", lambda first: replace(first, reason_code="EVIDENCE_CONFLICT")),
    "other events": ("READY", lambda first: replace(first, events=first.events[1:])),
    "another due time": ("waiting", lambda first: replace(first, due_us=START + WAIT + 1)),
    "another report": ("waiting", lambda first: replace(first, report_digest="other")),
    "another number of examinations": ("waiting", lambda first: replace(first, wakes=7)),
    "another error": ("retry", lambda first: replace(first, last_error="other")),
    "another number of tries": ("retry", lambda first: replace(first, retries=7)),
    "a lease that is kept": ("retry", lambda first: replace(first, keep_lease=True)),
    "a lease that is given back": ("gates", lambda first: replace(first, keep_lease=False)),
    "another deadline": ("waiting", lambda first: replace(first, deadline_us=START + WAIT + 1)),
    "another attempt": ("launch", lambda first: replace(first, attempt=next_attempt(first.claim, handle="other"))),
    "an attempt": ("gates", lambda first: replace(first, attempt=next_attempt(first.claim))),
    "no attempt": ("launch", lambda first: replace(first, attempt=None)),
    "another epoch": ("READY", lambda first: replace(first, claim=replace(first.claim, epoch=first.claim.epoch - 1))),
}
quarantined = (event(EventKind.RUN_FAILED, RunState.QUARANTINED),)


@pytest.mark.parametrize("near", NEARLY)
def test_an_outcome_that_is_nearly_the_one_that_was_committed_has_lost_the_lease(
    authority: Authority, near: str
) -> None:
    authority.admit([asking("k")])
    name, changed = NEARLY[near]
    first = FIRST[name](claim_one(authority))
    commit(authority, first)
    before = snapshot(authority, "k")
    assert isinstance(authority.commit([changed(first)])[0], LeaseLostError)
    commit(authority, first)
    assert snapshot(authority, "k") == before


def test_a_note_keeps_the_lease_and_may_be_handed_in_again(authority: Authority) -> None:
    authority.admit([asking("k")])
    claim = claim_one(authority)
    commit(authority, gates_recorded(claim))
    before = snapshot(authority, "k")
    commit(authority, gates_recorded(claim), gates_recorded(claim))
    assert snapshot(authority, "k") == before
    assert isinstance(authority.commit([replace(gates_recorded(claim), report_digest="other")])[0], LeaseLostError)
    after = gates_recorded(claim).claim_after
    assert isinstance(authority.commit([ready(claim)])[0], LeaseLostError), "it was made from the row before the note"
    commit(authority, ready(after))
    commit(authority, ready(after))
    assert isinstance(authority.commit([gates_recorded(claim)])[0], LeaseLostError), "it has been decided since"
    assert len(authority.events(hex32("k"))) == 8


def test_an_outcome_that_was_committed_under_an_older_lease_is_not_taken_for_the_new_one(
    authority: Authority, clock: Clock
) -> None:
    authority.admit([asking("k")])
    old = claim_one(authority)
    commit(authority, waiting(old, clock.now))
    new = claim_one(authority, "w2")
    assert isinstance(authority.commit([waiting(old, clock.now)])[0], LeaseLostError)
    commit(authority, failed(new))


def test_each_outcome_of_a_batch_is_decided_for_itself(authority: Authority, backend: Backend, clock: Clock) -> None:
    for key in "abcd":
        authority.admit([asking(key)])
        clock.pass_seconds(1)
    a, b, c, d = authority.claim("w1", 10, LEASE)
    clock.pass_seconds(31)
    stolen = [claim for claim in backend.open().claim("w2", 2, LEASE) if claim.run_id in (a.run_id, b.run_id)]
    assert len(stolen) == 2
    answers = authority.commit(
        [ready(a, "a"), ready(c, "c"), waiting(b, clock.now), retried(d, clock.now, "x"), ready(c, "c again")]
    )
    assert [isinstance(answer, LeaseLostError) for answer in answers] == [True, False, True, False, True]
    found = [authority.run(hex32(key)) for key in "abcd"]
    assert [run and run.state for run in found] == [
        RunState.VERIFYING,
        RunState.VERIFYING,
        RunState.READY,
        RunState.VERIFYING,
    ]
    assert authority.commit([]) == []


def test_a_lease_that_ran_out_and_was_not_taken_still_counts(authority: Authority, clock: Clock) -> None:
    """The epoch is what fences: nobody else has written since."""
    authority.admit([asking("k")])
    claim = claim_one(authority)
    clock.pass_seconds(100)
    commit(authority, ready(claim))


def test_events_are_numbered_without_gaps_through_a_whole_life(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("k")])
    commit(authority, waiting(claim_one(authority), clock.pass_seconds(1), [event(), event()]))
    commit(authority, retried(claim_one(authority), clock.pass_seconds(1), "x"))
    claim_one(authority)
    clock.pass_seconds(31)
    commit(authority, waiting(claim_one(authority), clock.pass_seconds(1), []))
    commit(authority, waiting(claim_one(authority), clock.pass_seconds(1), [event()]))
    commit(authority, ready(claim_one(authority)))
    events = authority.events(hex32("k"))
    assert [item.seq for item in events] == list(range(1, 11))
    assert [item.details["seq"] for item in events] == list(range(1, 11))
    assert [item.ts_us for item in events] == sorted(item.ts_us for item in events)
    run = authority.run(hex32("k"))
    assert run is not None
    assert run.event_seq == 10


# --- leases -----------------------------------------------------------------------------------------------------------


def held(*claims: Claim) -> list[tuple[str, int]]:
    return [(claim.run_id, claim.epoch) for claim in claims]


def test_renewing_extends_the_leases_that_are_named_and_tells_which(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("a"), asking("b")])
    mine, theirs = claim_one(authority, "w1"), claim_one(authority, "w2")
    clock.pass_seconds(20)
    assert authority.renew("w1", held(mine, theirs), LEASE) == set(held(mine))
    assert authority.renew("nobody", held(mine, theirs), LEASE) == set()
    assert authority.renew("w1", [(mine.run_id, mine.epoch + 1), (hex32("none"), 1)], LEASE) == set()
    clock.pass_seconds(20)
    assert [claim.run_id for claim in authority.claim("w3", 10, LEASE)] == [theirs.run_id]


def test_a_lease_that_its_owner_does_not_know_of_runs_out(authority: Authority, clock: Clock) -> None:
    """The answer to a claim may be lost on its way: nobody drives the run, so nobody may keep it."""
    authority.admit([asking("a"), asking("b")])
    known, lost = authority.claim("w1", 2, LEASE)
    clock.pass_seconds(20)
    assert authority.renew("w1", held(known), LEASE) == set(held(known))
    assert authority.renew("w1", [], LEASE) == set()
    clock.pass_seconds(20)
    assert [claim.run_id for claim in authority.claim("w2", 10, LEASE)] == [lost.run_id]


def test_a_lease_that_somebody_took_is_not_renewed(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("a"), asking("b")])
    first, second = authority.claim("w1", 2, LEASE)
    clock.pass_seconds(31)
    taken = claim_one(authority, "w2")
    kept = second if taken.run_id == first.run_id else first
    assert authority.renew("w1", held(first, second), LEASE) == set(held(kept))
    assert authority.renew("w2", held(first, second, taken), LEASE) == set(held(taken))


@pytest.mark.parametrize("done", OUTCOMES)
def test_a_lease_that_was_given_back_is_not_renewed(authority: Authority, done: str) -> None:
    authority.admit([asking("k")])
    claim = claim_one(authority)
    commit(authority, OUTCOMES[done](claim))
    assert authority.renew("w1", held(claim), LEASE) == set()


def test_the_leases_of_a_dead_owner_can_be_let_run_out_at_once(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("a"), asking("b")])
    dead, alive = claim_one(authority, "dead"), claim_one(authority, "alive")
    assert authority.owners() == {"dead", "alive"}
    authority.expire_owner("dead")
    assert authority.owners() == {"alive"}
    assert authority.renew("dead", held(dead), LEASE) == set()
    again = claim_one(authority, "w3")
    assert (again.run_id, again.epoch) == (dead.run_id, 2)
    assert isinstance(authority.commit([ready(dead)])[0], LeaseLostError)
    commit(authority, ready(alive, "other"))


def test_owners_are_those_of_leases_that_have_not_run_out(authority: Authority, clock: Clock) -> None:
    assert authority.owners() == set()
    authority.admit([asking("k")])
    claim = claim_one(authority, "runner")
    assert authority.owners() == {"runner"}
    commit(authority, ready(claim))
    assert authority.owners() == set()
    (owed,) = authority.claim_projections("relay", 10, LEASE)
    assert authority.owners() == {"relay"}
    authority.mark_projected("relay", [(owed.run.run_id, owed.run.event_seq)])
    assert authority.owners() == set()
    (row,) = authority.claim_signals("publisher", 10, LEASE)
    assert authority.owners() == {"publisher"}
    clock.pass_seconds(31)
    assert authority.owners() == set()
    authority.mark_sent([Sent(row)])
    assert authority.owners() == set()


def test_the_leases_of_a_dead_relay_can_be_let_run_out_at_once(authority: Authority) -> None:
    authority.admit([asking("k")])
    commit(authority, ready(claim_one(authority)))
    assert len(authority.claim_projections("dead", 10, LEASE)) == 1
    assert authority.claim_projections("alive", 10, LEASE) == []
    authority.expire_owner("dead")
    (owed,) = authority.claim_projections("alive", 10, LEASE)
    authority.mark_projected("alive", [(owed.run.run_id, owed.run.event_seq)])
    assert len(authority.claim_signals("dead", 10, LEASE)) == 1
    assert authority.claim_signals("alive", 10, LEASE) == []
    authority.expire_owner("dead")
    assert len(authority.claim_signals("alive", 10, LEASE)) == 1
