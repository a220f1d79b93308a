"""The authority contract, over every backend; and what is particular to SQLite.

A new backend is one more parameter of ``backend``: how to open it with a clock, and the same as a script for another
process. Time is a number that the test moves. What is particular to PostgreSQL is in test_authority_store_postgres.py.
"""

import hashlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
    disposed,
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
from postgres_support import MigratedSchema, Schema, given_dsn, migrated_schema

from scenario_runner.authority import sqlite as sqlite_module
from scenario_runner.authority.acts import WakeAct
from scenario_runner.authority.base import Authority
from scenario_runner.authority.observed import WaitingRuns
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.authority.statements import load_migrations
from scenario_runner.authority.values import (
    UNTIL_RESTART,
    Admission,
    Claim,
    ProjectionFailure,
    RunRow,
    Sent,
    SignalRow,
    Transition,
)
from scenario_runner.contracts.errors import ConfigurationError, LeaseLostError, SequenceError, Unavailable
from scenario_runner.contracts.states import Disposition, EventKind, RunState, SignalKind
from scenario_runner.runs.decisions import MOST_ROOT_BYTES

pytestmark = pytest.mark.integration


@dataclass
class Backend:
    """One database that can be opened again and again, here and in other processes."""

    open_with: Callable[[Callable[[], int]], Authority]
    script: str
    query: Callable[[str], list[tuple[Any, ...]]]
    clock: Clock = field(default_factory=Clock)
    opened: list[Authority] = field(default_factory=list)

    def open(self) -> Authority:
        authority = self.open_with(self.clock)
        self.opened.append(authority)
        return authority

    def dead_letters(self) -> dict[str, bytes]:
        return dict(self.query("SELECT record_key, raw FROM dead_letters"))

    def in_processes(self, body: str, count: int = 2) -> list[list[str]]:
        """Run a script in several processes that start together; ``connect()`` and ``me`` (a number) are defined."""
        start = "me = int(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.readline()"
        source = f"import sys\n{self.script}\n{start}\n{body}"
        running = [
            subprocess.Popen(
                [sys.executable, "-c", source, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        finished = [process.communicate(timeout=120) for process in running]
        for process, (_, errors) in zip(running, finished, strict=True):
            assert process.returncode == 0, errors
        return [out.split() for out, _ in finished]


def _sqlite(folder: Path) -> Backend:
    path = str(folder / "db" / "authority.db")

    def query(text: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            return connection.execute(text).fetchall()

    return Backend(
        lambda clock: SqliteAuthority(path, clock=clock),
        f"from scenario_runner.authority.sqlite import SqliteAuthority\n"
        f"def connect(clock=lambda: {START}):\n    return SqliteAuthority({path!r}, clock=clock)\n",
        query,
    )


def _postgres(schema: Schema) -> Backend:
    from scenario_runner.authority.postgres import PostgresAuthority

    clock = Clock()
    clock.on_move = schema.set_clock

    def open_with(clock: Callable[[], int]) -> Authority:
        authority = PostgresAuthority(schema.dsn, "test")
        schema.use_clock(clock())
        return authority

    return Backend(
        open_with,
        f"from scenario_runner.authority.postgres import PostgresAuthority\n"
        f"def connect(clock=None):\n    return PostgresAuthority({schema.dsn!r}, 'test')\n",
        schema.query,
        clock,
    )


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.parity)])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """A database in which there is nothing, or what :func:`authority` opens it for, which migrates it anyway."""
    if request.param == "sqlite":
        schema = None
    else:
        schema = migrated_schema() if "authority" in request.fixturenames else Schema(given_dsn())
    made = _postgres(schema) if schema is not None else _sqlite(tmp_path)
    yield made
    for authority in made.opened:
        authority.close()
    if isinstance(schema, MigratedSchema):
        schema.give_back()
    elif schema is not None:
        schema.drop()


@pytest.fixture
def authority(backend: Backend) -> Authority:
    return backend.open()


@pytest.fixture
def clock(backend: Backend) -> Clock:
    return backend.clock


# --- what is admitted -------------------------------------------------------------------------------------------------


def snapshot(authority: Authority, key: str) -> tuple[Any, ...]:
    run_id = hex32(key)
    run, events, attempts = authority.run(run_id), authority.events(run_id), authority.attempts(run_id)
    return (run, events, authority.signals(run_id), authority.records(run_id), attempts)


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


# --- claims -----------------------------------------------------------------------------------------------------------


def test_nothing_due_is_nothing_claimed(authority: Authority) -> None:
    assert authority.claim("w1", 10, LEASE) == []


def test_a_claim_starts_the_verification_and_leases_the_run(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("k")])
    clock.pass_seconds(1)
    claim = claim_one(authority)
    assert (claim.run_id, claim.run_equivalence_key, claim.epoch, claim.owner) == (hex32("k"), "k", 1, "w1")
    assert (claim.state, claim.now_us, claim.admitted_us, claim.deadline_us) == (
        RunState.VERIFYING,
        clock.now,
        START,
        START + WAIT,
    )
    assert claim.intent == {"seed": 2**64 - 1, "note": "one"}
    assert (claim.wakes, claim.retries, claim.report_digest) == (0, 0, "")
    run = authority.run(hex32("k"))
    assert run is not None
    assert (run.state, run.lease_owner, run.lease_epoch, run.lease_until_us) == (
        RunState.VERIFYING,
        "w1",
        1,
        clock.now + LEASE,
    )
    assert run.updated_us == claim.updated_us
    assert [item.kind for item in authority.events(hex32("k"))][4:] == [EventKind.VERIFICATION_STARTED]


