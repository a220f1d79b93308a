#!/usr/bin/env python3
"""Measure the installed ``scenario-runner`` on S3 and Postgres against its targets, and print one JSON object.

The rules are those of ``bench.py``: worlds of its own, the installed command as a subprocess, what was timed is checked
to be done, and beside every number a reference of the same process run without Scenario Runner.
"""

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Final, TypeVar

import obstore
import psycopg
from obstore.exceptions import BaseError

import bench
from bench import MICROS, CheckFailedError, Json, Usage, note, result
from parity_world import (
    THREADS,
    Door,
    Folder,
    ParityWorld,
    Place,
    UnsetError,
    drop_steadily,
    in_threads,
    parity_world,
    wait_until_sent,
)
from sr_tools.arguments import parse_size
from sr_tools.bench.delay_proxy import DelayError, delayed

T = TypeVar("T")
RANGE: Final = 8 << 20
AROUND_SECONDS: Final = 3
S3_CALLS: Final = ("s3.put", "s3.get", "s3.head", "s3.list")
BARE: Final = (
    f"no SR: the same number and mix of S3 calls (PUT-if-absent of objects as large as SR's own, GET and HEAD of \
artifacts, LIST of a run root) by a plain obstore client from {THREADS} threads; two passes, their mean"
)
EACH: Final = "every statement is a transaction of its own (autocommit), so both figures are the same by construction"


def reported(name: str, value: float, unit: str, how: str, **more: object) -> Json:
    """An entry that has no target."""
    return result(name, value, unit, "none, reported only", how, met=True, **more)


# ---------------------------------------------------------------- small runs


def calls_of(counts: Mapping[str, int]) -> int:
    """All S3 calls."""
    return sum(counts.get(kind, 0) for kind in S3_CALLS)


def start_counts(world: ParityWorld) -> dict[str, int]:
    """What a daemon asks for that finds nothing to do; the first start, which makes tables and more, does not count."""
    for _ in range(2):
        world.drain()
    return world.told()


@dataclass(frozen=True)
class Bare:
    """S3 calls without SR.

    Attributes:
        counts: How many of each kind.
        sizes: Bytes of what is put, taken in turn.
        ledger: Where objects are put.
        engine: Where artifacts are.
        roots: Artifact keys by run root.
    """

    counts: Mapping[str, int]
    sizes: Sequence[int]
    ledger: Folder
    engine: Folder
    roots: Mapping[str, Sequence[str]]

    def take(self, name: str) -> tuple[float, float]:
        """Make all calls, in a mixed order; returns seconds on the wall and of this process's CPU."""
        calls = [call for kind in S3_CALLS for call in self._calls(kind, name)]
        random.Random(0).shuffle(calls)
        started, cpu = time.perf_counter(), time.process_time()
        in_threads(THREADS, lambda call: call(), calls)
        return time.perf_counter() - started, time.process_time() - cpu

    def _calls(self, kind: str, name: str) -> list[Callable[[], object]]:
        keys, roots = [key for root in self.roots.values() for key in root], list(self.roots)
        numbers = range(self.counts.get(kind, 0))
        if kind == "s3.put":
            sizes = cycle(self.sizes)
            return [partial(self._put, self.ledger.key("bare", name, str(number)), next(sizes)) for number in numbers]
        if kind == "s3.list":
            return [partial(self._list, roots[number % len(roots)]) for number in numbers]
        call = self._get if kind == "s3.get" else self._head
        return [partial(call, keys[number % len(keys)]) for number in numbers]

    def _put(self, key: str, size: int) -> None:
        obstore.put(self.ledger.measured, key, bytes(size), mode="create", use_multipart=False)

    def _get(self, key: str) -> None:
        obstore.get(self.engine.measured, key).bytes()

    def _head(self, key: str) -> None:
        obstore.head(self.engine.measured, key)

    def _list(self, root: str) -> None:
        for _ in obstore.list(self.engine.measured, f"{root}/"):
            pass


