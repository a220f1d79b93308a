"""What a herd of waiting runs costs on files and SQLite."""

import argparse
import time
from pathlib import Path

from sr_tools.bench.herd import Herd, measure, name_of, rows_of, waiting_template
from sr_tools.bench.many_runs import apart, fill_sqlite, state_of
from sr_tools.bench.report import Json, note
from sr_tools.bench.world import RACY_SECONDS, World


def herd(options: argparse.Namespace, folder: Path) -> list[Json]:
    """See :mod:`sr_tools.bench.herd`; other engine runs lie beside the absent roots."""
    world = World.make(folder, options)
    templates = waiting_template(world)
    below = world.runs / "herd"
    for number in range(options.herd_siblings):
        (below / name_of("sibling", number)).mkdir(parents=True)
    request = world.make_engine_run("beside", 1)
    note(f"herd: making {options.herd_runs} runs")
    make = rows_of(str(below), same_root=options.herd_same_root)
    apart(
        fill_sqlite, world.root / "authority.db", templates, options.herd_runs, time.time_ns() // 1000, state_of, make
    )
    time.sleep(RACY_SECONDS)
    return measure(Herd(world, request, "files and SQLite", lambda: 0.0), options)