def test_a_run_under_lease_is_not_claimed_again_until_the_lease_has_run_out(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("k")])
    claim_one(authority)
    clock.now = START + LEASE - 1
    assert authority.claim("w2", 10, LEASE) == authority.claim("w1", 10, LEASE) == []
    clock.now = START + LEASE
    assert claim_one(authority, "w2").epoch == 2


def test_the_epoch_grows_with_every_claim_and_the_verification_starts_once(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("k")])
    epochs = []
    for number in range(5):
        epochs.append(claim_one(authority, f"w{number}").epoch)
        clock.pass_seconds(31)
    assert epochs == [1, 2, 3, 4, 5]
    assert [item.kind for item in authority.events(hex32("k"))].count(EventKind.VERIFICATION_STARTED) == 1


def test_the_oldest_due_runs_are_claimed_first_and_no_more_than_asked_for(authority: Authority, clock: Clock) -> None:
    for number in range(6):
        authority.admit([asking(f"k{number}")])
        clock.pass_seconds(1)
    wanted = [hex32(f"k{number}") for number in range(6)]
    assert [claim.run_id for claim in authority.claim("w1", 2, LEASE)] == wanted[:2]
    assert [claim.run_id for claim in authority.claim("w2", 3, LEASE)] == wanted[2:5]
    assert [claim.run_id for claim in authority.claim("w1", 10, LEASE)] == wanted[5:]


def test_what_counts_is_when_a_run_is_due_and_not_when_it_was_admitted(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("old")])
    commit(authority, waiting(claim_one(authority), START + 20 * SECOND))
    clock.pass_seconds(1)
    authority.admit([asking("young")])
    clock.pass_seconds(30)
    assert claim_one(authority).run_id == hex32("young")
    assert claim_one(authority).run_id == hex32("old")


def test_a_run_that_is_due_later_is_not_taken_along_with_one_that_is_due(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("later"), asking("now")])
    later, now = authority.claim("w1", 2, LEASE)
    commit(authority, waiting(later, clock.now + SECOND), waiting(now, clock.now))
    assert [claim.run_id for claim in authority.claim("w1", 10, LEASE)] == [now.run_id]


def test_a_claim_of_nothing_claims_nothing(authority: Authority) -> None:
    authority.admit([asking("k")])
    assert authority.claim("w1", 0, LEASE) == []
    assert claim_one(authority).epoch == 1


def test_of_eight_workers_on_one_key_exactly_one_claims_it_each_time(backend: Backend) -> None:
    handles = [backend.open() for _ in range(4)]
    handles[0].admit([asking("k")])
    with ThreadPoolExecutor(8) as pool:
        for turn in range(1, 26):
            start = threading.Barrier(8)

            def work(number: int, start: threading.Barrier = start) -> list[Claim]:
                start.wait(30)
                return handles[number % 4].claim(f"w{number}", 3, LEASE)

            claims = [claim for found in pool.map(work, range(8)) for claim in found]
            assert [claim.epoch for claim in claims] == [turn]
            backend.clock.pass_seconds(31)


def test_two_processes_never_hold_the_same_run(backend: Backend) -> None:
    backend.open().admit([asking(f"k{number}") for number in range(60)])
    outcomes = backend.in_processes(
        f"authority = connect(lambda: {START})\n"
        "while claims := authority.claim(f'w{me}', 2, 60_000_000):\n"
        "    print(*[claim.run_id for claim in claims])\n"
        "authority.close()\n"
    )
    assert sorted(outcomes[0] + outcomes[1]) == sorted(hex32(f"k{number}") for number in range(60))


