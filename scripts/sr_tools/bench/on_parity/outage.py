"""Postgres goes away while requests keep coming: nothing is lost, and how soon it goes on."""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sr_tools.bench.daemon import Usage
from sr_tools.bench.on_parity.postgres import OutageProxy
from sr_tools.bench.on_parity.world import ParityWorld, parity_world
from sr_tools.bench.report import MICROS, CheckFailedError, Json, note, result
from sr_tools.bench.world import RACY_SECONDS

#: Seconds for which requests come before and after the outage.
AROUND_SECONDS: Final = 3
#: Microseconds after the cut within which a statement that was under way may still have been committed.
UNDER_WAY_US: Final = MICROS // 2


@dataclass(frozen=True)
class Outage:
    """When the database was away, on its own clock."""

    cut_us: int
    back_us: int


def outage(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Postgres goes away and comes back."""
    seconds, rate = options.outage_seconds, options.outage_rate
    proxy = OutageProxy(options.place.dsn)
    with parity_world(options, folder, proxy) as world:
        request, _ = world.upload_engine_run("outage", 0)
        time.sleep(RACY_SECONDS)
        with world.serve() as daemon, ThreadPoolExecutor(1) as pool:
            daemon.wait_for_start()
            dropping = pool.submit(world.drop_steadily, request, "outage", rate, seconds + 2 * AROUND_SECONDS)
            time.sleep(AROUND_SECONDS)
            note(f"outage: Postgres goes away for {seconds:g} s while {rate:g} requests/s come")
            away = _take_away(world, proxy, seconds)
            run_ids = dropping.result()
            world.wait_until_sent(daemon, len(run_ids))
            usage = daemon.stop()
        world.check(run_ids)
        rows = world.query("SELECT admitted_us, updated_us FROM runs WHERE state = 'READY' ORDER BY admitted_us")
    proxy.close()
    return outage_results(away, rows, len(run_ids), usage)


def _take_away(world: ParityWorld, proxy: OutageProxy, seconds: float) -> Outage:
    """Cut and refuse connections for a while."""
    cut = world.now_us()
    proxy.close()
    time.sleep(seconds)
    back = world.now_us()
    proxy.open()
    return Outage(cut, back)


def outage_results(away: Outage, rows: Sequence[tuple[int, ...]], dropped: int, usage: Usage) -> list[Json]:
    """What came after the outage, as entries of the report.

    Args:
        away: When the database was away.
        rows: (admitted, READY) of every run in microseconds.
        dropped: How many requests there were.
        usage: Of the daemon.

    Raises:
        CheckFailedError: Runs were admitted while the database was away.
    """
    if any(away.cut_us + UNDER_WAY_US < row[0] < away.back_us for row in rows):
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
