"""A rebuild over every backend: what is inserted is what the ledger said, once, and only into an empty authority."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
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
    failed,
    finished,
    hex32,
    hex64,
    waiting,
)
from test_authority_contract import authority, backend, clock  # noqa: F401 - fixtures over every backend

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.observed import DaemonRow
from scenario_runner.authority.rebuilds import (
    SEEN_US,
    RebuildEnd,
    RestoredEvent,
    RestoredRun,
    RestoredSignal,
    UnfinishedRebuild,
)
from scenario_runner.authority.values import AttemptRow, StoredEvent
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.states import Disposition, EventKind, RunState, SignalKind
from scenario_runner.contracts.supersession import Supersession

if TYPE_CHECKING:
    from collections.abc import Callable

    from test_authority_contract import Backend

    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.integration

#: A minute before the authority's clock.
BEGAN = START - 60 * SECOND


def event(seq: int, kind: str, ts_us: int, details: dict[str, Any]) -> RestoredEvent:
    return RestoredEvent(seq, kind, ts_us, canonical_bytes(details))


def restored(key: str, state: RunState = RunState.WAITING_EVIDENCE, **changes: Any) -> RestoredRun:
    """A run as a ledger may tell of it."""
    run_id, request = hex32(key), asking(key).run
    assert request is not None
    events = (
        event(1, EventKind.RUN_ADMITTED, BEGAN, {"seq": 1, "state": "OPEN", "seed": 2**64 - 1}),
        event(2, EventKind.PLAN_COMMITTED, BEGAN, {"seq": 2, "state": "PLANNED"}),
        event(3, "any", BEGAN + 5, {"seq": 3, "state": state.value, "text": "ä"}),
    )
    run = RestoredRun(
        run_id=run_id, run_equivalence_key=key, fingerprint=request.fingerprint, intent=canonical_bytes(request.intent),
        inputs=canonical_bytes(request.inputs), strategy="", invoker="somebody", state=state, reason_code="",
        admitted_us=BEGAN, deadline_us=BEGAN + 9, updated_us=BEGAN + 5, report_digest=hex64("report"),
        facts_view_digest="", projected_seq=3, missing=("a/b", "c"), events=events, attempts=(), signals=(), actions=(),
    )  # fmt: skip
    return replace(run, **changes)


def terminal(key: str, state: RunState = RunState.READY) -> RestoredRun:
    signal = RestoredSignal(draft(f"signal of {key}", SignalKind.READY, hex32(key)), BEGAN + 5, 3, BEGAN + 7)
    again = replace(
        signal, draft=replace(signal.draft, kind=SignalKind.READY_REEMIT), emission=1, receipt='{"shard":"s"}',
        action_key=f"act {key}",
    )  # fmt: skip
    act = ActionRow(f"act {key}", BEGAN + 6, "ops", "cli", "reemit", hex32(key), "why", "PUBLISHED", "")
    return restored(
        key, state, facts_view_digest=hex64("view"), missing=(), signals=(signal, again), actions=(act,)
    )  # fmt: skip


def begun(authority: Authority, actor: str = "ops") -> UnfinishedRebuild:  # noqa: F811
    unfinished = authority.begin_rebuild(actor, "terms")
    assert unfinished is not None
    return unfinished


END = RebuildEnd(
    ActionRow("key", 0, "ops", "cli", "authority.rebuild", "ledger", "why", "REBUILT", "2 runs"),
    (("object_store/x", "a" * 32), ("spool/y", "b" * 32)),
)


def test_a_run_comes_back_with_every_row(authority: Authority) -> None:  # noqa: F811
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


def test_a_correction_comes_back_with_what_it_supersedes(authority: Authority) -> None:  # noqa: F811
    supersession = Supersession(hex32("old"), "late data", "LATE")
    new = restored("new", supersession=supersession)
    authority.restore([terminal("old"), new], begun(authority).epoch, END)
    (row,) = authority.supersessions(hex32("old"))
    assert (row.new_run_id, row.supersession) == (new.run_id, supersession)
    assert claim_one(authority).supersession == supersession


def test_a_number_that_the_record_names_is_not_used_again(authority: Authority) -> None:  # noqa: F811
    from test_authority_reemits import act, one

    run = terminal("k")
    first = replace(run.signals[0], removed_emission=7)
    authority.restore([replace(run, signals=(first,))], begun(authority).epoch, END)
    assert one(authority, act("new")).outcome == "ACCEPTED"
    assert [row.emission for row in authority.claim_signals("relay", 10, LEASE)] == [8]


@pytest.mark.parametrize("asked_by", ["an operator", "a record"])
def test_a_signal_whose_number_is_the_last_one_is_not_repeated_and_holds_nobody_up(
    authority: Authority,  # noqa: F811
    asked_by: str,
) -> None:
    """Whoever writes into the ledger may plant it."""
    from test_authority_reemits import act, one

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


def test_nothing_of_a_finished_run_is_owed_or_due(authority: Authority) -> None:  # noqa: F811
    authority.restore([terminal("ready")], begun(authority).epoch, END)
    assert authority.pending().nothing
    assert authority.claim_signals("relay", 10, LEASE) == []
    assert authority.claim("w", 10, LEASE) == []


def test_a_run_on_its_way_is_due_at_once_under_a_higher_epoch(authority: Authority) -> None:  # noqa: F811
    unfinished = begun(authority)
    authority.restore([restored("waits")], unfinished.epoch, END)
    claim = claim_one(authority)
    assert claim.epoch == unfinished.epoch + 1
    assert claim.report_digest == hex64("report")
    commit(authority, waiting(claim, claim.now_us + SECOND))


def test_a_fencing_token_of_the_lost_database_never_wins(authority: Authority) -> None:  # noqa: F811
    authority.restore([restored("waits")], begun(authority).epoch, END)
    claim = claim_one(authority, "same")
    for epoch in (1, 2, 1_000_000):
        (lost,) = authority.commit([failed(replace(claim, epoch=epoch))])
        assert lost is not None
    commit(authority, failed(claim))


def test_an_attempt_comes_back_open_and_is_the_claims(authority: Authority) -> None:  # noqa: F811
    attempt = AttemptRow(1, hex32("attempt"), "subprocess", "host|7|8", BEGAN, SECOND)
    authority.restore([restored("runs", RunState.EXECUTING, attempts=(attempt,))], begun(authority).epoch, END)
    claim = claim_one(authority)
    assert claim.attempts == (attempt,)
    commit(authority, finished(claim))
    assert [item.outcome for item in authority.attempts(claim.run_id)] == ["FAILED"]


def test_whoever_asks_and_the_terms_may_be_any_text(authority: Authority) -> None:  # noqa: F811
    unfinished = authority.begin_rebuild("ops\udcff", "ledger /s\udcff\x00")
    assert unfinished is not None
    assert (unfinished.actor, unfinished.terms) == ("ops\\udcff", "ledger /s\\udcff\\x00")
    assert authority.begin_rebuild("ops", "terms") == unfinished


@pytest.mark.parametrize("what", ["run", "record"])
def test_an_authority_that_has_rows_is_refused_and_stays_as_it_is(authority: Authority, what: str) -> None:  # noqa: F811
    record = asking("k")
    if what == "record":
        record = replace(record, run=None, disposition=Disposition.IGNORED)
    authority.admit([record])
    assert authority.begin_rebuild("ops", "terms") is None
    assert authority.unfinished_rebuild() is None


@pytest.mark.parametrize("left", ["runs", "intake_records", "outbox"])
def test_an_authority_is_empty_when_none_of_its_tables_has_a_row(
    authority: Authority,  # noqa: F811
    backend: Backend,  # noqa: F811
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
    authority: Authority,  # noqa: F811
    backend: Backend,  # noqa: F811
) -> None:
    unfinished = begun(authority)
    for epoch in (unfinished.epoch - 1, unfinished.epoch + 1):
        assert authority.restore([terminal("a")], epoch, END) == set()
        assert authority.unfinished_rebuild() == unfinished
        for table in ("runs", "run_events", "outbox", "operator_actions", "store_identities"):
            assert backend.query(f"SELECT count(*) FROM {table}") == [(0,)], table


def test_a_rebuild_is_unfinished_until_its_last_batch(authority: Authority) -> None:  # noqa: F811
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


def test_a_rebuild_that_another_process_has_ended_writes_nothing_more(authority: Authority) -> None:  # noqa: F811
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
    authority: Authority,  # noqa: F811
    backend: Backend,  # noqa: F811
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


# --- who works meanwhile


def report(authority: Authority, owner: str) -> None:  # noqa: F811
    authority.report_daemon(DaemonRow(owner, "runner", "1.2.3", "host-a"), 3600 * SECOND)


def test_a_rebuild_does_not_begin_while_a_daemon_was_seen_within_a_minute(
    authority: Authority,  # noqa: F811
    clock: Clock,  # noqa: F811
) -> None:
    report(authority, "killed")
    clock.pass_seconds(59)
    report(authority, "stopped")
    assert [item.owner for item in authority.daemons_seen(SEEN_US)] == ["killed", "stopped"]
    assert authority.begin_rebuild("ops", "terms") is None
    assert authority.unfinished_rebuild() is None
    authority.remove_daemon("stopped")
    assert authority.begin_rebuild("ops", "terms") is None
    clock.pass_seconds(2)
    assert authority.daemons_seen(SEEN_US) == []
    assert begun(authority).actor == "ops"


def test_a_rebuild_that_has_begun_goes_on_whoever_was_seen_since(
    authority: Authority,  # noqa: F811
    backend: Backend,  # noqa: F811
) -> None:
    unfinished = begun(authority)
    backend.query(f"INSERT INTO daemons VALUES ('paused', 'all', '1', 'h', 1, {authority.now_us()})")
    assert begun(authority) == unfinished


def test_nobody_admits_drives_or_repeats_anything_until_a_rebuild_has_ended(authority: Authority) -> None:  # noqa: F811
    from test_authority_acts import BY, reemit_of
    from test_authority_reemits import act

    epoch = begun(authority).epoch
    owed = replace(restored("owed", projected_seq=0), missing=())
    planned = restored("planned", RunState.PLANNED, missing=())
    authority.restore([restored("waits"), planned, terminal("ready"), owed], epoch)
    ask: dict[str, Callable[[], object]] = {
        "admit": lambda: authority.admit([asking("k")]),
        "admit a re-emit": lambda: authority.admit([reemit_of("ready", "spool/again")]),
        "admit for an act": lambda: authority.admit_for(BY, asking("other")),
        "repeat": lambda: authority.reemit([act("mine", "ready")]),
        "report": lambda: report(authority, "paused"),
    }
    for name, call in ask.items():
        with pytest.raises(Unavailable, match=r"is being rebuilt, by ops since .* until .* has ended"):
            pytest.fail(f"{name} gave {call()}")
    for claim in (authority.claim, authority.claim_projections):
        with suppress(Unavailable):
            assert claim("paused", 10, LEASE) == []
    run = authority.run(hex32("waits"))
    assert run is not None
    assert (run.lease_owner, run.lease_epoch, run.due_us) == ("", epoch, run.updated_us)
    assert authority.run(hex32("k")) is None
    assert authority.daemons_seen(SEEN_US) == []

    authority.restore([], epoch, END)
    for call in ask.values():
        call()
    assert [item.owner for item in authority.daemons_seen(SEEN_US)] == ["paused"]
    assert len(authority.claim("paused", 10, LEASE)) == 5
    assert len(authority.claim_projections("paused", 10, LEASE)) >= 1


_WRITTEN_MEANWHILE = {
    "an admission": (
        "INSERT INTO runs (run_id, run_equivalence_key, fingerprint, intent, inputs, state, admitted_us, deadline_us,"
        " updated_us, event_seq, due_us) VALUES ('r', 'k', 'f', '', '', 'PLANNED', 1, 1, 1, 4, 1)"
    ),
    "a report of a daemon": (
        "INSERT INTO daemons (owner, role, version, host, started_us, seen_us)"
        " VALUES ('d', 'all', 'v', 'h', sr_now_us(), sr_now_us())"
    ),
}


@pytest.mark.parity
@pytest.mark.parametrize("statement", _WRITTEN_MEANWHILE.values(), ids=_WRITTEN_MEANWHILE)
def test_a_rebuild_waits_for_what_is_being_written_and_then_does_not_begin(statement: str) -> None:
    import threading

    import psycopg
    from postgres_support import Schema, given_dsn

    from scenario_runner.authority.postgres import PostgresAuthority

    schema = Schema(given_dsn())
    rebuilding, found = PostgresAuthority(schema.dsn, "test"), list[object]()
    try:
        with psycopg.connect(schema.dsn) as writing:
            writing.execute(statement)  # type: ignore[arg-type]
            thread = threading.Thread(target=lambda: found.append(rebuilding.begin_rebuild("ops", "terms")))
            thread.start()
            thread.join(0.5)
            assert thread.is_alive(), "it waits"
            writing.commit()
            thread.join(10)
        assert found == [None]
        assert rebuilding.unfinished_rebuild() is None
    finally:
        rebuilding.close()
        schema.drop()


@pytest.mark.parity
def test_a_daemon_that_reports_itself_while_a_rebuild_begins_hears_of_it() -> None:
    import threading

    import psycopg
    from postgres_support import Schema, given_dsn

    from scenario_runner.authority.postgres import PostgresAuthority
    from scenario_runner.authority.statements import load_statements

    schema = Schema(given_dsn())
    starting, heard = PostgresAuthority(schema.dsn, "test"), list[str]()

    def start() -> None:
        try:
            report(starting, "a daemon")
        except Unavailable as error:
            heard.append(str(error))

    try:
        with psycopg.connect(schema.dsn) as beginning:
            for name in ("lock_admissions", "begin_rebuild"):
                beginning.execute(load_statements("postgres")[name].encode(),
                                  {"actor": "ops", "terms": "terms", "within_us": SEEN_US})  # fmt: skip
            thread = threading.Thread(target=start)
            thread.start()
            thread.join(0.5)
            assert thread.is_alive(), "it waits"
            beginning.commit()
            thread.join(10)
        assert len(heard) == 1
        assert starting.daemons_seen(SEEN_US) == []
    finally:
        starting.close()
        schema.drop()


def test_an_empty_ledger_gives_an_empty_authority(authority: Authority) -> None:  # noqa: F811
    assert authority.restore([], begun(authority).epoch, END) == set()
    assert authority.unfinished_rebuild() is None
    assert len(authority.actions("ledger")) == 1


def test_epochs_of_a_later_rebuild_are_above_every_claim_since(authority: Authority, clock: Clock) -> None:  # noqa: F811
    unfinished = begun(authority)
    authority.restore([restored("a")], unfinished.epoch, END)
    epochs = []
    for _ in range(3):
        claim = claim_one(authority)
        epochs.append(claim.epoch)
        commit(authority, waiting(claim, claim.now_us, ()) if epochs[1:] else waiting(claim, claim.now_us))
    clock.pass_seconds(1)
    assert max(epochs) < authority.now_us()


def test_the_same_request_is_a_duplicate_and_another_one_a_conflict(authority: Authority) -> None:  # noqa: F811
    authority.restore([terminal("k")], begun(authority).epoch, END)
    answers = authority.admit([asking("k", "again"), asking("k", "other", "two")])
    assert [item.disposition for item in answers] == [Disposition.DUPLICATE, Disposition.CONFLICT]


def test_a_signal_is_repeated_after_those_that_the_record_tells_of(authority: Authority) -> None:  # noqa: F811
    from test_authority_reemits import act, one

    authority.restore([terminal("k")], begun(authority).epoch, END)
    assert one(authority, act("new")).outcome == "ACCEPTED"
    (row,) = authority.claim_signals("relay", 10, LEASE)
    assert (row.emission, row.payload) == (2, draft("signal of k", SignalKind.READY, hex32("k")).payload)
    assert one(authority, act("act k")).repeated, "an act of before is not carried out again"
