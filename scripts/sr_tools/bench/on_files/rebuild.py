"""``scenario-runner authority rebuild`` from a ledger in a folder into SQLite."""

import argparse
from pathlib import Path

from sr_tools.bench.rebuilds import lose_database, measure
from sr_tools.bench.report import Json, note
from sr_tools.bench.world import World


def rebuild(options: argparse.Namespace, folder: Path) -> list[Json]:
    """How many runs a second come back from a folder, and how many are compared."""
    count, world = options.rebuild_runs, World.make(folder, options)
    note(f"rebuild: making and draining {count} runs")
    request = world.make_engine_run("shared", 0)
    world.drain([world.drop(request, f"shared-{number}") for number in range(count)])
    lose_database(world.root)
    note("rebuild: rebuilding")
    return measure(world, count, "a folder and SQLite", 2000, "bus")
