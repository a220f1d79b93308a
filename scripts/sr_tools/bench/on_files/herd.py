"""What a herd of waiting runs costs on files and SQLite, and what it costs others when it is woken."""

import argparse
import shutil
import time
from pathlib import Path

from sr_tools.bench.herd import Herd, evidence_of, measure, name_of, root_of, rows_of, waiting_template
from sr_tools.bench.many_runs import Rows, apart, fill_sqlite, state_of
from sr_tools.bench.report import Json, note
from sr_tools.bench.woken import measure_woken
from sr_tools.bench.world import RACY_SECONDS, World


def herd(options: argparse.Namespace, folder: Path) -> list[Json]:
    """See :mod:`sr_tools.bench.herd`; other engine runs lie beside the absent roots."""
    world = World.make(folder, options)
    below = world.runs / "herd"
    make = rows_of(str(below), same_root=options.herd_same_root)
    made = _herd(world, below, make, options.herd_runs, options.herd_siblings, come=False)
    return measure(made, options)


def woken(options: argparse.Namespace, folder: Path) -> list[Json]:
    """See :mod:`sr_tools.bench.woken`."""
    world = World.make(folder, options)
    below = world.runs / "herd"
    make = rows_of(str(below), same_root=True, in_rounds=False)
    return measure_woken(_herd(world, below, make, options.woken_runs, 0, come=options.woken_come), options)


def _herd(world: World, below: Path, make: Rows, runs: int, siblings: int, *, come: bool) -> Herd:
    templates = waiting_template(world)
    root = root_of(str(below), 0)
    below.mkdir()
    if come:
        shutil.move(evidence_of(world), root)
    for number in range(siblings):
        (below / name_of("sibling", number)).mkdir()
    request = world.make_engine_run("beside", 1)
    note(f"herd: making {runs} runs")
    apart(fill_sqlite, world.root / "authority.db", templates, runs, time.time_ns() // 1000, state_of, make)
    time.sleep(RACY_SECONDS)
    return Herd(world, request, "files and SQLite", lambda: 0.0, root)
