"""Signals that are published again, over every backend: the act, its limits, its delivery, and what it leaves alone."""

from __future__ import annotations

import json
from dataclasses import replace
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
    failed,
    hex32,
    hex64,
    ready,
    waiting,
)
from reemit_support import DRIFT, RECEIPT, act, action_of, ended, one, owed, run_of, told

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.reemits import sent
from scenario_runner.authority.values import Admission, OutboxRow, ReemitEnd, Sent
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import Disposition, ReemitKind, SignalKind

if TYPE_CHECKING:
    from authority_backends import Backend

    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.integration


def test_where_a_stream_took_ready_is_in_the_record_once_and_the_record_is_owed_again(
    authority: Authority,
) -> None:
    other = ended(authority, "other")
    before = ended(authority, sent=False)
    (row,) = owed(authority)
    authority.mark_sent([sent(row, RECEIPT)])
    authority.mark_sent([sent(row, RECEIPT)])
    assert run_of(authority, "other") == other
    run, last = run_of(authority), authority.events(hex32("k"))[-1]
    assert replace(run, event_seq=before.event_seq) == before
    assert run.event_seq == before.event_seq + 1
    assert (last.kind, last.seq) == ("READY_PUBLISHED", run.event_seq)
    assert last.details == {
        "kind": "READY", "message_id": row.message_id, "receipt": json.loads(RECEIPT), "seq": last.seq,
        "state": "READY",
    }  # fmt: skip
    times = [item.ts_us for item in authority.events(hex32("k"))]
    assert times == sorted(times)
    (task,) = authority.claim_projections("relay", 10, LEASE)
    assert task.events[-1].kind == "READY_PUBLISHED"
    assert authority.signals(hex32("k")).rows[0].receipt == RECEIPT


def test_the_time_of_a_publication_does_not_depend_on_records_of_other_runs(authority: Authority, clock: Clock) -> None:
    ended(authority, sent=False)
    (row,) = owed(authority)
    before = clock.now = clock.now + SECOND
    clock.pass_seconds(100)
    ended(authority, "later", sent=False)
    clock.now = before
    authority.mark_sent([sent(row, RECEIPT)])
    assert authority.events(hex32("k"))[-1].ts_us == before


@pytest.mark.parametrize(("how", "receipt"), [(ready, ""), (failed, RECEIPT)])
def test_a_signal_on_a_spool_and_a_terminal_leave_the_record_as_it_is(
    authority: Authority,
    how: Any,
    receipt: str,
) -> None:
    before = ended(authority, how=how, sent=False)
    (row,) = owed(authority)
    authority.mark_sent([sent(row, receipt)])
    assert run_of(authority) == before
    assert authority.signals(hex32("k")).rows[0].receipt == receipt


# --- the act ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "kind"), [(ready, SignalKind.READY), (failed, SignalKind.TERMINAL)])
def test_a_reemit_is_owed_with_the_message_id_and_the_bytes_of_the_first(
    authority: Authority,
    how: Any,
    kind: SignalKind,
) -> None:
    before = ended(authority, how=how)
    assert one(authority, act("one")).outcome == "ACCEPTED"
    (row,) = owed(authority)
    assert (row.message_id, row.kind, row.emission, row.action_key) == (
        hex64("signal of k"), SignalKind(f"{kind}_REEMIT"), 1, "one",
    )  # fmt: skip
    assert row.payload == b'{"name":"signal of k"}'
    assert row.attributes == {"facts_view_digest": hex64("view"), "run_id": hex32("k")}
    assert row.partition_key == hex32("k")
    assert told(authority) == ["REEMIT_REQUESTED"]
    details = authority.events(hex32("k"))[-1].details
    assert details["state"] == before.state
    assert (details["requested_by"], details["via"], details["reason"]) == ("ops", "cli", "why")
    after = run_of(authority)
    assert replace(after, event_seq=before.event_seq) == before, "nothing of the run changes but its number of events"
    assert after.event_seq == before.event_seq + 1


def test_an_act_is_a_row_with_who_when_why_and_what_came_of_it(authority: Authority, clock: Clock) -> None:
    ended(authority)
    clock.pass_seconds(5)
    one(authority, act("one"))
    one(authority, act("other", "nobody"))
    (found,) = authority.actions(hex32("k"))
    assert found == action_of(authority, "one")
    assert (found.at_us, found.actor, found.via, found.action, found.subject, found.reason, found.outcome) == (
        clock.now, "ops", "cli", "reemit", hex32("k"), "why", "ACCEPTED",
    )  # fmt: skip


