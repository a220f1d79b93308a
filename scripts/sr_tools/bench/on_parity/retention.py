"""Retention on PostgreSQL."""

import argparse
import os
from pathlib import Path

from sr_tools.bench.on_parity.lookups import PostgresWorld
from sr_tools.bench.on_parity.postgres import Schema
from sr_tools.bench.report import Json
from sr_tools.bench.retention import POSTGRES, measure


def retention(options: argparse.Namespace, folder: Path) -> list[Json]:
    """A million rows go from a schema."""
    schema = Schema(os.environ["SR_TEST_PG_DSN"])
    try:
        world = PostgresWorld(folder / "kept", folder / "runs", options.subject, options.timeout, dsn=schema.dsn)
        world.prepare()
        world.serve("--until-idle").finish()

        return measure(world, schema.query, POSTGRES, options.retention_rows, "PostgreSQL")
    finally:
        schema.drop()
