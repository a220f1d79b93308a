"""A clock that is set back keeps nothing waiting, over every backend of the authority and through the command."""

from __future__ import annotations

import sqlite3
import typing
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from authority_support import (
    LEASE,
    SECOND,
    START,
    WAIT,
    Clock,
    asking,
    claim_one,
    commit,
    hex32,
    ready,
    retried,
    waiting,
)

from scenario_runner.authority.rows import LEASE_HORIZON_US, RELAY_HORIZON_US, RUN_HORIZON_US
from scenario_runner.authority.values import UNTIL_RESTART, ProjectionFailure, Sent
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.relay import relay
from scenario_runner.runs import decisions, waits

if TYPE_CHECKING:
    from support import World

    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.integration

HOUR = 3600


def test_the_horizons_lie_beyond_every_pause_and_lease_there_is() -> None:
    policies = (waits._WAIT_FOR_EVIDENCE, decisions._WAIT_FOR_INFRASTRUCTURE)
    assert 2 * max(policy.most_seconds for policy in policies) * SECOND <= RUN_HORIZON_US
    assert 2 * waits._MOST_QUIET_US <= RUN_HORIZON_US
    longest_pause = max(policy.most_seconds for policy in (relay._STORE_RETRY, relay._BUS_RETRY, relay._DRIFT_RETRY))
    assert 2 * longest_pause * SECOND <= RELAY_HORIZON_US < UNTIL_RESTART
    assert relay._LEASE_US < RELAY_HORIZON_US
    longest = next(item.le for item in Wiring.model_fields["lease_seconds"].metadata if hasattr(item, "le"))
    assert typing.cast("int", longest) * SECOND < LEASE_HORIZON_US


@pytest.mark.parametrize("kind", ["parked", "postponed"])
def test_a_run_that_was_put_off_is_due_when_the_clock_was_set_back(
    authority: Authority,
    clock: Clock,
    kind: str,
) -> None:
    authority.admit([asking("k")])
    claim = claim_one(authority)
    due = START + 30 * SECOND
    commit(authority, waiting(claim, due) if kind == "parked" else retried(claim, due, "away"))
    assert authority.pull_in_times() == 0
    assert authority.claim("w1", 10, LEASE) == []
    clock.pass_seconds(-HOUR)
    assert authority.pull_in_times() == 1
    assert authority.pull_in_times() == 0
    assert authority.pending().runs
    again = claim_one(authority)
    assert again.epoch == claim.epoch + 1
    commit(authority, ready(again))
    events = authority.events(hex32("k"))
    assert [item.ts_us for item in events] == sorted(item.ts_us for item in events), "a record never goes back"


def test_a_run_whose_root_is_looked_at_in_rounds_stays_due_at_its_deadline(
    authority: Authority,
    clock: Clock,
) -> None:
    authority.admit([asking("k")])
    commit(authority, waiting(claim_one(authority), START + WAIT, root="/runs/one"))
    clock.pass_seconds(-HOUR)
    assert authority.pull_in_times() == 0, "no clock of the authority decides when its root is looked at"
    assert authority.wake_waiting_for_roots(["/runs/one"], 10) == 1
    clock.pass_seconds(-HOUR)
    assert authority.pull_in_times() == 1, "a run that was woken is one like any other"
    assert claim_one(authority).run_id == hex32("k")


def test_a_run_whose_root_is_looked_at_in_rounds_is_not_counted_among_those_that_are_corrected(
    authority: Authority, clock: Clock
) -> None:
    authority.admit([asking("rounds"), asking("parked")])
    rounds, parked = authority.claim("w1", 2, LEASE)
    commit(authority, waiting(rounds, START + WAIT, root="/runs/one"), waiting(parked, START + 30 * SECOND))
    clock.pass_seconds(-HOUR)
    assert authority.pull_in_times() == 1


def test_a_lease_from_before_the_clock_was_set_back_runs_out_unless_it_is_renewed(
    authority: Authority,
    clock: Clock,
) -> None:
    authority.admit([asking("dead"), asking("alive")])
    dead, alive = authority.claim("w1", 2, LEASE)
    clock.pass_seconds(-2 * HOUR)
    assert authority.claim("w2", 10, LEASE) == []
    assert authority.pull_in_times() == 2
    assert authority.renew("w1", [(alive.run_id, alive.epoch)], LEASE) == {(alive.run_id, alive.epoch)}
    (taken,) = authority.claim("w2", 10, LEASE)
    assert (taken.run_id, taken.epoch) == (dead.run_id, dead.epoch + 1)
    assert authority.renew("w1", [(dead.run_id, dead.epoch)], LEASE) == set()
    assert authority.pull_in_times() == 0


