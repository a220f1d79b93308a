"""What people ask an authority: which rows each question finds, a page at a time, on both engines, without writing."""

from __future__ import annotations

import os
import re
import sqlite3
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from authority_support import (
    SECOND,
    START,
    Clock,
    asking,
    commit,
    disposed,
    draft,
    event,
    failed,
    hex32,
    hex64,
    ready,
    retried,
    waiting,
)
from postgres_support import Schema, given_dsn, migrated_schema

from scenario_runner.authority.acts import ACK_ACTION, ActionRow, ack_key
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.authority.statements import load_migrations, load_statements
from scenario_runner.authority.views.sqlite import SqliteViews
from scenario_runner.authority.views.statements import names, statement, terms_of
from scenario_runner.authority.views.values import Candidate, Cursor, LetterFilter, Order, RunFilter, prefix_end
from scenario_runner.contracts.errors import ConfigurationError, Unavailable, UsageError
from scenario_runner.contracts.states import Disposition, EventKind, RunState, SignalKind
from scenario_runner.runs import transitions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scenario_runner.authority.base import Authority
    from scenario_runner.authority.values import Claim
    from scenario_runner.authority.views.base import Views

pytestmark = pytest.mark.integration


@dataclass
class Backend:
    """A database: an authority that fills it, and views on it."""

    authority: Authority
    open_views: Callable[..., Views]
    run: Callable[[str], Any]
    clock: Clock
    opened: list[Views] = field(default_factory=list)

    @property
    def views(self) -> Views:
        if not self.opened:
            self.opened.append(self.open_views())
        return self.opened[0]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.parity)])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    clock = Clock()
    if request.param == "sqlite":
        path = str(tmp_path / "authority.db")
        authority: Authority = SqliteAuthority(path, clock=clock)

        def run(text: str) -> Any:
            with sqlite3.connect(path) as connection:
                return connection.execute(text).fetchall()

        made = Backend(authority, lambda **more: SqliteViews(path, **more), run, clock)
        yield made
    else:
        from scenario_runner.authority.postgres import PostgresAuthority
        from scenario_runner.authority.views.postgres import PostgresViews

        schema = migrated_schema()
        clock.on_move = schema.set_clock
        authority = PostgresAuthority(schema.dsn, "test")
        schema.use_clock(clock())
        made = Backend(authority, lambda **more: PostgresViews(schema.dsn, "test", **more), schema.query, clock)
        yield made
    for views in made.opened:
        views.close()
    authority.close()
    if request.param == "postgres":
        schema.give_back()


def admitted(backend: Backend, *keys: str) -> None:
    """Runs that are admitted a second apart."""
    for key in keys:
        backend.authority.admit([asking(key)])
        backend.clock.pass_seconds(1)


def claimed(backend: Backend, key: str) -> Claim:
    (claim,) = backend.authority.claim("w", 1, 30 * SECOND, hex32(key))
    return claim


def missing(claim: Claim, *paths: str) -> Any:
    report = {"gates": [{"gate_id": "g", "missing": path} for path in paths], "outputs": []}
    found = (event(EventKind.EVIDENCE_MISSING, RunState.WAITING_EVIDENCE, report=report),)
    return transitions.waiting(claim, claim.now_us, claim.updated_us + 1, found, "digest", paths)


def keys(backend: Backend, limit: int = 10, after: Cursor | None = None, **asked: Any) -> list[str]:
    return [row.run_equivalence_key for row in backend.views.list_runs(RunFilter(**asked), after, limit)]


def paged(backend: Backend, size: int, **asked: Any) -> list[str]:
    """All keys, read in pages of a size."""
    wanted, after, found = RunFilter(**asked), None, []
    while rows := backend.views.list_runs(wanted, after, size):
        assert len(rows) <= size
        assert len(found) < 100, "the pages do not come to an end"
        found += [row.run_equivalence_key for row in rows]
        after = rows[-1].cursor(wanted.order)
    return found


@pytest.fixture
def filled(backend: Backend) -> Backend:
    """Runs a to i: three READY, two FAILED, two that wait, two planned; two of each are admitted at one moment."""
    backend.authority.admit([asking("a"), asking("b")])
    backend.clock.pass_seconds(1)
    backend.authority.admit([asking("c", wait_us=100 * SECOND), asking("d", wait_us=50 * SECOND)])
    backend.clock.pass_seconds(1)
    admitted(backend, "e", "f", "g", "h", "i")
    for key in "abe":
        commit(backend.authority, ready(claimed(backend, key), f"ready {key}"))
    for key in "fg":
        commit(backend.authority, failed(claimed(backend, key), f"failed {key}"))
    commit(backend.authority, missing(claimed(backend, "c"), "data/layer1/x", "data/layer2/y"))
    commit(backend.authority, missing(claimed(backend, "d"), "data/layer2/z"))
    return backend