def test_an_act_that_is_sent_again_is_carried_out_once(authority: Authority) -> None:
    ended(authority)
    first = one(authority, act("one"))
    again = one(authority, act("one"))
    assert (first.repeated, again.repeated, again.outcome) == (False, True, "ACCEPTED")
    assert len(owed(authority)) == 1
    assert told(authority) == ["REEMIT_REQUESTED"]


def test_acts_of_one_batch_on_one_run_are_carried_out_in_their_order(authority: Authority) -> None:
    ended(authority)
    answers = authority.reemit([act("one"), act("two", kind=ReemitKind.TERMINAL_ONLY), act("three"), act("one")])
    assert [answer.outcome for answer in answers] == [
        "ACCEPTED", "REEMIT_TERMINAL_ONLY_MISMATCH", "ACCEPTED", "ACCEPTED",
    ]  # fmt: skip
    rows = authority.signals(hex32("k")).rows
    assert [(row.emission, row.action_key) for row in rows] == [(0, ""), (1, "one"), (2, "three")]


def test_a_caller_who_is_denied_writes_nothing_into_the_runs_record(authority: Authority) -> None:
    before = ended(authority)
    answer = one(authority, act("one", denied="not on the list"))
    assert (answer.outcome, answer.detail) == ("AUTH_DENIED", "not on the list")
    assert run_of(authority) == before
    assert owed(authority) == []
    assert action_of(authority, "one").outcome == "AUTH_DENIED"
    assert one(authority, act("two", "nobody", denied="no")).outcome == "AUTH_DENIED", (
        "nor is told whether a run exists"
    )


def test_a_run_that_nobody_knows_is_not_found_and_the_act_is_on_record(authority: Authority) -> None:
    assert one(authority, act("one", "nobody")).outcome == "RUN_NOT_FOUND"
    assert action_of(authority, "one").outcome == "RUN_NOT_FOUND"


@pytest.mark.parametrize(
    ("how", "kind", "code"),
    [
        (ready, ReemitKind.TERMINAL_ONLY, "REEMIT_TERMINAL_ONLY_MISMATCH"),
        (failed, ReemitKind.READY_ONLY, "REEMIT_READY_ONLY_MISMATCH"),
    ],
)
def test_another_signal_than_the_runs_is_refused_and_the_record_says_so(
    authority: Authority,
    how: Any,
    kind: ReemitKind,
    code: str,
) -> None:
    before = ended(authority, how=how)
    assert one(authority, act("one", kind=kind)).outcome == code
    assert owed(authority) == []
    assert told(authority) == ["REEMIT_REQUESTED", "REEMIT_FAILED"]
    assert authority.events(hex32("k"))[-1].details["reason_code"] == code
    assert replace(run_of(authority), event_seq=before.event_seq) == before


@pytest.mark.parametrize("kind", ReemitKind)
def test_a_run_that_has_not_ended_is_left_alone_with_its_record(authority: Authority, kind: ReemitKind) -> None:
    authority.admit([asking("k")])
    claim = claim_one(authority)
    before = run_of(authority)
    code = "REEMIT_TERMINAL_ONLY_MISMATCH" if kind is ReemitKind.TERMINAL_ONLY else "REEMIT_READY_ONLY_MISMATCH"
    for number, dry_run in enumerate((False, True)):
        assert one(authority, act(f"{number}", kind=kind, dry_run=dry_run)).outcome == code
    assert run_of(authority) == before
    commit(authority, waiting(claim, START + WAIT))
    assert one(authority, act("waiting", kind=kind)).outcome == code
    commit(authority, ready(claim_one_later(authority)))
    assert [event.seq for event in authority.events(hex32("k"))] == list(range(1, run_of(authority).event_seq + 1))


def claim_one_later(authority: Authority) -> Any:
    authority.make_waiting_due()
    return claim_one(authority)


# --- limits and dry runs ----------------------------------------------------------------------------------------------


def test_the_rate_limit_refuses_and_the_record_says_it_once(authority: Authority, clock: Clock) -> None:
    ended(authority)
    outcomes = [one(authority, act(f"{number}")).outcome for number in range(7)]
    assert outcomes == ["ACCEPTED"] * 3 + ["REEMIT_RATE_LIMIT"] * 4
    assert told(authority) == ["REEMIT_REQUESTED"] * 4 + ["REEMIT_FAILED"]
    assert len(authority.actions(hex32("k"))) == 7, "every act has its row"
    clock.pass_seconds(61)
    assert one(authority, act("later")).outcome == "ACCEPTED"


