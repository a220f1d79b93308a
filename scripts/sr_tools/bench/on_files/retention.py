"""Retention on files and SQLite."""

import argparse
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sr_tools.bench.report import Json
from sr_tools.bench.retention import SQLITE, measure
from sr_tools.bench.world import World


def retention(options: argparse.Namespace, folder: Path) -> list[Json]:
    """A million rows go from a file."""
    world = World.make(folder, options)
    world.serve("--until-idle").finish()

    def query(text: str) -> Sequence[tuple[Any, ...]]:
        with closing(sqlite3.connect(world.root / "authority.db", timeout=60, isolation_level=None)) as connection:
            connection.execute("PRAGMA cache_size = -400000")  # the rows are made in no order of their keys
            return connection.execute(text).fetchall()

    return measure(world, query, SQLITE, options.retention_rows, "SQLite")