def test_epochs_of_two_processes_that_steal_one_run_from_each_other_never_repeat(backend: Backend) -> None:
    """Leases run out at once, so that every claim is a theft."""
    backend.open().admit([asking("k")])
    outcomes = backend.in_processes(
        f"authority = connect(lambda: {START})\n"
        "claimed = 0\n"
        "while claimed < 100:\n"
        "    claims = authority.claim(f'w{me}', 1, 0)\n"  # nothing, while the other is claiming it
        "    claimed += len(claims)\n"
        "    print(*[claim.epoch for claim in claims])\n"
        "authority.close()\n"
    )
    epochs = [[int(text) for text in out] for out in outcomes]
    assert sorted(epochs[0] + epochs[1]) == list(range(1, 201))
    assert all(found == sorted(found) for found in epochs)


def test_of_eight_workers_that_steal_and_decide_exactly_one_verdict_stands(backend: Backend) -> None:
    handles = [backend.open() for _ in range(4)]
    handles[0].admit([asking("k")])
    start = threading.Barrier(8)

    def work(number: int) -> list[str]:
        authority, won = handles[number % 4], []
        start.wait(30)
        for turn in range(10):
            for claim in authority.claim(f"w{number}", 1, 0):
                name = f"verdict of {number} in {turn}"
                verdict = ready(claim, name) if number % 2 else failed(claim, name)
                if authority.commit([verdict]) == [None]:
                    won.append(name)
        return won

    with ThreadPoolExecutor(8) as pool:
        won = [name for names in pool.map(work, range(8)) for name in names]
    assert len(won) == 1
    assert [row[0] for row in handles[0].signals(hex32("k")).rows] == [hex64(won[0])]
    events = handles[0].events(hex32("k"))
    assert [item.seq for item in events] == list(range(1, len(events) + 1))
    assert sum(item.details["state"] in ("READY", "FAILED") for item in events) == 1


# --- settling ---------------------------------------------------------------------------------------------------------


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
        assert run == replace(was, due_us=clock.now)
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


# --- what is owed to the ledger ---------------------------------------------------------------------------------------


def test_a_finished_run_is_owed_to_the_ledger_with_all_its_events(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("k")])
    commit(authority, ready(claim_one(authority)))
    (owed,) = authority.claim_projections("relay", 10, LEASE)
    assert owed.run.state is RunState.READY
    assert owed.run.event_seq == 7
    assert list(owed.events) == authority.events(hex32("k"))
    assert authority.claim_projections("other", 10, LEASE) == []
    clock.pass_seconds(30)
    assert len(authority.claim_projections("other", 10, LEASE)) == 1


def test_a_projected_run_is_owed_again_only_after_something_new(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("k")])
    commit(authority, waiting(claim_one(authority), clock.now + SECOND, [event()]))
    (owed,) = authority.claim_projections("relay", 10, LEASE)
    authority.mark_projected("relay", [(owed.run.run_id, owed.run.event_seq)])
    assert authority.claim_projections("relay", 10, LEASE) == []
    clock.pass_seconds(1)
    commit(authority, failed(claim_one(authority)))
    (owed,) = authority.claim_projections("relay", 10, LEASE)
    assert [item.seq for item in owed.events] == [1, 2, 3, 4, 5, 6, 7, 8]
    before = owed.run.projected_seq
    authority.mark_projected("relay", [(owed.run.run_id, 3)])
    (owed,) = authority.claim_projections("relay", 10, LEASE)
    assert owed.run.projected_seq == before > 3, "a mark never moves back"
    authority.mark_projected("relay", [(owed.run.run_id, owed.run.event_seq)])
    assert authority.claim_projections("relay", 10, LEASE) == []
    run = authority.run(hex32("k"))
    assert run is not None
    assert run.projected_seq == 8


def test_a_projection_that_failed_is_not_tried_before_its_time(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("k")])
    commit(authority, ready(claim_one(authority)))
    authority.claim_projections("relay", 10, LEASE)
    authority.postpone_projections("relay", [ProjectionFailure(hex32("k"), clock.now + 5 * SECOND, "why")])
    clock.pass_seconds(4.9)
    assert authority.claim_projections("relay", 10, LEASE) == []
    clock.pass_seconds(0.1)
    assert len(authority.claim_projections("relay", 10, LEASE)) == 1


def row_of(authority: Authority, key: str = "k") -> RunRow:
    run = authority.run(hex32(key))
    assert run is not None
    return run