# --- runs


def test_runs_are_listed_newest_first_and_ties_by_id(filled: Backend) -> None:
    tie = {hex32(key): key for key in "ab"}
    first, second = (tie[run_id] for run_id in sorted(tie, reverse=True))
    other = {hex32(key): key for key in "cd"}
    third, fourth = (other[run_id] for run_id in sorted(other, reverse=True))
    assert keys(filled) == ["i", "h", "g", "f", "e", third, fourth, first, second]


@pytest.mark.parametrize("size", [1, 2, 3, 9])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"state": RunState.READY},
        {"state": RunState.FAILED},
        {"state": RunState.PLANNED},
        {"state": RunState.WAITING_EVIDENCE},
        {"reason": "GATE_FAIL"},
        {"by_deadline": True},
        {"missing": "data/"},
        {"since_us": START + SECOND, "until_us": START + 4 * SECOND},
    ],
    ids=str,
)
def test_pages_of_any_size_hold_every_run_once_in_the_same_order(
    filled: Backend, asked: dict[str, Any], size: int
) -> None:
    whole = keys(filled, **asked)
    assert whole
    assert paged(filled, size, **asked) == whole
    assert len(set(whole)) == len(whole)


@pytest.mark.parametrize("size", [1, 4])
def test_pages_go_on_with_later_runs_whatever_their_ids_are(backend: Backend, size: int) -> None:
    for moment in ("abcd", "efgh"):
        backend.authority.admit([asking(key) for key in moment])
        backend.clock.pass_seconds(1)
    ids = [hex32(key) for key in "abcdefgh"]
    assert ids not in (sorted(ids), sorted(ids, reverse=True))
    assert sorted(paged(backend, size, state=RunState.PLANNED)) == list("abcdefgh")
    for key in "abcdefgh":
        commit(backend.authority, missing(claimed(backend, key), "data/x"))
    for asked in ({"state": RunState.WAITING_EVIDENCE}, {"by_deadline": True}):
        assert sorted(paged(backend, size, **asked)) == list("abcdefgh"), asked
    for key in "abcdefgh":
        commit(backend.authority, failed(claimed(backend, key), key))
    for asked in ({"state": RunState.FAILED}, {"reason": "GATE_FAIL"}):
        assert sorted(paged(backend, size, **asked)) == list("abcdefgh"), asked


def test_a_run_that_is_admitted_between_two_pages_moves_no_other(filled: Backend) -> None:
    first = filled.views.list_runs(RunFilter(), None, 2)
    admitted(filled, "new")
    second = filled.views.list_runs(RunFilter(), first[-1].cursor(Order.ADMITTED), 2)
    assert [row.run_equivalence_key for row in (*first, *second)] == ["i", "h", "g", "f"]


def test_filters_find_what_they_name_together_and_alone(filled: Backend) -> None:
    assert set(keys(filled, state=RunState.READY)) == {"a", "b", "e"}
    assert keys(filled, state=RunState.FAILED) == keys(filled, reason="GATE_FAIL") == ["g", "f"]
    assert keys(filled, state=RunState.FAILED, reason="GATE_FAIL", key="f") == ["f"]
    assert keys(filled, state=RunState.FAILED, key="a") == []
    assert keys(filled, state=RunState.QUARANTINED, reason="GATE_FAIL") == []
    assert keys(filled, state=RunState.PLANNED) == ["h", "i"]
    assert keys(filled, state=RunState.PLANNED, key="i") == ["i"]
    assert keys(filled, state=RunState.VERIFYING) == keys(filled, reason="NO_SUCH") == []
    assert keys(filled, by_deadline=True) == ["d", "c"]
    assert keys(filled, by_deadline=True, key="c") == ["c"]
    assert keys(filled, since_us=START + 6 * SECOND) == ["i"]
    assert set(keys(filled, until_us=START + SECOND)) == {"a", "b"}
    assert keys(filled, key="e", state=RunState.READY) == ["e"]
    assert keys(filled, key="e", state=RunState.PLANNED) == []
    assert keys(filled, key="e", since_us=START + 5 * SECOND) == []


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"state": RunState.READY},
        {"state": RunState.FAILED},
        {"state": RunState.PLANNED},
        {"state": RunState.WAITING_EVIDENCE},
        {"reason": "GATE_FAIL"},
        {"reason": "GATE_FAIL", "state": RunState.FAILED},
        {"by_deadline": True},
        {"missing": "data/"},
    ],
    ids=str,
)
def test_every_list_is_narrowed_by_times_of_admission_and_by_a_key(filled: Backend, asked: dict[str, Any]) -> None:
    whole = filled.views.list_runs(RunFilter(**asked), None, 20)
    assert whole
    times = [START + second * SECOND for second in (0, 1, 2, 4, 6, 9)]
    for since, until in combinations(times, 2):
        wanted = [row.run_equivalence_key for row in whole if since <= row.admitted_us < until]
        assert keys(filled, since_us=since, until_us=until, **asked) == wanted, (since, until)
    for key in "abcdefghi":
        wanted = [row.run_equivalence_key for row in whole if row.run_equivalence_key == key]
        assert keys(filled, key=key, **asked) == wanted, key
        assert keys(filled, key=key, since_us=START, until_us=START + 2 * SECOND, **asked) == [
            name for name in wanted if name in "abcd"
        ]


