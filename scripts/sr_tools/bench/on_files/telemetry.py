"""What being watched costs: the same work with a listener that is scraped and a watchdog, and without."""

import argparse
import os
import socket
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from sr_tools.bench.daemon import Daemon
from sr_tools.bench.processes import cpu_of
from sr_tools.bench.report import CheckFailedError, Json, note, result
from sr_tools.bench.scraper import Scraper, free_port
from sr_tools.bench.world import RACY_SECONDS, SMALL, World, steady_seconds

#: What telemetry may cost, in percent.
_MOST: Final = 3.0
#: Each is first once and last once, so a machine that gets slower does so for both.
_TURNS: Final = (False, True, True, False)
_SCRAPE_SECONDS: Final = 1.0
#: Microseconds of the watchdog: systemd hears of it twice in that time.
_WATCHDOG_US: Final = 2_000_000
#: Runs before the measured ones: the engine run is known then, and all code is loaded.
_WARM_UP: Final = 100


@dataclass(frozen=True)
class WatchedWorld(World):
    """A world whose daemon may have a listener.

    Attributes:
        port: Of the listener; 0 for none.
    """

    port: int = 0

    def wiring(self) -> Json:
        """The wiring profile."""
        return super().wiring() | ({"health_listen": self.port} if self.port else {})


@dataclass(frozen=True)
class Taken:
    """What one daemon reached: runs a second, and seconds of CPU for each run."""

    rate: float
    cpu: float


class NotifySocket:
    """Receives what a daemon sends to systemd, as a context.

    Attributes:
        messages: What came.
        variables: Environment that names it to a daemon.
    """

    def __init__(self, name: str) -> None:
        self.messages: list[bytes] = []
        # An abstract name: the path of a folder may be longer than a socket's address can be.
        self.variables = {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": str(_WATCHDOG_US)}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name}")
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)

    def _run(self) -> None:
        while message := self._socket.recv(4096):
            self.messages.append(message)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RD)  # recv answers with nothing
        self._thread.join()
        self._socket.close()


def telemetry(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Small runs for one engine run: a daemon that nobody watches, and one that is watched, in turns."""
    count = options.telemetry_runs
    first = World.make(folder / "engine", options)
    request = first.make_engine_run("shared", 0)
    time.sleep(RACY_SECONDS)
    taken: dict[bool, list[Taken]] = {False: [], True: []}
    for number, watched in enumerate(_TURNS):
        world = WatchedWorld(folder / f"turn-{number}", first.runs, options.subject, options.timeout,
                             port=free_port() if watched else 0)  # fmt: skip
        taken[watched].append(_take(world, request, count))
        last = taken[watched][-1]
        note(f"telemetry: {'on' if watched else 'off'}: {last.rate:.1f} runs/s, {last.cpu * 1000:.2f} ms CPU per run")
    how = (
        f"{count} requests for one known engine run ({SMALL}) dropped while the daemon served; with health_listen, "
        f"/metrics scraped every {_SCRAPE_SECONDS:g} s and a watchdog of {_WATCHDOG_US / 1e6:g} s, against without; "
        f"{len(_TURNS)} daemons: off, on, on, off; means; "
    )
    return telemetry_results(taken, how)


def telemetry_results(taken: Mapping[bool, Sequence[Taken]], how: str) -> list[Json]:
    """What being watched costs, as entries of the report.

    Args:
        taken: By whether the daemon was watched.
        how: How it was taken.
    """
    rates = {watched: statistics.mean(item.rate for item in each) for watched, each in taken.items()}
    cpus = {watched: statistics.mean(item.cpu for item in each) * 1000 for watched, each in taken.items()}
    slower, dearer = (1 - rates[True] / rates[False]) * 100, (cpus[True] / cpus[False] - 1) * 100
    target = f"<= {_MOST:g}"
    return [
        result("telemetry_throughput", slower, "% less", target, how + "first admission to last READY",
               met=slower <= _MOST, on_runs_per_second=round(rates[True], 1),
               off_runs_per_second=round(rates[False], 1)),
        result("telemetry_cpu", dearer, "% more", target, how + "CPU from the first drop to the last READY",
               met=dearer <= _MOST, on_ms_per_run=round(cpus[True], 3), off_ms_per_run=round(cpus[False], 3)),
    ]  # fmt: skip


def _take(world: WatchedWorld, request: Json, count: int) -> Taken:
    with ExitStack() as stack:
        notify = None
        if world.port:
            notify = stack.enter_context(NotifySocket(f"sr-bench-{os.getpid()}-{world.root.name}-{world.port}"))
            world = replace(world, subject=replace(world.subject, variables=notify.variables))
        world.prepare()
        daemon = stack.enter_context(world.serve())
        daemon.wait_for_start()
        scraper = stack.enter_context(Scraper(world.port, _SCRAPE_SECONDS)) if world.port else None
        run_ids = _drop(world, daemon, request, "warm-up", _WARM_UP)
        before, scraped = cpu_of(daemon.process.pid), len(scraper.times) if scraper else 0
        run_ids += _drop(world, daemon, request, "timed", count)
        cpu = cpu_of(daemon.process.pid) - before
        daemon.stop()
    if scraper and notify:
        _require_watched(len(scraper.times) - scraped, notify.messages)
    world.check(run_ids)
    return Taken(count / steady_seconds(world.times("r.run_equivalence_key LIKE 'timed-%'")), cpu / count)


def _drop(world: World, daemon: Daemon, request: Json, name: str, count: int) -> list[str]:
    """Drop requests into a running daemon's spool, and wait until all are READY on the bus; returns run ids."""
    run_ids = [world.drop(request, f"{name}-{number}") for number in range(count)]
    # A listing, and not the database: what is timed must not be slowed down by whoever times it.
    wanted = count + (0 if name == "warm-up" else _WARM_UP)
    daemon.until(lambda: world.signals.is_dir() and len(os.listdir(world.signals)) >= wanted,
                 f"not all of {count} runs became READY", pause=0.05)  # fmt: skip
    daemon.until(lambda: len(world.times()) == wanted, "the last READY is not sent")
    return run_ids


def _require_watched(scrapes: int, messages: Sequence[bytes]) -> None:
    """Refuse a figure of a daemon that was not watched.

    Raises:
        CheckFailedError: No scrape was answered in the meantime, or systemd would not have heard of it.
    """
    told = b"\n".join(messages).split(b"\n")
    if not scrapes or b"READY=1" not in told or b"WATCHDOG=1" not in told:
        raise CheckFailedError(f"{scrapes} scrapes were answered, and {len(messages)} messages came for systemd")
