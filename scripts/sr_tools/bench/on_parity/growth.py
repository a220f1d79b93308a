"""Does a run cost more once a PostgreSQL authority holds very many that have ended?"""

import argparse
import json
import os
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import psycopg

from sr_tools.bench.many_runs import apart, ended_state_of, fill_postgres, real_runs, waiting_state_of
from sr_tools.bench.on_files.growth import compared, served, waiting
from sr_tools.bench.on_parity.explained import explaining, summary
from sr_tools.bench.on_parity.lookups import PostgresWorld
from sr_tools.bench.on_parity.postgres import Schema
from sr_tools.bench.report import Json, note
from sr_tools.bench.slim_runs import fill_postgres_slim
from sr_tools.bench.world import World

#: Requests of a daemon whose statements are explained: several batches of each kind.
_EXPLAINED: Final = 300
#: Of the world's own schema only: others use the database too. A page counts each time that it is looked at, in memory
#: or not.
_READS: Final = """
SELECT t.relname, s.heap_blks_hit + s.heap_blks_read + coalesce(s.idx_blks_hit + s.idx_blks_read, 0),
  coalesce(t.seq_tup_read, 0)
FROM pg_stat_user_tables t JOIN pg_statio_user_tables s USING (relid) WHERE t.schemaname = current_schema()
"""


def growth(options: argparse.Namespace, folder: Path) -> list[Json]:
    """One known world on an empty authority and on a full one, PostgreSQL."""
    templates = real_runs(World.make(folder / "templates", options))

    def fill(world: World, count: int) -> None:
        assert isinstance(world, PostgresWorld)
        make, states = fill_postgres_slim if options.slim else fill_postgres, ended_state_of
        if options.growth_waiting:
            states = waiting_state_of
        apart(make, world.dsn, templates, count, time.time_ns() // 1000, states)
        with psycopg.connect(world.dsn, autocommit=True) as connection:
            connection.execute(waiting(world).encode())
            connection.execute("VACUUM (ANALYZE) runs")

    with ExitStack() as stack:
        worlds = []
        for name in ("empty", "full"):
            schema = Schema(os.environ["SR_TEST_PG_DSN"])
            stack.callback(schema.drop)
            world = PostgresWorld(
                folder / name, folder / name / "runs", options.subject, options.timeout, dsn=schema.dsn
            )
            world.prepare()
            worlds.append(world)
        return compared(worlds, fill, options, "PostgreSQL", _read_so_far, partial(_explained, options))


def _explained(options: argparse.Namespace, world: World) -> Json:
    """Pages per statement while a daemon drains some more requests; the plans that read most go into a file."""
    if not options.growth_plans:
        return {}
    note("growth: draining requests whose statements are explained")
    asked = world.make_engine_run("explained", 1)
    run_ids = [world.drop(asked, f"explained-{number}") for number in range(_EXPLAINED)]
    plans = world.root / "plans.jsonl"
    subject = explaining(world.subject, world.root / "explained", plans)
    served(replace(world, subject=subject), run_ids)
    found = summary(plans)
    kept = Path(options.growth_plans)
    written = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    kept.write_text(json.dumps({**written, world.root.name: found}, indent=1), "utf-8")
    return {"statements": {name: {key: value for key, value in one.items() if key != "plan"}
                           for name, one in found.items()}}  # fmt: skip


def _read_so_far(world: World) -> Json:
    """Pages of tables and their indexes that were looked at, and rows that were read without an index, so far."""
    found = world.query(_READS)
    pages = {f"{table} pages": int(number) for table, number, _ in found}
    rows = {f"{table} rows without an index": int(number) for table, _, number in found}
    return pages | rows