def test_a_key_is_searched_by_its_beginning_and_the_last_one_comes_first(backend: Backend) -> None:
    admitted(backend, "day-1", "day-2", "day-10", "dax", "day_", "Day-1", "day-é", "day-\U0001f600", "d%")
    assert keys(backend, key="day-") == paged(backend, 2, key="day-") == ["day-\U0001f600", "day-é", "day-2", "day-10",
                                                                         "day-1"]  # fmt: skip
    assert keys(backend, key="day-1") == ["day-10", "day-1"]
    assert keys(backend, key="d%") == ["d%"]
    assert keys(backend, key="e") == []


def test_waiting_runs_are_found_by_the_beginning_of_any_path_that_is_missing(filled: Backend) -> None:
    assert keys(filled, missing="data/layer1/") == keys(filled, missing="data/layer1/x") == ["c"]
    assert set(keys(filled, missing="data/layer2/")) == {"c", "d"}
    assert keys(filled, missing="layer2") == keys(filled, missing="data/layer2/zz") == keys(filled, missing="%") == []
    assert keys(filled, missing="data/", by_deadline=True) == ["d", "c"]
    assert keys(filled, missing="data/layer1/", by_deadline=True) == ["c"]
    assert keys(filled, missing="data/", state=RunState.WAITING_EVIDENCE, key="d") == ["d"]


def test_missing_paths_of_an_older_release_and_very_many_are_found_in_the_record(filled: Backend) -> None:
    filled.run("UPDATE runs SET missing = ''")
    filled.run(
        "INSERT INTO run_events (run_id, seq, kind, ts_us, details) "
        "SELECT run_id, 99, 'OF_A_LATER_RELEASE', ts_us, details FROM run_events WHERE seq = 1"
    )
    for more in ({}, {"by_deadline": True}):
        assert keys(filled, missing="data/layer1/", **more) == ["c"]
        assert set(keys(filled, missing="data/", **more)) == {"c", "d"}
    many = [f"{number:03d}/{'x' * 100}" for number in range(30)]
    commit(filled.authority, missing(claimed(filled, "h"), *many))
    assert filled.run(f"SELECT missing FROM runs WHERE run_id = '{hex32('h')}'") == [("",)]
    assert keys(filled, missing="029/") == ["h"]


def test_what_a_run_misses_stays_while_it_waits_and_is_gone_when_it_does_not(filled: Backend) -> None:
    filled.clock.pass_seconds(60)
    commit(filled.authority, waiting(claimed(filled, "c"), filled.clock.now))
    commit(filled.authority, retried(claimed(filled, "c"), filled.clock.now, "the store is away"))
    assert keys(filled, missing="data/layer1/") == ["c"]
    commit(filled.authority, failed(claimed(filled, "c"), "failed c"))
    assert keys(filled, missing="data/layer1/") == []
    assert filled.run(f"SELECT missing FROM runs WHERE run_id = '{hex32('c')}'") == [("",)]


@pytest.mark.parametrize("path", ['quo"te', "back\\slash", "caf\u00e9", "tab\tin", "\U0001f600"])
def test_paths_of_all_characters_are_found(backend: Backend, path: str) -> None:
    admitted(backend, "k")
    commit(backend.authority, missing(claimed(backend, "k"), f"{path}/x"))
    assert keys(backend, missing=path) == ["k"]
    backend.run("UPDATE runs SET missing = ''")
    assert keys(backend, missing=path) == ["k"]


