"""Runs that correct others, over every backend: what is admitted, and what the READY of a correction does."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from authority_support import (
    LEASE,
    asking,
    claim_one,
    commit,
    draft,
    event,
    failed,
    hex32,
    hex64,
    ready,
    waiting,
)

from scenario_runner.authority.values import Admission, Claim, Sent, Superseding, Transition
from scenario_runner.contracts.errors import LeaseLostError, SequenceError
from scenario_runner.contracts.states import Disposition, EventKind, RunState, SignalKind
from scenario_runner.contracts.supersession import Supersession
from scenario_runner.runs import transitions

if TYPE_CHECKING:
    from authority_backends import Backend

    from scenario_runner.authority.base import Authority
    from scenario_runner.authority.values import RunRow

pytestmark = pytest.mark.integration


def correcting(
    key: str, old: str, record: str = "", purpose: str = "correction", reason: str = "", **more: Any
) -> Admission:
    """A record that asks for a run which corrects another."""
    record_ = asking(key, record, **more)
    assert record_.run is not None
    return replace(record_, run=replace(record_.run, supersession=Supersession(hex32(old), purpose, reason)))


def corrected(claim: Claim, old_state: RunState = RunState.READY, name: str = "") -> Transition:
    """READY of a correction."""
    assert claim.supersession is not None
    old = claim.supersession.old_run_id
    plain = ready(replace(claim, supersession=None), name or f"ready {claim.run_id}")
    own = event(EventKind.SUPERSEDES, RunState.READY, supersedes={"old_run_id": old})
    by = event(EventKind.SUPERSEDED_BY, old_state, superseded_by={"new_run_id": claim.run_id})
    signal = draft(f"supersedes {claim.run_id}", SignalKind.RUN_SUPERSEDES, claim.run_id)
    assert plain.signal is not None
    return transitions.ended(
        claim, RunState.READY, "", plain.at_us, (*plain.events, own), plain.signal, hex64("view"),
        Superseding(old, by, signal),
    )  # fmt: skip


def ended(authority: Authority, key: str = "old", how: Any = ready) -> RunRow:
    authority.admit([asking(key)])
    commit(authority, how(claim_one(authority), f"signal of {key}"))
    deliver(authority)
    return run_of(authority, key)


def deliver(authority: Authority) -> None:
    tasks = authority.claim_projections("relay", 100, LEASE)
    if tasks:
        authority.mark_projected("relay", [(task.run.run_id, task.run.event_seq) for task in tasks])
    rows = authority.claim_signals("p", 100, LEASE)
    if rows:
        authority.mark_sent([Sent(row) for row in rows])


def run_of(authority: Authority, key: str) -> RunRow:
    run = authority.run(hex32(key))
    assert run is not None
    return run


def kinds(authority: Authority, key: str) -> list[str]:
    return [item.kind for item in authority.events(hex32(key))]


def answer(authority: Authority, record: Admission) -> tuple[str, str]:
    (found,) = authority.admit([record])
    return found.disposition.value, found.reason_code


# --- admission --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [ready, failed])
def test_a_correction_of_a_run_that_has_ended_is_admitted_and_its_claim_names_that_run(
    authority: Authority,
    how: Any,
) -> None:
    before = ended(authority, how=how)
    assert answer(authority, correcting("new", "old", reason="LATE_DATA")) == ("ACCEPTED", "")
    claim = claim_one(authority)
    assert claim.supersession == Supersession(hex32("old"), "correction", "LATE_DATA")
    details = authority.events(hex32("new"))[0].details
    assert details["supersedes_run_id"] == hex32("old")
    assert (details["supersession_purpose"], details["supersession_reason_code"]) == ("correction", "LATE_DATA")
    assert run_of(authority, "old") == before, "an admission changes nothing of the old run"
    assert claim_of_plain(authority).supersession is None


def claim_of_plain(authority: Authority) -> Claim:
    authority.admit([asking("plain")])
    return claim_one(authority)


def test_a_correction_of_an_unknown_run_is_refused_and_leaves_its_key_free(authority: Authority) -> None:
    assert answer(authority, correcting("new", "old")) == ("REJECTED", "SUPERSEDED_RUN_NOT_FOUND")
    assert authority.run(hex32("new")) is None
    (row,) = authority.claim_signals("p", 10, LEASE)
    payload = json.loads(row.payload)
    assert (row.kind, row.run_id) == (SignalKind.REQUEST_REJECTED, hex32("new"))
    assert (payload["disposition"], payload["reason_code"]) == ("REJECTED", "SUPERSEDED_RUN_NOT_FOUND")
    assert hex32("old") in payload["detail"]
    (record,) = authority.records(hex32("new"))
    assert (record.disposition, record.detail) == (Disposition.REJECTED, payload["detail"])
    ended(authority)
    assert answer(authority, correcting("new", "old", "again")) == ("ACCEPTED", "")
    assert answer(authority, correcting("new", "old")) == ("REJECTED", "SUPERSEDED_RUN_NOT_FOUND"), "as it was answered"


def test_a_correction_of_a_run_that_has_not_ended_is_refused_until_it_has(authority: Authority) -> None:
    authority.admit([asking("old")])
    assert answer(authority, correcting("new", "old", "1")) == ("REJECTED", "SUPERSEDED_RUN_NOT_ENDED")
    claim = claim_one(authority)
    assert answer(authority, correcting("new", "old", "2")) == ("REJECTED", "SUPERSEDED_RUN_NOT_ENDED")
    assert "wait" in authority.records(hex32("new"))[-1].detail
    commit(authority, failed(claim))
    assert answer(authority, correcting("new", "old", "3")) == ("ACCEPTED", "")


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("other", "disposition"),
    [
        (correcting("new", "old", "2"), "DUPLICATE"),
        (asking("new", "2"), "CONFLICT"),
        (correcting("new", "other", "2"), "CONFLICT"),
        (correcting("new", "nobody", "2"), "CONFLICT"),
        (correcting("new", "old", "2", purpose="another"), "CONFLICT"),
        (correcting("new", "old", "2", reason="another"), "CONFLICT"),
        (correcting("new", "old", "2", fingerprint="two"), "CONFLICT"),
    ],
    ids=["same", "none", "other run", "unknown run", "other purpose", "other reason", "other intent"],
)
def test_one_key_stands_for_one_correction(
    authority: Authority,
    other: Admission,
    disposition: str,
    together: bool,
) -> None:
    ended(authority)
    ended(authority, "other")
    first = correcting("new", "old", "1")
    answers = authority.admit([first, other]) if together else [*authority.admit([first]), *authority.admit([other])]
    assert [item.disposition.value for item in answers] == ["ACCEPTED", disposition]
    assert answers[1].reason_code == ("EQUIV_KEY_COLLISION" if disposition == "CONFLICT" else "")
    assert claim_one(authority).supersession == Supersession(hex32("old"), "correction")


def test_a_plain_run_cannot_be_made_a_correction_afterwards_so_that_no_circle_comes_about(
    authority: Authority,
) -> None:
    ended(authority, "a")
    assert answer(authority, correcting("b", "a")) == ("ACCEPTED", "")
    commit(authority, corrected(claim_one(authority)))
    assert answer(authority, correcting("a", "b", "circle")) == ("CONFLICT", "EQUIV_KEY_COLLISION")
    (first, second) = authority.admit([correcting("x", "y"), correcting("y", "x")])
    assert {first.disposition, second.disposition} == {Disposition.REJECTED}


def test_records_beside_a_correction_that_is_refused_keep_their_own_answers(authority: Authority) -> None:
    ended(authority)
    found = authority.admit(
        [asking("plain"), correcting("a", "nobody"), correcting("b", "old"), asking("a", "plain a")]
    )
    assert [(item.disposition.value, item.reason_code) for item in found] == [
        ("ACCEPTED", ""), ("REJECTED", "SUPERSEDED_RUN_NOT_FOUND"), ("ACCEPTED", ""), ("ACCEPTED", ""),
    ]  # fmt: skip


# --- READY ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "state"), [(ready, RunState.READY), (failed, RunState.FAILED)])
def test_the_ready_of_a_correction_tells_both_records_and_changes_nothing_else_of_the_old_run(
    authority: Authority,
    how: Any,
    state: RunState,
) -> None:
    other = ended(authority, "other")
    before, events = ended(authority, how=how), authority.events(hex32("old"))
    authority.admit([correcting("new", "old")])
    commit(authority, corrected(claim_one(authority), state))
    assert run_of(authority, "other") == other, "nor anything of another run"
    old = run_of(authority, "old")
    assert replace(old, event_seq=before.event_seq) == before
    assert old.event_seq == before.event_seq + 1
    assert authority.events(hex32("old"))[:-1] == events
    last = authority.events(hex32("old"))[-1]
    assert (last.kind, last.seq) == (EventKind.SUPERSEDED_BY, old.event_seq)
    assert last.details["superseded_by"] == {"new_run_id": hex32("new")}
    assert (last.details["state"], last.details["seq"]) == (state, old.event_seq)
    assert last.ts_us >= events[-1].ts_us
    assert kinds(authority, "new")[-2:] == ["RUN_READY", "SUPERSEDES"]
    assert {task.run.run_id for task in authority.claim_projections("relay", 10, LEASE)} == {hex32("old"), hex32("new")}


def restored_ahead(
    authority: Authority,
    *told: str,
    record: str = "old",
    kind: str = EventKind.SUPERSEDED_BY,
) -> Claim:
    """The claim of a correction that was restored as on its way; a record tells of these corrections already.

    Args:
        authority: Where it was restored.
        told: Keys of the corrections.
        record: Key of the run whose record it is.
        kind: Of the events that tell of them.
    """
    from restored_support import BEGAN, END, begun, restored, terminal
    from restored_support import event as row

    ends = {key: terminal(key) for key in ("old", record)}
    by = [
        row(4 + number, kind, BEGAN + 7, {
            "seq": 4 + number, "state": "READY", "superseded_by": {"new_run_id": hex32(name)},
        })
        for number, name in enumerate(told)
    ]  # fmt: skip
    new = restored("new", RunState.VERIFYING, missing=(), supersession=Supersession(hex32("old"), "correction"))
    ends[record] = replace(ends[record], events=(*ends[record].events, *by), projected_seq=3 + len(by))
    authority.restore([*ends.values(), new], begun(authority).epoch, END)
    return claim_one(authority)


def test_a_record_that_tells_of_a_supersession_already_is_not_told_again(authority: Authority) -> None:
    claim = restored_ahead(authority, "new")
    commit(authority, corrected(claim))
    assert kinds(authority, "old").count("SUPERSEDED_BY") == 1
    assert run_of(authority, "old").event_seq == 4
    assert kinds(authority, "new")[-1] == "SUPERSEDES"
    assert [row.kind for row in authority.signals(hex32("new")).rows] == ["READY", "RUN_SUPERSEDES"]
    owed = [task.run.run_id for task in authority.claim_projections("relay", 10, LEASE)]
    assert owed == [hex32("new")], "the record of the old run is in the ledger"


def test_a_record_that_tells_of_another_correction_is_told_of_this_one(authority: Authority) -> None:
    claim = restored_ahead(authority, "another")
    commit(authority, corrected(claim))
    told = [
        item.details["superseded_by"]["new_run_id"]
        for item in authority.events(hex32("old")) if item.kind == EventKind.SUPERSEDED_BY
    ]  # fmt: skip
    assert told == [hex32("another"), hex32("new")]
    assert run_of(authority, "old").event_seq == 5


@pytest.mark.parametrize("told", [{"record": "other"}, {"kind": "any"}])
def test_only_the_event_of_a_supersession_in_the_record_of_the_old_run_tells_of_it(
    authority: Authority,
    told: dict[str, str],
) -> None:
    commit(authority, corrected(restored_ahead(authority, "new", **told)))
    assert kinds(authority, "old").count("SUPERSEDED_BY") == 1
    assert run_of(authority, "old").event_seq == len(kinds(authority, "old"))


def test_run_supersedes_goes_out_after_the_documents_and_after_the_ready(authority: Authority) -> None:
    ended(authority)
    authority.admit([correcting("new", "old")])
    commit(authority, corrected(claim_one(authority)))
    assert authority.claim_signals("p", 10, LEASE) == []
    tasks = authority.claim_projections("relay", 10, LEASE)
    authority.mark_projected("relay", [(task.run.run_id, task.run.event_seq) for task in tasks])
    (first,) = authority.claim_signals("p", 10, LEASE)
    assert first.kind is SignalKind.READY
    assert authority.claim_signals("q", 10, LEASE) == [], "its READY is not published yet"
    authority.mark_sent([Sent(first)])
    assert authority.pending().signals
    (second,) = authority.claim_signals("p", 10, LEASE)
    assert (second.kind, second.run_id, second.partition_key) == (
        SignalKind.RUN_SUPERSEDES, hex32("new"), hex32("new"),
    )  # fmt: skip
    authority.mark_sent([Sent(second)])
    assert [row.kind for row in authority.signals(hex32("new")).rows] == ["READY", "RUN_SUPERSEDES"]
    assert not authority.pending().undelivered


def test_run_supersedes_waits_for_no_ready_but_its_own(authority: Authority, clock: Any) -> None:
    ended(authority)
    authority.admit([correcting("new", "old"), asking("other")])
    for claim in authority.claim("w", 2, LEASE):
        commit(authority, corrected(claim) if claim.supersession else ready(claim, "other"))
    tasks = authority.claim_projections("relay", 10, LEASE)
    authority.mark_projected("relay", [(task.run.run_id, task.run.event_seq) for task in tasks])
    rows = {row.run_id: row for row in authority.claim_signals("p", 10, LEASE)}
    authority.mark_sent([Sent(rows[hex32("new")])])
    authority.postpone_signals([rows[hex32("other")]], clock.now + LEASE)
    assert authority.pending().signals
    assert [row.kind for row in authority.claim_signals("p", 10, LEASE)] == [SignalKind.RUN_SUPERSEDES]


def test_the_time_of_a_supersession_does_not_depend_on_records_of_other_runs(authority: Authority, clock: Any) -> None:
    ended(authority)
    authority.admit([correcting("new", "old")])
    claim = claim_one(authority, lease_us=10 * LEASE)
    before = clock.now = clock.now + LEASE // 10
    clock.pass_seconds(100)
    ended(authority, "later")
    clock.now = before
    commit(authority, corrected(claim))
    assert authority.events(hex32("old"))[-1].ts_us == before


def test_a_correction_that_is_committed_twice_supersedes_once(authority: Authority) -> None:
    ended(authority)
    authority.admit([correcting("new", "old")])
    transition = corrected(claim_one(authority))
    commit(authority, transition, transition)
    commit(authority, transition)
    assert kinds(authority, "old").count("SUPERSEDED_BY") == 1
    assert len(authority.signals(hex32("new")).rows) == 2


def test_a_correction_whose_lease_was_taken_supersedes_nothing(authority: Authority, clock: Any) -> None:
    before = ended(authority)
    authority.admit([correcting("new", "old")])
    late = corrected(claim_one(authority))
    clock.pass_seconds(3600)
    claim_one(authority, "w2")
    assert isinstance(authority.commit([late])[0], LeaseLostError)
    assert run_of(authority, "old") == before
    assert authority.signals(hex32("new")).rows == ()


def test_a_correction_that_does_not_become_ready_supersedes_nothing(authority: Authority) -> None:
    before = ended(authority)
    authority.admit([correcting("new", "old")])
    claim = claim_one(authority)
    commit(authority, waiting(claim, claim.now_us))
    commit(authority, failed(claim_one(authority)))
    assert run_of(authority, "old") == before
    assert [row.kind for row in authority.signals(hex32("new")).rows] == ["TERMINAL"]
    (row,) = authority.supersessions(hex32("old"))
    assert (row.new_run_id, row.state) == (hex32("new"), RunState.FAILED)


def test_only_a_correction_supersedes_and_its_ready_cannot_leave_it_out(authority: Authority) -> None:
    ended(authority)
    authority.admit([correcting("new", "old")])
    claim = claim_one(authority)
    with pytest.raises(SequenceError):
        ready(claim)
    with pytest.raises(SequenceError):
        replace(ready(replace(claim, supersession=None)), superseding=corrected(claim).superseding)


def test_two_corrections_of_one_run_in_one_batch_each_have_their_event(authority: Authority) -> None:
    before = ended(authority)
    authority.admit([correcting("a", "old"), correcting("b", "old")])
    commit(authority, *map(corrected, authority.claim("w", 2, LEASE)))
    events = authority.events(hex32("old"))
    assert [item.seq for item in events] == list(range(1, before.event_seq + 3))
    told = [item.details["superseded_by"]["new_run_id"] for item in events if item.kind == EventKind.SUPERSEDED_BY]
    assert sorted(told) == sorted([hex32("a"), hex32("b")])
    assert run_of(authority, "old").event_seq == before.event_seq + 2


def test_many_corrections_of_one_run_at_the_same_time_leave_no_gap_in_its_record(backend: Backend) -> None:
    first = backend.open()
    before = ended(first)
    handles = [first, *(backend.open() for _ in range(3))]
    first.admit([correcting(f"new{number}", "old") for number in range(16)])
    claims = first.claim("w", 16, LEASE)

    def end(number: int) -> None:
        commit(handles[number % 4], *map(corrected, claims[number * 2 : number * 2 + 2]))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(end, range(8)))
    events = first.events(hex32("old"))
    assert [item.seq for item in events] == list(range(1, before.event_seq + 17))
    assert [item.ts_us for item in events] == sorted(item.ts_us for item in events)
    assert kinds(first, "old").count("SUPERSEDED_BY") == 16


def test_both_ends_are_found_from_either_run(authority: Authority, clock: Any) -> None:
    ended(authority, "a")
    authority.admit([correcting("b", "a", reason="R")])
    commit(authority, corrected(claim_one(authority)))
    deliver(authority)
    clock.pass_seconds(1)
    authority.admit([correcting("c", "b")])
    found = authority.supersessions(hex32("b"))
    assert [(row.new_run_id, row.supersession.old_run_id, row.state) for row in found] == [
        (hex32("b"), hex32("a"), RunState.READY), (hex32("c"), hex32("b"), RunState.PLANNED),
    ]  # fmt: skip
    assert found[0].supersession.reason_code == "R"
    assert [row.new_run_id for row in authority.supersessions(hex32("a"))] == [hex32("b")]
    assert authority.supersessions(hex32("nobody")) == []


def test_whoever_delivers_one_run_delivers_the_record_of_the_run_that_it_supersedes(authority: Authority) -> None:
    ended(authority)
    authority.admit([correcting("new", "old"), asking("other")])
    for claim in authority.claim("w", 2, LEASE):
        commit(authority, corrected(claim) if claim.supersession else failed(claim))
    tasks = authority.claim_projections("relay", 10, LEASE, only=hex32("new"))
    assert {task.run.run_id for task in tasks} == {hex32("new"), hex32("old")}
    authority.mark_projected("relay", [(hex32("new"), tasks[0].run.event_seq + 99)])
    assert authority.pending(only=hex32("new")).undelivered
    assert authority.pending(only=hex32("new")).projections, "the record of the other one"
    assert not authority.pending(only=hex32("old")).signals
    for _ in range(2):
        authority.mark_sent([Sent(row) for row in authority.claim_signals("p", 10, LEASE, only=hex32("new"))])
    assert authority.pending(only=hex32("new")).undelivered
    authority.mark_projected("relay", [(hex32("old"), 99)])
    assert not authority.pending(only=hex32("new")).undelivered


def test_run_supersedes_is_no_pending_work_while_its_ready_is_put_off(authority: Authority, clock: Any) -> None:
    ended(authority)
    authority.admit([correcting("new", "old")])
    commit(authority, corrected(claim_one(authority)))
    tasks = authority.claim_projections("relay", 10, LEASE)
    authority.mark_projected("relay", [(task.run.run_id, task.run.event_seq) for task in tasks])
    (row,) = authority.claim_signals("p", 10, LEASE)
    authority.postpone_signals([row], clock.now + LEASE)
    assert not authority.pending().signals
    clock.now += LEASE
    assert authority.pending().signals
