"""One engine run of large outputs: GB/s when it is new, seconds when it is known, memory."""

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sr_tools.bench.daemon import Daemon
from sr_tools.bench.references import openssl_seconds
from sr_tools.bench.report import MICROS, Json, cores, note, result, rss_result
from sr_tools.bench.world import RACY_SECONDS, World

#: Files below this size are left out of the reference: starting a process for each would be what is measured.
_LARGE_FILE_BYTES: Final = 1_000_000


@dataclass(frozen=True)
class Taken:
    """One request on the large run: run id, seconds from admission to READY sent, seconds from drop to READY seen."""

    run_id: str
    admitted_to_ready: float
    drop_to_ready: float


@dataclass(frozen=True)
class Round:
    """A profile that has never seen the large run: cold, warm, warm in a new process, peak memory, and openssl."""

    cold: Taken
    warm: list[Taken]
    warm_new_process: Taken
    peak: int
    openssl: float


def large(options: argparse.Namespace, folder: Path) -> list[Json]:
    """One engine run of large outputs: cold GB/s, warm seconds, memory."""
    first = World.make(folder / "engine", options)
    note(f"large: writing 9 parts of {options.large_part_mb} MB")
    request = first.make_engine_run("large", 0, part_bytes=options.large_part_mb * 1_000_000)
    files = [path for path in Path(request["engine_run_root"]).rglob("*") if path.is_file()]
    files.sort(key=lambda path: -path.stat().st_size)  # the largest first, so that no core idles at the end
    big = [path for path in files if path.stat().st_size >= _LARGE_FILE_BYTES] or files
    openssl_seconds(big)  # brings every file into the page cache
    time.sleep(RACY_SECONDS)
    rounds = []
    for number in range(options.large_rounds):
        world = World.make(folder / f"round-{number}", options, first.runs)
        rounds.append(_round(world, request, big, options.large_warm))
        last = rounds[-1]
        note(f"large: round {number}: cold {last.cold.admitted_to_ready:.3f} s, openssl {last.openssl:.3f} s")
    return _results(rounds, sum(path.stat().st_size for path in files), sum(path.stat().st_size for path in big))


def _round(world: World, request: Json, files: Sequence[Path], warm: int) -> Round:
    """Measure one round; ``openssl`` is the faster of a run before and a run after the cold request."""
    before = openssl_seconds(files)
    with world.serve() as daemon:
        daemon.wait_for_start()
        cold = _take(world, request, "cold", daemon)
        after = openssl_seconds(files)
        time.sleep(RACY_SECONDS)
        again = [_take(world, request, f"warm-{number}", daemon) for number in range(warm)]
        peak = daemon.stop().peak_rss
    with world.serve() as daemon:
        daemon.wait_for_start()
        new = _take(world, request, "warm-new-process", daemon)
        daemon.stop()
    world.check([item.run_id for item in (cold, *again, new)])
    return Round(cold, again, new, peak, min(before, after))


def _take(world: World, request: Json, key: str, daemon: Daemon) -> Taken:
    """Drop one request into a running daemon's spool and wait for its READY."""
    before = set(world.ready())
    started = time.perf_counter()
    run_id = world.drop(request, key)
    # A listing every 2 ms, and not the database: what is timed must not be slowed down by whoever times it.
    daemon.until(
        lambda: set(os.listdir(world.signals) if world.signals.is_dir() else ()) - before,
        f"no READY for {key}",
        pause=0.002,
    )
    seen = time.perf_counter() - started
    ((admitted, sent),) = daemon.until(lambda: world.times(f"r.run_id = '{run_id}'"), f"READY for {key} is not sent")
    return Taken(run_id, (sent - admitted) / MICROS, seen)


def _results(rounds: Sequence[Round], size: int, big: int) -> list[Json]:
    """The rounds as entries of the report: ``size`` bytes read by SR, ``big`` by the reference."""
    cold = [size / item.cold.admitted_to_ready / 1e9 for item in rounds]
    reference = [big / item.openssl / 1e9 for item in rounds]
    ratio = statistics.median(ours / theirs for ours, theirs in zip(cold, reference, strict=True))
    how = (
        f"{size} bytes in the page cache, digests not known; GB/s from admission to READY sent; value: median over "
        f"{len(rounds)} fresh profiles of that over openssl in the same round"
    )
    openssl = {
        "value": round(statistics.median(reference), 3),
        "unit": "GB/s",
        "each": [round(value, 3) for value in reference],
        "how": f"`xargs -n 1 -P {cores()} openssl dgst -sha256` over the same files just before and after: the faster",
    }
    whole = [round(size / item.cold.drop_to_ready / 1e9, 3) for item in rounds]
    return [
        result("large_cold", ratio, "of openssl", ">= 0.9", how, met=ratio >= 0.9, bytes=size,
               gb_per_second=round(statistics.median(cold), 3), gb_per_second_each=[round(value, 3) for value in cold],
               gb_per_second_drop_to_ready=whole, reference=openssl),
        _warm("large_warm", [seen for item in rounds for seen in item.warm],
              "another request on the same engine run, same process: median seconds from admission to READY"),
        _warm("large_warm_new_process", [item.warm_new_process for item in rounds],
              "the first request of a new process on the same profile: median seconds from admission to READY"),
        rss_result("large_peak_rss", max(item.peak for item in rounds), f"peak resident memory, {size} bytes read"),
    ]  # fmt: skip


def _warm(name: str, taken: Sequence[Taken], how: str) -> Json:
    """Seconds of requests on artifacts that were digested before."""
    seconds = [item.admitted_to_ready for item in taken]
    value = statistics.median(seconds)
    return result(
        name, value, "s", "<= 0.05", how, met=value <= 0.05, each=[round(item, 4) for item in seconds],
        drop_to_ready_seconds=round(statistics.median(item.drop_to_ready for item in taken), 4),
    )  # fmt: skip