def test_quarantined_runs_are_found_by_whether_somebody_has_acknowledged_them(backend: Backend) -> None:
    admitted(backend, "a", "b", "c")
    for key in ("a", "b", "c"):
        claim = claimed(backend, key)
        events = (event(EventKind.RUN_QUARANTINED, RunState.QUARANTINED, reason_code="EVIDENCE_CONFLICT"),)
        signal = draft(key, SignalKind.TERMINAL, claim.run_id)
        at_us, code = claim.updated_us + 1, "EVIDENCE_CONFLICT"
        commit(backend.authority, transitions.ended(claim, RunState.QUARANTINED, code, at_us, events, signal))
    action = ActionRow(ack_key(hex32("b")), 0, "ann", "cli", ACK_ACTION, hex32("b"), "seen", "ACKED", "")
    assert backend.authority.record_action(action)
    assert not backend.authority.record_action(replace(action, actor="bob"))
    state: dict[str, Any] = {"state": RunState.QUARANTINED}
    for more in ({}, {"reason": "EVIDENCE_CONFLICT"}):
        assert keys(backend, acked=True, **state, **more) == ["b"]
        assert keys(backend, acked=False, **state, **more) == ["c", "a"]
        assert keys(backend, **state, **more) == ["c", "b", "a"]
    found = backend.views.acks([hex32("a"), hex32("b")])
    assert {key: (ack.actor, ack.reason) for key, ack in found.items()} == {hex32("b"): ("ann", "seen")}
    with pytest.raises(UsageError, match="QUARANTINED"):
        RunFilter(acked=True)


def test_a_cursor_of_another_list_and_filters_that_contradict_are_refused(filled: Backend) -> None:
    with pytest.raises(UsageError, match="another list"):
        filled.views.list_runs(RunFilter(), Cursor(Order.KEY, 0, hex32("a")), 1)
    with pytest.raises(UsageError, match="not here"):
        filled.views.list_runs(RunFilter(key="a"), Cursor(Order.KEY, 0, hex32("none")), 1)
    for wrong in ({"missing": "x"}, {"by_deadline": True}):
        with pytest.raises(UsageError, match="wait for evidence"):
            RunFilter(state=RunState.FAILED, **wrong)
    with pytest.raises(UsageError, match="before its beginning"):
        RunFilter(since_us=2, until_us=1)


def test_prefixes_end_before_the_next_text() -> None:
    assert prefix_end("ab") == "ac"
    assert prefix_end("a\ud7ff") == "a\ue000"
    assert prefix_end("a\U0010ffff") == "b"
    assert prefix_end("\U0010ffff") > "\U0010ffff" * 512


# --- which run is meant


def test_runs_and_refused_requests_are_found_by_the_beginning_of_their_id(filled: Backend) -> None:
    filled.authority.admit([disposed("r", Disposition.REJECTED, hex32("refused"))])
    assert filled.views.runs_with_id(hex32("a")[:12], 10) == [Candidate(hex32("a"), "a")]
    assert filled.views.runs_with_id(hex32("refused")[:12], 10) == [Candidate(hex32("refused"))]
    assert len(filled.views.runs_with_id("", 4)) == 4
    assert filled.views.runs_with_key("a", 3) == [Candidate(hex32("a"), "a")]
    assert filled.views.known(hex32("a"))
    assert filled.views.known(hex32("refused"))
    assert not filled.views.known(hex32("none"))


def test_a_run_is_found_by_a_signal_and_by_the_message_that_asked_for_it(filled: Backend) -> None:
    assert filled.views.run_of_message(hex64("ready a")) == hex32("a")
    assert filled.views.run_of_message("message-spool/h") == hex32("h")
    assert filled.views.run_of_message(hex64("none")) == ""


# --- dead letters


def letters(backend: Backend, before: int = 0, limit: int = 10, **asked: Any) -> list[str]:
    last = backend.views.letter(str(before)) if before else None
    return [item.record_key for item in backend.views.list_letters(LetterFilter(**asked), last, limit)]


