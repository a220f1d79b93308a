"""What is particular to SQLite: the file, its schema, its locks, and the one writer of a process."""

import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from authority_support import LEASE, Clock, asking, commit, disposed, hex32, launched, ready

from scenario_runner.authority import sqlite as sqlite_module
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.authority.statements import load_migrations
from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.contracts.states import Disposition, RunState

pytestmark = pytest.mark.integration


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