def small_figures(
    world: ParityWorld, usage: Usage, count: int, roots: Mapping[str, Sequence[str]], start: Mapping[str, int]
) -> Json:
    """Rates, calls, cost, and the reference beside them."""
    times, counts = world.times(), world.told()
    driving = {name: max(0, number - start.get(name, 0)) for name, number in counts.items()}
    span = (times[-1][1] - min(admitted for admitted, _ in times)) / MICROS
    bare = Bare(counts, world.ledger.sizes(), world.ledger, world.engine, roots)
    taken = [bare.take(f"round-{number}") for number in range(2)]
    bare_seconds = statistics.mean(seconds for seconds, _ in taken)
    statements = round(driving.get("postgres.statements", 0) / count, 3)
    return {
        "runs": count,
        "wall_seconds": round(usage.wall, 3),
        "wall_runs_per_second": round(count / usage.wall, 1),
        "steady_seconds": round(span, 3),
        "steady_runs_per_second": round(count / span, 1),
        "cpu_seconds": round(usage.cpu, 3),
        "cpu_ms_per_run": round(usage.cpu * 1000 / count, 2),
        "peak_rss_mb": round(usage.peak_rss / 1e6, 1),
        "s3_calls_per_run": round(calls_of(driving) / count, 3),
        "s3_calls_per_run_by_operation": {kind: round(driving.get(kind, 0) / count, 3) for kind in S3_CALLS},
        "statements_per_run": statements,
        "transactions_per_run": {"value": statements, "how": EACH},
        "counts": counts,
        "counts_of_a_start": start,
        "reference": {
            "value": round(count / bare_seconds, 1),
            "unit": "runs/s",
            "calls": calls_of(counts),
            "calls_per_second": round(calls_of(counts) / bare_seconds, 1),
            "seconds_each": [round(seconds, 3) for seconds, _ in taken],
            "cpu_ms_per_run": round(min(cpu for _, cpu in taken) * 1000 / count, 2),
            "how": BARE,
        },
        "ratio_to_reference": round(bare_seconds / span, 3),
        "ratio_to_reference_whole_process": round(bare_seconds / usage.wall, 3),
    }


