"""Does a run cost more once the authority holds very many that have ended?"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sr_tools.bench.many_runs import apart, ended_state_of, fill_sqlite, real_runs
from sr_tools.bench.report import Json, note, result
from sr_tools.bench.world import RATE, SMALL, World, rates

#: A run may cost so much more CPU: the deeper indexes of a million runs are a page or two more for each look.
_MOST_CPU_RATIO: Final = 1.1
_ASKED: Final = "r.run_equivalence_key LIKE 'asked-%'"


def growth(options: argparse.Namespace, folder: Path) -> list[Json]:
    """One known world on an empty authority and on a full one, SQLite."""
    templates = real_runs(World.make(folder / "templates", options))

    def fill(world: World, count: int) -> None:
        apart(fill_sqlite, world.root / "authority.db", templates, count, _now_us(), ended_state_of)

    worlds = [World.make(folder / name, options) for name in ("empty", "full")]
    return compared(worlds, fill, options, "SQLite")


def compared(
    worlds: Sequence[World], fill: Callable[[World, int], None], options: argparse.Namespace, where: str,
    read_so_far: Callable[[World], Json] = lambda _: {},
) -> list[Json]:  # fmt: skip
    """Drain the same requests on both authorities.

    Args:
        worlds: Two: one whose authority stays empty, one that is filled.
        fill: Puts so many runs that have ended into a world's authority.
        options: How many runs, and how many requests.
        where: The engine, for the report.
        read_so_far: What the database says that it has read for a world, numbers by name.
    """
    empty, full = worlds
    empty.serve("--until-idle").finish()
    before = _drained(empty, options.growth_requests, read_so_far)
    full.serve("--until-idle").finish()
    note(f"growth: making {options.growth_runs} runs")
    fill(full, options.growth_runs)
    after = _drained(full, options.growth_requests, read_so_far)
    ratio = after["cpu_ms_per_run"] / before["cpu_ms_per_run"]
    how = (
        f"{options.growth_requests} requests for one engine run ({SMALL}) on {where}: CPU per run of the daemon with "
        f"{options.growth_runs} ended runs in the authority, over that with none; {RATE}"
    )
    return [result("growth_cpu", ratio, "ratio", f"<= {_MOST_CPU_RATIO:g}", how, met=ratio <= _MOST_CPU_RATIO,
                   empty=before, full=after)]  # fmt: skip


def _drained(world: World, count: int, read_so_far: Callable[[World], Json]) -> Json:
    request = world.make_engine_run("asked", 0)
    run_ids = [world.drop(request, f"asked-{number}") for number in range(count)]
    note(f"growth: draining {count} requests")
    read = read_so_far(world)
    usage = world.drain(run_ids)
    reads = {name: round((value - read.get(name, 0)) / count, 3) for name, value in read_so_far(world).items()}
    return rates(world.times(_ASKED), usage, count) | ({"reads_per_run": reads} if reads else {})


def _now_us() -> int:
    return time.time_ns() // 1000
