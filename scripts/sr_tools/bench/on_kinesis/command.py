"""The command ``bench_kinesis.py``."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sr_tools.bench.on_kinesis.measurements import Measurements
from sr_tools.bench.on_kinesis.world import Endpoints
from sr_tools.bench.report import Json, machine, note
from sr_tools.bench.subject import find_command, this_checkout
from sr_tools.kinesis import NoEndpointError

DESCRIPTION: Final = """\
Measure the stream consumer, with the real KCL between, and print one JSON object.

Runs against the endpoint that SR_KINESIS_ENDPOINT_URL (and SR_KINESIS_DYNAMODB_ENDPOINT_URL) name, with the
production timings unless --timing fast is given. Every measurement has a stream and a world of its own, and checks
that what was timed was really done: every record has exactly one disposition.

    scripts/bench_kinesis.py --only submit,admit,latency,start,takeover,kills [--records N] [--kill-records N]
"""
NAMES: Final = ("submit", "admit", "latency", "start", "takeover", "kills")


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no measurement {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return names


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_kinesis.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_names, default=",".join(NAMES))
    parser.add_argument("--records", type=int, default=10_000, help="requests of the measurements 'submit' and 'admit'")
    parser.add_argument("--kill-records", type=int, default=100_000, help="records of the measurement 'kills'")
    parser.add_argument("--kill-seconds", type=float, default=240, help="after so long nothing more is killed")
    parser.add_argument("--timing", choices=["production", "fast"], default="production")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Take the measurements; returns 0, or 1 when there is no endpoint. A failed check ends in its error."""
    options = _build_parser().parse_args(argv)
    try:
        endpoints = Endpoints.from_environment(os.environ)
    except NoEndpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    root = Path(tempfile.mkdtemp(prefix="sr-bench-kinesis-"))
    take = Measurements(root, this_checkout(find_command()), endpoints, options)
    measurements: dict[str, Callable[[], Json]] = {name: getattr(take, name) for name in NAMES}
    results: Json = {"machine": machine(), "timing": options.timing, "endpoint": endpoints.kinesis}
    for name in options.only:
        note(name)
        results[name] = measurements[name]()
        note(f"{name}: {results[name]}")
    shutil.rmtree(root)
    print(json.dumps(results, indent=2))
    return 0
