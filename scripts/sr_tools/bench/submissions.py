"""Many requests that are submitted at once: the file, the command, and the checks, for every control bus."""

import json
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass

from sr_tools.bench.report import CheckFailedError
from sr_tools.bench.world import World, run_id_of


@dataclass(frozen=True)
class Submitted:
    """What ``submit --jsonl`` did.

    Attributes:
        seconds: Wall time of the whole command, its start included.
        run_ids: The runs that were asked for, in the order of the file.
        records: Where each request lies.
        data_bytes: Size of the file.
    """

    seconds: float
    run_ids: list[str]
    records: list[str]
    data_bytes: int


def submit_file(world: World, count: int) -> Submitted:
    """Submit that many requests for one engine run, each under a key of its own.

    Raises:
        CheckFailedError: The command failed, or a line has not the result of its request.
    """
    request = world.make_engine_run("submitted", 0, members=2, parts=1)
    keys = [f"submitted-{number}" for number in range(count)]
    file, printed = world.root / "requests.jsonl", world.root / "results.jsonl"
    file.write_text("".join(json.dumps({**request, "run_equivalence_key": key}) + "\n" for key in keys), "utf-8")
    arguments = ["submit", "--wiring", str(world.root / "wiring.yaml"), "--jsonl", str(file)]
    with printed.open("wb") as output:
        started = time.perf_counter()
        done = subprocess.run(
            [world.subject.command, *arguments], stdout=output, stderr=subprocess.PIPE, check=False,
            env=world.subject.environment(),
        )  # fmt: skip
        seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise CheckFailedError(f"submit ended with {done.returncode}: {done.stderr[-500:].decode(errors='replace')}")
    results = [json.loads(line) for line in printed.read_bytes().splitlines()]
    run_ids = [run_id_of(key) for key in keys]
    if [item.get("run_id") for item in results] != run_ids:
        raise CheckFailedError(f"{count} requests, and the {len(results)} results are not theirs in their order")
    return Submitted(seconds, run_ids, [str(item["record"]) for item in results], file.stat().st_size)


def require_all(wanted: Collection[str], found: Collection[str], where: str) -> None:
    """Refuse a figure for requests that are not all there, once each.

    Raises:
        CheckFailedError: Says how many are missing or more than were submitted.
    """
    if sorted(wanted) != sorted(found):
        missing, extra = len(set(wanted) - set(found)), len(found) - len(set(wanted) & set(found))
        raise CheckFailedError(
            f"{len(wanted)} requests submitted, {where}: {missing} missing, {extra} doubled or unasked"
        )
