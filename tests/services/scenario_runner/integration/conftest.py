"""Fixtures over every engine of the authority. A module whose tests need another ``backend`` defines its own."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest
from authority_backends import Backend, on_postgres, on_sqlite
from authority_support import Clock, asking, disposed, hex32
from postgres_support import MigratedSchema, Schema, given_dsn, migrated_schema
from views_support import Database, database_on

from scenario_runner.authority import sqlite as sqlite_module
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.contracts.states import Disposition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scenario_runner.authority.base import Authority


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.parity)])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """A database in which there is nothing, or what :func:`authority` opens it for, which migrates it anyway."""
    if request.param == "sqlite":
        schema = None
    else:
        schema = migrated_schema() if "authority" in request.fixturenames else Schema(given_dsn())
    made = on_postgres(schema) if schema is not None else on_sqlite(tmp_path)
    yield made
    for authority in made.opened:
        authority.close()
    if isinstance(schema, MigratedSchema):
        schema.give_back()
    elif schema is not None:
        schema.drop()


@pytest.fixture
def authority(backend: Backend) -> Authority:
    return backend.open()


@pytest.fixture
def clock(backend: Backend) -> Clock:
    return backend.clock


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Authority, Callable[[], None]]]:
    """A SQLite authority, and what makes another process keep its write lock from then on."""
    path = str(tmp_path / "authority.db")
    monkeypatch.setattr(sqlite_module, "_BUSY_SECONDS", 0.05)
    opened = SqliteAuthority(path, clock=Clock())
    other = sqlite3.connect(path, isolation_level=None)
    yield opened, lambda: other.execute("BEGIN IMMEDIATE") and None
    other.close()
    opened.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.parity)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database to fill and to look at."""
    with database_on(request.param, str(tmp_path / "authority.db")) as made:
        yield made


@pytest.fixture
def refused(database: Database) -> Database:
    """Five refused records of two reasons in two shards, among others."""
    for number, reason in enumerate(("A", "B", "A", "A", "B")):
        database.authority.admit([asking(f"good {number}")])
        record = disposed(f"kinesis/s/shard-{number % 2}/{number}", Disposition.REJECTED, hex32(f"x{number}"))
        database.authority.admit([record])
        database.run(f"UPDATE intake_records SET reason_code = '{reason}' WHERE record_key = '{record.record_key}'")
        database.clock.pass_seconds(1)
    database.authority.admit([disposed("ignored", Disposition.IGNORED)])
    return database
