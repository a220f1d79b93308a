"""The work of one run, among that of many others, over every backend."""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING

import pytest
from authority_support import (
    LEASE,
    START,
    WAIT,
    Clock,
    asking,
    claim_one,
    commit,
    disposed,
    draft,
    hex32,
    hex64,
    ready,
    retried,
    waiting,
)

from scenario_runner.authority.values import Sent
from scenario_runner.contracts.states import Disposition, RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.integration
MINE = hex32("mine")


def among_others(authority: Authority, clock: Clock, kind: str) -> None:
    """My run after others of the same kind: due, decided, or decided with its documents in the ledger."""
    for key in ("other", "mine", "another"):
        authority.admit([asking(key)])
        clock.pass_seconds(1)
        if kind != "due":
            commit(authority, ready(claim_one(authority), key))
    if kind == "projected":
        owed = authority.claim_projections("relay", 10, LEASE)
        authority.mark_projected("relay", [(item.run.run_id, item.run.event_seq) for item in owed])


def test_one_run_is_claimed_among_others_that_are_due(authority: Authority, clock: Clock) -> None:
    among_others(authority, clock, "due")
    (claim,) = authority.claim("w1", 10, LEASE, only=MINE)
    assert (claim.run_id, claim.state, claim.epoch) == (MINE, RunState.VERIFYING, 1)
    assert len(authority.events(MINE)) == 5
    others = authority.claim("w2", 10, LEASE)
    assert {item.run_id for item in others} == {hex32("other"), hex32("another")}


@pytest.mark.parametrize("when", ["before it is due", "under lease", "after its end", "unknown", "a limit of nothing"])
def test_one_run_is_claimed_as_any_other_is(authority: Authority, clock: Clock, when: str) -> None:
    among_others(authority, clock, "due")
    only, limit = (hex32("none") if when == "unknown" else MINE), (0 if when == "a limit of nothing" else 10)
    if when == "before it is due":
        commit(authority, waiting(authority.claim("w1", 1, LEASE, only=MINE)[0], clock.now + 1))
    elif when == "after its end":
        commit(authority, ready(authority.claim("w1", 1, LEASE, only=MINE)[0]))
    elif when == "under lease":
        assert len(authority.claim("w1", 1, LEASE, only=MINE)) == 1
    assert authority.claim("w2", limit, LEASE, only=only) == []
    assert len(authority.claim("w2", 10, LEASE)) >= 2


def test_the_documents_of_one_run_are_claimed_among_others(authority: Authority, clock: Clock) -> None:
    among_others(authority, clock, "decided")
    (task,) = authority.claim_projections("relay", 10, LEASE, only=MINE)
    assert (task.run.run_id, len(task.events)) == (MINE, 7)
    assert authority.claim_projections("relay", 10, LEASE, only=MINE) == []
    assert len(authority.claim_projections("relay", 10, LEASE)) == 2


def test_documents_of_one_run_wait_as_those_of_any_other(authority: Authority, clock: Clock) -> None:
    among_others(authority, clock, "due")
    assert len(authority.claim("w1", 10, LEASE, only=MINE)) == 1
    assert authority.claim_projections("relay", 10, LEASE, only=MINE) == [], "it is being driven"
    clock.pass_seconds(3)
    assert len(authority.claim_projections("relay", 10, LEASE, only=MINE)) == 1
    authority.mark_projected("relay", [(MINE, 5)])
    assert authority.claim_projections("relay", 10, LEASE, only=MINE) == [], "they are in the ledger"


def test_the_signals_of_one_run_are_claimed_among_others(authority: Authority, clock: Clock) -> None:
    among_others(authority, clock, "projected")
    (row,) = authority.claim_signals("p", 10, LEASE, only=MINE)
    assert (row.run_id, row.message_id, row.attempts) == (MINE, hex64("mine"), 1)
    assert authority.claim_signals("p", 10, LEASE, only=MINE) == []
    assert [item.run_id for item in authority.claim_signals("p", 10, LEASE)] == [hex32("other"), hex32("another")]


@pytest.mark.parametrize("when", ["before its documents", "before it is due", "after it was sent"])
def test_signals_of_one_run_wait_as_those_of_any_other(
    authority: Authority,
    clock: Clock,
    when: str,
) -> None:
    among_others(authority, clock, "decided" if when == "before its documents" else "projected")
    if when != "before its documents":
        (row,) = authority.claim_signals("p", 10, LEASE, only=MINE)
        if when == "before it is due":
            authority.postpone_signals([row], clock.now + 1)
        else:
            authority.mark_sent([Sent(row)])
    assert authority.claim_signals("p", 10, LEASE, only=MINE) == []


def test_a_refusal_that_names_the_run_is_among_its_signals(authority: Authority) -> None:
    authority.admit([disposed(name, Disposition.REJECTED, hex32(name), draft(name)) for name in ("other", "mine")])
    assert [item.message_id for item in authority.claim_signals("p", 10, LEASE, only=MINE)] == [hex64("mine")]


def due(given: Authority, key: str) -> None:
    given.admit([asking(key)])


def decided(given: Authority, key: str) -> None:
    due(given, key)
    commit(given, ready(given.claim("w1", 1, LEASE, only=hex32(key))[0], key))


def refused(given: Authority, key: str) -> None:
    given.admit([disposed(key, Disposition.REJECTED, hex32(key), draft(key))])


def postponed(given: Authority, key: str) -> None:
    due(given, key)
    commit(given, retried(given.claim("w1", 1, LEASE, only=hex32(key))[0], START + WAIT, "away"))


WORK: dict[str, Callable[[Authority, str], None]] = {
    "runs": due,
    "projections, undelivered": decided,
    "signals, undelivered": refused,
    "postponed": postponed,
}


@pytest.mark.parametrize("work", WORK)
def test_what_is_pending_of_one_run_is_not_what_is_pending_of_others(authority: Authority, work: str) -> None:
    WORK[work](authority, "other")
    assert not any(astuple(authority.pending(only=MINE)))
    found = authority.pending()
    WORK[work](authority, "mine")
    mine = authority.pending(only=MINE)
    assert [name for name in ("runs", "projections", "signals", "undelivered", "postponed") if getattr(mine, name)] == (
        work.split(", ")
    )
    assert mine == found == authority.pending()


def test_a_run_without_work_is_asked_for_it_without_a_write_lock(
    locked: tuple[Authority, Callable[[], None]],
) -> None:
    authority, lock = locked
    for work in WORK.values():
        work(authority, f"other{len(authority.runs(None, 9))}")
    lock()
    assert authority.claim("w1", 10, LEASE, only=MINE) == []
    assert authority.claim_projections("relay", 10, LEASE, only=MINE) == []
    assert authority.claim_signals("p", 10, LEASE, only=MINE) == []