@pytest.fixture
def refused(backend: Backend) -> Backend:
    """Five refused records of two reasons in two shards, among others."""
    for number, reason in enumerate(("A", "B", "A", "A", "B")):
        backend.authority.admit([asking(f"good {number}")])
        record = disposed(f"kinesis/s/shard-{number % 2}/{number}", Disposition.REJECTED, hex32(f"x{number}"))
        backend.authority.admit([record])
        backend.run(f"UPDATE intake_records SET reason_code = '{reason}' WHERE record_key = '{record.record_key}'")
        backend.clock.pass_seconds(1)
    backend.authority.admit([disposed("ignored", Disposition.IGNORED)])
    return backend


def test_dead_letters_are_listed_newest_first_of_one_reason_or_all(refused: Backend) -> None:
    def of(*numbers: int) -> list[str]:
        return [f"kinesis/s/shard-{number % 2}/{number}" for number in numbers]

    assert letters(refused) == of(4, 3, 2, 1, 0)
    assert letters(refused, limit=2) == of(4, 3)
    assert letters(refused, reason="A") == of(3, 2, 0)
    assert letters(refused, reason="C") == []
    assert letters(refused, record_key="kinesis/s/shard-0/") == of(4, 2, 0)
    assert letters(refused, record_key="kinesis/s/shard-0/", reason="A") == of(2, 0)
    assert letters(refused, since_us=START + 3 * SECOND) == of(4, 3)
    assert letters(refused, since_us=START + SECOND, until_us=START + 3 * SECOND, reason="A") == of(2)
    third = next(item for item in refused.views.list_letters(LetterFilter(), None, 3) if item.record_key == of(2)[0])
    assert letters(refused, before=third.number) == of(1, 0)
    assert letters(refused, before=third.number, record_key="kinesis/s/shard-0/") == of(0)
    with pytest.raises(UsageError, match="before its beginning"):
        LetterFilter(since_us=2, until_us=1)


def test_a_dead_letter_is_found_by_its_key_or_number_with_its_bytes(refused: Backend) -> None:
    found = refused.views.letter("kinesis/s/shard-0/2")
    assert found is not None
    assert (found.raw, found.raw_size, found.run_id, found.reason_code) == (b"\xff raw", 5, hex32("x2"), "A")
    assert refused.views.letter(str(found.number)) == found
    refused.run("DELETE FROM dead_letters")
    gone = refused.views.letter("kinesis/s/shard-0/2")
    assert gone is not None
    assert gone.raw is None
    for name in ("none", "ignored", "spool/good 1", "0", "9" * 30, "\u0664"):
        assert refused.views.letter(name) is None


# --- receipts


def test_the_runs_that_hold_a_receipt_are_those_whose_record_names_it(backend: Backend) -> None:
    admitted(backend, "first", "second", "third", "drifts")
    for key, ref in (("first", "r/1"), ("second", "r/2")):
        claim = claimed(backend, key)
        committed = event(EventKind.RECEIPTS_COMMITTED, RunState.VERIFYING, receipts={"output": ref})
        transition = ready(claim, f"ready {key}")
        commit(backend.authority, transitions.ended(
            claim, RunState.READY, "", claim.updated_us + 1, (committed, *transition.events), transition.signal,
            hex64("view"),
        ))  # fmt: skip
    run = backend.views.run(hex32("drifts"))
    assert run is not None
    found = backend.views.runs_with_receipt(run.run_id, "r/1", run.admitted_us, '"note"', 10)
    assert found == [hex32("first")]
    assert backend.views.runs_with_receipt(run.run_id, "r/1", run.admitted_us, "another manifest", 10) == []


# --- one run


def test_views_tell_of_one_run_what_the_authority_tells(filled: Backend) -> None:
    views, authority = filled.views, filled.authority
    for key in ("a", "c", "f", "none"):
        run_id = hex32(key)
        assert views.run(run_id) == authority.run(run_id)
        assert views.events(run_id) == authority.events(run_id)
        assert views.attempts(run_id) == authority.attempts(run_id)
        assert views.records(run_id) == authority.records(run_id)
        assert views.signals(run_id) == authority.signals(run_id)
    assert {row.run_id for row in views.summaries([hex32("a"), hex32("c"), hex32("none")])} == {hex32("a"), hex32("c")}


# --- reading only, and not for long


def test_a_view_cannot_write(filled: Backend) -> None:
    for wrong in ("make_waiting_due", "expire_runs_of" if isinstance(filled.views, SqliteViews) else "expire_owner"):
        with pytest.raises(Unavailable, match=r"readonly|read-only"):
            filled.views._rows(wrong, now=START * 2, owner="w")


