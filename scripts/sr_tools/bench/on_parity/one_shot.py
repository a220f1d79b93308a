"""``scenario-runner run`` on S3 and Postgres."""

import argparse
from pathlib import Path

from sr_tools.bench.on_files.one_shot import time_calls
from sr_tools.bench.on_parity.world import parity_world
from sr_tools.bench.report import Json


def one_shot(options: argparse.Namespace, folder: Path) -> list[Json]:
    """The wall time of the command, for requests on a known engine run."""
    with parity_world(options, folder) as world:
        request, _ = world.upload_engine_run("one-shot", 0)
        return [time_calls(world, request, options.one_shot_calls, "S3 and Postgres", 5.0)]
