"""The authority contract, over every backend: what becomes of a record, once and for all."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from authority_backends import Backend, snapshot
from authority_support import START, WAIT, Clock, asking, disposed, draft, hex32, hex64

from scenario_runner.authority.base import Authority
from scenario_runner.authority.values import Admission
from scenario_runner.contracts.errors import SequenceError
from scenario_runner.contracts.states import Disposition, EventKind, RunState

pytestmark = pytest.mark.integration


def test_a_new_run_is_planned_and_due_now(authority: Authority, clock: Clock) -> None:
    (result,) = authority.admit([asking("k")])
    assert (result.disposition, result.reason_code, result.run_id, result.repeated) == (
        Disposition.ACCEPTED,
        "",
        hex32("k"),
        False,
    )
    run = authority.run(hex32("k"))
    assert run is not None
    assert (run.state, run.run_equivalence_key, run.reason_code) == (RunState.PLANNED, "k", "")
    assert (run.admitted_us, run.deadline_us, run.due_us) == (START, START + WAIT, START)
    assert run.intent == {"seed": 2**64 - 1, "note": "one"}
    assert run.inputs["pack_digest"] == hex64("pack")
    assert (run.lease_owner, run.lease_epoch) == ("", 0)
    events = authority.events(hex32("k"))
    assert [(event.seq, event.kind, event.ts_us) for event in events] == [
        (1, EventKind.RUN_ADMITTED, START),
        (2, EventKind.PLAN_COMMITTED, START),
        (3, EventKind.GOV_POLICY_REV, START),
        (4, EventKind.GOV_PLAN_HASH, START),
    ]
    assert run.event_seq == 4
    assert [event.details["state"] for event in events] == ["OPEN", "PLANNED", "PLANNED", "PLANNED"]
    assert events[1].details["plan_hash"] == events[3].details["plan_hash"] == hex64("planone")
    assert events[2].details == {"policy_id": "policy", "seq": 3, "state": "PLANNED"}


def test_the_record_of_an_accepted_request_is_kept_with_the_digest_of_its_bytes(authority: Authority) -> None:
    authority.admit([asking("k", "spool/r1"), asking("other", "spool/r2")])
    (record,) = authority.records(hex32("k"))
    assert (record.record_key, record.message_id, record.kind) == ("spool/r1", "message-spool/r1", "RUN_REQUEST")
    assert (record.disposition, record.received_us, record.raw_size) == (Disposition.ACCEPTED, START, 99)
    assert record.raw_sha256 == hashlib.sha256(b"raw of spool/r1").hexdigest()


def test_the_same_intent_again_is_a_duplicate_that_changes_nothing_of_the_run(
    authority: Authority, backend: Backend, clock: Clock
) -> None:
    authority.admit([asking("k", "r1")])
    run, events, signals, *_ = snapshot(authority, "k")
    clock.pass_seconds(5)
    (result,) = authority.admit([asking("k", "r2", wait_us=WAIT * 2)])
    assert (result.disposition, result.repeated) == (Disposition.DUPLICATE, False)
    assert snapshot(authority, "k")[:3] == (run, events, signals)
    assert [record.disposition for record in authority.records(hex32("k"))] == [
        Disposition.ACCEPTED,
        Disposition.DUPLICATE,
    ]
    assert backend.dead_letters() == {}


def test_another_intent_under_the_same_key_is_a_conflict_that_changes_nothing_of_the_run(
    authority: Authority, backend: Backend, clock: Clock
) -> None:
    authority.admit([asking("k", "r1")])
    run, events, *_ = snapshot(authority, "k")
    clock.pass_seconds(5)
    (result,) = authority.admit([asking("k", "r2", fingerprint="two")])
    assert (result.disposition, result.reason_code) == (Disposition.CONFLICT, "EQUIV_KEY_COLLISION")
    assert result.detail
    assert snapshot(authority, "k")[:2] == (run, events)
    assert backend.dead_letters() == {"r2": b"raw of r2"}
    assert [(row[0], row[1]) for row in authority.signals(hex32("k")).rows] == [
        (hex64("refusal of r2"), "REQUEST_REJECTED")
    ]


def test_two_keys_that_share_a_run_id_do_not_share_a_run(authority: Authority) -> None:
    authority.admit([asking("k", "r1")])
    twin = asking("other", "r2")
    assert twin.run is not None
    twin = replace(twin, run_id=hex32("k"), run=replace(twin.run, run_id=hex32("k")))
    assert authority.admit([twin])[0].disposition is Disposition.CONFLICT
    run = authority.run(hex32("k"))
    assert run is not None
    assert run.run_equivalence_key == "k"


def test_a_refused_record_is_kept_as_a_dead_letter_and_answered(authority: Authority, backend: Backend) -> None:
    (result,) = authority.admit([disposed("r1", Disposition.REJECTED, hex32("k"), draft("no"))])
    assert (result.disposition, result.reason_code, result.detail) == (
        Disposition.REJECTED,
        "RECORD_NOT_JSON",
        "not JSON",
    )
    assert backend.dead_letters() == {"r1": b"\xff raw"}
    assert authority.run(hex32("k")) is None
    assert [row[0] for row in authority.signals(hex32("k")).rows] == [hex64("no")]


def test_a_refused_record_that_names_no_run_is_kept_and_not_answered(authority: Authority, backend: Backend) -> None:
    authority.admit([disposed("r1", Disposition.REJECTED)])
    assert backend.dead_letters() == {"r1": b"\xff raw"}
    assert authority.records("") == []
    assert authority.pending().nothing


def test_an_ignored_record_leaves_its_disposition_and_nothing_else(authority: Authority, backend: Backend) -> None:
    assert authority.admit([disposed("r1", Disposition.IGNORED)])[0].disposition is Disposition.IGNORED
    assert backend.dead_letters() == {}
    assert authority.pending().nothing
    assert authority.admit([disposed("r1", Disposition.IGNORED)])[0].repeated


REPEATED: dict[Disposition, Callable[[], Admission]] = {
    Disposition.ACCEPTED: lambda: asking("k", "again"),
    Disposition.DUPLICATE: lambda: asking("before", "again"),
    Disposition.CONFLICT: lambda: asking("before", "again", fingerprint="two"),
    Disposition.REJECTED: lambda: disposed("again", Disposition.REJECTED, hex32("k"), draft("no")),
    Disposition.IGNORED: lambda: disposed("again", Disposition.IGNORED),
}


@pytest.mark.parametrize("disposition", REPEATED)
def test_a_record_delivered_again_keeps_its_disposition_and_does_nothing(
    authority: Authority, backend: Backend, clock: Clock, disposition: Disposition
) -> None:
    authority.admit([asking("before")])
    (first,) = authority.admit([REPEATED[disposition]()])
    assert (first.disposition, first.repeated) == (disposition, False)
    before = ([snapshot(authority, key) for key in ("k", "before")], backend.dead_letters(), authority.pending())
    clock.pass_seconds(60)
    for _ in range(3):
        (again,) = backend.open().admit([REPEATED[disposition]()])
        assert again == replace(first, repeated=True)
    assert (
        [snapshot(authority, key) for key in ("k", "before")],
        backend.dead_letters(),
        authority.pending(),
    ) == before


def test_a_record_key_decides_once_whatever_is_delivered_under_it_later(authority: Authority) -> None:
    authority.admit([asking("k", "r1")])
    (again,) = authority.admit([replace(asking("other", "r1"), raw=b"something else")])
    assert (again.repeated, again.run_id, again.disposition) == (True, hex32("k"), Disposition.ACCEPTED)
    assert authority.run(hex32("other")) is None


def test_a_batch_is_answered_in_order_and_sees_its_own_records(authority: Authority) -> None:
    results = authority.admit(
        [
            asking("a", "1"),
            asking("a", "2"),
            asking("a", "3", fingerprint="two"),
            disposed("4", Disposition.REJECTED),
            asking("b", "5"),
            asking("a", "1"),
            disposed("6", Disposition.IGNORED),
        ]
    )
    assert [result.record_key for result in results] == ["1", "2", "3", "4", "5", "1", "6"]
    assert [result.disposition.value for result in results] == [
        "ACCEPTED", "DUPLICATE", "CONFLICT", "REJECTED", "ACCEPTED", "ACCEPTED", "IGNORED"]  # fmt: skip
    assert [result.repeated for result in results] == [False] * 5 + [True, False]


def test_a_batch_is_admitted_whole_or_not_at_all(authority: Authority, backend: Backend) -> None:
    broken = asking("b", "2")
    assert broken.run is not None
    broken = replace(broken, run=replace(broken.run, intent={"a float": 1.5}))
    with pytest.raises(SequenceError):
        authority.admit([asking("a", "1"), disposed("0", Disposition.REJECTED), broken, asking("c", "3")])
    assert [authority.run(hex32(key)) for key in "abc"] == [None] * 3
    assert backend.dead_letters() == {}
    assert authority.pending().nothing
    assert [result.repeated for result in authority.admit([asking("a", "1"), asking("c", "3")])] == [False, False]


def test_an_empty_batch_is_fine(authority: Authority) -> None:
    assert authority.admit([]) == []


def test_of_many_threads_that_deliver_one_record_exactly_one_admits_it(backend: Backend) -> None:
    handles = [backend.open() for _ in range(4)]
    start = threading.Barrier(16)

    def deliver(number: int) -> list[bool]:
        start.wait(30)
        return [handles[number % 4].admit([asking(f"k{turn}", f"r{turn}")])[0].repeated for turn in range(10)]

    with ThreadPoolExecutor(16) as pool:
        repeated = list(pool.map(deliver, range(16)))
    assert [sorted(column) for column in zip(*repeated, strict=True)] == [[False] + [True] * 15] * 10


def test_of_many_threads_that_ask_for_different_things_under_one_key_exactly_one_gets_it(backend: Backend) -> None:
    handles = [backend.open() for _ in range(4)]
    start = threading.Barrier(12)

    def ask(number: int) -> str:
        start.wait(30)
        return handles[number % 4].admit([asking("k", f"r{number}", fingerprint=f"f{number}")])[0].disposition.value

    with ThreadPoolExecutor(12) as pool:
        found = sorted(pool.map(ask, range(12)))
    assert found == ["ACCEPTED"] + ["CONFLICT"] * 11
