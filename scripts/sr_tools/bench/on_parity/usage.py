"""What a run uses of each service that is paid for: calls, statements, bytes. docs/cost.md makes dollars of it."""

import argparse
from pathlib import Path
from typing import Final

from sr_tools.bench.on_parity.bare_calls import S3_CALLS
from sr_tools.bench.on_parity.world import ParityWorld, parity_world
from sr_tools.bench.report import Json, note, reported
from sr_tools.bench.world import SMALL

_DATABASE: Final = """
    SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'
"""


def usage(options: argparse.Namespace, folder: Path) -> list[Json]:
    """What a run uses, where many ask for one engine run, and where each has its own."""
    found = []
    for name, count in (("known", options.known_runs), ("new", options.new_worlds_runs)):
        with parity_world(options, folder / name) as world:
            more = _used(world, count, own_worlds=name == "new")
        kind = "each for an engine run of its own" if name == "new" else "for one engine run"
        how = f"{count} requests {kind} ({SMALL}); per run, a start's calls left out; value: calls to S3"
        calls = sum(more[kind] for kind in S3_CALLS)
        found.append(reported(f"usage_{name}", round(calls, 3), "S3 calls per run", how, **more))
    return found


def _used(world: ParityWorld, count: int, *, own_worlds: bool) -> dict[str, float]:
    for _ in range(2):  # the first start makes tables and more
        world.serve("--until-idle").finish()
    start, rows, objects, lines = world.counts(), _database_bytes(world), world.ledger.sizes(), _log_of(world)
    requests = [world.upload_engine_run(f"used-{number}", number)[0] for number in range(count if own_worlds else 1)]
    run_ids = [world.drop(requests[number % len(requests)], f"used-{number}") for number in range(count)]
    note(f"usage: draining {count} requests")
    asked = [path.stat().st_size for path in world.requests.iterdir()]
    took = world.drain(run_ids)
    counts, stored, logged = world.counts(), world.ledger.sizes(), _log_of(world)
    signals = [path.stat().st_size for path in world.signals.iterdir()]
    totals = {
        **{kind: counts.get(kind, 0) - start.get(kind, 0) for kind in (*S3_CALLS, "postgres.statements")},
        "ledger_objects": len(stored) - len(objects),
        "ledger_bytes": sum(stored) - sum(objects),
        "database_bytes": _database_bytes(world) - rows,
        "log_lines": logged[0] - lines[0],
        "log_bytes": logged[1] - lines[1],
        "request_records": len(asked),
        "request_bytes": sum(asked),
        "signal_records": len(signals),
        "signal_bytes": sum(signals),
        "cpu_ms": took.cpu * 1000,
    }
    return {name: round(max(0.0, total) / count, 3) for name, total in totals.items()}


def _database_bytes(world: ParityWorld) -> int:
    return int(world.query(_DATABASE)[0][0])


def _log_of(world: ParityWorld) -> tuple[int, int]:
    data = world.logs[-1].read_bytes()
    return data.count(b"\n"), len(data)