def test_attempts_that_come_to_nothing_count_too(authority: Authority) -> None:
    ended(authority, how=failed)
    outcomes = [one(authority, act(f"{n}", kind=ReemitKind.READY_ONLY)).outcome for n in range(5)]
    assert outcomes == ["REEMIT_READY_ONLY_MISMATCH"] * 3 + ["REEMIT_RATE_LIMIT"] * 2
    assert len(told(authority)) == 8


def test_a_dry_run_is_neither_limited_nor_counted_and_publishes_nothing(authority: Authority) -> None:
    ended(authority)
    for number in range(5):
        assert one(authority, act(f"dry {number}", dry_run=True)).outcome == "DRY_RUN"
    assert owed(authority) == []
    assert told(authority) == ["REEMIT_DRY_RUN"] * 5
    assert [one(authority, act(f"{number}")).outcome for number in range(4)] == ["ACCEPTED"] * 3 + ["REEMIT_RATE_LIMIT"]
    assert one(authority, act("dry", dry_run=True)).outcome == "DRY_RUN", "not limited"
    would = authority.events(hex32("k"))[-1].details["would_publish"]
    assert would == {"kind": "READY_REEMIT", "message_id": hex64("signal of k"), "emission": 4}


def test_a_dry_run_tells_what_its_delivery_would_be_refused_for(authority: Authority) -> None:
    ended(authority)
    predicted = (Reason.FACTS_VIEW_MISSING, "it is not there")
    assert one(authority, act("dry", dry_run=True, predicted=predicted)).outcome == "FACTS_VIEW_MISSING"
    assert told(authority) == ["REEMIT_DRY_RUN"]
    assert one(authority, act("real")).outcome == "ACCEPTED"


def test_other_runs_have_limits_and_numbers_of_their_own(authority: Authority) -> None:
    ended(authority, "k")
    ended(authority, "l")
    for number in range(3):
        one(authority, act(f"{number}"))
    assert one(authority, act("other", "l")).outcome == "ACCEPTED"
    assert [row.emission for row in authority.signals(hex32("l")).rows] == [0, 1]


def test_a_limit_is_told_once_in_each_window_of_each_run(authority: Authority, clock: Clock) -> None:
    ended(authority, "l")
    ended(authority, "k")
    for run in ("l", "k"):
        for number in range(5):
            one(authority, act(f"{run} {number}", run))
        assert told(authority, run).count("REEMIT_FAILED") == 1, run
    clock.pass_seconds(61)
    for number in range(5):
        one(authority, act(f"later {number}"))
    assert told(authority).count("REEMIT_FAILED") == 2


def test_acts_of_another_kind_on_a_run_neither_count_nor_say_that_its_limit_was_told(authority: Authority) -> None:
    ended(authority)
    for number, outcome in enumerate(("ACCEPTED", "ACCEPTED", "REEMIT_RATE_LIMIT")):
        authority.record_action(ActionRow(f"other {number}", 0, "ops", "cli", "other", hex32("k"), "why", outcome, ""))
    outcomes = [one(authority, act(f"{number}")).outcome for number in range(5)]
    assert outcomes == ["ACCEPTED"] * 3 + ["REEMIT_RATE_LIMIT"] * 2
    assert told(authority).count("REEMIT_FAILED") == 1


# --- records of the control bus ---------------------------------------------------------------------------------------


def record(key: str, run: str = "k", **changes: Any) -> Admission:
    asked = act(key, run, via="bus", **changes)
    return Admission(
        record_key=key, raw=b"raw", raw_size=3, kind="REEMIT_REQUEST", message_id=f"message {key}",
        run_id=hex32(run), reemit=asked,
    )  # fmt: skip


def test_a_record_is_accepted_with_its_act_and_delivered_again_it_is_known(authority: Authority) -> None:
    ended(authority)
    (first,) = authority.admit([record("r1")])
    (again,) = authority.admit([record("r1")])
    assert (first.disposition, first.repeated) == (Disposition.ACCEPTED, False)
    assert (again.disposition, again.repeated) == (Disposition.ACCEPTED, True)
    assert len(owed(authority)) == 1
    assert [row.disposition for row in authority.records(hex32("k"))] == [Disposition.ACCEPTED] * 2
    (row,) = owed_signals(authority)
    authority.end_reemits([ReemitEnd(row, failure=DRIFT)])
    (again,) = authority.admit([record("r1")])
    assert again.disposition is Disposition.ACCEPTED, "a disposition is final, whatever came of the act"


