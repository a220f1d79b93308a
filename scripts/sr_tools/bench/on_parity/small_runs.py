"""Many small runs on S3 and Postgres: rates, calls and statements per run, next to the same calls by a plain client."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from sr_tools.bench.daemon import Usage
from sr_tools.bench.on_parity.bare_calls import S3_CALLS, BareCalls, calls_of
from sr_tools.bench.on_parity.world import ParityWorld, parity_world
from sr_tools.bench.report import Json, note, reported, result
from sr_tools.bench.world import RATE, SMALL, rates, steady_seconds

_CPU_HOW: Final = "user and system time of the whole process over runs"
_EACH_HOW: Final = (
    "every statement is a transaction of its own (autocommit), so both figures are the same by construction"
)


def known_world(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Small runs over the same engine run, some rounds of it; the one with the median ratio is reported."""
    rounds = [_known_round(options, folder / f"{folder.name}-{number}") for number in range(options.known_rounds)]
    rounds.sort(key=lambda more: float(more["ratio_to_reference"]))
    more = rounds[(len(rounds) - 1) // 2]
    ratios = [more["ratio_to_reference"] for more in rounds]
    how = f"{options.known_runs} requests for one engine run ({SMALL}) lay in the spool; {RATE}"
    ratio, calls, cpu = (float(more[key]) for key in ("ratio_to_reference", "s3_calls_per_run", "cpu_ms_per_run"))
    value = f"value: bare over steady seconds, median of {len(rounds)} rounds"
    return [
        result("known_world", ratio, "of bare calls", ">= 0.7", f"{how}; {value}", met=ratio >= 0.7, ratios=ratios,
               **more),
        result("known_world_calls", calls, "S3 calls per run", "<= 8", "the daemon's own count, less a start's",
               met=calls <= 8),
        result("known_world_cpu", cpu, "ms per run", "<= 8", _CPU_HOW, met=cpu <= 8),
    ]  # fmt: skip


def _known_round(options: argparse.Namespace, folder: Path) -> Json:
    """One round of :func:`known_world`, in a world of its own, with its own reference."""
    count = options.known_runs
    folder.mkdir(parents=True)
    with parity_world(options, folder) as world:
        start = _counts_of_a_start(world)
        request, keys = world.upload_engine_run("known", 0)
        run_ids = [world.drop(request, f"known-{number}") for number in range(count)]
        note(f"known_world: draining {count} requests")
        usage = world.drain(run_ids)
        return _figures(world, usage, count, {_root_of(request, world): list(keys)}, start)


def new_worlds(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Small runs with an engine run each."""
    count = options.new_worlds_runs
    roots: dict[str, list[str]] = {}
    run_ids = []
    with parity_world(options, folder) as world:
        start = _counts_of_a_start(world)
        note(f"new_worlds: making and uploading {count} engine runs")
        for number in range(count):
            request, keys = world.upload_engine_run(f"new-{number}", number)
            roots[_root_of(request, world)] = list(keys)
            run_ids.append(world.drop(request, f"new-{number}"))
        note(f"new_worlds: draining {count} requests")
        usage = world.drain(run_ids)
        more = _figures(world, usage, count, roots, start)
    how = f"{count} requests, each for an engine run of its own ({SMALL}), lay in the spool; {RATE}"
    files = sum(map(len, roots.values())) / count
    beyond = float(more["s3_calls_per_run"]) - files - 1
    ratio, cpu = float(more["ratio_to_reference"]), float(more["cpu_ms_per_run"])
    beyond_how = f"all S3 calls but those of a start, a GET for each of {files:g} artifacts and one LIST"
    return [
        reported("new_worlds", ratio, "of bare calls", f"{how}; value: bare over steady seconds", **more),
        result("new_worlds_calls", beyond, "S3 calls per run beyond reading", "<= 12", beyond_how, met=beyond <= 12),
        reported("new_worlds_cpu", cpu, "ms per run", _CPU_HOW),
    ]


def _root_of(request: Json, world: ParityWorld) -> str:
    """Key prefix of a request's run root."""
    return str(request["engine_run_root"]).removeprefix(f"s3://{world.engine.bucket}/")


def _counts_of_a_start(world: ParityWorld) -> dict[str, int]:
    """What a daemon asks for that finds nothing to do; the first start, which makes tables and more, does not count."""
    for _ in range(2):
        world.serve("--until-idle").finish()
    return world.counts()


def _figures(
    world: ParityWorld, usage: Usage, count: int, roots: Mapping[str, Sequence[str]], start: Mapping[str, int]
) -> Json:
    """Rates, calls, cost, and the reference next to them."""
    times, counts = world.times(), world.counts()
    driving = {name: max(0, number - start.get(name, 0)) for name, number in counts.items()}
    bare = BareCalls(counts, world.ledger.sizes(), world.ledger, world.engine, roots)
    reference, bare_seconds = bare.reference(count)
    statements = round(driving.get("postgres.statements", 0) / count, 3)
    return rates(times, usage, count) | {
        "s3_calls_per_run": round(calls_of(driving) / count, 3),
        "s3_calls_per_run_by_operation": {kind: round(driving.get(kind, 0) / count, 3) for kind in S3_CALLS},
        "statements_per_run": statements,
        "transactions_per_run": {"value": statements, "how": _EACH_HOW},
        "counts": counts,
        "counts_of_a_start": start,
        "reference": reference,
        "ratio_to_reference": round(bare_seconds / steady_seconds(times), 3),
        "ratio_to_reference_whole_process": round(bare_seconds / usage.wall, 3),
    }