def test_a_look_that_takes_too_long_is_ended_and_the_next_one_answers(filled: Backend) -> None:
    slow = filled.open_views(most_seconds=0.05)
    try:
        text = ("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9e8) SELECT max(i) FROM n"
                if isinstance(slow, SqliteViews) else "SELECT pg_sleep(5)")  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{type(slow).__module__}.statement", lambda engine, name, terms=(): (
                text if name == "run_summary" else statement(engine, name, terms)))  # fmt: skip
            with pytest.raises(Unavailable, match="took longer"):
                slow.summary(hex32("a"))
        assert slow.summary(hex32("a")) is not None
    finally:
        slow.close()


def test_a_database_of_a_newer_release_is_refused_and_of_an_older_one_is_said_to_be_that(tmp_path: Path) -> None:
    path = tmp_path / "authority.db"
    SqliteAuthority(str(path)).close()
    newest = load_migrations("sqlite")[-1][0]
    for version, outdated in ((newest, False), (newest - 1, True), (0, True)):
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA user_version = {version}")
        views = SqliteViews(str(path))
        assert views.outdated is outdated
        views.close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {newest + 1}")
    with pytest.raises(ConfigurationError, match="install the newer release"):
        SqliteViews(str(path))


def test_a_file_that_is_not_there_is_not_made_and_another_file_in_its_place_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "authority.db"
    with pytest.raises(Unavailable):
        SqliteViews(str(path))
    assert os.listdir(tmp_path) == []
    for place in (path, tmp_path / "other.db"):
        SqliteAuthority(str(place)).close()
    views = SqliteViews(str(path))
    assert views.summary(hex32("a")) is None
    (tmp_path / "other.db").replace(path)
    with pytest.raises(Unavailable, match="removed or replaced"):
        views.summary(hex32("a"))
    views.close()
    path.write_bytes(b"this is no database " * 500)
    with pytest.raises(Unavailable):
        SqliteViews(str(path))


def test_names_with_characters_of_a_uri_are_names_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "a b%20#é"
    SqliteAuthority(str(folder / "x.db")).close()
    views = SqliteViews(str(folder / "x.db"))
    assert views.summary(hex32("a")) is None
    views.close()


# --- plans: which index serves each statement

RUN_KEY, RUN_ID = ("sqlite_autoindex_runs_2", "runs_run_equivalence_key_key"), ("sqlite_autoindex_runs_1", "runs_pkey")
RECORD_KEY = ("sqlite_autoindex_intake_records_1", "intake_records_record_key_key")
LETTER_KEY = ("sqlite_autoindex_dead_letters_1", "dead_letters_pkey")
SERVED_BY: dict[str, tuple[str, str]] = {
    "runs_by_admission": ("runs_admitted", "runs_admitted"),
    "runs_by_state": ("runs_by_state", "runs_by_state"),
    "runs_by_reason": ("runs_by_reason", "runs_by_reason"),
    "runs_by_deadline": ("runs_by_deadline", "runs_by_deadline"),
    "runs_by_due": ("runs_due", "runs_due"),
    "runs_by_key": RUN_KEY,
    "run_summary": RUN_ID,
    "runs_by_id": RUN_ID,
    "run_summaries": RUN_ID,
    "supersessions_of": ("runs_superseding", "runs_superseding"),
    "run_ids": RUN_ID,
    "run_keys": RUN_KEY,
    "recorded_run_ids": ("intake_records_run", "intake_records_run"),
    "run_of_signal": ("sqlite_autoindex_outbox_1", "outbox_message_id_emission_key"),
    "run_of_message": ("SCAN intake_records", "intake_records_pkey"),
    "refused_reasons": ("intake_records_refused", "intake_records_refused"),
    "expired_of_intake_records": ("USING INTEGER PRIMARY KEY", "intake_records_pkey"),
    "expired_of_dead_letter_raw": ("intake_records_with_raw", "intake_records_with_raw"),
    "expired_of_outbox_sent": ("outbox_removable", "outbox_removable"),
    "expired_of_digest_reuse": ("digest_reuse_kept", "digest_reuse_kept"),
    "letters_by_reason": ("intake_records_refused", "intake_records_refused"),
    "letters_by_key": LETTER_KEY,
    "letter_with_key": RECORD_KEY,
    "letter_with_number": ("INTEGER PRIMARY KEY", "intake_records_pkey"),
    "receipts_of_others": ("runs_admitted", "runs_admitted"),
    "daemons": ("daemons_seen", "daemons_seen"),
}
#: These read newest rows up to a bound, in the order of the table.
BOUNDED = {"run_of_message", "expired_of_intake_records"}
TIMES = {"since": START, "until": START + 10**9, "after_us": START + 10**8, "from_us": START, "before": 5000}
GIVEN: dict[str, Any] = {
    **TIMES, "state": "FAILED", "reason": "GATE_FAIL", "key": "key-1", "key_end": "key-2", "missing": b'"missing":"a',
    "path": "\na", "after": "8" * 32, "limit": 100, "run_id": "8" * 32, "prefix": "8", "prefix_end": "9",
    "message_id": "m", "most": 1000, "acked": 1, "record_key": "r", "record_id": 7, "manifest": b"m",
    "before_us": 10_000, "stream": "kinesis/s/", "others_before_us": 100,
}  # fmt: skip


