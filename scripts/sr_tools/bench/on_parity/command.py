"""The command ``bench_parity.py``."""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import psycopg
from obstore.exceptions import BaseError

from sr_tools.arguments import at_least_one, not_negative, parse_size, positive
from sr_tools.bench.delay_proxy import DelayError, delayed
from sr_tools.bench.harness import FAILURES, Bench, Measurement, add_arguments, run
from sr_tools.bench.lean_s3 import lean_s3
from sr_tools.bench.on_parity.growth import growth
from sr_tools.bench.on_parity.herd import herd, woken
from sr_tools.bench.on_parity.latency import latency, new_latency
from sr_tools.bench.on_parity.lookups import lookups
from sr_tools.bench.on_parity.one_shot import one_shot
from sr_tools.bench.on_parity.outage import outage
from sr_tools.bench.on_parity.place import Place, UnsetError
from sr_tools.bench.on_parity.rebuild import rebuild
from sr_tools.bench.on_parity.retention import retention
from sr_tools.bench.on_parity.small_runs import known_world, new_worlds
from sr_tools.bench.on_parity.streaming import streaming
from sr_tools.bench.on_parity.usage import usage
from sr_tools.bench.report import cores

MEASUREMENTS: Final[Mapping[str, Measurement]] = {
    "known_world": known_world,
    "new_worlds": new_worlds,
    "latency": latency,
    "new_latency": new_latency,
    "streaming": streaming,
    "outage": outage,
    "one_shot": one_shot,
    "lookups": lookups,
    "retention": retention,
    "rebuild": rebuild,
    "usage": usage,
    "growth": growth,
    "herd": herd,
    "woken": woken,
}

