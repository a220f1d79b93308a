"""A rebuild over every backend: what is inserted is what the ledger said, once, and only into an empty authority."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from authority_support import (
    LEASE,
    SECOND,
    asking,
    claim_one,
    commit,
    disposed,
    draft,
    failed,
    finished,
    hex32,
    hex64,
    waiting,
)
from restored_support import BEGAN, END, begun, restored, terminal

from scenario_runner.authority.values import AttemptRow, StoredEvent
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.states import Disposition, RunState
from scenario_runner.contracts.supersession import Supersession

if TYPE_CHECKING:
    from authority_backends import Backend

    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.integration


def test_a_run_comes_back_with_every_row(authority: Authority) -> None:
    unfinished = begun(authority)
    wait, end = restored("waits"), terminal("ready")
    assert authority.restore([wait, end], unfinished.epoch, END) == {wait.run_id, end.run_id}
    row = authority.run(wait.run_id)
    assert row is not None
    names = (
        "run_id", "run_equivalence_key", "state", "reason_code", "admitted_us", "deadline_us", "updated_us", "due_us",
        "projected_seq", "facts_view_digest",
    )  # fmt: skip
    assert (canonical_bytes(row.intent), canonical_bytes(row.inputs)) == (wait.intent, wait.inputs)
    assert {name: getattr(row, name) for name in names} == {name: getattr(wait, name) for name in names}
    assert (row.event_seq, row.lease_epoch, row.lease_owner) == (3, unfinished.epoch, "")
    assert authority.events(wait.run_id) == [
        StoredEvent(item.seq, item.kind, item.ts_us, orjson.loads(item.details)) for item in wait.events
    ]
    signals = authority.signals(end.run_id).rows
    assert [(item.kind, item.emission, item.sent_us, item.receipt) for item in signals] == [
        ("READY", 0, BEGAN + 7, ""), ("READY_REEMIT", 1, BEGAN + 7, '{"shard":"s"}'),
    ]  # fmt: skip
    assert authority.actions(end.run_id) == list(end.actions)
    assert [(act.action, act.outcome) for act in authority.actions("ledger")] == [("authority.rebuild", "REBUILT")]
    assert authority.identity("object_store/x", "") == "a" * 32
    assert authority.identity("spool/y", "") == "b" * 32


def test_a_correction_comes_back_with_what_it_supersedes(authority: Authority) -> None:
    supersession = Supersession(hex32("old"), "late data", "LATE")
    new = restored("new", supersession=supersession)
    authority.restore([terminal("old"), new], begun(authority).epoch, END)
    (row,) = authority.supersessions(hex32("old"))
    assert (row.new_run_id, row.supersession) == (new.run_id, supersession)
    assert claim_one(authority).supersession == supersession


def test_a_number_that_the_record_names_is_not_used_again(authority: Authority) -> None:
    from reemit_support import act, one

    run = terminal("k")
    first = replace(run.signals[0], removed_emission=7)
    authority.restore([replace(run, signals=(first,))], begun(authority).epoch, END)
    assert one(authority, act("new")).outcome == "ACCEPTED"
    assert [row.emission for row in authority.claim_signals("relay", 10, LEASE)] == [8]


@pytest.mark.parametrize("asked_by", ["an operator", "a record"])
def test_a_signal_whose_number_is_the_last_one_is_not_repeated_and_holds_nobody_up(
    authority: Authority,
    asked_by: str,
) -> None:
    """Whoever writes into the ledger may plant it."""
    from reemit_support import act, one

    runs = {key: terminal(key) for key in ("last", "last but one")}
    numbers = {"last": 2**31 - 1, "last but one": 2**31 - 2}
    planted = [
        replace(run, signals=(replace(run.signals[0], removed_emission=numbers[key]),)) for key, run in runs.items()
    ]
    authority.restore(planted, begun(authority).epoch, END)
    if asked_by == "an operator":
        outcomes = [one(authority, act(f"act on {key}", key)).outcome for key in runs]
        assert outcomes == ["REEMIT_RATE_LIMIT", "ACCEPTED"]
        assert one(authority, act("dry", "last", dry_run=True)).outcome == "REEMIT_RATE_LIMIT"
    else:
        requests = [
            replace(
                asking(key, f"spool/{key}"), run=None, kind="REEMIT_REQUEST", refusal=None,
                reemit=act(f"act on {key}", key),
            )
            for key in runs
        ]  # fmt: skip
        answers = authority.admit([*requests, asking("another")])
        assert [(answer.disposition, answer.reason_code) for answer in answers] == [
            (Disposition.REJECTED, "REEMIT_RATE_LIMIT"), (Disposition.ACCEPTED, ""), (Disposition.ACCEPTED, "")
        ]  # fmt: skip
        assert authority.run(hex32("another")) is not None
    rows = authority.claim_signals("relay", 10, LEASE)
    assert [row.emission for row in rows if row.emission] == [2**31 - 1]


def test_nothing_of_a_finished_run_is_owed_or_due(authority: Authority) -> None:
    authority.restore([terminal("ready")], begun(authority).epoch, END)
    assert authority.pending().nothing
    assert authority.claim_signals("relay", 10, LEASE) == []
    assert authority.claim("w", 10, LEASE) == []


def test_a_run_on_its_way_is_due_at_once_under_a_higher_epoch(authority: Authority) -> None:
    unfinished = begun(authority)
    authority.restore([restored("waits")], unfinished.epoch, END)
    claim = claim_one(authority)
    assert claim.epoch == unfinished.epoch + 1
    assert claim.report_digest == hex64("report")
    commit(authority, waiting(claim, claim.now_us + SECOND))


def test_a_fencing_token_of_the_lost_database_never_wins(authority: Authority) -> None:
    authority.restore([restored("waits")], begun(authority).epoch, END)
    claim = claim_one(authority, "same")
    for epoch in (1, 2, 1_000_000):
        (lost,) = authority.commit([failed(replace(claim, epoch=epoch))])
        assert lost is not None
    commit(authority, failed(claim))


def test_an_attempt_comes_back_open_and_is_the_claims(authority: Authority) -> None:
    attempt = AttemptRow(1, hex32("attempt"), "subprocess", "host|7|8", BEGAN, SECOND)
    authority.restore([restored("runs", RunState.EXECUTING, attempts=(attempt,))], begun(authority).epoch, END)
    claim = claim_one(authority)
    assert claim.attempts == (attempt,)
    commit(authority, finished(claim))
    assert [item.outcome for item in authority.attempts(claim.run_id)] == ["FAILED"]


def test_whoever_asks_and_the_terms_may_be_any_text(authority: Authority) -> None:
    unfinished = authority.begin_rebuild("ops\udcff", "ledger /s\udcff\x00")
    assert unfinished is not None
    assert (unfinished.actor, unfinished.terms) == ("ops\\udcff", "ledger /s\\udcff\\x00")
    assert authority.begin_rebuild("ops", "terms") == unfinished


@pytest.mark.parametrize("what", ["run", "record"])
def test_an_authority_that_has_rows_is_refused_and_stays_as_it_is(authority: Authority, what: str) -> None:
    record = asking("k")
    if what == "record":
        record = replace(record, run=None, disposition=Disposition.IGNORED)
    authority.admit([record])
    assert authority.begin_rebuild("ops", "terms") is None
    assert authority.unfinished_rebuild() is None


@pytest.mark.parametrize("left", ["runs", "intake_records", "outbox"])
def test_an_authority_is_empty_when_none_of_its_tables_has_a_row(
    authority: Authority,
    backend: Backend,
    left: str,
) -> None:
    """Retention removes records of runs that stay."""
    authority.admit([asking("k"), disposed("refused", Disposition.REJECTED, hex32("x"), draft("refused"))])
    for table in {"runs", "intake_records", "outbox"} - {left}:
        backend.query(f"DELETE FROM {table}")
    assert authority.begin_rebuild("ops", "terms") is None
    backend.query(f"DELETE FROM {left}")
    assert authority.begin_rebuild("ops", "terms") is not None


def test_a_batch_of_another_rebuild_writes_nothing_and_does_not_end_this_one(
    authority: Authority,
    backend: Backend,
) -> None:
    unfinished = begun(authority)
    for epoch in (unfinished.epoch - 1, unfinished.epoch + 1):
        assert authority.restore([terminal("a")], epoch, END) == set()
        assert authority.unfinished_rebuild() == unfinished
        for table in ("runs", "run_events", "outbox", "operator_actions", "store_identities"):
            assert backend.query(f"SELECT count(*) FROM {table}") == [(0,)], table


def test_a_rebuild_is_unfinished_until_its_last_batch(authority: Authority) -> None:
    unfinished = begun(authority, "first")
    authority.restore([restored("a")], unfinished.epoch)
    assert authority.unfinished_rebuild() == unfinished
    assert authority.actions("ledger") == []
    assert begun(authority, "second") == unfinished, "goes on, with the epochs that it began with"
    run = authority.run(hex32("a"))
    assert authority.restore([restored("a", invoker="x"), restored("b")], unfinished.epoch, END) == {
        hex32("a"), hex32("b"),
    }  # fmt: skip
    assert authority.run(hex32("a")) == run, "what is there stays"
    assert authority.unfinished_rebuild() is None
    assert authority.begin_rebuild("third", "terms") is None


def test_a_rebuild_that_another_process_has_ended_writes_nothing_more(authority: Authority) -> None:
    epoch = begun(authority).epoch
    authority.restore([restored("a")], epoch, END)
    (act,) = authority.actions("ledger")
    known = authority.identity("object_store/x", "")
    late = replace(END, action=replace(END.action, action_key="late"), identities=(("object_store/x", "another"),))
    assert authority.restore([restored("b")], epoch, late) == set()
    assert authority.run(hex32("b")) is None
    assert authority.actions("ledger") == [act]
    assert authority.identity("object_store/x", "") == known


@pytest.mark.parity
def test_a_run_that_another_process_restores_at_the_same_moment_counts_as_restored() -> None:
    import threading

    import psycopg
    from postgres_support import Schema, given_dsn

    from scenario_runner.authority.postgres import PostgresAuthority

    schema = Schema(given_dsn())
    first, second, found = PostgresAuthority(schema.dsn, "test"), PostgresAuthority(schema.dsn, "test"), list[Any]()
    unfinished, run = begun(first), terminal("k")
    threads = [
        threading.Thread(target=lambda: found.append(first.restore([run], unfinished.epoch))),
        threading.Thread(target=lambda: found.append(second.restore([run], unfinished.epoch))),
    ]
    try:
        with psycopg.connect(schema.dsn) as holding:
            holding.execute("SELECT 1 FROM unfinished_rebuild FOR UPDATE")
            for thread in threads:
                thread.start()
                thread.join(0.5)
                assert thread.is_alive(), "it waits, and has its snapshot"
            holding.rollback()
        for thread in threads:
            thread.join(10)
        assert found == [{run.run_id}] * 2
        assert len(first.signals(run.run_id).rows) == 2
    finally:
        first.close()
        second.close()
        schema.drop()


def test_a_run_that_another_process_admitted_meanwhile_keeps_its_rows(
    authority: Authority,
    backend: Backend,
) -> None:
    unfinished = begun(authority)
    backend.query("DELETE FROM unfinished_rebuild")  # as a process that knows of no rebuild would find it
    authority.admit([asking("k")])
    backend.query(
        f"INSERT INTO unfinished_rebuild VALUES (1, {unfinished.began_us}, {unfinished.epoch}, 'ops', 'terms')"
    )
    events = authority.events(hex32("k"))
    assert authority.restore([terminal("k"), restored("other")], unfinished.epoch, END) == {hex32("other")}
    assert authority.events(hex32("k")) == events
    assert authority.signals(hex32("k")).rows == ()
