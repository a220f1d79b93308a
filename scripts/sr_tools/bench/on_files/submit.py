"""Many requests into a spool."""

import argparse
import json
from pathlib import Path

from sr_tools.bench.references import bare_files
from sr_tools.bench.report import Json, note, result
from sr_tools.bench.submissions import require_all, submit_file
from sr_tools.bench.world import World


def submit(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Requests a second that ``submit --jsonl`` drops durably into a spool in which no daemon works."""
    count, world = options.submit_requests, World.make(folder, options)
    note(f"submit: {count} requests")
    done = submit_file(world, count)
    files = {str(path): json.loads(path.read_bytes()) for path in world.requests.glob("*.json")}
    require_all(done.records, list(files), "files in the spool")
    require_all(done.run_ids, [item["partition_key"] for item in files.values()], "runs in the spool")
    how = f"{count} requests of one file; value: requests over the wall time of the whole `submit --jsonl`"
    bare = bare_files(world.root / "bare", count)
    rate = count / done.seconds
    return [result("submit", rate, "requests/s", ">= 2000", how, met=rate >= 2000, wall_seconds=round(done.seconds, 3),
                   file_bytes=done.data_bytes, reference=bare)]  # fmt: skip
