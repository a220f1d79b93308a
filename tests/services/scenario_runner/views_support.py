"""A database that is filled through an authority and looked at through views, on both engines."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from authority_support import SECOND, Clock, asking, event, hex32
from postgres_support import Schema, migrated_schema

from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.authority.views.sqlite import SqliteViews
from scenario_runner.authority.views.values import LetterFilter
from scenario_runner.contracts.states import EventKind, RunState
from scenario_runner.runs import transitions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scenario_runner.authority.base import Authority
    from scenario_runner.authority.values import Claim
    from scenario_runner.authority.views.base import Views


@dataclass
class Database:
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


@contextmanager
def database_on(engine: str, path: str) -> Iterator[Database]:
    """A database of an engine; on SQLite it is the file ``path``."""
    schema = migrated_schema() if engine == "postgres" else None
    made = _on_sqlite(path) if schema is None else _on_postgres(schema)
    yield made
    for views in made.opened:
        views.close()
    made.authority.close()
    if schema is not None:
        schema.give_back()


def _on_sqlite(path: str) -> Database:
    def run(text: str) -> Any:
        with sqlite3.connect(path) as connection:
            return connection.execute(text).fetchall()

    clock = Clock()
    return Database(SqliteAuthority(path, clock=clock), lambda **more: SqliteViews(path, **more), run, clock)


def _on_postgres(schema: Schema) -> Database:
    from scenario_runner.authority.postgres import PostgresAuthority
    from scenario_runner.authority.views.postgres import PostgresViews

    clock = Clock()
    clock.on_move = schema.set_clock
    authority = PostgresAuthority(schema.dsn, "test")
    schema.use_clock(clock())
    return Database(authority, lambda **more: PostgresViews(schema.dsn, "test", **more), schema.query, clock)


def admitted(database: Database, *keys: str) -> None:
    """Runs that are admitted a second apart."""
    for key in keys:
        database.authority.admit([asking(key)])
        database.clock.pass_seconds(1)


def claimed(database: Database, key: str) -> Claim:
    (claim,) = database.authority.claim("w", 1, 30 * SECOND, hex32(key))
    return claim


def letters(database: Database, before: int = 0, limit: int = 10, **asked: Any) -> list[str]:
    last = database.views.letter(str(before)) if before else None
    return [item.record_key for item in database.views.list_letters(LetterFilter(**asked), last, limit)]


def missing(claim: Claim, *paths: str) -> Any:
    report = {"gates": [{"gate_id": "g", "missing": path} for path in paths], "outputs": []}
    found = (event(EventKind.EVIDENCE_MISSING, RunState.WAITING_EVIDENCE, report=report),)
    return transitions.waiting(claim, claim.now_us, claim.updated_us + 1, found, "digest", paths)
