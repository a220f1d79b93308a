"""What people ask an authority: which rows each question finds, a page at a time, on both engines, without writing."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from authority_support import (
    SECOND,
    START,
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
from views_support import Database, admitted, claimed, letters, missing

from scenario_runner.audit.explain import ROUNDS, SCHEDULED, next_look_of, status_of
from scenario_runner.authority.acts import ACK_ACTION, ActionRow, WakeAct, ack_key
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.authority.statements import load_migrations
from scenario_runner.authority.views.sqlite import SqliteViews
from scenario_runner.authority.views.statements import statement
from scenario_runner.authority.views.values import Candidate, Cursor, LetterFilter, Order, RunFilter, prefix_end
from scenario_runner.contracts.errors import ConfigurationError, Unavailable, UsageError
from scenario_runner.contracts.states import Disposition, EventKind, RunState, SignalKind
from scenario_runner.runs import transitions

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def keys(database: Database, limit: int = 10, after: Cursor | None = None, **asked: Any) -> list[str]:
    return [row.run_equivalence_key for row in database.views.list_runs(RunFilter(**asked), after, limit)]


def paged(database: Database, size: int, **asked: Any) -> list[str]:
    """All keys, read in pages of a size."""
    wanted, after, found = RunFilter(**asked), None, []
    while rows := database.views.list_runs(wanted, after, size):
        assert len(rows) <= size
        assert len(found) < 100, "the pages do not come to an end"
        found += [row.run_equivalence_key for row in rows]
        after = rows[-1].cursor(wanted.order)
    return found


@pytest.fixture
def filled(database: Database) -> Database:
    """Runs a to i: three READY, two FAILED, two that wait, two planned; two of each are admitted at one moment."""
    database.authority.admit([asking("a"), asking("b")])
    database.clock.pass_seconds(1)
    database.authority.admit([asking("c", wait_us=100 * SECOND), asking("d", wait_us=50 * SECOND)])
    database.clock.pass_seconds(1)
    admitted(database, "e", "f", "g", "h", "i")
    for key in "abe":
        commit(database.authority, ready(claimed(database, key), f"ready {key}"))
    for key in "fg":
        commit(database.authority, failed(claimed(database, key), f"failed {key}"))
    commit(database.authority, missing(claimed(database, "c"), "data/layer1/x", "data/layer2/y"))
    commit(database.authority, missing(claimed(database, "d"), "data/layer2/z"))
    return database


# --- runs


def test_runs_are_listed_newest_first_and_ties_by_id(filled: Database) -> None:
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
    filled: Database, asked: dict[str, Any], size: int
) -> None:
    whole = keys(filled, **asked)
    assert whole
    assert paged(filled, size, **asked) == whole
    assert len(set(whole)) == len(whole)


@pytest.mark.parametrize("size", [1, 4])
def test_pages_go_on_with_later_runs_whatever_their_ids_are(database: Database, size: int) -> None:
    for moment in ("abcd", "efgh"):
        database.authority.admit([asking(key) for key in moment])
        database.clock.pass_seconds(1)
    ids = [hex32(key) for key in "abcdefgh"]
    assert ids not in (sorted(ids), sorted(ids, reverse=True))
    assert sorted(paged(database, size, state=RunState.PLANNED)) == list("abcdefgh")
    for key in "abcdefgh":
        commit(database.authority, missing(claimed(database, key), "data/x"))
    for asked in ({"state": RunState.WAITING_EVIDENCE}, {"by_deadline": True}):
        assert sorted(paged(database, size, **asked)) == list("abcdefgh"), asked
    for key in "abcdefgh":
        commit(database.authority, failed(claimed(database, key), key))
    for asked in ({"state": RunState.FAILED}, {"reason": "GATE_FAIL"}):
        assert sorted(paged(database, size, **asked)) == list("abcdefgh"), asked


def test_a_run_that_is_admitted_between_two_pages_moves_no_other(filled: Database) -> None:
    first = filled.views.list_runs(RunFilter(), None, 2)
    admitted(filled, "new")
    second = filled.views.list_runs(RunFilter(), first[-1].cursor(Order.ADMITTED), 2)
    assert [row.run_equivalence_key for row in (*first, *second)] == ["i", "h", "g", "f"]


def test_filters_find_what_they_name_together_and_alone(filled: Database) -> None:
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
def test_every_list_is_narrowed_by_times_of_admission_and_by_a_key(filled: Database, asked: dict[str, Any]) -> None:
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


def test_a_key_is_searched_by_its_beginning_and_the_last_one_comes_first(database: Database) -> None:
    admitted(database, "day-1", "day-2", "day-10", "dax", "day_", "Day-1", "day-é", "day-\U0001f600", "d%")
    days = ["day-\U0001f600", "day-é", "day-2", "day-10", "day-1"]
    assert keys(database, key="day-") == paged(database, 2, key="day-") == days
    assert keys(database, key="day-1") == ["day-10", "day-1"]
    assert keys(database, key="d%") == ["d%"]
    assert keys(database, key="e") == []


def test_waiting_runs_are_found_by_the_beginning_of_any_path_that_is_missing(filled: Database) -> None:
    assert keys(filled, missing="data/layer1/") == keys(filled, missing="data/layer1/x") == ["c"]
    assert set(keys(filled, missing="data/layer2/")) == {"c", "d"}
    assert keys(filled, missing="layer2") == keys(filled, missing="data/layer2/zz") == keys(filled, missing="%") == []
    assert keys(filled, missing="data/", by_deadline=True) == ["d", "c"]
    assert keys(filled, missing="data/layer1/", by_deadline=True) == ["c"]
    assert keys(filled, missing="data/", state=RunState.WAITING_EVIDENCE, key="d") == ["d"]


def test_missing_paths_of_an_older_release_and_very_many_are_found_in_the_record(filled: Database) -> None:
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


def test_what_a_run_misses_stays_while_it_waits_and_is_gone_when_it_does_not(filled: Database) -> None:
    filled.clock.pass_seconds(60)
    commit(filled.authority, waiting(claimed(filled, "c"), filled.clock.now))
    commit(filled.authority, retried(claimed(filled, "c"), filled.clock.now, "the store is away"))
    assert keys(filled, missing="data/layer1/") == ["c"]
    commit(filled.authority, failed(claimed(filled, "c"), "failed c"))
    assert keys(filled, missing="data/layer1/") == []
    assert filled.run(f"SELECT missing FROM runs WHERE run_id = '{hex32('c')}'") == [("",)]


@pytest.mark.parametrize("path", ['quo"te', "back\\slash", "caf\u00e9", "tab\tin", "\U0001f600"])
def test_paths_of_all_characters_are_found(database: Database, path: str) -> None:
    admitted(database, "k")
    commit(database.authority, missing(claimed(database, "k"), f"{path}/x"))
    assert keys(database, missing=path) == ["k"]
    database.run("UPDATE runs SET missing = ''")
    assert keys(database, missing=path) == ["k"]


def test_quarantined_runs_are_found_by_whether_somebody_has_acknowledged_them(database: Database) -> None:
    admitted(database, "a", "b", "c")
    for key in ("a", "b", "c"):
        claim = claimed(database, key)
        events = (event(EventKind.RUN_QUARANTINED, RunState.QUARANTINED, reason_code="EVIDENCE_CONFLICT"),)
        signal = draft(key, SignalKind.TERMINAL, claim.run_id)
        at_us, code = claim.updated_us + 1, "EVIDENCE_CONFLICT"
        commit(database.authority, transitions.ended(claim, RunState.QUARANTINED, code, at_us, events, signal))
    action = ActionRow(ack_key(hex32("b")), 0, "ann", "cli", ACK_ACTION, hex32("b"), "seen", "ACKED", "")
    assert database.authority.record_action(action)
    assert not database.authority.record_action(replace(action, actor="bob"))
    state: dict[str, Any] = {"state": RunState.QUARANTINED}
    for more in ({}, {"reason": "EVIDENCE_CONFLICT"}):
        assert keys(database, acked=True, **state, **more) == ["b"]
        assert keys(database, acked=False, **state, **more) == ["c", "a"]
        assert keys(database, **state, **more) == ["c", "b", "a"]
    found = database.views.acks([hex32("a"), hex32("b")])
    assert {key: (ack.actor, ack.reason) for key, ack in found.items()} == {hex32("b"): ("ann", "seen")}
    with pytest.raises(UsageError, match="QUARANTINED"):
        RunFilter(acked=True)


def test_a_cursor_of_another_list_and_filters_that_contradict_are_refused(filled: Database) -> None:
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


def test_runs_and_refused_requests_are_found_by_the_beginning_of_their_id(filled: Database) -> None:
    filled.authority.admit([disposed("r", Disposition.REJECTED, hex32("refused"))])
    assert filled.views.runs_with_id(hex32("a")[:12], 10) == [Candidate(hex32("a"), "a")]
    assert filled.views.runs_with_id(hex32("refused")[:12], 10) == [Candidate(hex32("refused"))]
    assert len(filled.views.runs_with_id("", 4)) == 4
    assert filled.views.runs_with_key("a", 3) == [Candidate(hex32("a"), "a")]
    assert filled.views.known(hex32("a"))
    assert filled.views.known(hex32("refused"))
    assert not filled.views.known(hex32("none"))


def test_a_run_is_found_by_a_signal_and_by_the_message_that_asked_for_it(filled: Database) -> None:
    assert filled.views.run_of_message(hex64("ready a")) == hex32("a")
    assert filled.views.run_of_message("message-spool/h") == hex32("h")
    assert filled.views.run_of_message(hex64("none")) == ""


# --- dead letters


def test_dead_letters_are_listed_newest_first_of_one_reason_or_all(refused: Database) -> None:
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


def test_a_dead_letter_is_found_by_its_key_or_number_with_its_bytes(refused: Database) -> None:
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


def test_the_runs_that_hold_a_receipt_are_those_whose_record_names_it(database: Database) -> None:
    admitted(database, "first", "second", "third", "drifts")
    for key, ref in (("first", "r/1"), ("second", "r/2")):
        claim = claimed(database, key)
        committed = event(EventKind.RECEIPTS_COMMITTED, RunState.VERIFYING, receipts={"output": ref})
        transition = ready(claim, f"ready {key}")
        commit(database.authority, transitions.ended(
            claim, RunState.READY, "", claim.updated_us + 1, (committed, *transition.events), transition.signal,
            hex64("view"),
        ))  # fmt: skip
    run = database.views.run(hex32("drifts"))
    assert run is not None
    found = database.views.runs_with_receipt(run.run_id, "r/1", run.admitted_us, '"note"', 10)
    assert found == [hex32("first")]
    assert database.views.runs_with_receipt(run.run_id, "r/1", run.admitted_us, "another manifest", 10) == []


# --- one run


def test_views_tell_of_one_run_what_the_authority_tells(filled: Database) -> None:
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


def test_a_run_is_in_rounds_while_it_is_due_at_its_deadline_for_an_absent_root(database: Database) -> None:
    admitted(database, "absent", "told", "late", "ended")
    for key in ("absent", "told"):
        claim = claimed(database, key)
        commit(database.authority, waiting(claim, claim.deadline_us, root="/runs/r"))
    claim = claimed(database, "late")
    commit(database.authority, waiting(claim, claim.deadline_us))
    commit(database.authority, failed(claimed(database, "ended")))
    database.clock.pass_seconds(5)
    database.authority.wake([WakeAct(key="w", run_id=hex32("told"), actor="a", reason="r")])
    looks = {"absent": ROUNDS, "told": SCHEDULED, "late": SCHEDULED, "ended": None}
    listed = {row.run_equivalence_key: next_look_of(row) for row in database.views.list_runs(RunFilter(), None, 9)}
    assert {key: look.get("next_look") for key, look in listed.items()} == looks
    for key, look in looks.items():
        for reader in (database.authority, database.views):
            status = status_of(reader, hex32(key)) or {}
            assert status.get("next_look") == look
            assert status.get("next_look_utc") == listed[key].get("next_look_utc")
    for run in (
        *(run for run in database.views.runs_by_id("", 0, 9) if run.run_id == hex32("absent")),
        *(task.run for task in database.authority.claim_projections("w", 1, 30 * SECOND, hex32("absent"))),
        *(run for run in database.authority.runs(None, 9) if run.run_id == hex32("absent")),
    ):
        assert run.absent_root == "/runs/r"


def test_a_view_cannot_write(filled: Database) -> None:
    for wrong in ("make_waiting_due", "expire_runs_of" if isinstance(filled.views, SqliteViews) else "expire_owner"):
        with pytest.raises(Unavailable, match=r"readonly|read-only"):
            filled.views._rows(wrong, now=START * 2, owner="w")


def test_a_look_that_takes_too_long_is_ended_and_the_next_one_answers(filled: Database) -> None:
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
