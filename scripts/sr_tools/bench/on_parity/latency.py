"""A steady stream of requests on a known world: how long each takes."""

import argparse
import time
from pathlib import Path

from sr_tools.bench.on_parity.world import parity_world
from sr_tools.bench.report import MICROS, Json, at_rank, note, reported
from sr_tools.bench.world import RACY_SECONDS


def latency(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Requests at a steady rate: p50 and p99 to READY, and to the bus."""
    rate, seconds = options.rate, options.latency_seconds
    with parity_world(options, folder) as world:
        request, _ = world.upload_engine_run("latency", 0)
        time.sleep(RACY_SECONDS)
        with world.serve() as daemon:
            daemon.wait_for_start()
            first = world.drop(request, "first")
            world.wait_until_sent(daemon, 1)
            note(f"latency: {rate} requests/s for {seconds} s")
            run_ids = world.drop_steadily(request, "steady", rate, seconds)
            world.wait_until_sent(daemon, 1 + len(run_ids))
            usage = daemon.stop()
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