DESCRIPTION: Final = """\
Measure the installed scenario-runner on S3 and Postgres: one JSON object on stdout,
progress on stderr. Engine runs and documents go to S3 and are removed again; the
authority is a schema of its own, which is dropped. Nothing else is touched.

  known_world   many requests for one engine run: rates, S3 calls and statements per run,
                next to the same calls by a plain client
  new_worlds    the same with an engine run each
  latency       requests at a steady rate: p50 and p99 to READY, and to the bus
  new_latency   one request after the other, each with an engine run of its own: p50 to READY
  streaming     large outputs, all of them read: GB/s next to plain GETs
  outage        Postgres goes away and comes back: nothing lost, seconds until it goes on
  one_shot      `scenario-runner run`: one request from the command line to its verdict
  lookups       time and memory of every look-up command at a million runs; only when it is named
  retention     a million rows are removed, alone and beside a daemon; only when it is named
  rebuild       `authority rebuild` and `ledger check`: runs a second; only when it is named
  usage         calls, statements and bytes per run, for docs/cost.md; only when it is named
  growth        CPU per run with a million ended runs in the authority; only when it is named
  herd          what very many runs cost that wait for absent roots; only when it is named
  woken         how long a new run takes behind waiting ones that are woken; only when it is named
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
  scripts/bench_parity.py --only new_worlds --delay-ms 20 --jitter-ms 10  one whose answers vary
  scripts/bench_parity.py --only new_worlds --delay-ms 25 --lean-s3       one that takes little CPU of this machine

Exit codes: 0 measurements were taken (met or not), 1 a check failed, 2 usage, or a variable is not set.
"""


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Paragraphs as written, and defaults."""


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_parity.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=_Help, allow_abbrev=False
    )
    add_arguments(parser, MEASUREMENTS)
    add = parser.add_argument
    for name, default, text in (
        ("known-runs", 2500, "requests of a round of known_world"),
        ("known-rounds", 3, "rounds of known_world"),
        ("new-worlds-runs", 150, "engine runs of new_worlds"),
        ("new-latency-runs", 20, "engine runs of new_latency"),
        ("lookups-runs", 1_000_000, "runs in the schema of lookups; at least 1000"),
        ("lookups-calls", 5, "calls of each command of `lookups`; the median counts"),
        ("retention-rows", 1_000_000, "records of retention; at least 100"),
        ("growth-runs", 1_000_000, "ended runs in the full authority of `growth`"),
        ("growth-requests", 2000, "small runs on each authority of `growth`"),
        ("herd-runs", 100_000, "waiting runs of `herd`"),
        ("woken-runs", 4000, "waiting runs that `woken` makes due at once"),
        ("herd-siblings", 1000, "engine runs beside their absent roots, an object each"),
        ("rebuild-runs", 2500, "runs that rebuild restores"),
        ("one-shot-calls", 6, "calls of `run`; at least 2"),
        ("stream-rounds", 3, "times that the large run is read"),
        ("readers", max(cores(), 4), "readers of the references of streaming; SR hashes with as many"),
    ):
        add(f"--{name}", type=at_least_one, default=default, metavar="N", help=text)
    for name, default, text in (
        ("rate", 50, "requests per second of latency"),
        ("latency-seconds", 20, "how long they come"),
        ("outage-rate", 20, "requests per second of outage"),
        ("outage-seconds", 60, "how long Postgres is away"),
        ("herd-warm-seconds", 70, "how long the daemon of `herd` runs before it is measured"),
        ("herd-seconds", 60, "how long it is measured"),
    ):
        add(f"--{name}", type=positive, default=default, metavar="N", help=text)
    add("--slim", action="store_true",
        help="runs of `growth` and `lookups` with short documents, made by the database: 2 KB each")  # fmt: skip
    add("--growth-waiting", action="store_true", help="2 of 100 runs of the full authority of `growth` wait")
    add("--growth-plans", metavar="FILE", default="",
        help="explain the statements of more requests of `growth`: FILE gets the plans that read most")  # fmt: skip
    add("--herd-same-root", action="store_true", help="all runs of `herd` wait for one root")
    add("--woken-come", action="store_true", help="what the runs of `woken` wait for has come: they become READY")
    add("--stream-size", type=parse_size, default=1 << 30, metavar="SIZE",
        help="bytes of outputs of streaming; K, M, G are powers of 1024")  # fmt: skip
    add("--delay-ms", type=not_negative, default=0.0, metavar="MS",
        help="answers of S3 reach daemon and references that much later; needs an endpoint of plain HTTP")  # fmt: skip
    add(
        "--lean-s3",
        action="store_true",
        help="in the place of S3 a server of the bench's own, which takes little CPU: the client's own rate and cost",
    )
    add("--jitter-ms", type=not_negative, default=0.0, metavar="MS",
        help="mean of a random time that each of these answers takes more")  # fmt: skip
    return parser


@contextmanager
def _place_of(options: argparse.Namespace) -> Iterator[Place]:
    """S3 and Postgres, with the delay that was asked for in front of S3."""
    place = Place.from_environment(os.environ)
    if options.lean_s3:
        with lean_s3(options.delay_ms, options.jitter_ms) as (endpoint, late):
            lean = replace(place, endpoint=endpoint, measured_endpoint=late, path_style=True)
            lean.bucket_client().create_bucket(Bucket=place.bucket)
            yield lean
        return
    with delayed(place.endpoint, options.delay_ms, options.jitter_ms) as endpoint:
        yield replace(place, measured_endpoint=endpoint)


def main(argv: Sequence[str] | None = None) -> int:
    """Take the measurements.

    Returns:
        0 when all checks held, 1 when one failed, 2 for a usage error or a variable that is not set.
    """
    options = _build_parser().parse_args(argv)
    try:
        with _place_of(options) as place:
            options.place = place
            conditions = {
                "s3_delay_ms": options.delay_ms, "s3_jitter_ms": options.jitter_ms, "s3_is_lean": options.lean_s3,
            }  # fmt: skip
            failures = (*FAILURES, psycopg.Error, BaseError)
            bench = Bench(
                "bench_parity.py",
                MEASUREMENTS,
                failures,
                conditions,
                on_request=("lookups", "retention", "rebuild", "usage", "growth", "herd", "woken"),
            )
            return run(bench, options)
    except (UnsetError, DelayError) as error:
        print(f"bench_parity.py: {error}", file=sys.stderr)
        return 2
