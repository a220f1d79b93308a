"""What a person asks of a PostgreSQL authority that holds very many runs."""

import argparse
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from typing_extensions import override

from sr_tools.bench.many_runs import apart, fill_postgres, real_runs
from sr_tools.bench.on_files.lookups import ask_everything
from sr_tools.bench.on_parity.postgres import Schema
from sr_tools.bench.report import CheckFailedError, Json, note
from sr_tools.bench.slim_runs import fill_postgres_slim
from sr_tools.bench.world import World


@dataclass(frozen=True)
class PostgresWorld(World):
    """A world whose authority is a schema."""

    dsn: str = ""

    def wiring(self) -> Json:
        """The wiring profile."""
        return super().wiring() | {"authority_store_dsn": self.dsn}

    @override
    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of the authority."""
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(sql.encode()).fetchall()


def lookups(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Every filter of ``runs list`` and every look-up command, on PostgreSQL."""
    templates = real_runs(World.make(folder / "templates", options))
    schema = Schema(os.environ["SR_TEST_PG_DSN"])
    try:
        world = PostgresWorld(folder / "asked", folder / "runs", options.subject, options.timeout, dsn=schema.dsn)
        world.prepare()
        _make_tables(world)
        count, now_us = options.lookups_runs, time.time_ns() // 1000
        note(f"lookups: making {count} runs")
        apart(fill_postgres_slim if options.slim else fill_postgres, schema.dsn, templates, count, now_us)
        return ask_everything(world, templates, count, now_us, "PostgreSQL", options.lookups_calls)
    finally:
        if not options.keep:
            schema.drop()


def _make_tables(world: World) -> None:
    done = subprocess.run(
        [world.subject.command, *world.serve_arguments("--until-idle")], env=world.subject.environment(),
        capture_output=True, check=False, timeout=world.timeout,
    )  # fmt: skip
    if done.returncode != 0:
        raise CheckFailedError(f"serve exited with {done.returncode}: {done.stderr.decode()[-300:]}")