def test_failures_of_projections_are_counted_with_why_and_since_when_until_one_succeeds(
    authority: Authority, clock: Clock
) -> None:
    authority.admit([asking("k")])
    commit(authority, ready(claim_one(authority)))
    for number in range(1, 4):
        authority.claim_projections("relay", 10, LEASE)
        failure = ProjectionFailure(hex32("k"), clock.now + 5 * SECOND, f"RECORD_DRIFT: {number} \x00 {'x' * 3000}")
        authority.postpone_projections("relay", [failure])
        run = row_of(authority)
        assert (run.relay_retries, run.relay_until_us) == (number, failure.until_us)
        assert run.relay_error.startswith(f"RECORD_DRIFT: {number} ")
        assert len(run.relay_error) < 2010
        assert run.relay_since_us <= clock.now - (number - 1) * 5 * SECOND, "the first failure is when it began"
        clock.pass_seconds(5)
    (owed,) = authority.claim_projections("relay", 10, LEASE)
    assert (owed.run.relay_retries, owed.run.relay_since_us) == (3, run.relay_since_us)
    authority.mark_projected("relay", [(hex32("k"), owed.run.event_seq)])
    run = row_of(authority)
    assert (run.relay_retries, run.relay_error, run.relay_since_us, run.relay_until_us) == (0, "", 0, 0)


def test_what_is_put_off_for_good_is_due_again_when_deliveries_are_resumed_and_what_is_in_flight_stays_so(
    authority: Authority, clock: Clock
) -> None:
    for key in ("parked", "claimed", "signal"):
        authority.admit([asking(key)])
        commit(authority, ready(claim_one(authority), key))
    authority.claim_projections("relay", 1, LEASE)
    authority.postpone_projections("relay", [ProjectionFailure(hex32("parked"), UNTIL_RESTART, "drift")])
    (claimed,) = authority.claim_projections("relay", 1, 3 * LEASE)
    (signal,) = authority.claim_projections("relay", 1, LEASE)
    assert (claimed.run.run_id, signal.run.run_id) == (hex32("claimed"), hex32("signal"))
    authority.mark_projected("relay", [(hex32("signal"), signal.run.event_seq)])
    (row,) = authority.claim_signals("relay", 10, LEASE)
    authority.postpone_signals([row], UNTIL_RESTART)
    clock.pass_seconds(LEASE / SECOND + 1)
    assert authority.claim_projections("relay", 10, LEASE) == []
    assert authority.claim_signals("relay", 10, LEASE) == []
    assert authority.resume_deliveries() == 2
    assert [owed.run.run_id for owed in authority.claim_projections("relay", 10, LEASE)] == [hex32("parked")]
    assert [item.outbox_id for item in authority.claim_signals("relay", 10, LEASE)] == [row.outbox_id]
    assert (row_of(authority, "parked").relay_retries, row_of(authority, "parked").relay_error) == (0, "drift")
    assert authority.resume_deliveries() == 0


def test_projections_are_claimed_up_to_a_limit_and_by_one_relay_each(authority: Authority, backend: Backend) -> None:
    authority.admit([asking(f"k{number}") for number in range(5)])
    for number, claim in enumerate(authority.claim("w1", 5, LEASE)):
        commit(authority, ready(claim, f"ready {number}"))
    first = authority.claim_projections("r1", 2, LEASE)
    second = backend.open().claim_projections("r2", 10, LEASE)
    assert (len(first), len(second)) == (2, 3)
    assert {owed.run.run_id for owed in first + second} == {hex32(f"k{number}") for number in range(5)}


# --- signals ----------------------------------------------------------------------------------------------------------


def decided(authority: Authority, *keys: str) -> None:
    """Runs of these keys are READY, none of them projected."""
    for key in keys:
        authority.admit([asking(key)])
        (claim,) = [claim for claim in authority.claim("w1", 1, LEASE) if claim.run_id == hex32(key)]
        commit(authority, ready(claim, f"ready {key}"))


def projected(authority: Authority) -> None:
    authority.mark_projected(
        "relay", [(owed.run.run_id, owed.run.event_seq) for owed in authority.claim_projections("relay", 100, LEASE)]
    )


def test_a_signal_is_claimed_only_when_its_runs_documents_are_in_the_ledger(authority: Authority, clock: Clock) -> None:
    decided(authority, "k")
    assert authority.claim_signals("p", 10, LEASE) == []
    authority.claim_projections("relay", 10, LEASE)
    authority.mark_projected("relay", [(hex32("k"), 6)])
    assert authority.claim_signals("p", 10, LEASE) == [], "one event is still missing"
    authority.claim_projections("relay", 10, LEASE)
    authority.mark_projected("relay", [(hex32("k"), 7)])
    (row,) = authority.claim_signals("p", 10, LEASE)
    assert (row.message_id, row.run_id, row.kind, row.partition_key) == (
        hex64("ready k"),
        hex32("k"),
        SignalKind.READY,
        hex32("k"),
    )
    assert (row.payload, row.attributes, row.attempts) == (
        b'{"name":"ready k"}',
        {"facts_view_digest": hex64("view")},
        1,
    )


def test_the_refusal_of_a_record_waits_for_no_documents(authority: Authority) -> None:
    authority.admit([disposed("r1", Disposition.REJECTED, hex32("k"), draft("no", run_id=hex32("k")))])
    (row,) = authority.claim_signals("p", 10, LEASE)
    assert (row.kind, row.message_id) == (SignalKind.REQUEST_REJECTED, hex64("no"))


