"""The authority contract, over every backend: what is claimed, and what holds for every operation.

The databases are those of authority_backends.py. Admission, transitions and leases, waiting runs, and the outbox have
modules of their own; what is particular to one engine is in test_authority_sqlite_file.py and
test_authority_store_postgres.py.
"""

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
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
    failed,
    hex32,
    hex64,
    ready,
    waiting,
)

from scenario_runner.authority.base import Authority
from scenario_runner.authority.values import Claim
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.states import EventKind, RunState

pytestmark = pytest.mark.integration


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