def combined(engine: str) -> list[tuple[str, tuple[str, ...]]]:
    """Every statement of the views with every choice of its terms."""
    found = []
    for name in names(engine):
        terms = sorted(terms_of(engine, name))
        found += [(name, chosen) for size in range(len(terms) + 1) for chosen in combinations(terms, size)]
    return found


def test_each_engine_has_the_same_statements_with_the_same_terms() -> None:
    assert set(names("sqlite")) == set(SERVED_BY) == set(names("postgres")) - {"begin_look"}
    for name in SERVED_BY:
        assert terms_of("sqlite", name) == terms_of("postgres", name)


@pytest.mark.parametrize(("name", "terms"), combined("sqlite"), ids=str)
def test_sqlite_serves_each_statement_by_its_index(name: str, terms: tuple[str, ...]) -> None:
    text = statement("sqlite", name, terms)
    assert "OFFSET" not in text
    assert "-- if" not in text
    with sqlite3.connect(":memory:") as connection:
        for _, _, migration in load_migrations("sqlite"):
            connection.executescript(migration)
        wanted = dict.fromkeys(re.findall(r":([a-z_]+)", text), 0)
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", wanted)]
    assert any(SERVED_BY[name][0] in step for step in plan), plan
    scans = [step for step in plan if step.startswith("SCAN ") and "INDEX" not in step]
    allowed = {"SCAN CONSTANT ROW", "SCAN reasons", "SCAN r", "SCAN first", "SCAN json_each"}
    assert name in BOUNDED or {re.sub(r" VIRTUAL.*", "", step) for step in scans} <= allowed, plan
    assert not [step for step in plan if "TEMP B-TREE FOR ORDER BY" in step], "a page is read in order"


@pytest.fixture(scope="module")
def crowded() -> Iterator[Schema]:
    """A schema of 20,000 runs in the proportions of a busy house."""
    made = Schema(given_dsn())
    from scenario_runner.authority.postgres import PostgresAuthority

    PostgresAuthority(made.dsn, "test").close()
    made.query(
        f"""
        INSERT INTO runs (run_id, run_equivalence_key, fingerprint, intent, inputs, state, reason_code, admitted_us,
                          deadline_us, updated_us, due_us, event_seq)
        SELECT md5(n::text), 'key-' || n, '', '{{}}', '{{}}', s, CASE WHEN s = 'FAILED' THEN 'GATE_FAIL' ELSE '' END,
               {START} + n * 1000, {START} + n * 2000, {START} + n, CASE WHEN s IN ('READY', 'FAILED') THEN NULL
               ELSE {START} + n END, 3
        FROM (SELECT n, CASE n %% 50 WHEN 1 THEN 'FAILED' WHEN 2 THEN 'WAITING_EVIDENCE' WHEN 3 THEN 'PLANNED'
              ELSE 'READY' END AS s FROM generate_series(1, 20000) n) g""".replace("%%", "%")
    )
    made.query("""
        INSERT INTO intake_records (record_key, message_id, kind, run_id, disposition, reason_code, detail, received_us,
                                    raw_sha256, raw_size)
        SELECT 'r' || n, 'm' || n, '', md5(n::text), CASE WHEN n % 100 = 0 THEN 'REJECTED' ELSE 'ACCEPTED' END,
               CASE WHEN n % 100 = 0 THEN 'GATE_FAIL' ELSE '' END, '', n, '', 1 FROM generate_series(1, 20000) n""")
    made.query("INSERT INTO dead_letters SELECT record_key, '' FROM intake_records WHERE disposition = 'REJECTED'")
    made.query("""
        INSERT INTO outbox (message_id, run_id, kind, partition_key, attributes, payload, created_us, needs_seq)
        SELECT 'm' || n, md5(n::text), 'READY', '', '{}', '{}', n, 5 FROM generate_series(1, 20000) n""")
    made.query("""
        INSERT INTO outbox (message_id, run_id, kind, partition_key, attributes, payload, created_us, needs_seq,
                            emission, sent_us)
        SELECT message_id, run_id, 'READY_REEMIT', '', '{}', '{}', created_us, 5, 1, created_us FROM outbox""")
    made.query("INSERT INTO digest_reuse SELECT md5(n::text), '[]', n FROM generate_series(1, 20000) n")
    made.query("""
        INSERT INTO operator_actions (action_key, at, actor, via, action, subject, reason, outcome, detail)
        SELECT 'quarantine_ack/' || md5(n::text), n, 'ops', 'cli', 'quarantine_ack', md5(n::text), '', 'ACKED', ''
        FROM generate_series(1, 20000) n""")
    made.query("ANALYZE")
    yield made
    made.drop()