def test_a_signal_is_the_same_however_often_it_is_claimed(authority: Authority, clock: Clock) -> None:
    decided(authority, "k")
    projected(authority)
    seen = []
    for _ in range(4):
        seen += authority.claim_signals("p", 10, LEASE)
        clock.pass_seconds(30)
    assert [row.attempts for row in seen] == [1, 2, 3, 4]
    assert {(row.outbox_id, row.message_id, row.payload, row.created_us) for row in seen} == {
        (seen[0].outbox_id, seen[0].message_id, seen[0].payload, seen[0].created_us)}  # fmt: skip


def test_signals_are_claimed_oldest_first_and_by_one_publisher_each(
    authority: Authority, backend: Backend, clock: Clock
) -> None:
    decided(authority, *"abcde")
    projected(authority)
    first = authority.claim_signals("p1", 2, LEASE)
    second = backend.open().claim_signals("p2", 10, LEASE)
    assert [row.message_id for row in first + second] == [hex64(f"ready {key}") for key in "abcde"]
    assert authority.claim_signals("p3", 10, LEASE) == []
    clock.pass_seconds(30)
    assert [row.message_id for row in authority.claim_signals("p3", 1, LEASE)] == [hex64("ready a")]


def test_a_sent_signal_is_never_claimed_again(authority: Authority, clock: Clock) -> None:
    decided(authority, "k")
    projected(authority)
    (row,) = authority.claim_signals("p", 10, LEASE)
    sent_at = clock.pass_seconds(1)
    authority.mark_sent([Sent(row)])
    authority.postpone_signals([row], clock.now)
    authority.expire_owner("p")
    clock.pass_seconds(10_000)
    assert authority.claim_signals("p", 10, LEASE) == []
    assert authority.signals(hex32("k")).rows == (SignalRow(hex64("ready k"), "READY", sent_at),)


def test_a_postponed_signal_is_not_claimed_before_it_is_due(authority: Authority, clock: Clock) -> None:
    decided(authority, "a", "b")
    projected(authority)
    first, second = authority.claim_signals("p", 10, LEASE)
    authority.postpone_signals([first, second], clock.now + 8 * SECOND)
    clock.pass_seconds(7.9)
    assert authority.claim_signals("p", 10, LEASE) == []
    clock.pass_seconds(0.1)
    assert [row.attempts for row in authority.claim_signals("p", 10, LEASE)] == [2, 2]


def test_a_postponed_signal_is_not_taken_along_with_one_that_is_due(authority: Authority, clock: Clock) -> None:
    decided(authority, "a", "b")
    projected(authority)
    first, second = authority.claim_signals("p", 10, LEASE)
    authority.postpone_signals([first], clock.now + 90 * SECOND)
    authority.postpone_signals([second], clock.now)
    assert [row.outbox_id for row in authority.claim_signals("p", 10, LEASE)] == [second.outbox_id]


def test_two_processes_never_hold_the_same_signal(backend: Backend) -> None:
    backend.open().admit([disposed(f"r{n}", Disposition.REJECTED, hex32(f"k{n}"), draft(f"no {n}")) for n in range(60)])
    outcomes = backend.in_processes(
        f"authority = connect(lambda: {START + 1})\n"
        "while rows := authority.claim_signals(f'p{me}', 3, 60_000_000):\n"
        "    print(*[row.message_id for row in rows])\n"
        "authority.close()\n"
    )
    assert sorted(outcomes[0] + outcomes[1]) == sorted(hex64(f"no {n}") for n in range(60))


def test_a_signal_that_is_owed_already_is_not_owed_twice(authority: Authority) -> None:
    same = draft("no", run_id=hex32("k"))
    authority.admit(
        [disposed("r1", Disposition.REJECTED, hex32("k"), same), disposed("r2", Disposition.REJECTED, hex32("k"), same)]
    )
    assert len(authority.claim_signals("p", 10, LEASE)) == 1


# --- what is left to do -----------------------------------------------------------------------------------------------


