"""The cost of the command line itself."""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sr_tools.bench.report import CheckFailedError, Json, result

#: Times that each command runs; the median counts.
_TIMES: Final = 7


def help_time(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Wall time of ``scenario-runner --help``."""
    folder.mkdir(parents=True)
    environment = options.subject.environment()
    ours = [_seconds([options.subject.command, "--help"], environment) for _ in range(_TIMES)]
    bare = [_seconds([sys.executable, "-c", "pass"], environment) for _ in range(_TIMES)]
    value = statistics.median(ours)
    reference = {"value": round(statistics.median(bare), 4), "unit": "s", "how": "median of 7 of `python -c pass`"}
    how = "median wall time of 7 `scenario-runner --help`"
    each = [round(item, 4) for item in ours]
    return [result("help", value, "s", "<= 0.3", how, met=value <= 0.3, each=each, reference=reference)]


def _seconds(command: Sequence[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    if done.returncode != 0:
        raise CheckFailedError(f"{' '.join(command)} ended with {done.returncode}")
    return time.perf_counter() - started