def owed_signals(authority: Authority) -> list[OutboxRow]:
    authority.expire_owner("p")
    return owed(authority)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"denied": "no"}, "AUTH_DENIED"),
        ({"run": "nobody"}, "RUN_NOT_FOUND"),
        ({"kind": ReemitKind.TERMINAL_ONLY}, "REEMIT_TERMINAL_ONLY_MISMATCH"),
    ],
)
def test_a_record_that_is_refused_is_a_dead_letter_and_its_sender_is_told(
    authority: Authority,
    backend: Backend,
    changes: dict[str, Any],
    code: str,
) -> None:
    before = ended(authority)
    asked = record("r1", **changes)
    for repeated in (False, True):
        (answer,) = authority.admit([asked])
        assert (answer.disposition, answer.reason_code, answer.repeated) == (Disposition.REJECTED, code, repeated)
    assert {key: bytes(raw) for key, raw in backend.dead_letters().items()} == {"r1": b"raw"}
    (row,) = owed(authority)
    payload = json.loads(row.payload)
    assert (row.kind, payload["reason_code"], payload["record_key"]) == (SignalKind.REQUEST_REJECTED, code, "r1")
    assert payload["request_message_id"] == "message r1"
    assert action_of(authority, "r1").outcome == code
    if code == "AUTH_DENIED":
        assert run_of(authority) == before


def test_records_of_both_kinds_share_a_batch(authority: Authority) -> None:
    ended(authority)
    batch = [asking("new"), record("r1"), asking("other"), record("r2", "nobody"), record("r1")]
    answers = authority.admit(batch)
    assert [answer.disposition.value for answer in answers] == [
        "ACCEPTED", "ACCEPTED", "ACCEPTED", "REJECTED", "ACCEPTED",
    ]  # fmt: skip
    assert [answer.repeated for answer in answers] == [False, False, False, False, True]


# --- looking for many -------------------------------------------------------------------------------------------------


def test_signals_are_listed_page_by_page_in_the_order_of_their_first_publication(
    authority: Authority,
    clock: Clock,
) -> None:
    sent = []
    for number in range(5):
        ended(authority, f"r{number}")
        sent.append(clock.now)
        if number == 2:
            ended(authority, "bad", how=failed)
        clock.pass_seconds(1)
    one(authority, act("again", "r0"))
    authority.end_reemits([ReemitEnd(row) for row in owed(authority)])
    found, after = [], (0, -1)
    while page := authority.published("READY", after, clock.now, 2):
        found += page
        assert len(found) < 20, "the pages do not come to an end"
        after = page[-1].cursor
    assert [item.run_id for item in found] == [hex32(f"r{number}") for number in range(5)]
    some = authority.published("READY", (sent[1], -1), sent[3], 10)
    assert [item.run_id for item in some] == [hex32("r1"), hex32("r2")]
    assert [item.kind for item in authority.published("FAILED", (0, -1), clock.now, 10)] == ["TERMINAL"]


def test_a_refused_request_for_a_run_is_none_of_its_signals(authority: Authority, clock: Clock) -> None:
    """The refusal of a conflicting request names the run; what is published again is how the run ended."""
    ended(authority)
    authority.admit([asking("k", "another record", "two")])
    (refusal,) = owed(authority)
    assert (refusal.run_id, refusal.kind) == (hex32("k"), SignalKind.REQUEST_REJECTED)
    authority.mark_sent([Sent(refusal)])
    clock.pass_seconds(1)
    assert [item.kind for item in authority.published("READY", (0, -1), clock.now, 10)] == ["READY"]


def test_an_act_of_another_kind_is_recorded_once_and_ended(authority: Authority, clock: Clock) -> None:
    batch = ActionRow("b", 0, "ops", "cli", "reemit_many", '{"state":"READY"}', "why", "ACCEPTED", "in progress")
    assert authority.record_action(batch)
    assert not authority.record_action(replace(batch, reason="another"))
    assert authority.record_action(replace(batch, action_key="c"))
    authority.end_action("b", "DONE", "3 PUBLISHED")
    assert action_of(authority, "c") == replace(batch, action_key="c", at_us=clock.now)
    assert action_of(authority, "b") == replace(batch, at_us=clock.now, outcome="DONE", detail="3 PUBLISHED")
    assert authority.acts([]) == {}