def test_what_is_left_to_do_is_told_from_the_first_record_to_the_last_signal(
    authority: Authority, clock: Clock
) -> None:
    def left() -> tuple[bool, bool, bool, bool]:
        pending = authority.pending()
        assert pending.nothing is not (pending.runs or pending.projections or pending.signals)
        return pending.runs, pending.projections, pending.signals, pending.undelivered

    assert left() == (False, False, False, False)
    authority.admit([asking("k")])
    assert left()[0] is True
    commit(authority, waiting(claim_one(authority), clock.now + 10 * SECOND, [event()]))
    assert left() == (False, True, False, False)
    projected(authority)
    assert left() == (False, False, False, False)
    clock.pass_seconds(10)
    assert left()[0] is True
    commit(authority, ready(claim_one(authority)))
    assert left() == (False, True, False, True), "its signal waits for its documents"
    projected(authority)
    assert left() == (False, False, True, True)
    (row,) = authority.claim_signals("p", 10, LEASE)
    authority.postpone_signals([row], clock.now + SECOND)
    assert left() == (False, False, False, True), "due later, but still owed"
    clock.pass_seconds(1)
    assert left() == (False, False, True, True)
    (row,) = authority.claim_signals("p", 10, LEASE)
    authority.mark_sent([Sent(row)])
    assert left() == (False, False, False, False)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_what_is_not_known_is_nothing(authority: Authority) -> None:
    assert authority.run(hex32("none")) is None
    assert (
        authority.events(hex32("none")),
        authority.records(hex32("none")),
        authority.signals(hex32("none")).rows,
    ) == ([], [], ())
    assert authority.runs(None, 10) == []
    assert authority.find_digests("none") is None


def test_runs_are_listed_newest_first_of_one_state_or_all(authority: Authority, clock: Clock) -> None:
    for key in "abc":
        authority.admit([asking(key)])
        clock.pass_seconds(1)
    commit(authority, ready(claim_one(authority)))
    assert [run.run_equivalence_key for run in authority.runs(None, 10)] == ["c", "b", "a"]
    assert [run.run_equivalence_key for run in authority.runs(None, 2)] == ["c", "b"]
    assert [run.run_equivalence_key for run in authority.runs("READY", 10)] == ["a"]
    assert [run.run_equivalence_key for run in authority.runs("PLANNED", 10)] == ["c", "b"]
    assert authority.runs("FAILED", 10) == []


def test_kept_digests_are_found_and_the_first_ones_stay(authority: Authority, backend: Backend) -> None:
    authority.keep_digests("key", ["a", "b"])
    authority.keep_digests("key", ["other"])
    authority.keep_digests("another key", ["c"])
    assert backend.open().find_digests("key") == ["a", "b"]
    assert backend.open().find_digests("another key") == ["c"]
    assert backend.open().find_digests("no key") is None


def test_the_clock_is_the_databases(authority: Authority, clock: Clock) -> None:
    assert authority.now_us() == START
    clock.pass_seconds(3)
    assert authority.now_us() == START + 3 * SECOND


def test_what_one_handle_wrote_every_other_reads_at_once(backend: Backend) -> None:
    writer, reader = backend.open(), backend.open()
    for number in range(10):
        writer.admit([asking(f"k{number}")])
        assert reader.run(hex32(f"k{number}")) is not None


# --- opening and closing ----------------------------------------------------------------------------------------------


def test_several_processes_may_create_the_schema_at_once(backend: Backend) -> None:
    body = (
        "authority = connect()\n"
        "from scenario_runner.authority.base import Admission\n"
        "from scenario_runner.contracts.states import Disposition\n"
        "ignored = {'kind': 'X', 'run_id': 'a' * 32, 'disposition': Disposition.IGNORED}\n"
        "record = Admission(record_key=f'r{me}', raw=b'', raw_size=0, **ignored)\n"
        "print(authority.admit([record])[0].disposition.value)\n"
        "authority.close()\n"
    )
    assert backend.in_processes(body, count=5) == [["IGNORED"]] * 5
    assert len(backend.open().records("a" * 32)) == 5


def test_many_threads_may_open_it_at_once(backend: Backend) -> None:
    start = threading.Barrier(8)

    def work(number: int) -> str:
        start.wait(30)
        authority = backend.open_with(backend.clock)
        try:
            return authority.admit([asking(f"k{number}")])[0].disposition.value
        finally:
            authority.close()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == ["ACCEPTED"] * 8


def test_everything_is_there_after_it_was_closed_and_opened_again(backend: Backend) -> None:
    authority = backend.open()
    authority.admit([asking("k")])
    claim = claim_one(authority)
    before = snapshot(authority, "k")
    authority.close()
    authority.close()
    again = backend.open()
    assert snapshot(again, "k") == before
    commit(again, ready(claim))


def test_a_closed_authority_is_unavailable_and_does_not_hang(backend: Backend) -> None:
    authority = backend.open()
    authority.admit([asking("k")])
    assert authority.run(hex32("k")) is not None
    authority.close()
    for call in (
        lambda: authority.admit([asking("k")]),
        lambda: authority.run(hex32("k")),
        lambda: authority.renew("w1", [], LEASE),
    ):
        with pytest.raises(Unavailable):
            call()


