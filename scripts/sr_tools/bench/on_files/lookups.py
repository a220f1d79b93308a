"""What a person asks of an authority that holds very many runs: time and memory of each command."""

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sr_tools.bench.many_runs import Template, apart, fill_sqlite, real_runs
from sr_tools.bench.report import MICROS, CheckFailedError, Json, note, result
from sr_tools.bench.scraper import Scraper, free_port
from sr_tools.bench.slim_runs import fill_sqlite_slim
from sr_tools.bench.world import World, run_id_of

_MOST_MB: Final = 60.0
_LIST_SECONDS: Final = 0.6
_OTHER_SECONDS: Final = 0.5
#: Most time of a scrape, how many are taken, and their pace: refreshes of what is observed fall into them.
_SCRAPE_MS, _SCRAPES, _SCRAPE_SECONDS = 20.0, 100, 0.2
#: Within this a daemon has observed its authority, and answered so many scrapes.
_OBSERVED_SECONDS: Final = 60.0


def lookups(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Every filter of ``runs list`` and every look-up command, on files and SQLite."""
    world = World.make(folder, options)
    templates = real_runs(world)
    count, now_us = options.lookups_runs, time.time_ns() // 1000
    note(f"lookups: making {count} runs")
    apart(fill_sqlite_slim if options.slim else fill_sqlite, world.root / "authority.db", templates, count, now_us)
    return ask_everything(world, templates, count, now_us, "SQLite", options.lookups_calls)


def questions(count: int, now_us: int, template: Template) -> dict[str, Sequence[str]]:
    """The commands by name; those of lists come first."""
    waits, signal = "bench-3-000000013", f"{run_id_of('bench-0-000000000')}{0:032x}"
    missing = _missing(template)
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime((now_us - count * MICROS // 20) / MICROS))
    lists = {
        "all": (), "since": ("--since", since), "until": ("--until", since), "key": ("--key", "bench-7"),
        "key_of_one": ("--key", f"bench-0-{0:09d}"), "deadline": ("--sort", "deadline"),
        "reason": ("--reason", "EVIDENCE_MISSING_DEADLINE"), "missing": ("--missing", missing),
        "missing_of_one": ("--missing", "elsewhere/13/"), "missing_of_none": ("--missing", "nowhere"),
        **{state.lower(): ("--state", state)
           for state in ("READY", "PLANNED", "VERIFYING", "WAITING_EVIDENCE", "FAILED", "QUARANTINED")},
        "failed_by_key": ("--state", "FAILED", "--key", "bench-7"),
        "failed_by_reason_since": ("--state", "FAILED", "--reason", "EVIDENCE_MISSING_DEADLINE", "--since", since),
        "ready_by_key_since": ("--state", "READY", "--key", "bench-7", "--since", since),
    }  # fmt: skip
    number = count // 2
    others = {
        "status": ("status", run_id_of(waits)), "status_by_prefix": ("status", run_id_of(waits)[:10]),
        "status_by_key": ("status", waits), "status_by_signal": ("status", signal),
        "status_by_message": ("status", f"{count - 1:064x}"), "explain": ("explain", run_id_of(waits)),
        "dead_letters": ("dead-letter", "list"),
        "dead_letters_of_reason": ("dead-letter", "list", "--reason", "AUTH_DENIED"),
        "dead_letters_of_shard": ("dead-letter", "list", "--key", "bench/shardId-000000000002"),
        "dead_letters_since": ("dead-letter", "list", "--since", since),
        "dead_letter": ("dead-letter", "show", f"bench/shardId-{2:012d}/{number - number % 100 + 50:020d}r"),
        "quarantine": ("quarantine", "list"),
        "quarantined": ("quarantine", "show", run_id_of(f"bench-3-{number - number % 100 + 33:09d}")),
    }  # fmt: skip
    return {**{f"list_{name}": ("runs", "list", *more) for name, more in lists.items()}, **others}


def _missing(template: Template) -> str:
    report = json.loads(template.rows["run_events"][-1]["details"])["report"]
    found = [item["missing"] for item in (*report["gates"], *report["outputs"]) if item.get("missing")]
    return str(found[0])


def ask_everything(
    world: World, templates: Mapping[str, Template], count: int, now_us: int, where: str, calls: int
) -> list[Json]:
    """Time of every command, called so many times, as entries of the report."""
    found = []
    for name, command in questions(count, now_us, templates["WAITING_EVIDENCE"]).items():
        most = _LIST_SECONDS if name.startswith("list_") else _OTHER_SECONDS
        runs = [_ask(world, command) for _ in range(calls)]
        seconds, peak = statistics.median(run[0] for run in runs), max(run[1] for run in runs)
        shown = " ".join(("scenario-runner", *command))
        met = seconds <= most and peak <= _MOST_MB
        found.append(result(
            f"lookup_{name}", seconds, "s", f"<= {most:g} and <= {_MOST_MB:g} MB",
            f"`{shown}` at {count} runs on {where}, median of {calls}", met=met, peak_rss_mb=round(peak, 1),
            rows=runs[0][2], cpu_seconds=round(statistics.median(run[3] for run in runs), 3),
        ))  # fmt: skip
        note(f"{name}: {seconds:.3f} s, {peak:.1f} MB, {runs[0][2]} rows")
    return [*found, _scraped(world, count, where)]


def _scraped(world: World, count: int, where: str) -> Json:
    """Time of ``/metrics`` while a daemon observes that authority, as an entry of the report."""
    port = free_port()
    world.write("wiring", world.wiring() | {"health_listen": port})
    with world.serve("--role", "intake") as daemon, Scraper(port, _SCRAPE_SECONDS) as scraper:
        daemon.until(lambda: scraper.last.get("sr_runs_waiting", 0) > 0, "/metrics never showed that runs wait",
                     seconds=_OBSERVED_SECONDS)  # fmt: skip
        scraper.times.clear()
        scraper.failed = 0  # until now the daemon started
        daemon.until(lambda: len(scraper.times) >= _SCRAPES, "/metrics did not answer", seconds=_OBSERVED_SECONDS)
        times, seen = list(scraper.times), dict(scraper.last)
        daemon.stop()
    milliseconds = statistics.median(times) * 1000
    return result(
        "lookup_metrics", milliseconds, "ms", f"<= {_SCRAPE_MS:g}",
        f"`/metrics` of a daemon (intake) at {count} runs on {where}, median of {len(times)}",
        met=milliseconds <= _SCRAPE_MS, longest_ms=round(max(times) * 1000, 1), failed=scraper.failed,
        runs_waiting=seen["sr_runs_waiting"],
    )  # fmt: skip


def _ask(world: World, command: Sequence[str]) -> tuple[float, float, int, float]:
    """Wall seconds, peak MB, rows of the answer and CPU seconds of one command.

    Raises:
        CheckFailedError: It could not answer.
    """
    arguments = [world.subject.command, *command, "--wiring", str(world.root / "wiring.yaml"), "--json"]
    began = time.perf_counter()
    with subprocess.Popen(
        arguments, env=world.subject.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        answer = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    took = time.perf_counter() - began
    if process.returncode not in (0, 1, 3, 4) or not answer:
        raise CheckFailedError(f"{' '.join(command)} ended with {process.returncode}")
    document: dict[str, Any] = json.loads(answer)
    rows = next((len(value) for value in document.values() if isinstance(value, list)), 1)
    return took, usage.ru_maxrss / 1000, rows, usage.ru_utime + usage.ru_stime
