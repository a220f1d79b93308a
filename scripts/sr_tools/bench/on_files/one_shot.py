"""``scenario-runner run``: one request from the command line to its verdict."""

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

from sr_tools.bench.report import CheckFailedError, Json, result
from sr_tools.bench.world import RACY_SECONDS, SMALL, World


def one_shot(options: argparse.Namespace, folder: Path) -> list[Json]:
    """The wall time of the command, for requests on a known engine run."""
    world = World.make(folder, options)
    return [time_calls(world, world.make_engine_run("one-shot", 0), options.one_shot_calls, "files and SQLite", 1.0)]


def time_calls(world: World, request: Json, calls: int, where: str, most: float) -> Json:
    """The median time of calls after the first, as an entry of the report.

    Args:
        world: Where.
        request: On one engine run.
        calls: How many.
        where: The stores, in words.
        most: The target in seconds.
    """
    time.sleep(RACY_SECONDS)
    seconds = [_run_once(world, request, number) for number in range(calls)]
    middle = statistics.median(seconds[1:])
    how = (
        f"wall time of `scenario-runner run` on one engine run ({SMALL}), {where}; the first call makes the stores and "
        "is left out; median of the others"
    )
    more: Json = {"seconds_each": [round(item, 3) for item in seconds]}
    return result("one_shot", middle, "s", f"<= {most:g}", how, met=middle <= most, **more)


def _run_once(world: World, request: Json, number: int) -> float:
    """Wall seconds of one call that ends READY.

    Raises:
        CheckFailedError: It did not exit with 0.
    """
    path = world.root / f"one-shot-{number}.json"
    path.write_text(json.dumps({**request, "run_equivalence_key": f"one-shot-{number}"}))
    profiles = ["--wiring", str(world.root / "wiring.yaml"), "--policy", str(world.root / "policy.yaml")]
    began = time.perf_counter()
    done = subprocess.run(
        [world.subject.command, "run", str(path), *profiles, "--json"], env=world.subject.environment(),
        capture_output=True, check=False, timeout=world.timeout,
    )  # fmt: skip
    took = time.perf_counter() - began
    if done.returncode != 0:
        raise CheckFailedError(f"run exited with {done.returncode}: {done.stderr.decode()[-300:]}")
    return took
