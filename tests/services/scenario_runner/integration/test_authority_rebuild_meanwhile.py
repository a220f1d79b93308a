"""Who may work while an authority is rebuilt: nobody, and each way in says so."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from authority_support import LEASE, Clock, asking, claim_one, commit, draft, hex32, waiting
from restored_support import END, begun, report, restored, terminal

from scenario_runner.authority.rebuilds import SEEN_US
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.states import Disposition, RunState, SignalKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from authority_backends import Backend

    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.integration


def test_a_rebuild_does_not_begin_while_a_daemon_was_seen_within_a_minute(
    authority: Authority,
    clock: Clock,
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
    authority: Authority,
    backend: Backend,
) -> None:
    unfinished = begun(authority)
    backend.query(f"INSERT INTO daemons VALUES ('paused', 'all', '1', 'h', 1, {authority.now_us()})")
    assert begun(authority) == unfinished


def test_nobody_admits_drives_or_repeats_anything_until_a_rebuild_has_ended(authority: Authority) -> None:
    from reemit_support import act
    from test_authority_acts import BY, reemit_of

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


def test_an_empty_ledger_gives_an_empty_authority(authority: Authority) -> None:
    assert authority.restore([], begun(authority).epoch, END) == set()
    assert authority.unfinished_rebuild() is None
    assert len(authority.actions("ledger")) == 1


def test_epochs_of_a_later_rebuild_are_above_every_claim_since(authority: Authority, clock: Clock) -> None:
    unfinished = begun(authority)
    authority.restore([restored("a")], unfinished.epoch, END)
    epochs = []
    for _ in range(3):
        claim = claim_one(authority)
        epochs.append(claim.epoch)
        commit(authority, waiting(claim, claim.now_us, ()) if epochs[1:] else waiting(claim, claim.now_us))
    clock.pass_seconds(1)
    assert max(epochs) < authority.now_us()


def test_the_same_request_is_a_duplicate_and_another_one_a_conflict(authority: Authority) -> None:
    authority.restore([terminal("k")], begun(authority).epoch, END)
    answers = authority.admit([asking("k", "again"), asking("k", "other", "two")])
    assert [item.disposition for item in answers] == [Disposition.DUPLICATE, Disposition.CONFLICT]


def test_a_signal_is_repeated_after_those_that_the_record_tells_of(authority: Authority) -> None:
    from reemit_support import act, one

    authority.restore([terminal("k")], begun(authority).epoch, END)
    assert one(authority, act("new")).outcome == "ACCEPTED"
    (row,) = authority.claim_signals("relay", 10, LEASE)
    assert (row.emission, row.payload) == (2, draft("signal of k", SignalKind.READY, hex32("k")).payload)
    assert one(authority, act("act k")).repeated, "an act of before is not carried out again"
