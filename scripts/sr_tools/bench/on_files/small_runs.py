"""Many small runs: how many a second, and whether the rate falls."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from sr_tools.bench.references import bare_files_and_commits
from sr_tools.bench.report import MICROS, Json, note, result, rss_result
from sr_tools.bench.world import RATE, SMALL, World, rates, steady_seconds


def one_world(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Small runs over one engine run."""
    how = f"{options.one_world_runs} requests for one engine run ({SMALL}) lay in the spool; {RATE}"
    return _small_runs("one_world", 250, how, _share_one, options.one_world_runs, World.make(folder, options))


def own_worlds(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Small runs with an engine run each."""
    count, daemons = options.own_worlds_runs, options.own_worlds_daemons
    how = f"{count} requests, each for an engine run of its own ({SMALL}), lay in the spool; {daemons} daemons; {RATE}"
    return _small_runs("own_worlds", 100, how, _make_each, count, World.make(folder, options), daemons)


def drain(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Many requests in the spool: does the rate fall?"""
    count, world = options.drain_runs, World.make(folder, options)
    note(f"drain: {count} requests")
    usage = world.drain(_share_one(world, count))
    tenths = rate_per_tenth(world.times())
    first, middle = tenths[-1] / tenths[0], tenths[-1] / statistics.median(tenths)
    ratio = min(first, middle)  # the first tenth shares the cores with intake, so a fall could hide behind it
    how = (
        f"{count} requests on one engine run lay in the spool; rate of each tenth of the READY signals by sent time; "
        "value: the last tenth over the first, or over the median tenth: the smaller"
    )
    more: Json = {"rate_per_tenth": [round(rate, 1) for rate in tenths], "wall_seconds": round(usage.wall, 2)}
    more |= {"last_over_first": round(first, 3), "last_over_median": round(middle, 3)}
    more |= {"cpu_seconds": round(usage.cpu, 2), "wall_runs_per_second": round(count / usage.wall, 1)}
    return [
        result("drain", ratio, "ratio", ">= 0.9", how, met=ratio >= 0.9, **more),
        rss_result("drain_peak_rss", usage.peak_rss, f"peak resident memory of a daemon that drained {count} requests"),
    ]


def rate_per_tenth(times: Sequence[tuple[int, int]]) -> list[float]:
    """READY per second in each tenth of the runs; the first starts at the first admission."""
    sent = [published for _, published in times]
    edges = [len(sent) * tenth // 10 for tenth in range(11)]
    moments = [min(admitted for admitted, _ in times), *(sent[edge - 1] for edge in edges[1:])]
    return [(edges[at + 1] - edges[at]) * MICROS / max(1, moments[at + 1] - moments[at]) for at in range(10)]


def _share_one(world: World, count: int) -> list[str]:
    """One engine run and that many requests for it under different keys; returns run ids."""
    request = world.make_engine_run("shared", 0)
    return [world.drop(request, f"shared-{number}") for number in range(count)]


def _make_each(world: World, count: int) -> list[str]:
    """Engine runs, each with its own identity, and a request for each; returns run ids."""
    keys = [f"own-{number}" for number in range(count)]
    return [world.drop(world.make_engine_run(key, number), key) for number, key in enumerate(keys)]


def _small_runs(
    name: str, target: int, how: str, make: Callable[[World, int], list[str]], count: int, world: World,
    daemons: int = 1,
) -> list[Json]:  # fmt: skip
    note(f"{name}: making {count} runs")
    run_ids = make(world, count)
    note(f"{name}: draining")
    usage = world.drain(run_ids, daemons)
    times, files = world.times(), world.documents()
    bare = bare_files_and_commits(world.root / "bare", files, count)
    more = rates(times, usage, count) | {
        "durable_files_per_run": round(files / count, 2),
        "reference": bare,
        "ratio_to_reference": round(bare["seconds"] / steady_seconds(times), 3),
    }
    rate = count / usage.wall
    return [result(name, rate, "runs/s", f">= {target}", how, met=rate >= target, **more)]
