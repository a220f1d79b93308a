"""Arrivals of evidence over every backend: which waiting runs are due, when, and that none is missed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from authority_support import (
    LEASE,
    SECOND,
    Clock,
    asking,
    claim_one,
    commit,
    failed,
    gates_recorded,
    hex32,
    ready,
    waiting,
)

from scenario_runner.authority import queries
from scenario_runner.authority.acts import ActionRow, Arrival
from scenario_runner.authority.values import Admission, RunRow
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.states import Disposition, RunState

if TYPE_CHECKING:
    from authority_backends import Backend

    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.integration

ROOT = "/runs/engine-1"
LONG = "s3://bucket/" + "é" * 1990
"""A root that no index could hold whole."""


def at(key: str, root: str = ROOT, *, pinned: bool = False) -> Admission:
    """A request whose evidence lies at a root, which it names or which was pinned for it."""
    asked = asking(key)
    assert asked.run is not None
    intent = {**asked.run.intent, "engine_run_root": "" if pinned else root}
    inputs = {**asked.run.inputs, "engine_run_root": root} if pinned else asked.run.inputs
    return replace(asked, run=replace(asked.run, intent=intent, inputs=inputs))


def waits(authority: Authority, key: str, root: str = ROOT, *, pinned: bool = False) -> None:
    authority.admit([at(key, root, pinned=pinned)])
    commit(authority, waiting(claim_one(authority), authority.now_us() + 60 * SECOND))


def row(authority: Authority, key: str) -> RunRow:
    found = authority.run(hex32(key))
    assert found is not None
    return found


def told(authority: Authority, root: str = ROOT, run: str = "") -> int:
    (count,) = authority.tell([Arrival(root, hex32(run) if run else "")])
    return count


def saying(record: str, root: str = ROOT, run: str = "") -> Admission:
    """A record that says that evidence has come."""
    return Admission(
        record_key=record, raw=b"{}", raw_size=2, kind="EVIDENCE_ARRIVED", disposition=Disposition.ACCEPTED,
        arrival=Arrival(root, hex32(run) if run else ""),
    )  # fmt: skip


# --- who is told ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("root", [ROOT, LONG])
def test_runs_that_wait_at_a_root_are_due_now_and_nothing_else_of_them_changes(
    authority: Authority,
    clock: Clock,
    root: str,
    pinned: bool,
) -> None:
    waits(authority, "a", root, pinned=pinned)
    waits(authority, "b", root)
    waits(authority, "elsewhere", root + "0")
    before = {key: row(authority, key) for key in ("a", "b", "elsewhere")}
    events = authority.events(hex32("a"))
    clock.pass_seconds(5)
    assert authority.claim("w2", 9, LEASE) == []
    assert told(authority, root) == 2
    assert row(authority, "a") == replace(before["a"], due_us=clock.now)
    assert row(authority, "b") == replace(before["b"], due_us=clock.now)
    assert row(authority, "elsewhere") == before["elsewhere"]
    assert authority.events(hex32("a")) == events
    assert {claim.run_id for claim in authority.claim("w2", 9, LEASE)} == {hex32("a"), hex32("b")}


def test_a_run_waits_whatever_its_row_says(authority: Authority) -> None:
    """What the index is made of must not fail: then nothing of a batch could be committed."""
    asked = at("k")
    assert asked.run is not None
    authority.admit([replace(asked, run=replace(asked.run, intent=asked.run.intent | {"note": "NUL \x00"}))])
    commit(authority, waiting(claim_one(authority), authority.now_us() + 60 * SECOND))
    assert row(authority, "k").state is RunState.WAITING_EVIDENCE


def test_an_arrival_that_names_a_run_is_told_to_that_one_and_only_where_it_waits(
    authority: Authority,
    clock: Clock,
) -> None:
    waits(authority, "a")
    waits(authority, "b")
    clock.pass_seconds(5)
    before = row(authority, "b")
    assert told(authority, "/runs/engine-2", "a") == told(authority, ROOT, "unknown") == 0
    assert row(authority, "a").due_us != clock.now
    assert told(authority, ROOT, "a") == 1
    assert row(authority, "a").due_us == clock.now
    assert row(authority, "b") == before


def test_only_runs_that_wait_are_told(authority: Authority, clock: Clock) -> None:
    authority.admit([at("ended")])
    commit(authority, failed(claim_one(authority)))
    authority.admit([at("verified")])
    claim_one(authority)
    authority.admit([at("planned")])
    before = [row(authority, key) for key in ("ended", "verified", "planned")]
    clock.pass_seconds(5)
    assert told(authority) == 0
    assert [row(authority, key) for key in ("ended", "verified", "planned")] == before
    claims = authority.claim("w2", 9, LEASE)  # of "planned": then it does not get in the way
    assert [claim.run_id for claim in claims] == [hex32("planned")]
    before[2] = row(authority, "planned")
    waits(authority, "waits")
    assert told(authority) == 1, "others at the same root are not counted"
    assert [row(authority, key) for key in ("ended", "verified", "planned")] == before


def test_a_run_that_has_ceased_to_wait_meanwhile_is_left_alone(authority: Authority, clock: Clock) -> None:
    """It was found as one that waits, and changed before its row was locked."""
    authority.admit([at("verified")])
    claim_one(authority)
    before = row(authority, "verified")
    clock.pass_seconds(2)
    assert isinstance(authority, queries.Queries)
    authority._tell_runs([hex32("verified")])
    assert row(authority, "verified") == before


def test_many_runs_are_told_a_page_at_a_time(
    authority: Authority,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queries, "MOST_TOLD", 2)
    keys = [f"k{number}" for number in range(5)]
    for key in keys:
        waits(authority, key)
    clock.pass_seconds(5)
    assert told(authority) == 5
    assert {row(authority, key).due_us for key in keys} == {clock.now}


def test_runs_of_many_arrivals_are_told_together_and_each_once(
    authority: Authority,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each statement is a transaction: one for each arrival would keep intake waiting for as many."""
    assert isinstance(authority, queries.Queries)
    monkeypatch.setattr(queries, "MOST_TOLD", 3)
    for number in range(8):
        waits(authority, f"k{number}", f"/runs/{number // 2}")
    clock.pass_seconds(5)
    tell_runs, pages = authority._tell_runs, list[list[str]]()
    monkeypatch.setattr(authority, "_tell_runs", lambda run_ids: pages.append(run_ids) or tell_runs(run_ids))
    arrivals = [Arrival(f"/runs/{number}") for number in range(4)]
    named = [Arrival("/runs/0", hex32("k0")), Arrival("/runs/9")]
    assert authority.tell([*named, *arrivals, *named]) == [1, 0, 2, 2, 2, 2, 1, 0]
    assert [len(page) for page in pages] == [3, 3, 2]
    assert sorted(run_id for page in pages for run_id in page) == sorted(hex32(f"k{number}") for number in range(8))
    assert {row(authority, f"k{number}").due_us for number in range(8)} == {clock.now}


