"""``scenario-runner authority rebuild`` from a ledger on S3 into Postgres."""

import argparse
from dataclasses import replace
from pathlib import Path

from sr_tools.bench.on_parity.postgres import Schema
from sr_tools.bench.on_parity.world import parity_world
from sr_tools.bench.rebuilds import measure
from sr_tools.bench.report import Json, note


def rebuild(options: argparse.Namespace, folder: Path) -> list[Json]:
    """How many runs a second come back from S3, and how many are compared."""
    count, empty = options.rebuild_runs, Schema(options.place.dsn)
    try:
        with parity_world(options, folder) as world:
            request, _ = world.upload_engine_run("rebuild", 0)
            note(f"rebuild: draining {count} runs")
            world.drain([world.drop(request, f"rebuild-{number}") for number in range(count)])
            lost = replace(world, schema=empty)
            lost.prepare()
            note("rebuild: rebuilding")
            return measure(lost, count, "S3 and Postgres", 500, "bus")
    finally:
        empty.drop()
