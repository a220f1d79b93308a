"""What is observed of an authority, over every backend: its daemons, and how much waits in it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

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
    hex32,
    ready,
    waiting,
)

from scenario_runner.authority.acts import ACK_ACTION, ActionRow, ack_key
from scenario_runner.authority.observed import DEADLINES, DaemonRow
from scenario_runner.authority.values import Sent
from scenario_runner.contracts.states import Disposition, EventKind, RunState, SignalKind
from scenario_runner.runs import transitions

if TYPE_CHECKING:
    from authority_backends import Backend

    from scenario_runner.authority.base import Authority
    from scenario_runner.authority.values import Claim, Transition

pytestmark = pytest.mark.integration

DAY = 24 * 3600 * SECOND
NONE = {name: 0 for name, _ in DEADLINES}


def report(authority: Authority, owner: str = "one") -> None:
    authority.report_daemon(DaemonRow(owner, "all", "1.2.3", "host"), DAY)


def quarantined(claim: Claim) -> Transition:
    events = (event(EventKind.RUN_QUARANTINED, RunState.QUARANTINED, reason_code="EVIDENCE_CONFLICT"),)
    signal = draft("quarantined", SignalKind.TERMINAL, claim.run_id)
    return transitions.ended(claim, RunState.QUARANTINED, "EVIDENCE_CONFLICT", claim.updated_us + 1, events, signal)


def rows(backend: Backend) -> list[tuple[str, int, int]]:
    return [(row[0], row[1], row[2]) for row in
            backend.query("SELECT owner, started_us, seen_us FROM daemons ORDER BY owner")]  # fmt: skip


def test_the_first_report_of_a_daemon_is_its_start_and_later_ones_say_that_it_was_seen(
    authority: Authority,
    backend: Backend,
    clock: Clock,
) -> None:
    report(authority)
    clock.pass_seconds(20)
    report(authority)
    report(authority, "two")
    assert rows(backend) == [("one", START, START + 20 * SECOND), ("two", START + 20 * SECOND, START + 20 * SECOND)]
    authority.remove_daemon("one")
    authority.remove_daemon("one")
    assert [owner for owner, *_ in rows(backend)] == ["two"]


def test_a_daemon_that_was_not_seen_for_a_day_is_forgotten_when_another_one_reports(
    authority: Authority,
    backend: Backend,
    clock: Clock,
) -> None:
    report(authority, "killed")
    clock.now += DAY
    report(authority)
    assert [owner for owner, *_ in rows(backend)] == ["killed", "one"]
    clock.pass_seconds(1)
    report(authority)
    assert [owner for owner, *_ in rows(backend)] == ["one"]


def test_a_daemon_that_hung_for_longer_than_its_row_is_kept_is_seen_again(
    authority: Authority,
    backend: Backend,
    clock: Clock,
) -> None:
    report(authority)
    clock.now += 2 * DAY
    report(authority)
    assert [(owner, seen_us) for owner, _, seen_us in rows(backend)] == [("one", clock.now)]
    report(authority)
    assert [owner for owner, *_ in rows(backend)] == ["one"]


def test_an_empty_authority_has_no_backlog(authority: Authority, clock: Clock) -> None:
    found = authority.backlog(10)
    assert (found.now_us, found.waiting) == (clock.now, NONE)
    assert (found.quarantined, found.dead_letters, found.unsent, found.unprojected, found.daemons) == (0, 0, 0, 0, 0)
    assert (found.unsent_since_us, found.unprojected_since_us, found.due_since_us) == (None, None, None)


def test_waiting_runs_are_counted_by_the_time_that_is_left(authority: Authority, clock: Clock) -> None:
    for name, seconds in (("a", 100), ("b", 299), ("c", 3599), ("d", 90_000)):
        authority.admit([asking(name, wait_us=seconds * SECOND)])
        commit(authority, waiting(claim_one(authority), clock.now + WAIT))
    assert authority.backlog(10).waiting == NONE | {"5m": 2, "1h": 1, "later": 1}
    clock.pass_seconds(150)
    assert authority.backlog(10).waiting == NONE | {"overdue": 1, "5m": 1, "1h": 1, "later": 1}


def test_a_class_of_deadlines_begins_where_the_one_before_it_ends_and_holds_only_runs_that_wait(
    authority: Authority,
    clock: Clock,
) -> None:
    ends = [seconds * SECOND for _, seconds in DEADLINES if seconds is not None]
    for number, left_us in enumerate([end + more for end in ends for more in (-1, 0)]):
        for name in ("waits", "ended", "driven"):
            authority.admit([asking(f"{name} {number}", wait_us=10 * SECOND + left_us)])
            claim = claim_one(authority)
            if name != "driven":
                commit(authority, waiting(claim, START + WAIT) if name == "waits" else failed(claim, f"{number}"))
    clock.pass_seconds(10)
    assert authority.backlog(100).waiting == {name: 2 for name, _ in DEADLINES} | {"overdue": 1, "later": 1}
    assert authority.backlog(1).waiting == {name: 1 for name, _ in DEADLINES}


def test_only_runs_that_are_quarantined_and_records_that_were_refused_count_as_such(authority: Authority) -> None:
    for name in ("quarantined", "failed", "waits"):
        authority.admit([asking(name)])
        claim = claim_one(authority)
        ends = {"failed": failed(claim), "waits": waiting(claim, START + WAIT), "quarantined": quarantined(claim)}
        commit(authority, ends[name])
    authority.admit([disposed("r", Disposition.REJECTED), disposed("i", Disposition.IGNORED)])
    found = authority.backlog(10)
    assert (found.quarantined, found.dead_letters) == (1, 1)


def test_documents_are_owed_of_runs_that_have_ended_or_wait(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("driven")])
    claim_one(authority)
    clock.pass_seconds(1)
    assert (authority.backlog(10).unprojected, authority.backlog(10).unprojected_since_us) == (0, None)
    authority.admit([asking("waits")])
    commit(authority, waiting(claim_one(authority), START + WAIT))
    changed_us = authority.run(hex32("waits")).updated_us  # type: ignore[union-attr]
    clock.pass_seconds(1)
    authority.admit([asking("ended")])
    commit(authority, failed(claim_one(authority)))
    found = authority.backlog(10)
    assert (found.unprojected, found.unprojected_since_us) == (2, changed_us)
    assert found.due_since_us is None, "one is driven, one is due later, one has ended"


def test_of_each_kind_so_many_are_counted_as_was_said(authority: Authority) -> None:
    authority.admit([disposed(f"r{number}", Disposition.REJECTED) for number in range(5)])
    assert authority.backlog(3).dead_letters == 3
    assert authority.backlog(10).dead_letters == 5


def test_a_quarantined_run_counts_until_a_person_has_acknowledged_it(authority: Authority) -> None:
    for name in ("seen", "open", "failed"):
        authority.admit([asking(name)])
        end, state = failed(claim_one(authority), name), RunState.FAILED if name == "failed" else RunState.QUARANTINED
        commit(authority, replace(end, to_state=state, events=(*end.events[:-1], replace(end.events[-1], state=state))))
    assert authority.backlog(10).quarantined == 2
    authority.record_action(
        ActionRow(ack_key(hex32("seen")), 0, "ops", "cli", ACK_ACTION, hex32("seen"), "ticket", "ACKED", "")
    )
    assert authority.backlog(10).quarantined == 1


def test_signals_and_documents_are_owed_since_the_oldest_of_them(authority: Authority, clock: Clock) -> None:
    since = []
    for name in ("first", "second"):
        authority.admit([asking(name)])
        commit(authority, ready(claim_one(authority), name) if name == "first" else failed(claim_one(authority), name))
        since.append(authority.run(hex32(name)).updated_us)  # type: ignore[union-attr]
        clock.pass_seconds(10)
    found = authority.backlog(10)
    assert (found.unprojected, found.unprojected_since_us) == (2, since[0])
    assert (found.unsent, found.unsent_since_us) == (2, since[0])
    tasks = authority.claim_projections("relay", 10, LEASE)
    authority.mark_projected("relay", [(task.run.run_id, task.run.event_seq) for task in tasks])
    first, *_ = authority.claim_signals("relay", 10, LEASE)
    authority.mark_sent([Sent(first)])
    found = authority.backlog(10)
    assert (found.unprojected, found.unprojected_since_us) == (0, None)
    assert (found.unsent, found.unsent_since_us) == (1, since[1])


def test_the_oldest_due_run_is_one_that_nobody_drives(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("driven")])
    claim_one(authority)
    clock.pass_seconds(5)
    assert authority.backlog(10).due_since_us is None
    authority.admit([asking("left")])
    due = clock.now
    clock.pass_seconds(5)
    assert authority.backlog(10).due_since_us == due
    clock.now += LEASE
    assert authority.backlog(10).due_since_us == START, "its lease ran out"


def test_daemons_count_while_they_were_seen_within_a_minute(authority: Authority, clock: Clock) -> None:
    report(authority)
    clock.pass_seconds(59)
    report(authority, "two")
    assert authority.backlog(10).daemons == 2
    clock.pass_seconds(2)
    assert authority.backlog(10).daemons == 1
