"""A daemon that works for half an hour while things go wrong: does its memory stay flat, and is nothing lost?"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

from sr_tools.bench.daemon import Daemon
from sr_tools.bench.on_files.soak_faults import PERIOD_SECONDS, cause, faults
from sr_tools.bench.on_files.soak_load import Load
from sr_tools.bench.processes import Sample, Sampler, Trend
from sr_tools.bench.report import Json, at_rank, note, reported, result
from sr_tools.bench.scraper import Scraper, free_port
from sr_tools.bench.world import SMALL, World, with_digest

#: Most growth of memory, in percent.
_MOST_GROWTH: Final = 5.0
_SCRAPE_SECONDS: Final = 5.0
#: A soak of five minutes or less takes thirty samples.
_SAMPLE_SECONDS, _LEAST_SAMPLES = 10.0, 30
#: How long runs wait for evidence: in a long soak, and at least in a short one, so that a fault does not outlast it.
_WAIT_SECONDS, _LEAST_WAIT_SECONDS = 60, 10
#: Seconds after the last request, beyond the wait for evidence, until everything has its verdict.
_END_SECONDS: Final = 120


@dataclass(frozen=True)
class SoakWorld(World):
    """A world whose daemon has a listener.

    Attributes:
        port: Of the listener.
        evidence_wait: Seconds that runs wait for evidence.
    """

    port: int = 0
    evidence_wait: int = _WAIT_SECONDS

    def wiring(self) -> Json:
        """The wiring profile."""
        return super().wiring() | {"health_listen": self.port}

    def prepare(self) -> None:
        """Write both profiles and the folders; the policy waits for a minute at most."""
        super().prepare()
        policy = with_digest(self.policy() | {"evidence_wait_seconds": self.evidence_wait})
        self.write("policy", policy)


def soak(options: argparse.Namespace, folder: Path) -> list[Json]:
    """A mix of requests at a steady rate, scrapes, and a fault every two minutes."""
    seconds, rate = options.soak_minutes * 60, options.soak_rate
    wait = max(_LEAST_WAIT_SECONDS, min(_WAIT_SECONDS, int(seconds / 6)))
    world = SoakWorld(folder, folder / "runs", options.subject, options.timeout + seconds, port=free_port(),
                      evidence_wait=wait)  # fmt: skip
    world.prepare()
    load = Load(world, rate, wait)
    note("soak: making the engine runs of the warm-up")
    load.prepare(seconds)
    pace = min(_SAMPLE_SECONDS, seconds / _LEAST_SAMPLES)
    note(f"soak: {rate:g} requests/s for {options.soak_minutes:g} minutes")
    with world.serve() as daemon, Scraper(world.port, _SCRAPE_SECONDS) as scraper:
        daemon.wait_for_start()
        with Sampler(daemon.process.pid, pace) as sampler:
            happened = _run(world, load, daemon, seconds)
        note("soak: waiting for the last verdicts")
        daemon.until(lambda: _is_done(world), "not everything got its verdict", seconds=wait + _END_SECONDS, pause=1)
        usage = daemon.stop()
    load.check()
    how = (
        f"{load.dropped.total()} records at {rate:g}/s ({SMALL}): {_told(load.dropped)}; faults in turn, every "
        f"{PERIOD_SECONDS:g} s at most: {_told(happened)}; /metrics scraped every {_SCRAPE_SECONDS:g} s; a sample "
        f"every {pace:g} s, median of the last fifth against that of the second. Checked: one disposition for each "
        "record, the right verdict for each run, each signal on the bus once, exit 0"
    )
    more = {
        "peak_rss_mb": round(usage.peak_rss / 1e6, 1),
        "cpu_seconds": round(usage.cpu, 1),
        "scrapes": len(scraper.times),
        "scrapes_failed": scraper.failed,
        "longest_scrape_ms": round(at_rank(scraper.times, 1.0) * 1000, 1) if scraper.times else None,
    }
    return soak_results(sampler.samples, how, more)


def _run(world: SoakWorld, load: Load, daemon: Daemon, seconds: float) -> dict[str, int]:
    """Drop requests while faults happen; returns how often each happened."""
    each = faults(world.store, world.requests.parent, world.root / "authority.db", daemon.process.pid, world.port)
    over = Event()
    with ThreadPoolExecutor(1) as pool:
        happening = pool.submit(cause, each, seconds, over)
        try:
            load.run(seconds)
        finally:
            over.set()
        return dict(happening.result())


def _is_done(world: World) -> bool:
    """Whether no record lies in the spool, no run is under way, and no signal is owed."""
    ended = "state IN ('READY', 'FAILED', 'QUARANTINED')"
    ((open_runs,),) = world.query(f"SELECT count(*) FROM runs WHERE NOT {ended}")
    ((owed,),) = world.query("SELECT count(*) FROM outbox WHERE sent_us IS NULL")
    return not open_runs and not owed and not any(world.requests.glob("*.json"))


def soak_results(samples: Sequence[Sample], how: str, more: Json) -> list[Json]:
    """What the samples show, as entries of the report.

    Args:
        samples: Of the daemon, in their order.
        how: How they were taken.
        more: Further fields of the first entry.
    """
    anonymous = Trend.of([item.anonymous for item in samples])
    more = {"heap_growth_percent": round(anonymous.growth, 2), **more}
    found = [_memory("soak_rss", [item.rss for item in samples], how, more)]
    if any(item.children for item in samples):
        counts = {"most_children": max(item.children for item in samples)}
        found.append(_memory("soak_children_rss", [item.children_rss for item in samples], "its children", counts))
    for name, values in (("files", [item.files for item in samples]), ("threads", [item.threads for item in samples])):
        trend = Trend.of(values)
        found.append(reported(f"soak_{name}", trend.late - trend.early, f"{name} more", "in the same samples",
                              early=trend.early, late=trend.late, most=max(values)))  # fmt: skip
    return found


def _memory(name: str, values: Sequence[int], how: str, more: Json) -> Json:
    trend = Trend.of(values)
    fifths = [round(value / 1e6, 1) for value in trend.medians]
    return result(name, trend.growth, "% growth", f"<= {_MOST_GROWTH:g}", how, met=trend.growth <= _MOST_GROWTH,
                  mb_by_fifth=fifths, samples=len(values), **more)  # fmt: skip


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items())) or "none"
