"""Large outputs on S3, all of them read: GB/s next to plain GETs."""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import obstore

from sr_tools.bench.daemon import Daemon, Usage
from sr_tools.bench.on_parity.place import Folder
from sr_tools.bench.on_parity.world import ParityWorld, parity_world
from sr_tools.bench.references import timed_readers
from sr_tools.bench.report import MICROS, Json, note, result, rss_result
from sr_tools.bench.world import RACY_SECONDS

#: Bytes of a ranged GET of the reference: as many as SR reads at once from a large object.
RANGE: Final = 8 << 20
#: Parts of a small run's outputs; the bytes asked for are spread over them.
PARTS: Final = 9


@dataclass(frozen=True)
class StreamRound:
    """Seconds for the same bytes: through SR, by whole objects, by ranges."""

    run_id: str
    ours: float
    whole: float
    ranged: float


def streaming(options: argparse.Namespace, folder: Path) -> list[Json]:
    """One engine run of large outputs, read again for every request."""
    readers = options.readers
    with parity_world(options, folder, digest_reuse="off") as world:
        note(f"streaming: making and uploading {options.stream_size} bytes")
        request, keys = world.upload_engine_run("stream", 0, part_bytes=max(1, options.stream_size // PARTS))
        sizes = dict(sorted(keys.items(), key=lambda item: -item[1]))
        time.sleep(RACY_SECONDS)
        with world.serve() as daemon:
            daemon.wait_for_start()
            numbers = range(options.stream_rounds)
            rounds = [_round(world, request, number, daemon, sizes, readers) for number in numbers]
            usage = daemon.stop()
        world.check([item.run_id for item in rounds])
    return _results(rounds, sum(sizes.values()), readers, usage)


def _round(
    world: ParityWorld, request: Json, number: int, daemon: Daemon, sizes: Mapping[str, int], readers: int
) -> StreamRound:
    """One run, and the references right after it."""
    run_id = world.drop(request, f"stream-{number}")
    world.wait_until_sent(daemon, number + 1)
    ((admitted, ready),) = world.query(f"SELECT admitted_us, updated_us FROM runs WHERE run_id = '{run_id}'")
    whole = timed_readers(readers, partial(_read_whole, world.engine), list(sizes))
    ranged = timed_readers(readers, partial(_read_range, world.engine), ranges_of(sizes))
    taken = StreamRound(run_id, (ready - admitted) / MICROS, whole, ranged)
    note(f"streaming: round {number}: {taken.ours:.3f} s; whole objects {whole:.3f} s, ranges {ranged:.3f} s")
    return taken


def _read_whole(folder: Folder, key: str) -> None:
    for _ in obstore.get(folder.measured, key).stream(min_chunk_size=1 << 20):
        pass


def _read_range(folder: Folder, item: tuple[str, int, int]) -> None:
    key, start, end = item
    obstore.get(folder.measured, key, options={"range": (start, end)}).bytes()


def ranges_of(sizes: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Every object in parts: key, first byte, byte after the last."""
    return [(key, start, min(start + RANGE, size)) for key, size in sizes.items() for start in range(0, size, RANGE)]


def _results(rounds: Sequence[StreamRound], size: int, readers: int, usage: Usage) -> list[Json]:
    """The rounds as entries of the report."""
    ratio = statistics.median(item.whole / item.ours for item in rounds)
    plain = f"no SR: the same objects by the same client with {readers} readers, not hashed, right after each run: "

    def reference(seconds: Sequence[float], how: str) -> Json:
        against = statistics.median(other / item.ours for other, item in zip(seconds, rounds, strict=True))
        return {"value": round(size / statistics.median(seconds) / 1e9, 3), "unit": "GB/s", "ratio": round(against, 3),
                "seconds_each": [round(item, 3) for item in seconds], "how": plain + how}  # fmt: skip

    ours = [item.ours for item in rounds]
    how = (
        f"{size} bytes on S3, digest_reuse off; from admitted_us to the READY event; value: median over {len(rounds)} "
        "rounds of the seconds of whole-object GETs over ours"
    )
    return [
        result("streaming", ratio, "of whole-object GETs", ">= 0.8", how, met=ratio >= 0.8, bytes=size,
               gb_per_second=round(size / statistics.median(ours) / 1e9, 3),
               seconds_each=[round(item, 3) for item in ours],
               cpu_seconds_per_gb=round(usage.cpu / len(rounds) / size * 1e9, 2),
               reference=reference([item.whole for item in rounds], "whole-object GETs, streamed"),
               reference_ranged=reference([item.ranged for item in rounds], f"GETs of {RANGE >> 20} MiB")),
        rss_result("streaming_peak_rss", usage.peak_rss, f"peak resident memory, {size} bytes read each time"),
    ]  # fmt: skip
