"""``scenario-runner reemit --state READY``: the signals of many runs are published again."""

import argparse
import json
import subprocess
import time
from pathlib import Path

from sr_tools.bench.report import MICROS, CheckFailedError, Json, note, reported, result
from sr_tools.bench.world import SMALL, World

_AGAIN = "SELECT min(created_us), max(sent_us), count(sent_us) FROM outbox WHERE emission = 1"


def reemit(options: argparse.Namespace, folder: Path) -> list[Json]:
    """How many READYs a second one command publishes again, without a daemon beside it and without a bound."""
    count, world = options.reemit_runs, World.make(folder, options)
    note(f"reemit: making and draining {count} runs")
    request = world.make_engine_run("shared", 0)
    world.drain([world.drop(request, f"shared-{number}") for number in range(count)])
    note("reemit: publishing them again")
    command = [
        world.subject.command, "reemit", "--wiring", str(world.root / "wiring.yaml"), "--state", "READY",
        "--since", "2020-01-01T00:00:00Z", "--reason", "bench", "--rate", "0", "--json",
    ]  # fmt: skip
    began = time.perf_counter()
    done = subprocess.run(
        command, env=world.subject.environment(), capture_output=True, check=False, timeout=world.timeout
    )
    wall = time.perf_counter() - began
    if done.returncode != 0:
        raise CheckFailedError(f"reemit exited with {done.returncode}: {done.stderr.decode()[-300:]}")
    _check(world, count, done.stdout)
    ((first_us, last_us, sent),) = world.query(_AGAIN)
    rate = sent * MICROS / max(1, last_us - first_us)
    how = (
        f"{count} runs ({SMALL}) were READY and delivered, no daemon ran; from the commit of the first act to the last "
        "signal on the spool: acts, facts views read and compared, files written and fsynced, marks"
    )
    whole = (
        "the same, of the whole command: with its start, and with the record of each run written and fsynced once more"
    )
    return [
        result("reemit", rate, "READY/s", ">= 1000", how, met=rate >= 1000, wall_seconds=round(wall, 2)),
        reported("reemit_with_records", count / wall, "READY/s", whole),
    ]


def _check(world: World, count: int, lines: bytes) -> None:
    """Every READY lies there once more, with the message id and the payload of the first.

    Raises:
        CheckFailedError: One does not.
    """
    told = [json.loads(line)["outcome"] for line in lines.splitlines()]
    if told != ["PUBLISHED"] * count:
        raise CheckFailedError(f"{count} lines were expected, {told.count('PUBLISHED')} say PUBLISHED")
    for name, first in world.ready().items():
        again = json.loads((world.signals / f"{Path(name).stem}.reemit-1.json").read_bytes())
        if (again["message_id"], again["payload"]) != (first["message_id"], first["payload"]):
            raise CheckFailedError(f"what repeats {name} differs from it")