def test_documents_and_signals_that_were_put_off_or_leased_are_due_when_the_clock_was_set_back(
    authority: Authority,
    clock: Clock,
) -> None:
    authority.admit([asking("k")])
    commit(authority, ready(claim_one(authority)))
    (owed,) = authority.claim_projections("relay", 10, LEASE)
    clock.pass_seconds(-HOUR)
    assert authority.claim_projections("relay", 10, LEASE) == []
    assert authority.pull_in_times() == 1
    assert len(authority.claim_projections("relay", 10, LEASE)) == 1
    authority.postpone_projections("relay", [ProjectionFailure(owed.run.run_id, clock.now + 60 * SECOND, "why")])
    assert authority.pull_in_times() == 0
    clock.pass_seconds(-HOUR)
    assert authority.pull_in_times() == 1
    assert len(authority.claim_projections("relay", 10, LEASE)) == 1
    authority.mark_projected("relay", [(owed.run.run_id, owed.run.event_seq)])
    (row,) = authority.claim_signals("p", 10, LEASE)
    clock.pass_seconds(-HOUR)
    assert authority.pull_in_times() == 1
    assert len(authority.claim_signals("p", 10, LEASE)) == 1
    authority.postpone_signals([row], clock.now + 60 * SECOND)
    clock.pass_seconds(-HOUR)
    assert not authority.pending().signals
    assert authority.pull_in_times() == 1
    assert [item.message_id for item in authority.claim_signals("p", 10, LEASE)] == [row.message_id]


def test_what_is_settled_has_no_time_to_correct(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("k")])
    commit(authority, ready(claim_one(authority)))
    (owed,) = authority.claim_projections("relay", 10, LEASE)
    authority.mark_projected("relay", [(owed.run.run_id, owed.run.event_seq)])
    (row,) = authority.claim_signals("p", 10, LEASE)
    authority.mark_sent([Sent(row)])
    clock.pass_seconds(-24 * HOUR)
    assert authority.pull_in_times() == 0


def test_what_is_left_until_a_daemon_starts_is_not_pulled_in(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("k"), asking("l")])
    for number, claim in enumerate(authority.claim("w", 2, LEASE)):
        commit(authority, ready(claim, f"ready {number}"))
    first, second = authority.claim_projections("relay", 10, LEASE)
    authority.postpone_projections("relay", [ProjectionFailure(first.run.run_id, UNTIL_RESTART, "drift")])
    authority.mark_projected("relay", [(second.run.run_id, second.run.event_seq)])
    (row,) = authority.claim_signals("p", 10, LEASE)
    authority.postpone_signals([row], UNTIL_RESTART)
    assert authority.pull_in_times() == 0
    assert authority.claim_projections("relay", 10, LEASE) == []
    assert authority.claim_signals("p", 10, LEASE) == []


@pytest.mark.parametrize("ahead", [86_400 * SECOND])
def test_a_drain_after_the_clock_was_set_back_leaves_nothing_undone(world: World, ahead: int) -> None:
    """Rows as a clock that is a day ahead left them: a run that was put off, and a signal that was."""
    world.drop(world.make_run("a")["request"], "a.json")
    assert world.serve("--role", "intake").returncode == 0
    move(world, "UPDATE runs SET due_us = due_us + ?, lease_until_us = ?, lease_owner = 'elsewhere'", ahead, START * 2)
    assert world.serve("--role", "runner").returncode == 0
    move(world, "UPDATE runs SET relay_until_us = ?", START * 2)
    move(world, "UPDATE outbox SET due_us = ?", START * 2)
    drained = world.serve()
    assert drained.returncode == 0, drained.stderr
    assert len(world.signals("READY")) == 1
    assert b"clock was set back" in drained.stderr


def move(world: World, text: str, *values: Any) -> None:
    with closing(sqlite3.connect(world.database)) as connection, connection:
        assert connection.execute(text, values).rowcount == 1