def test_what_was_admitted_survives_the_death_of_the_process(backend: Backend) -> None:
    body = (
        "import os, signal\n"
        "from scenario_runner.authority.base import Admission\n"
        "from scenario_runner.contracts.states import Disposition\n"
        "authority = connect()\n"
        "ignored = {'kind': 'X', 'run_id': 'a' * 32, 'disposition': Disposition.IGNORED}\n"
        "authority.admit([Admission(record_key='r1', raw=b'', raw_size=0, **ignored)])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    script = f"{backend.script}\n{body}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [record.record_key for record in backend.open().records("a" * 32)] == ["r1"]


# --- SQLite -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "one" / "authority.db")


def test_a_database_of_a_newer_release_is_refused(path: str) -> None:
    SqliteAuthority(path).close()
    with sqlite3.connect(path) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version = {version + 1}")
    connection.close()
    with pytest.raises(ConfigurationError) as refused:
        SqliteAuthority(path)
    assert path in refused.value.place
    assert str(version + 1) in refused.value.problem
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (version + 1,)
    connection.close()


SCHEMA_FILE = Path(sqlite_module.__file__).parent / "schema/sqlite.sql"


def schema_of(connection: sqlite3.Connection) -> dict[str, Any]:
    """Tables with their columns, checks, indexes and foreign keys; white space and comments do not count."""
    found: dict[str, Any] = {}
    for kind, name, table, text in connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"):
        found[f"{kind} {name}"] = (
            table,
            re.sub(r" (?=[,)])", "", re.sub(r"\s+", " ", text or "")),
            connection.execute("SELECT * FROM pragma_table_xinfo(?)", (name,)).fetchall(),
            connection.execute("SELECT * FROM pragma_index_xinfo(?)", (name,)).fetchall(),
            connection.execute("SELECT * FROM pragma_foreign_key_list(?)", (name,)).fetchall(),
        )
    return found


def test_the_schema_is_the_sum_of_its_migrations(path: str) -> None:
    SqliteAuthority(path).close()
    with closing(sqlite3.connect(path)) as made, closing(sqlite3.connect(":memory:")) as read:
        read.executescript(SCHEMA_FILE.read_text("utf-8"))
        assert schema_of(made) == schema_of(read)
        assert "table runs" in schema_of(read)
        read.execute("DROP INDEX runs_due")
        assert schema_of(made) != schema_of(read), "the comparison would notice an index"


@pytest.mark.parametrize("version", range(1, len(load_migrations("sqlite"))))
def test_a_database_of_an_older_release_is_brought_up_to_date_with_all_it_holds(path: str, version: int) -> None:
    os.makedirs(os.path.dirname(path))
    with closing(sqlite3.connect(path)) as connection:
        for _, _, text in load_migrations("sqlite")[:version]:
            connection.executescript(text)
        insert = """
            INSERT INTO runs (run_id, run_equivalence_key, fingerprint, intent, inputs, state, admitted_us, deadline_us,
                              updated_us, due_us, event_seq)
            VALUES (?, ?, 'f', '{}', '{"strategy":"FORCE_INVOKE"}', ?, 1, 2, 3, 4, 2)"""
        for key, state in (("planned", "PLANNED"), ("verifying", "VERIFYING")):
            connection.execute(insert, (hex32(key), key, state))
        connection.execute(f"PRAGMA user_version = {version}")
        connection.commit()
    authority = SqliteAuthority(path, clock=Clock())
    claims = {claim.run_id: claim for claim in authority.claim("w1", 10, LEASE)}
    assert [(claim.state, claim.attempts) for claim in claims.values()] == [(RunState.VERIFYING, ())] * 2
    commit(authority, ready(claims[hex32("verifying")]), launched(claims[hex32("planned")]))
    assert [item.open for item in authority.attempts(hex32("planned"))] == [True]
    run = authority.run(hex32("verifying"))
    assert run is not None
    assert run.state is RunState.READY
    authority.close()


@pytest.mark.parametrize(
    "content",
    [b"this is not a database, but long enough to be looked at " * 40, b"SQLite format 3\x00" + b"\xff" * 4096],
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(path: str, content: bytes) -> None:
    os.makedirs(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises((Unavailable, ConfigurationError)) as refused:
        SqliteAuthority(path)
    assert path in str(refused.value)
    with open(path, "rb") as file:
        assert file.read() == content


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    with pytest.raises(Unavailable):
        SqliteAuthority(str(tmp_path / "file" / "authority.db"))
    with pytest.raises(Unavailable):
        SqliteAuthority(str(tmp_path))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, path: str) -> Iterator[SqliteAuthority]:
    monkeypatch.setattr(sqlite_module, "_BUSY_SECONDS", 0.05)
    authority = SqliteAuthority(path, clock=Clock())
    yield authority
    authority.close()


def test_a_locked_database_is_unavailable_and_works_again_afterwards(impatient: SqliteAuthority, path: str) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    calls: list[Callable[[], object]] = [
        lambda: impatient.admit([asking("k")]),
        lambda: impatient.renew("w1", [], LEASE),
        lambda: impatient.commit([]),
        lambda: impatient.keep_digests("a", []),
        lambda: impatient.expire_owner("x"),
        lambda: SqliteAuthority(path),
    ]
    for call in calls:
        with pytest.raises(Unavailable) as refused:
            call()
        assert path in refused.value.detail
    assert impatient.run(hex32("k")) is None, "reading goes on"
    other.execute("ROLLBACK")
    other.close()
    assert impatient.admit([asking("k")])[0].disposition is Disposition.ACCEPTED


def test_a_full_disk_is_unavailable_and_nothing_of_the_transaction_stays(path: str) -> None:
    authority = SqliteAuthority(path, clock=Clock())
    (pages,) = authority._write(lambda connection: connection.execute("PRAGMA page_count").fetchone())
    authority._write(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())
    big = replace(disposed("r2", Disposition.REJECTED), raw=b"x" * 200_000)
    with pytest.raises(Unavailable, match="full"):
        authority.admit([asking("a", "r1"), big])
    assert authority.run(hex32("a")) is None
    authority._write(lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchone())
    assert [result.repeated for result in authority.admit([asking("a", "r1"), big])] == [False, False]
    authority.close()


def test_a_commit_is_a_promise(path: str) -> None:
    authority = SqliteAuthority(path)
    assert authority._write(lambda connection: connection.execute("PRAGMA synchronous").fetchone()[0]) == 2
    assert authority._write(lambda connection: connection.execute("PRAGMA journal_mode").fetchone()[0]) == "wal"
    authority.close()


# --- transactions of the embedded engine ------------------------------------------------------------------------------


def leaves_half(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO store_identities (name, identity, noted_us) VALUES ('half', 'x', 1)")
    raise ValueError("mine")


def test_an_operation_that_fails_leaves_nothing_and_the_next_one_is_not_affected(path: str) -> None:
    authority = SqliteAuthority(path)
    with pytest.raises(ValueError, match="mine"):
        authority._write(leaves_half)
    assert authority.identity("half", "") == ""
    assert authority.identity("whole", "y") == "y"
    authority.close()


def test_operations_of_many_threads_come_one_after_the_other_and_each_gets_its_own_result(path: str) -> None:
    authority = SqliteAuthority(path)

    def run(number: int) -> str:
        if number % 3 == 0:
            with pytest.raises(ValueError, match="mine"):
                authority._write(leaves_half)
        return authority.identity(f"store-{number}", str(number))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(60))) == [str(number) for number in range(60)]
    assert authority.identity("half", "") == ""
    authority.close()


def test_a_thread_waits_a_bounded_time_for_the_one_that_writes(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = SqliteAuthority(path)
    monkeypatch.setattr(sqlite_module, "_BUSY_SECONDS", 0.05)
    busy, release = threading.Event(), threading.Event()

    def hold(_: sqlite3.Connection) -> None:
        busy.set()
        release.wait(30)

    holder = threading.Thread(target=authority._write, args=(hold,))
    holder.start()
    assert busy.wait(30)
    with pytest.raises(Unavailable, match="another thread"):
        authority.adopt_identity("late", "x")
    release.set()
    holder.join(30)
    assert authority.identity("late", "") == ""
    authority.close()


def test_a_closed_authority_takes_nothing_more(path: str) -> None:
    authority = SqliteAuthority(path)
    authority.close()
    authority.close()
    with pytest.raises(Unavailable, match="closed"):
        authority.adopt_identity("late", "x")


# --- stores


def test_a_store_keeps_the_identity_it_was_first_known_by(backend: Backend) -> None:
    first, second = backend.open(), backend.open()
    assert first.identity("object_store", "") == ""
    assert first.identity("object_store", "one") == "one"
    assert second.identity("object_store", "two") == "one"
    assert second.identity("spool", "three") == "three"
    assert first.identity("object_store", "") == "one"


def test_an_operator_makes_a_store_known_by_another_identity(backend: Backend) -> None:
    authority = backend.open()
    authority.identity("object_store", "one")
    authority.adopt_identity("object_store", "two")
    authority.adopt_identity("spool", "three")
    assert (authority.identity("object_store", "one"), authority.identity("spool", "")) == ("two", "three")


def test_a_claim_says_who_asked_for_the_run(backend: Backend) -> None:
    authority = backend.open()
    admission = asking("k1")
    assert admission.run is not None
    authority.admit([replace(admission, run=replace(admission.run, invoker="team-a"))])
    assert claim_one(authority).invoker == "team-a"
