"""The databases that the authority contract is tried on.

A new one is a function here and one more parameter of ``backend`` in ``integration/conftest.py``: how to open it with a
clock, and the same as a script for another process. Time is a number that the test moves.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from authority_support import LEASE, START, Clock, asking, commit, hex32, ready
from postgres_support import Schema
from processes_support import run_together

from scenario_runner.authority.base import Authority
from scenario_runner.authority.sqlite import SqliteAuthority


@dataclass
class Backend:
    """One database that can be opened again and again, here and in other processes."""

    open_with: Callable[[Callable[[], int]], Authority]
    script: str
    query: Callable[[str], list[tuple[Any, ...]]]
    clock: Clock = field(default_factory=Clock)
    opened: list[Authority] = field(default_factory=list)

    def open(self) -> Authority:
        authority = self.open_with(self.clock)
        self.opened.append(authority)
        return authority

    def dead_letters(self) -> dict[str, bytes]:
        return dict(self.query("SELECT record_key, raw FROM dead_letters"))

    def in_processes(self, body: str, count: int = 2) -> list[list[str]]:
        """Run a script in several processes that start together; ``connect()`` and ``me`` (a number) are defined."""
        return run_together(self.script, body, count)


def on_sqlite(folder: Path) -> Backend:
    path = str(folder / "db" / "authority.db")

    def query(text: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            return connection.execute(text).fetchall()

    return Backend(
        lambda clock: SqliteAuthority(path, clock=clock),
        f"from scenario_runner.authority.sqlite import SqliteAuthority\n"
        f"def connect(clock=lambda: {START}):\n    return SqliteAuthority({path!r}, clock=clock)\n",
        query,
    )


def on_postgres(schema: Schema) -> Backend:
    from scenario_runner.authority.postgres import PostgresAuthority

    clock = Clock()
    clock.on_move = schema.set_clock

    def open_with(clock: Callable[[], int]) -> Authority:
        authority = PostgresAuthority(schema.dsn, "test")
        schema.use_clock(clock())
        return authority

    return Backend(
        open_with,
        f"from scenario_runner.authority.postgres import PostgresAuthority\n"
        f"def connect(clock=None):\n    return PostgresAuthority({schema.dsn!r}, 'test')\n",
        schema.query,
        clock,
    )


def snapshot(authority: Authority, key: str) -> tuple[Any, ...]:
    run_id = hex32(key)
    run, events, attempts = authority.run(run_id), authority.events(run_id), authority.attempts(run_id)
    return (run, events, authority.signals(run_id), authority.records(run_id), attempts)


def decided(authority: Authority, *keys: str) -> None:
    """Runs of these keys are READY, none of them projected."""
    for key in keys:
        authority.admit([asking(key)])
        (claim,) = [claim for claim in authority.claim("w1", 1, LEASE) if claim.run_id == hex32(key)]
        commit(authority, ready(claim, f"ready {key}"))


def projected(authority: Authority) -> None:
    authority.mark_projected(
        "relay", [(owed.run.run_id, owed.run.event_seq) for owed in authority.claim_projections("relay", 100, LEASE)]
    )