def planned(crowded: Schema, text: str, given: dict[str, Any]) -> dict[str, Any]:
    """How the server would execute a statement of a look."""
    import psycopg
    from psycopg import ClientCursor

    with psycopg.connect(crowded.dsn, cursor_factory=ClientCursor) as connection:
        connection.execute(statement("postgres", "begin_look").replace(")b", ")s"), {"timeout": "5s"})  # type: ignore[arg-type]
        written = re.sub(r"%\(([a-z_]+)\)b", r"%(\1)s", text)
        rows = connection.execute(f"EXPLAIN (FORMAT JSON) {written}", given).fetchall()  # type: ignore[arg-type]
    plan: dict[str, Any] = rows[0][0][0]["Plan"]
    return plan


@pytest.mark.parity
@pytest.mark.parametrize(("name", "terms"), combined("postgres"), ids=str)
def test_postgres_serves_each_statement_by_its_index(crowded: Schema, name: str, terms: tuple[str, ...]) -> None:
    if name == "begin_look":
        return
    text = statement("postgres", name, terms)
    assert "OFFSET" not in text
    busy = "busy" in terms
    states = {"runs_by_due": "VERIFYING" if busy else "PLANNED", "runs_by_admission": "READY"}
    plan = str(planned(crowded, text, {**GIVEN, "state": states.get(name, "FAILED"), "run_ids": ["8" * 32]}))
    assert f"'Index Name': '{'runs_busy' if busy else SERVED_BY[name][1]}'" in plan, plan
    assert "Seq Scan" not in plan
    assert "'Node Type': 'Sort'" not in plan or name == "recorded_run_ids", "a page is read in order"


#: What a look reads of one run with statements of the authority, and by which index.
OF_ONE_RUN = {
    "get_run": "runs_pkey",
    "list_events": "run_events_pkey",
    "list_attempts": "engine_attempts_pkey",
    "list_records": "intake_records_run",
    "list_signals": "outbox_run",
    "list_actions": "operator_actions_subject",
    "find_actions": "operator_actions_action_key_key",
}


@pytest.mark.parity
@pytest.mark.parametrize("name", OF_ONE_RUN)
def test_postgres_serves_each_look_at_one_run_by_its_index(crowded: Schema, name: str) -> None:
    plan = planned(
        crowded,
        statement("postgres", name),
        {**GIVEN, "run_ids": ["8" * 32], "subject": "8" * 32, "action_keys": ["k"]},
    )
    assert {scan.get("Index Name") for scan in _scans(plan)} == {OF_ONE_RUN[name]}, plan


@pytest.mark.parity
def test_postgres_reads_the_backlog_from_partial_indexes(crowded: Schema) -> None:
    import psycopg
    from psycopg import ClientCursor

    written = re.sub(r"%\(([a-z_]+)\)b", r"%(\1)s", load_statements("postgres")["backlog"])
    with psycopg.connect(crowded.dsn, cursor_factory=ClientCursor) as connection:
        rows = connection.execute(f"EXPLAIN (FORMAT JSON) {written}", {"most": 10_000}).fetchall()  # type: ignore[arg-type]
    read = {plan["Relation Name"]: plan["Node Type"] for plan in _scans(rows[0][0][0]["Plan"])}
    assert {name for name, kind in read.items() if kind == "Seq Scan"} <= {"daemons"}, read


def _scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "Relation Name" in plan:
        yield plan
    for below in plan.get("Plans", ()):
        yield from _scans(below)