def known_world(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Small runs that all look at the same engine run, some rounds of it; the one with the median ratio is told."""
    rounds = [known_round(options, folder / f"{folder.name}-{number}") for number in range(options.known_rounds)]
    rounds.sort(key=lambda more: float(more["ratio_to_reference"]))
    more = rounds[(len(rounds) - 1) // 2]
    ratios = [more["ratio_to_reference"] for more in rounds]
    how = f"{options.known_runs} requests for one engine run ({bench.SMALL}) lay in the spool; {bench.RATE}"
    ratio, calls, cpu = (float(more[key]) for key in ("ratio_to_reference", "s3_calls_per_run", "cpu_ms_per_run"))
    value = f"value: bare over steady seconds, median of {len(rounds)} rounds"
    return [
        result("known_world", ratio, "of bare calls", ">= 0.7", f"{how}; {value}", met=ratio >= 0.7, ratios=ratios,
               **more),
        result("known_world_calls", calls, "S3 calls per run", "<= 8", "the daemon's own count, less a start's",
               met=calls <= 8),
        result("known_world_cpu", cpu, "ms per run", "<= 8", "user and system time of the whole process over runs",
               met=cpu <= 8),
    ]  # fmt: skip


def known_round(options: argparse.Namespace, folder: Path) -> Json:
    """One round of :func:`known_world`, in a world of its own, with its own reference."""
    count = options.known_runs
    folder.mkdir(parents=True)
    with parity_world(options, folder) as world:
        start = start_counts(world)
        request, keys = world.engine_run("known", 0)
        run_ids = [world.drop(request, f"known-{number}") for number in range(count)]
        note(f"known_world: draining {count} requests")
        usage = bench.drained(world, run_ids)
        return small_figures(world, usage, count, {root_of(request, world): list(keys)}, start)


def root_of(request: Json, world: ParityWorld) -> str:
    """Key prefix of a request's run root."""
    return str(request["engine_run_root"]).removeprefix(f"s3://{world.engine.bucket}/")


def new_worlds(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Small runs with an engine run each."""
    count = options.new_worlds_runs
    roots: dict[str, list[str]] = {}
    run_ids = []
    with parity_world(options, folder) as world:
        start = start_counts(world)
        note(f"new_worlds: making and uploading {count} engine runs")
        for number in range(count):
            request, keys = world.engine_run(f"new-{number}", number)
            roots[root_of(request, world)] = list(keys)
            run_ids.append(world.drop(request, f"new-{number}"))
        note(f"new_worlds: draining {count} requests")
        usage = bench.drained(world, run_ids)
        more = small_figures(world, usage, count, roots, start)
    how = f"{count} requests, each for an engine run of its own ({bench.SMALL}), lay in the spool; {bench.RATE}"
    files = sum(map(len, roots.values())) / count
    beyond = float(more["s3_calls_per_run"]) - files - 1
    ratio, cpu = float(more["ratio_to_reference"]), float(more["cpu_ms_per_run"])
    beyond_how = f"all S3 calls but those of a start, a GET for each of {files:g} artifacts and one LIST"
    return [
        reported("new_worlds", ratio, "of bare calls", f"{how}; value: bare over steady seconds", **more),
        result("new_worlds_calls", beyond, "S3 calls per run beyond reading", "<= 12", beyond_how, met=beyond <= 12),
        reported("new_worlds_cpu", cpu, "ms per run", "user and system time of the whole process over runs"),
    ]


# ---------------------------------------------------------------- latency


def latency(options: argparse.Namespace, folder: Path) -> list[Json]:
    """A steady stream of requests on a known world: how long each takes."""
    rate, seconds = options.rate, options.latency_seconds
    with parity_world(options, folder) as world:
        request, _ = world.engine_run("latency", 0)
        time.sleep(bench.RACY_SECONDS)
        with bench.serving(world) as served:
            bench.wait_for_start(world, served)
            first = world.drop(request, "first")
            wait_until_sent(world, served, 1)
            note(f"latency: {rate} requests/s for {seconds} s")
            run_ids = drop_steadily(world, request, "steady", rate, seconds)
            wait_until_sent(world, served, 1 + len(run_ids))
            usage = served.stop(world.log)
        world.check([first, *run_ids])
        rows = world.query(
            "SELECT r.admitted_us, r.updated_us, o.sent_us FROM runs r JOIN outbox o ON o.run_id = r.run_id "
            "WHERE o.kind = 'READY' AND r.run_equivalence_key LIKE 'steady-%'"
        )
    how = f"{len(run_ids)} requests at {rate}/s on a known world, a running daemon; from the rows of Postgres: "
    span = (max(row[0] for row in rows) - min(row[0] for row in rows)) / MICROS
    more = {"requests": len(rows), "admitted_per_second": round(len(rows) / span, 1) if span else None}
    ready, sent = ([(row[at] - row[0]) / MICROS for row in rows] for at in (1, 2))
    clock = "admitted_us to the time of the READY event, read from the database just before its commit"
    return [
        reported("latency_ready_p50", at_rank(ready, 0.5), "s", how + clock, **more, cpu_seconds=round(usage.cpu, 2)),
        reported("latency_ready_p99", at_rank(ready, 0.99), "s", how + clock, max=round(max(ready), 4)),
        reported("latency_sent_p50", at_rank(sent, 0.5), "s", f"{how}admitted_us to sent_us of READY"),
        reported("latency_sent_p99", at_rank(sent, 0.99), "s", f"{how}admitted_us to sent_us of READY",
                 max=round(max(sent), 4)),
    ]  # fmt: skip


def at_rank(values: Sequence[float], part: float) -> float:
    """A percentile by nearest rank."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


# ---------------------------------------------------------------- streaming


@dataclass(frozen=True)
class StreamRound:
    """Seconds for the same bytes: through SR, by whole objects, by ranges."""

    run_id: str
    ours: float
    whole: float
    ranged: float


def read_whole(folder: Folder, key: str) -> None:
    """Stream an object."""
    for _ in obstore.get(folder.measured, key).stream(min_chunk_size=1 << 20):
        pass


def read_range(folder: Folder, item: tuple[str, int, int]) -> None:
    """Get a part of an object."""
    key, start, end = item
    obstore.get(folder.measured, key, options={"range": (start, end)}).bytes()


def ranges_of(sizes: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Every object in parts."""
    return [(key, start, min(start + RANGE, size)) for key, size in sizes.items() for start in range(0, size, RANGE)]


def timed(readers: int, work: Callable[[T], None], items: Iterable[T]) -> float:
    """Seconds of readers that each take the next item."""
    started = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(work, items))
    return time.perf_counter() - started


def stream_round(
    world: ParityWorld, request: Json, number: int, served: bench.Served, sizes: Mapping[str, int], readers: int
) -> StreamRound:
    """One run, and the references right after it."""
    run_id = world.drop(request, f"stream-{number}")
    wait_until_sent(world, served, number + 1)
    ((admitted, ready),) = world.query(f"SELECT admitted_us, updated_us FROM runs WHERE run_id = '{run_id}'")
    whole = timed(readers, partial(read_whole, world.engine), list(sizes))
    ranged = timed(readers, partial(read_range, world.engine), ranges_of(sizes))
    taken = StreamRound(run_id, (ready - admitted) / MICROS, whole, ranged)
    note(f"streaming: round {number}: {taken.ours:.3f} s; whole objects {whole:.3f} s, ranges {ranged:.3f} s")
    return taken


def streaming(options: argparse.Namespace, folder: Path) -> list[Json]:
    """One engine run of large outputs, read again for every request."""
    readers = options.readers
    with parity_world(options, folder, digest_reuse="off") as world:
        note(f"streaming: making and uploading {options.stream_size} bytes")
        request, keys = world.engine_run("stream", 0, part_bytes=max(1, options.stream_size // 9))
        sizes = dict(sorted(keys.items(), key=lambda item: -item[1]))
        time.sleep(bench.RACY_SECONDS)
        with bench.serving(world) as served:
            bench.wait_for_start(world, served)
            numbers = range(options.stream_rounds)
            rounds = [stream_round(world, request, number, served, sizes, readers) for number in numbers]
            usage = served.stop(world.log)
        world.check([item.run_id for item in rounds])
    return streaming_results(rounds, sum(sizes.values()), readers, usage)


def streaming_results(rounds: Sequence[StreamRound], size: int, readers: int, usage: Usage) -> list[Json]:
    """The rounds as entries of the report."""
    ratio = statistics.median(item.whole / item.ours for item in rounds)
    plain = f"no SR: the same objects by the same client with {readers} readers, not hashed, right after each run: "

    def reference(name: str, how: str) -> Json:
        seconds = [getattr(item, name) for item in rounds]
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
               reference=reference("whole", "whole-object GETs, streamed"),
               reference_ranged=reference("ranged", f"GETs of {RANGE >> 20} MiB")),
        bench.rss_result("streaming_peak_rss", usage.peak_rss, f"peak resident memory, {size} bytes read each time"),
    ]  # fmt: skip


# ---------------------------------------------------------------- outage


@dataclass(frozen=True)
class Outage:
    """When the database was away, on its own clock."""

    cut_us: int
    back_us: int


def take_away(world: ParityWorld, door: Door, seconds: float) -> Outage:
    """Cut and refuse connections for a while."""
    cut = world.now_us()
    door.shut()
    time.sleep(seconds)
    back = world.now_us()
    door.open()
    return Outage(cut, back)


def outage(options: argparse.Namespace, folder: Path) -> list[Json]:
    """The database goes away while requests keep coming."""
    seconds, rate = options.outage_seconds, options.outage_rate
    door = Door(options.place.dsn)
    with parity_world(options, folder, door) as world:
        request, _ = world.engine_run("outage", 0)
        time.sleep(bench.RACY_SECONDS)
        with bench.serving(world) as served, ThreadPoolExecutor(1) as pool:
            bench.wait_for_start(world, served)
            dropping = pool.submit(drop_steadily, world, request, "outage", rate, seconds + 2 * AROUND_SECONDS)
            time.sleep(AROUND_SECONDS)
            note(f"outage: Postgres goes away for {seconds:g} s while {rate:g} requests/s come")
            away = take_away(world, door, seconds)
            run_ids = dropping.result()
            wait_until_sent(world, served, len(run_ids))
            usage = served.stop(world.log)
        world.check(run_ids)
        rows = world.query("SELECT admitted_us, updated_us FROM runs WHERE state = 'READY' ORDER BY admitted_us")
    door.shut()
    return outage_results(away, rows, len(run_ids), usage)


def outage_results(away: Outage, rows: Sequence[tuple[int, ...]], dropped: int, usage: Usage) -> list[Json]:
    """When it went on again.

    Raises:
        CheckFailedError: it went on while the database was away.
    """
    settled = away.cut_us + MICROS // 2  # what was under way when the door was shut
    if any(settled < row[0] < away.back_us for row in rows):
        raise CheckFailedError("runs were admitted while the database was away: there was no outage")
    admitted, ready = (min(row[at] for row in rows if row[at] >= away.back_us) for at in (0, 1))
    admission, first_ready = (admitted - away.back_us) / MICROS, (ready - away.back_us) / MICROS
    gone = round((away.back_us - away.cut_us) / MICROS, 2)
    all_ready = (max(row[1] for row in rows) - away.back_us) / MICROS
    how = f"{dropped} requests dropped before, during and after {gone} s without Postgres; seconds from its return to "
    lost = dropped - len(rows)
    return [
        result("outage_lost", lost, "runs", "0", "every dropped request is READY on the bus exactly once (checked)",
               met=lost == 0, dropped=dropped, outage_seconds=gone, peak_rss_mb=round(usage.peak_rss / 1e6, 1)),
        result("outage_admission", admission, "s", "<= 5", how + "the first new admission", met=admission <= 5),
        result("outage_ready", first_ready, "s", "<= 5", how + "the first READY", met=first_ready <= 5,
               seconds_to_last_ready=round(all_ready, 2)),
    ]  # fmt: skip


# ---------------------------------------------------------------- the command line

MEASUREMENTS: Final[Mapping[str, bench.Measurement]] = {
    "known_world": known_world,
    "new_worlds": new_worlds,
    "latency": latency,
    "streaming": streaming,
    "outage": outage,
}
FAILURES: Final = (*bench.FAILURES, psycopg.Error, BaseError)

DESCRIPTION: Final = """\
Measure the installed scenario-runner on S3 and Postgres: one JSON object on stdout,
progress on stderr. Engine runs and documents go to S3 and are removed again; the
authority is a schema of its own, which is dropped. Nothing else is touched.

  known_world   many requests for one engine run: rates, S3 calls and statements per run,
                beside the same calls by a plain client
  new_worlds    the same with an engine run each
  latency       requests at a steady rate: p50 and p99 to READY, and to the bus
  streaming     large outputs, all of them read: GB/s beside plain GETs
  outage        Postgres goes away and comes back: nothing lost, seconds until it goes on
"""
EPILOG: Final = """\
variables:
  SR_TEST_S3_BUCKET          bucket that may be written to (needed)
  SR_TEST_S3_PREFIX          keys begin with it
  SR_TEST_S3_ENDPOINT_URL    of an S3-compatible server; unset: AWS
  SR_TEST_S3_REGION, SR_TEST_S3_PATH_STYLE (true, false)
  SR_TEST_PG_DSN             database whose user may create schemas (needed)
  AWS_ACCESS_KEY_ID, ...     credentials, as for every AWS tool

  scripts/parity_stack.sh up && eval "$(scripts/parity_stack.sh env)"     starts both here and sets them all
  scripts/bench_parity.py --only known_world --only outage --outage-seconds 10
  scripts/bench_parity.py --only known_world --delay-ms 25                an S3 that is 25 ms away

Exit codes: 0 measurements were taken (met or not), 1 a check failed, 2 usage, or a variable is not set.
"""


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Paragraphs as written, and defaults."""


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def not_negative(text: str) -> float:
    """A number of 0 or more."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError("must not be below 0")
    return value


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench_parity.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=_Help, allow_abbrev=False
    )
    bench.add_arguments(parser, MEASUREMENTS)
    add = parser.add_argument
    for name, default, text in (
        ("known-runs", 2500, "requests of a round of known_world"),
        ("known-rounds", 3, "rounds of known_world"),
        ("new-worlds-runs", 150, "engine runs of new_worlds"),
        ("stream-rounds", 3, "times that the large run is read"),
        ("readers", max(bench.cores(), 4), "readers of the references of streaming; SR hashes with as many"),
    ):
        add(f"--{name}", type=bench.at_least_one, default=default, metavar="N", help=text)
    for name, default, text in (
        ("rate", 50, "requests per second of latency"),
        ("latency-seconds", 20, "how long they come"),
        ("outage-rate", 20, "requests per second of outage"),
        ("outage-seconds", 60, "how long Postgres is away"),
    ):
        add(f"--{name}", type=positive, default=default, metavar="N", help=text)
    add("--stream-size", type=parse_size, default=1 << 30, metavar="SIZE",
        help="bytes of outputs of streaming; K, M, G are powers of 1024")  # fmt: skip
    add("--delay-ms", type=not_negative, default=0.0, metavar="MS",
        help="answers of S3 reach daemon and references that much later; needs an endpoint of plain HTTP")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Take the measurements; returns 0 when all checks held, else 1."""
    options = build_parser().parse_args(argv)
    try:
        place = Place.from_environment(os.environ)
        with delayed(place.endpoint, options.delay_ms) as endpoint:
            options.place = replace(place, measured_endpoint=endpoint)
            return bench.run(options, MEASUREMENTS, FAILURES, {"s3_delay_ms": options.delay_ms})
    except (UnsetError, DelayError) as error:
        print(f"bench_parity.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
