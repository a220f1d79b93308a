"""How long a request takes: many at a steady rate on a known world, and single ones on new worlds."""

import argparse
import time
from pathlib import Path
from typing import Final

from sr_tools.bench.on_parity.world import parity_world
from sr_tools.bench.report import MICROS, Json, at_rank, note, reported, result
from sr_tools.bench.world import RACY_SECONDS, SMALL

#: Seconds from admission to READY of one run on a new world, with 25 ms on S3: three times its round trips.
_NEW_SECONDS: Final = 0.35


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


def new_latency(options: argparse.Namespace, folder: Path) -> list[Json]:
    """One request after the other, each for an engine run that the daemon has not seen: p50 and the longest."""
    count = options.new_latency_runs
    with parity_world(options, folder) as world:
        note(f"new_latency: making and uploading {count + 1} engine runs")
        requests = [world.upload_engine_run(f"single-{number}", number)[0] for number in range(count + 1)]
        time.sleep(RACY_SECONDS)
        run_ids = []
        with world.serve() as daemon:
            daemon.wait_for_start()
            for number, request in enumerate(requests):  # the first opens connections, and does not count
                run_ids.append(world.drop(request, f"{'single' if number else 'first'}-{number}"))
                world.wait_until_sent(daemon, number + 1)
            usage = daemon.stop()
        world.check(run_ids)
        rows = world.query(
            "SELECT r.admitted_us, r.updated_us, o.sent_us FROM runs r JOIN outbox o ON o.run_id = r.run_id "
            "WHERE o.kind = 'READY' AND r.run_equivalence_key LIKE 'single-%'"
        )
    how = f"{count} requests one after the other, each for an engine run of its own ({SMALL}), a running daemon; from "
    ready, sent = ([(row[at] - row[0]) / MICROS for row in rows] for at in (1, 2))
    p50 = at_rank(ready, 0.5)
    return [
        result("new_latency_ready_p50", p50, "s", f"<= {_NEW_SECONDS} with 25 ms on S3", how + "admitted_us to READY",
               met=p50 <= _NEW_SECONDS, max=round(max(ready), 4), cpu_seconds=round(usage.cpu, 2)),
        reported("new_latency_sent_p50", at_rank(sent, 0.5), "s", how + "admitted_us to sent_us of READY",
                 max=round(max(sent), 4)),
    ]  # fmt: skip
