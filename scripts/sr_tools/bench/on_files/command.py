"""The command ``bench.py``."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Final

from sr_tools.arguments import at_least_one, positive
from sr_tools.bench.harness import FAILURES, Bench, Measurement, add_arguments, run
from sr_tools.bench.on_files.engines import engines
from sr_tools.bench.on_files.growth import growth
from sr_tools.bench.on_files.help_time import help_time
from sr_tools.bench.on_files.herd import herd, woken
from sr_tools.bench.on_files.large_run import large
from sr_tools.bench.on_files.lookups import lookups
from sr_tools.bench.on_files.one_shot import one_shot
from sr_tools.bench.on_files.rebuild import rebuild
from sr_tools.bench.on_files.reemit import reemit
from sr_tools.bench.on_files.retention import retention
from sr_tools.bench.on_files.small_runs import drain, one_world, own_worlds
from sr_tools.bench.on_files.soak import soak
from sr_tools.bench.on_files.submit import submit
from sr_tools.bench.on_files.telemetry import telemetry

MEASUREMENTS: Final[Mapping[str, Measurement]] = {
    "one_world": one_world,
    "own_worlds": own_worlds,
    "drain": drain,
    "submit": submit,
    "large": large,
    "help": help_time,
    "one_shot": one_shot,
    "engines": engines,
    "lookups": lookups,
    "reemit": reemit,
    "retention": retention,
    "rebuild": rebuild,
    "soak": soak,
    "telemetry": telemetry,
    "growth": growth,
    "herd": herd,
    "woken": woken,
}
#: See :class:`~sr_tools.bench.harness.Bench`.
ON_REQUEST: Final = ("one_shot", "engines", "lookups", "reemit", "retention", "rebuild", "soak", "telemetry",
                      "growth", "herd", "woken")  # fmt: skip


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.py",
        description="Measure the installed scenario-runner; one JSON object on stdout, progress on stderr.",
        epilog=f"Taken only when named with --only: {', '.join(ON_REQUEST)}. "
        "Exit codes: 0 measurements were taken (met or not), 1 a check failed, 2 usage.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser, MEASUREMENTS)
    add = parser.add_argument
    for name, default, text in (
        ("one-world-runs", 2000, "small runs on one engine run"),
        ("own-worlds-runs", 400, "small runs with an engine run each"),
        ("own-worlds-daemons", 1, "daemons of this host that serve them together"),
        ("drain-runs", 10_000, "requests in the spool of `drain`; at least 10"),
        ("submit-requests", 10_000, "requests of the file of `submit`"),
        ("large-part-mb", 230, "MB (10^6) per part of the large run; it has 9 parts"),
        ("large-rounds", 3, "fresh profiles that are asked for the large run"),
        ("large-warm", 5, "further requests per round"),
        ("one-shot-calls", 6, "calls of `run`; at least 2"),
        ("engines", 200, "engines in flight"),
        ("lookups-runs", 1_000_000, "runs in the database of `lookups`; at least 1000"),
        ("lookups-calls", 5, "calls of each command of `lookups`; the median counts"),
        ("engines-other-runs", 2000, "small runs beside them"),
        ("reemit-runs", 10_000, "READYs that are published again"),
        ("retention-rows", 1_000_000, "records of `retention`; at least 100"),
        ("rebuild-runs", 10_000, "runs that `rebuild` restores"),
        ("growth-runs", 1_000_000, "ended runs in the full authority of `growth`"),
        ("growth-requests", 2000, "small runs on each authority of `growth`"),
        ("herd-runs", 100_000, "waiting runs of `herd`"),
        ("woken-runs", 4000, "waiting runs that `woken` makes due at once"),
        ("herd-siblings", 1000, "engine runs beside their absent roots"),
        ("telemetry-runs", 2000, "small runs of each daemon of `telemetry`"),
    ):
        add(f"--{name}", type=at_least_one, default=default, metavar="N", help=text)
    for name, amount, text in (
        ("soak-minutes", 30.0, "how long `soak` drops requests"),
        ("soak-rate", 20.0, "requests a second of `soak`"),
        ("herd-warm-seconds", 70.0, "how long the daemon of `herd` runs before it is measured"),
        ("herd-seconds", 60.0, "how long it is measured"),
    ):
        add(f"--{name}", type=positive, default=amount, metavar="N", help=text)
    add("--slim", action="store_true",
        help="runs of `growth` and `lookups` with short documents, made by the database: 2 KB each")  # fmt: skip
    add("--growth-waiting", action="store_true", help="2 of 100 runs of the full authority of `growth` wait")
    add("--herd-same-root", action="store_true", help="all runs of `herd` wait for one root")
    add("--woken-come", action="store_true", help="what the runs of `woken` wait for has come: they become READY")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Take the measurements; returns 0 when all checks held, 1 when one failed, 2 for a usage error."""
    return run(Bench("bench.py", MEASUREMENTS, FAILURES, on_request=ON_REQUEST), _build_parser().parse_args(argv))