def test_of_many_arrivals_each_has_its_answer(authority: Authority) -> None:
    waits(authority, "a")
    waits(authority, "b", "/runs/other")
    arrivals = [Arrival("/runs/none"), Arrival(ROOT), Arrival("/runs/other", hex32("a")), Arrival(ROOT)]
    assert authority.tell(arrivals) == [0, 1, 0, 1]
    assert authority.tell([]) == []


def test_where_no_run_waits_none_is_looked_for(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    waits(authority, "k")
    authority.admit([at("planned", "/runs/planned")])
    asked: list[str] = []
    query = authority._query
    monkeypatch.setattr(authority, "_query", lambda name, **more: asked.append(name) or query(name, **more))
    assert told(authority, "/runs/none") == told(authority, "/runs/planned") == 0
    assert "waiting_at" not in asked
    assert told(authority) == 1
    assert "waiting_at" in asked


def test_roots_where_runs_wait_are_those_of_the_last_deadlines(authority: Authority, clock: Clock) -> None:
    assert authority.waiting_roots(9) == []
    waits(authority, "a", "/runs/a")
    for key in ("b", "c"):
        clock.pass_seconds(1)
        waits(authority, key, "/runs/b", pinned=key == "b")
    authority.admit([at("planned", "/runs/planned")])
    assert sorted(authority.waiting_roots(9)) == ["/runs/a", "/runs/b"]
    assert authority.waiting_roots(2) == ["/runs/b"]


def test_a_run_whose_whole_root_was_absent_is_told_like_any_other(authority: Authority, clock: Clock) -> None:
    """It is due at its deadline, and its root is looked at in rounds until then."""
    authority.admit([at("k")])
    claim = claim_one(authority)
    commit(authority, waiting(claim, claim.deadline_us, root=ROOT))
    assert authority.absent_roots("", 9) == [ROOT]
    clock.pass_seconds(5)
    assert told(authority) == 1
    assert claim_one(authority).run_id == hex32("k")
    assert authority.absent_roots("", 9) == [], "under lease it is in no round"


# --- how often --------------------------------------------------------------------------------------------------------


def test_a_run_is_told_once_a_second_and_the_last_arrival_is_not_missed(authority: Authority, clock: Clock) -> None:
    waits(authority, "k")
    first = clock.pass_seconds(5)
    assert told(authority) == 1
    commit(authority, waiting(claim_one(authority), clock.now + 60 * SECOND))
    for _ in range(3):
        clock.pass_seconds(0.2)
        assert told(authority) == 1
        assert row(authority, "k").due_us == first + SECOND
    clock.pass_seconds(0.3)
    assert authority.claim("w2", 1, LEASE) == []
    clock.pass_seconds(0.1)
    commit(authority, waiting(claim_one(authority), clock.now + 60 * SECOND))
    clock.pass_seconds(7)
    assert told(authority) == 1
    assert row(authority, "k").due_us == clock.now


def test_an_arrival_puts_no_run_off(authority: Authority, clock: Clock) -> None:
    authority.admit([at("k")])
    commit(authority, waiting(claim_one(authority), clock.now + SECOND // 2))
    soon = row(authority, "k").due_us
    clock.pass_seconds(0.4)
    told(authority)
    assert row(authority, "k").due_us == clock.now
    clock.pass_seconds(0.01)
    told(authority)
    assert row(authority, "k").due_us == clock.now - SECOND // 100
    assert soon is not None


def test_a_clock_that_was_set_back_puts_an_arrival_off_for_a_second_at_most(
    authority: Authority,
    clock: Clock,
) -> None:
    waits(authority, "k")
    clock.pass_seconds(50)
    told(authority)
    commit(authority, waiting(claim_one(authority), clock.now + 60 * SECOND))
    clock.pass_seconds(-40)
    told(authority)
    assert row(authority, "k").due_us == clock.now + SECOND


# --- under lease ------------------------------------------------------------------------------------------------------


def test_a_run_that_is_examined_when_its_evidence_comes_is_due_again_when_it_waits_on(
    authority: Authority,
    clock: Clock,
) -> None:
    waits(authority, "k")
    clock.pass_seconds(61)
    claim = claim_one(authority)
    arrived = clock.pass_seconds(2)
    assert told(authority) == 1
    assert authority.claim("w2", 1, LEASE) == [], "the lease of the examination holds"
    clock.pass_seconds(3)
    commit(authority, waiting(claim, clock.now + 60 * SECOND))
    assert row(authority, "k").due_us == arrived
    commit(authority, waiting(claim_one(authority), clock.now + 60 * SECOND))
    assert row(authority, "k").due_us == clock.now + 60 * SECOND, "that was the examination that it was due for"


def test_what_one_process_hears_the_one_that_examines_the_run_finds_in_its_row(
    authority: Authority,
    clock: Clock,
    backend: Backend,
) -> None:
    hears = backend.open()
    for key in ("held", "free"):
        waits(authority, key)
    clock.pass_seconds(61)
    (claim,) = authority.claim("w1", 1, LEASE, hex32("held"))
    commit(authority, *(waiting(free, clock.now + 60 * SECOND) for free in authority.claim("w1", 9, LEASE)))
    arrived = clock.pass_seconds(2)
    assert told(hears) == 2
    assert [item.run_id for item in authority.claim("w1", 9, LEASE)] == [hex32("free")]
    commit(authority, waiting(claim, clock.now + 60 * SECOND))
    assert row(hears, "held").due_us == arrived
    assert claim_one(hears, "w2").run_id == hex32("held")


def test_an_arrival_before_a_claim_leaves_no_mark(authority: Authority, clock: Clock) -> None:
    waits(authority, "k")
    clock.pass_seconds(5)
    told(authority)
    clock.pass_seconds(1)
    claim = claim_one(authority)
    commit(authority, waiting(claim, clock.now + 60 * SECOND))
    assert row(authority, "k").due_us == clock.now + 60 * SECOND


def test_an_earlier_time_stays(authority: Authority, clock: Clock) -> None:
    waits(authority, "k")
    clock.pass_seconds(61)
    claim = claim_one(authority)
    clock.pass_seconds(2)
    told(authority)
    deadline = clock.now - SECOND
    commit(authority, waiting(claim, deadline))
    assert row(authority, "k").due_us == deadline


def test_a_run_that_ends_under_its_lease_ends_whatever_was_told(authority: Authority, clock: Clock) -> None:
    waits(authority, "k")
    clock.pass_seconds(61)
    claim = claim_one(authority)
    clock.pass_seconds(2)
    told(authority)
    commit(authority, failed(claim))
    assert (row(authority, "k").state, row(authority, "k").due_us) == (RunState.FAILED, None)


def test_progress_of_an_examination_is_no_mark(authority: Authority, clock: Clock) -> None:
    """Its commit sets the time too, and a run that is verified is never told."""
    authority.admit([at("k")])
    claim = claim_one(authority)
    clock.pass_seconds(2)
    recorded = gates_recorded(claim)
    commit(authority, recorded, ready(recorded.claim_after))
    assert row(authority, "k").state is RunState.READY


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_that_says_it_is_disposed_of_once_and_leaves_nothing_in_the_run(
    authority: Authority,
    clock: Clock,
    backend: Backend,
) -> None:
    waits(authority, "k")
    clock.pass_seconds(5)
    before = row(authority, "k")
    answers = authority.admit([saying("r1"), saying("r2", "/runs/none"), asking("new", "r3")])
    assert [answer.disposition for answer in answers] == [
        Disposition.ACCEPTED, Disposition.IGNORED, Disposition.ACCEPTED,
    ]  # fmt: skip
    assert row(authority, "k") == replace(before, due_us=clock.now)
    assert [record.kind for record in authority.records(hex32("k"))] == ["RUN_REQUEST"]
    kept = backend.query(
        "SELECT record_key, kind, run_id, disposition, detail FROM intake_records WHERE run_id = '' ORDER BY record_key"
    )
    assert kept == [
        ("r1", "EVIDENCE_ARRIVED", "", "ACCEPTED", "waiting runs that were told: 1"),
        ("r2", "EVIDENCE_ARRIVED", "", "IGNORED", "no run waits for evidence there"),
    ]
    assert backend.query("SELECT count(*) FROM dead_letters") == [(0,)]
    (again,) = authority.admit([saying("r1", "/runs/none")])
    assert (again.disposition, again.repeated) == (Disposition.ACCEPTED, True)


def test_a_record_of_an_act_tells_waiting_runs_too(authority: Authority, clock: Clock) -> None:
    waits(authority, "k")
    clock.pass_seconds(5)
    act = ActionRow("act", 0, "ops", "cli", "redrive", "spool/old", "the root is allowed now", "", "")
    admitted = authority.admit_for(act, saying("redrive/1/spool/old"))
    assert admitted is not None
    assert admitted.disposition is Disposition.ACCEPTED
    assert row(authority, "k").due_us == clock.now
    assert [action.outcome for action in authority.actions("spool/old")] == ["ADMITTED"]


def test_runs_are_told_before_their_record_is_disposed_of(
    authority: Authority,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that is killed in between tells them again; the other way round nobody ever would."""
    waits(authority, "k")
    clock.pass_seconds(5)
    before = row(authority, "k")

    def fails(_arrivals: object) -> list[int]:
        raise Unavailable("killed here")

    with monkeypatch.context() as patched:
        patched.setattr(authority, "tell", fails)
        with pytest.raises(Unavailable, match="killed here"):
            authority.admit([saying("r1")])
    assert row(authority, "k") == before
    (answer,) = authority.admit([saying("r1")])
    assert answer.repeated is False
    assert row(authority, "k").due_us == clock.now
