"""Signals that are published again, on their way: order, refusal at delivery, times, and several at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from authority_support import LEASE, SECOND, Clock, hex32
from reemit_support import DRIFT, act, action_of, ended, one, owed, run_of, told

from scenario_runner.authority.acts import ReemitLimit
from scenario_runner.authority.values import ReemitEnd, Sent
from scenario_runner.contracts.states import RunState, SignalKind

if TYPE_CHECKING:
    from authority_backends import Backend

    from scenario_runner.authority.base import Authority
    from scenario_runner.contracts.errors import LedgerDrift

pytestmark = pytest.mark.integration


def test_a_reemit_needs_no_documents_but_those_of_the_first_time(authority: Authority) -> None:
    ended(authority)
    one(authority, act("one"))
    run = run_of(authority)
    assert run.projected_seq < run.event_seq
    assert [row.emission for row in owed(authority)] == [1]


def test_emissions_of_one_message_go_out_in_their_order(authority: Authority, clock: Clock) -> None:
    ended(authority, sent=False)
    one(authority, act("one"))
    one(authority, act("two"))
    (first,) = owed(authority)
    assert first.emission == 0
    assert authority.pending().signals
    authority.postpone_signals([first], clock.now + SECOND)
    assert owed(authority) == [], "what is repeated has not been published yet"
    assert not authority.pending().signals
    clock.pass_seconds(1)
    for number in range(3):
        (row,) = owed(authority)
        assert row.emission == number
        if number:
            authority.end_reemits([ReemitEnd(row)])
        else:
            authority.mark_sent([Sent(row)])
    assert owed(authority) == []
    assert not authority.pending().undelivered or run_of(authority).projected_seq < run_of(authority).event_seq


def test_what_is_repeated_waits_for_no_message_but_its_own(authority: Authority, clock: Clock) -> None:
    ended(authority, "k")
    ended(authority, "l", sent=False)
    one(authority, act("one"))
    first, again = owed(authority)
    assert (first.run_id, first.emission, again.run_id, again.emission) == (hex32("l"), 0, hex32("k"), 1)
    authority.postpone_signals([first], clock.now + SECOND)
    authority.postpone_signals([again], clock.now)
    assert authority.pending().signals
    assert [row.outbox_id for row in owed(authority)] == [again.outbox_id]


def test_a_published_reemit_is_told_in_the_record_and_by_its_act(authority: Authority, clock: Clock) -> None:
    before = ended(authority)
    one(authority, act("one"))
    (row,) = owed(authority)
    clock.pass_seconds(2)
    receipt = json.dumps({"stream": "s", "shard_id": "0", "sequence_number": "49"})
    for _ in range(2):  # the answer to the first may have been lost
        authority.end_reemits([ReemitEnd(row, receipt)])
    assert told(authority) == ["REEMIT_REQUESTED", "REEMIT_PUBLISHED"]
    event = authority.events(hex32("k"))[-1]
    assert (event.ts_us, event.details["state"]) == (clock.now, "READY")
    assert event.details["receipt"] == {"stream": "s", "shard_id": "0", "sequence_number": "49"}
    assert action_of(authority, "one").outcome == "PUBLISHED"
    signal = authority.signals(hex32("k")).rows[-1]
    assert (signal.sent_us, signal.receipt, signal.emission) == (clock.now, receipt, 1)
    assert replace(run_of(authority), event_seq=before.event_seq) == before


def test_a_reemit_that_is_refused_when_it_is_delivered_leaves_the_outbox(authority: Authority) -> None:
    ended(authority)
    one(authority, act("one"))
    (row,) = owed(authority)
    for _ in range(2):
        authority.end_reemits([ReemitEnd(row, failure=DRIFT)])
    assert told(authority) == ["REEMIT_REQUESTED", "REEMIT_FAILED"]
    details = authority.events(hex32("k"))[-1].details
    assert (details["reason_code"], details["expected"], details["object"]) == ("FACTS_VIEW_DRIFT", "e" * 64, "place")
    assert action_of(authority, "one").outcome == "FACTS_VIEW_DRIFT"
    assert [signal.emission for signal in authority.signals(hex32("k")).rows] == [0]
    assert run_of(authority).state is RunState.READY
    one(authority, act("two"))
    assert [(item.emission, item.action_key) for item in owed(authority)] == [(1, "two")], "nothing was published as 1"


@pytest.mark.parametrize("failure", [None, DRIFT], ids=["published", "refused"])
def test_an_act_and_its_end_change_no_other_run_and_no_other_act(
    authority: Authority,
    failure: LedgerDrift | None,
) -> None:
    ended(authority, "k")
    before = ended(authority, "l")
    assert one(authority, act("one")).outcome == "ACCEPTED"
    assert run_of(authority, "l") == before
    assert one(authority, act("other", "l")).outcome == "ACCEPTED"

    def other() -> tuple[Any, ...]:
        return run_of(authority, "l"), authority.signals(hex32("l")), action_of(authority, "other")

    unchanged = other()
    (row,) = [row for row in owed(authority) if row.run_id == hex32("k")]
    authority.end_reemits([ReemitEnd(row, failure=failure)])
    assert other() == unchanged
    assert set(authority.acts(["one"])) == {"one"}


def test_what_was_published_again_is_not_taken_back(authority: Authority) -> None:
    ended(authority)
    one(authority, act("one"))
    (row,) = owed(authority)
    authority.end_reemits([ReemitEnd(row)])
    authority.end_reemits([ReemitEnd(row, failure=DRIFT)])
    assert [signal.emission for signal in authority.signals(hex32("k")).rows] == [0, 1]
    assert told(authority) == ["REEMIT_REQUESTED", "REEMIT_PUBLISHED"]
    assert action_of(authority, "one").outcome == "PUBLISHED"


def test_a_first_signal_is_never_dropped(authority: Authority) -> None:
    ended(authority, sent=False)
    (row,) = owed(authority)
    authority.end_reemits([ReemitEnd(replace(row, kind=SignalKind.READY_REEMIT), failure=DRIFT)])
    assert [signal.emission for signal in authority.signals(hex32("k")).rows] == [0]
    assert told(authority) == []


def test_a_projection_that_was_claimed_before_the_act_leaves_the_run_behind(authority: Authority) -> None:
    ended(authority)
    one(authority, act("one"))
    (task,) = authority.claim_projections("relay", 10, LEASE)
    one(authority, act("two"))
    authority.mark_projected("relay", [(task.run.run_id, task.run.event_seq)])
    assert [event.seq for event in task.events] == list(range(1, task.run.event_seq + 1))
    (later,) = authority.claim_projections("relay", 10, LEASE)
    assert later.run.event_seq == task.run.event_seq + 1
    assert later.events[: len(task.events)] == task.events


def test_a_run_that_was_published_again_is_never_claimed(authority: Authority) -> None:
    ended(authority)
    one(authority, act("one"))
    assert authority.claim("w", 10, LEASE) == []
    assert not authority.pending().runs


def test_times_in_a_record_never_go_back(authority: Authority, clock: Clock) -> None:
    ended(authority)
    one(authority, act("one"))
    clock.now -= 30 * SECOND
    (row,) = owed(authority)
    authority.end_reemits([ReemitEnd(row)])
    one(authority, act("two"))
    times = [event.ts_us for event in authority.events(hex32("k"))]
    assert times == sorted(times)


def test_times_in_a_record_are_those_of_its_own_run(authority: Authority, clock: Clock) -> None:
    ended(authority)
    one(authority, act("one"))
    (row,) = owed(authority)
    before = clock.now = clock.now + SECOND
    clock.pass_seconds(100)
    ended(authority, "later", sent=False)
    clock.now = before
    authority.end_reemits([ReemitEnd(row)])
    assert authority.events(hex32("k"))[-1].ts_us == before


# --- several at once --------------------------------------------------------------------------------------------------


def test_acts_of_many_at_once_have_numbers_and_limits_of_their_own(backend: Backend) -> None:
    first = backend.open()
    ended(first)
    handles = [backend.open() for _ in range(4)]
    limit = ReemitLimit(5, 60 * SECOND)
    with ThreadPoolExecutor(4) as pool:
        asked = [act(f"{number}", limit=limit) for number in range(8)]
        answers = list(pool.map(lambda pair: one(handles[pair[0] % 4], pair[1]), enumerate(asked)))
    assert sorted(answer.outcome for answer in answers) == ["ACCEPTED"] * 5 + ["REEMIT_RATE_LIMIT"] * 3
    assert [row.emission for row in first.signals(hex32("k")).rows] == [0, 1, 2, 3, 4, 5]
    events = first.events(hex32("k"))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert len(events) == run_of(first).event_seq


def test_one_act_sent_by_many_at_once_is_carried_out_once(backend: Backend) -> None:
    first = backend.open()
    ended(first)
    handles = [backend.open() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda handle: one(handle, act("one")), handles))
    assert {answer.outcome for answer in answers} == {"ACCEPTED"}
    assert len(first.signals(hex32("k")).rows) == 2
