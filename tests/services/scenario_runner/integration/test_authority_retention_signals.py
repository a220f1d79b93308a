"""What retention removes of signals and digests, what every batch has in common, and what it costs."""

from __future__ import annotations

import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from authority_support import LEASE, SECOND, Clock, asking, disposed, draft, failed, hex32, hex64, ready
from reemit_support import DRIFT, act, deliver_documents, ended, one, owed
from retention_support import DAY, MANY, admitted_apart, begun, swept

from scenario_runner.authority.retention import Expiry, Kind
from scenario_runner.authority.statements import load_migrations, load_statements
from scenario_runner.authority.values import ReemitEnd, Sent
from scenario_runner.contracts.states import Disposition, SignalKind

if TYPE_CHECKING:
    from authority_backends import Backend

    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.integration


IN_DATABASE = [kind for kind in Kind if kind is not Kind.SPOOL_CONSUMED]


def repeated(authority: Authority, key: str, times: int) -> None:
    """Publish the signal of a run again, so often."""
    for number in range(times):
        assert one(authority, act(f"{key}/{number}", key, limit=MANY)).outcome == "ACCEPTED"
        deliver_documents(authority)
        authority.mark_sent([Sent(row) for row in owed(authority)])


# --- outbox


def test_the_first_signal_of_a_run_stays_and_what_was_published_again_goes(
    authority: Authority,
    clock: Clock,
) -> None:
    for key, how in (("r", ready), ("f", failed)):
        ended(authority, key, how)
        repeated(authority, key, 2)
    clock.pass_seconds(DAY // SECOND)
    assert swept(authority, Expiry(Kind.OUTBOX_SENT, clock.now)) == 4
    for key in "rf":
        (row,) = authority.signals(hex32(key)).rows
        assert (row.emission, row.sent_us is not None) == (0, True)


@pytest.mark.parametrize("limit", [1, 100])
def test_the_number_of_an_emission_is_never_used_twice(authority: Authority, clock: Clock, limit: int) -> None:
    ended(authority)
    repeated(authority, "k", 3)
    clock.pass_seconds(1)
    assert swept(authority, Expiry(Kind.OUTBOX_SENT, clock.now), limit) == 3
    assert one(authority, act("later", limit=MANY)).outcome == "ACCEPTED"
    assert [row.emission for row in authority.signals(hex32("k")).rows] == [0, 4]
    deliver_documents(authority)
    authority.mark_sent([Sent(row) for row in owed(authority)])
    clock.pass_seconds(1)
    assert swept(authority, Expiry(Kind.OUTBOX_SENT, clock.now), key="second") == 1
    one(authority, act("last", limit=MANY))
    assert [row.emission for row in authority.signals(hex32("k")).rows] == [0, 5]


def test_a_number_that_was_never_published_is_used_although_those_before_it_have_gone(
    authority: Authority,
    clock: Clock,
) -> None:
    ended(authority)
    repeated(authority, "k", 1)
    sent_us = clock.pass_seconds(1)
    one(authority, act("owed", limit=MANY))
    assert swept(authority, Expiry(Kind.OUTBOX_SENT, sent_us)) == 1
    (row,) = owed(authority)
    assert row.emission == 2
    authority.end_reemits([ReemitEnd(row, failure=DRIFT)])
    one(authority, act("again", limit=MANY))
    assert [item.emission for item in authority.signals(hex32("k")).rows] == [0, 2]


def test_numbers_of_other_messages_stay_as_they_are(authority: Authority, clock: Clock) -> None:
    ended(authority, "other")
    ended(authority)
    repeated(authority, "k", 2)
    clock.pass_seconds(1)
    assert swept(authority, Expiry(Kind.OUTBOX_SENT, clock.now)) == 2
    one(authority, act("first", "other"))
    assert [row.emission for row in authority.signals(hex32("other")).rows] == [0, 1]


def test_what_is_owed_to_the_bus_or_was_sent_lately_stays(authority: Authority, clock: Clock) -> None:
    ended(authority)
    repeated(authority, "k", 1)
    sent_us = clock.pass_seconds(10)
    one(authority, act("owed", limit=MANY))
    authority.admit([disposed("bus/a", Disposition.REJECTED, hex32("k"), draft("refusal", run_id=hex32("k")))])
    clock.pass_seconds(10)
    assert swept(authority, Expiry(Kind.OUTBOX_SENT, sent_us - 10 * SECOND), key="early") == 0
    assert swept(authority, Expiry(Kind.OUTBOX_SENT, clock.now)) == 1
    kinds = [row.kind for row in authority.signals(hex32("k")).rows]
    assert kinds == [SignalKind.READY, SignalKind.READY_REEMIT, SignalKind.REQUEST_REJECTED]


def test_a_refusal_that_was_sent_goes_and_is_not_sent_again(authority: Authority, clock: Clock) -> None:
    record = disposed("bus/a", Disposition.REJECTED, hex32("k"), draft("refusal", run_id=hex32("k")))
    authority.admit([record])
    authority.mark_sent([Sent(row) for row in authority.claim_signals("p", 10, LEASE)])
    clock.pass_seconds(1)
    assert swept(authority, Expiry(Kind.OUTBOX_SENT, clock.now)) == 1
    (again,) = authority.admit([record])
    assert again.repeated
    assert authority.claim_signals("p", 10, LEASE) == []


# --- digests


def test_digests_that_were_kept_long_ago_go(authority: Authority, clock: Clock) -> None:
    authority.keep_digests(hex64("old"), [hex64("x")])
    before_us = clock.pass_seconds(1)
    authority.keep_digests(hex64("young"), [hex64("y")])
    assert swept(authority, Expiry(Kind.DIGEST_REUSE, before_us), limit=1) == 1
    assert authority.find_digests(hex64("old")) is None
    assert authority.find_digests(hex64("young")) == [hex64("y")]


# --- acts


@pytest.mark.parametrize("kind", IN_DATABASE)
def test_a_batch_that_finds_nothing_changes_nothing(authority: Authority, clock: Clock, kind: Kind) -> None:
    ended(authority)
    begun(authority, kind)
    removal = authority.remove_expired(Expiry(kind, clock.now - DAY), 0, 10, "act")
    assert (removal.removed, removal.more) == (0, False)
    (row,) = authority.actions(kind)
    assert (row.actor, row.via, row.action, row.reason, row.outcome, row.detail) == (
        "ops", "cli", "retention", "why", "RUNNING", "0 rows removed",
    )  # fmt: skip


@pytest.mark.parametrize("kind", [Kind.INTAKE_RECORDS, Kind.DEAD_LETTER_RAW])
def test_a_full_page_without_an_old_row_is_the_end(authority: Authority, clock: Clock, kind: Kind) -> None:
    admitted_apart(authority, clock, "old")
    authority.admit([disposed("bus/refused", Disposition.REJECTED)])
    before_us = clock.pass_seconds(1)
    for number in range(5):
        authority.admit([asking(f"{number}"), disposed(f"bus/young {number}", Disposition.REJECTED)])
    first = authority.remove_expired(Expiry(kind, before_us), 0, 3, begun(authority, kind))
    assert (first.removed, first.more) == (1, True)
    second = authority.remove_expired(Expiry(kind, before_us), first.after, 3, "act")
    assert (second.removed, second.more) == (0, False)


@pytest.mark.parametrize("kind", IN_DATABASE)
def test_a_batch_adds_its_count_to_its_own_act(authority: Authority, clock: Clock, kind: Kind) -> None:
    ended(authority)
    repeated(authority, "k", 1)
    authority.admit([disposed("bus/refused", Disposition.REJECTED)])
    authority.keep_digests(hex64("old"), [hex64("x")])
    clock.pass_seconds(1)
    begun(authority, kind, "before")
    before = authority.acts(["before"])["before"]
    assert swept(authority, Expiry(kind, clock.now)) == 1
    assert authority.acts(["before"])["before"] == before


def test_every_batch_adds_its_count_to_the_act_in_its_own_transaction(authority: Authority, clock: Clock) -> None:
    admitted_apart(authority, clock, *"abcde")
    expiry = Expiry(Kind.INTAKE_RECORDS, clock.now)
    begun(authority, expiry.kind)
    details = []
    after = 0
    for _ in range(3):
        after = authority.remove_expired(expiry, after, 2, "act").after
        details.append(authority.acts(["act"])["act"].detail)
    assert details == ["2 rows removed", "4 rows removed", "5 rows removed"]


def test_two_retentions_at_once_remove_every_row_once(authority: Authority, clock: Clock) -> None:
    for key in "abc":
        ended(authority, key)
        repeated(authority, key, 4)
    authority.admit([asking(str(number), f"bus/{number}") for number in range(60)])
    clock.pass_seconds(1)
    with ThreadPoolExecutor(2) as pool:
        for expiry, count in ((Expiry(Kind.OUTBOX_SENT, clock.now), 12), (Expiry(Kind.INTAKE_RECORDS, clock.now), 63)):
            both = [pool.submit(swept, authority, expiry, 5, f"{expiry.kind}/{me}") for me in range(2)]
            found = sum(item.result() for item in both)
            # What one skipped because the other held it is gone, or is found by the next retention.
            assert found + swept(authority, expiry, key=f"{expiry.kind}/last") == count
    one(authority, act("later", "a", limit=MANY))
    assert [row.emission for row in authority.signals(hex32("a")).rows] == [0, 5]


def test_runs_events_attempts_and_acts_stay(backend: Backend, authority: Authority, clock: Clock) -> None:
    ended(authority)
    repeated(authority, "k", 2)
    tables = ("runs", "run_events", "engine_attempts", "operator_actions", "store_identities")

    def rows() -> list[Any]:
        return [backend.query(f"SELECT count(*) FROM {table}") for table in tables]

    before = rows()
    clock.pass_seconds(DAY // SECOND)
    for kind in IN_DATABASE:
        authority.remove_expired(Expiry(kind, clock.now), 0, 1000, "no act")
    assert rows() == before


# --- cost


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("expired_intake_records", "USING INTEGER PRIMARY KEY"),
        ("expired_dead_letter_raw", "intake_records_with_raw"),
        ("expired_outbox_sent", "outbox_removable"),
        ("expired_digest_reuse", "digest_reuse_kept"),
        ("keep_emission_numbers", "sqlite_autoindex_outbox_1"),
    ],
)
def test_sqlite_finds_a_batch_by_its_index(name: str, index: str) -> None:
    text = load_statements("sqlite")[name]
    with sqlite3.connect(":memory:") as connection:
        for _, _, migration in load_migrations("sqlite"):
            connection.executescript(migration)
        wanted = dict.fromkeys(re.findall(r":([a-z_]+)", text), 0)
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", wanted)]
    assert any(index in step for step in plan), plan
    tables = ("intake_records", "outbox", "digest_reuse", "dead_letters")
    assert not [step for step in plan if step in {f"SCAN {table}" for table in tables}], plan
