"""Does a run cost more once the authority holds very many that have ended?"""

import argparse
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from sr_tools.bench.daemon import Usage
from sr_tools.bench.many_runs import apart, ended_state_of, fill_sqlite, real_runs, waiting_state_of
from sr_tools.bench.report import Json, note, result
from sr_tools.bench.slim_runs import fill_sqlite_slim
from sr_tools.bench.world import RACY_SECONDS, RATE, SMALL, World, rates

#: A run may cost so much more CPU: the deeper indexes of a million runs are a page or two more for each look.
_MOST_CPU_RATIO: Final = 1.1
#: Runs that wait, of both kinds: half for absent roots until their deadlines, which are two hours to ten days ahead;
#: half are examined again in 15 to 19 minutes: longer than the measurement takes, within what a clock may be ahead.
_WAIT: Final = """
UPDATE runs SET deadline_us = {now} + 7200000000 + deadline_us % 864000000000,
  absent_root = CASE WHEN run_equivalence_key LIKE '%13' THEN '{runs}/absent-' || run_id ELSE '' END,
  due_us = CASE WHEN run_equivalence_key LIKE '%13' THEN {now} + 7200000000 + deadline_us % 864000000000
                ELSE {now} + 900000000 + admitted_us / 100000 % 240000000 END
WHERE state = 'WAITING_EVIDENCE'
"""
#: A range, which both engines look up in the index of keys.
_ASKED: Final = "r.run_equivalence_key >= 'asked-' AND r.run_equivalence_key < 'asked.'"
#: Seconds between two looks whether all signals are there.
_PAUSE: Final = 0.1


def growth(options: argparse.Namespace, folder: Path) -> list[Json]:
    """One known world on an empty authority and on a full one, SQLite."""
    templates = real_runs(World.make(folder / "templates", options))

    def fill(world: World, count: int) -> None:
        path, make = world.root / "authority.db", fill_sqlite_slim if options.slim else fill_sqlite
        apart(make, path, templates, count, _now_us(), waiting_state_of if options.growth_waiting else ended_state_of)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(waiting(world))
            connection.commit()

    worlds = [World.make(folder / name, options) for name in ("empty", "full")]
    return compared(worlds, fill, options, "SQLite")


def waiting(world: World) -> str:
    """The statement that lets runs that wait go on with that for longer than the measurement takes."""
    return _WAIT.format(now=_now_us(), runs=world.runs)


def compared(
    worlds: Sequence[World], fill: Callable[[World, int], None], options: argparse.Namespace, where: str,
    read_so_far: Callable[[World], Json] = lambda _: {}, explain: Callable[[World], Json] = lambda _: {},
) -> list[Json]:  # fmt: skip
    """Drain the same requests on both authorities.

    Args:
        worlds: Two: one whose authority stays empty, one that is filled.
        fill: Puts so many runs that have ended into a world's authority.
        options: How many runs, and how many requests.
        where: The engine, for the report.
        read_so_far: What the database says that it has read for a world, numbers by name.
        explain: What statements read in a world, for the report.
    """
    empty, full = worlds
    empty.serve("--until-idle").finish()
    before = _drained(empty, options, read_so_far)
    full.serve("--until-idle").finish()
    note(f"growth: making {options.growth_runs} runs")
    fill(full, options.growth_runs)
    after = _drained(full, options, read_so_far)
    before, after = before | explain(empty), after | explain(full)
    ratio = after["cpu_ms_per_run"] / before["cpu_ms_per_run"]
    runs = f"{options.growth_runs} {'slim ' * options.slim}runs{', of which 2 of 100 wait,' * options.growth_waiting}"
    how = (
        f"{options.growth_requests} requests for one engine run ({SMALL}) on {where}: CPU per run of the daemon with "
        f"{runs} in the authority, over that with none; {RATE}"
    )
    return [result("growth_cpu", ratio, "ratio", f"<= {_MOST_CPU_RATIO:g}", how, met=ratio <= _MOST_CPU_RATIO,
                   empty=before, full=after)]  # fmt: skip


def _drained(world: World, options: argparse.Namespace, read_so_far: Callable[[World], Json]) -> Json:
    request, count = world.make_engine_run("asked", 0), options.growth_requests
    run_ids = [world.drop(request, f"asked-{number}") for number in range(count)]
    note(f"growth: draining {count} requests")
    read = read_so_far(world)
    usage = served(world, run_ids) if options.growth_waiting else world.drain(run_ids)
    reads = {name: round((value - read.get(name, 0)) / count, 3) for name, value in read_so_far(world).items()}
    world.check(run_ids)
    return rates(world.times(_ASKED), usage, count) | ({"reads_per_run": reads} if reads else {})


def served(world: World, run_ids: Sequence[str]) -> Usage:
    """Serve until the signals of these runs are there; ``--until-idle`` would examine all runs that wait first."""
    time.sleep(RACY_SECONDS)
    before = len(list(world.signals.glob("*.json")))
    with world.serve() as daemon:
        daemon.until(lambda: len(list(world.signals.glob("*.json"))) >= before + len(run_ids),
                     "not all signals were published", pause=_PAUSE)  # fmt: skip
        return daemon.stop()


def _now_us() -> int:
    return time.time_ns() // 1000
