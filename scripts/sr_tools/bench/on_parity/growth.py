"""Does a run cost more once a PostgreSQL authority holds very many that have ended?"""

import argparse
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sr_tools.bench.many_runs import apart, ended_state_of, fill_postgres, real_runs
from sr_tools.bench.on_files.growth import compared
from sr_tools.bench.on_parity.lookups import PostgresWorld
from sr_tools.bench.on_parity.postgres import Schema
from sr_tools.bench.report import Json
from sr_tools.bench.world import World

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
        apart(fill_postgres, world.dsn, templates, count, time.time_ns() // 1000, ended_state_of)

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
        return compared(worlds, fill, options, "PostgreSQL", _read_so_far)


def _read_so_far(world: World) -> Json:
    """Pages of tables and their indexes that were looked at, and rows that were read without an index, so far."""
    found = world.query(_READS)
    pages = {f"{table} pages": int(number) for table, number, _ in found}
    rows = {f"{table} rows without an index": int(number) for table, _, number in found}
    return pages | rows
