"""``authority rebuild`` and ``ledger check`` in a world whose runs are all READY."""

import json
import os
import subprocess
import time
from pathlib import Path

from sr_tools.bench.report import CheckFailedError, Json, reported, result
from sr_tools.bench.world import SMALL, World


def measure(world: World, count: int, where: str, target: int, witness: str) -> list[Json]:
    """Rebuild an empty authority, and check the ledger against it.

    Args:
        world: Its authority is empty, its ledger holds the runs.
        count: How many.
        where: What the ledger and the authority are.
        target: Runs per second.
        witness: Who must agree that a run is READY.
    """
    more = ("--policy", str(world.root / "policy.yaml"), "--reason", "bench", "--witness", witness)
    rebuilt, seconds, cpu = _run(world, "authority", "rebuild", *more)
    report = rebuilt["report"]
    if (report["restored"], report["findings"]) != (count, 0):
        raise CheckFailedError(f"{report['restored']} of {count} runs were restored, {report['findings']} findings")
    checked, check_seconds, check_cpu = _run(world, "ledger", "check")
    summary = checked["summary"]
    if (summary["runs"], summary["findings"]) != (count, 0):
        raise CheckFailedError(f"{summary['runs']} of {count} runs were compared, {summary['findings']} findings")
    rate = count / seconds
    how = (
        f"{count} READY runs ({SMALL}) of {where}, their database lost; runs over the wall time of the whole command, "
        f"READY confirmed by {witness}"
    )
    check = f"the same runs, every document and receipt read and compared with the rows; {where}"
    return [
        result("rebuild", rate, "runs/s", f">= {target}", how, met=rate >= target, wall_seconds=round(seconds, 2),
               without_start=round(count / report["seconds"], 1), cpu_ms_a_run=round(cpu * 1000 / count, 3)),
        reported("ledger_check", count / check_seconds, "runs/s", check, wall_seconds=round(check_seconds, 2),
                 cpu_ms_a_run=round(check_cpu * 1000 / count, 3)),
    ]  # fmt: skip


def _run(world: World, *arguments: str) -> tuple[Json, float, float]:
    """The last line that a command prints, its wall time, and the CPU time of it and the processes that it started."""
    command = [world.subject.command, *arguments, "--wiring", str(world.root / "wiring.yaml"), "--json"]
    began, used = time.perf_counter(), _cpu_of_children()
    done = subprocess.run(
        command, env=world.subject.environment(), capture_output=True, check=False, timeout=world.timeout
    )
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise CheckFailedError(
            f"{' '.join(arguments[:2])} exited with {done.returncode}: {done.stderr.decode()[-300:]}"
        )
    return dict(json.loads(done.stdout.splitlines()[-1])), seconds, _cpu_of_children() - used


def _cpu_of_children() -> float:
    used = os.times()
    return used.children_user + used.children_system


def lose_database(folder: Path) -> None:
    """Remove the file of an embedded authority."""
    for path in folder.glob("authority.db*"):
        path.unlink()
