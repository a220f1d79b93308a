"""The authority contract, over every backend: documents and signals that are owed, and what is left to do."""

import pytest
from authority_backends import Backend, decided, projected
from authority_support import (
    LEASE,
    SECOND,
    START,
    Clock,
    asking,
    claim_one,
    commit,
    disposed,
    draft,
    event,
    failed,
    hex32,
    hex64,
    ready,
    waiting,
)

from scenario_runner.authority.base import Authority
from scenario_runner.authority.values import UNTIL_RESTART, ProjectionFailure, RunRow, Sent, SignalRow
from scenario_runner.contracts.states import Disposition, RunState, SignalKind

pytestmark = pytest.mark.integration


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
