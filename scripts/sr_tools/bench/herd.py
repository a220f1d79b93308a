"""A herd: very many runs that wait for roots that are absent, and what they cost an idle daemon."""

import argparse
import hashlib
import http.client
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from sr_tools.bench.daemon import Daemon
from sr_tools.bench.many_runs import Row, Rows, States, Template
from sr_tools.bench.processes import cpu_of
from sr_tools.bench.report import MICROS, Json, note, result
from sr_tools.bench.scraper import free_port
from sr_tools.bench.world import World, run_id_of

_MOST_CPU, _MOST_CALLS, _MOST_LINES = 5.0, 10.0, 1.0
#: The waits began between three hours and one hour ago, and end in a day.
_OLDEST_US, _YOUNGEST_US, _LEFT_US = 10_800 * MICROS, 3600 * MICROS, 86_400 * MICROS
#: The longest pause of a run whose root is not looked at in rounds: no measurement takes as long.
_BACK_OFF_US: Final = 600 * MICROS
#: Examinations that such a run has behind it, with a pause of a minute.
_WAKES: Final = 60
#: A release without rounds looks at each run once a minute.
_MINUTE_US: Final = 60 * MICROS
#: A new run beside the herd is READY within this.
_READY_SECONDS: Final = 30.0
_S3: Final = ("s3.get", "s3.head", "s3.list", "s3.put")
_SHOWN: Final = (*_S3, "roots.looked_at", "runs.examined_in_vain", "postgres.statements")


@dataclass(frozen=True)
class Herd:
    """A herd in a world.

    Attributes:
        world: Whose authority holds it.
        request: Of a new run whose evidence is there.
        where: For the report.
        database_cpu: Seconds of CPU of the database's processes that serve the daemon.
        root: Where its runs wait, or the first of them.
    """

    world: World
    request: Json
    where: str
    database_cpu: Callable[[], float]
    root: str


def waiting_template(world: World) -> dict[str, Template]:
    """Drive a run until it waits for a root that is absent; its rows, under its state.

    Its evidence lies elsewhere: in the one engine run of the world.
    """
    request = {**world.make_engine_run("waits", 0), "engine_run_root": str(world.runs / "nothing")}
    run_id = world.drop(request, "waits")
    world.serve("--until-idle").finish()
    with closing(sqlite3.connect(world.root / "authority.db")) as connection:
        template = Template.of(connection, run_id)
    return {template.state(): template}


def evidence_of(world: World) -> Path:
    """Where the evidence of these runs lies, as long as the world has no other engine run."""
    (path,) = world.runs.glob("local_full_run-*/*")
    return path


def name_of(what: str, number: int) -> str:
    """A name of a folder, as random as the ids of engine runs are."""
    return hashlib.sha256(f"{what} {number}".encode()).hexdigest()[:24]


def root_of(base: str, number: int) -> str:
    """One of the roots in their folder."""
    return f"{base}/{name_of('absent', number)}"


def rows_of(base: str, *, same_root: bool, in_rounds: bool = True) -> Rows:
    """What makes the rows of a herd whose roots lie in a folder: one root for all runs, or one for each.

    Args:
        base: The folder.
        same_root: Whether all runs wait for one root.
        in_rounds: Whether the roots are looked at in rounds; else the runs are due in some minutes.
    """
    return partial(_rows, base, same_root, in_rounds)


def _rows(
    base: str,
    same_root: bool,  # noqa: FBT001 - of rows_of
    in_rounds: bool,  # noqa: FBT001
    templates: Mapping[str, Template],
    count: int,
    now_us: int,
    _states: States,
) -> Iterator[tuple[str, Row]]:
    (template,) = templates.values()
    run = template.rows["runs"][0]
    old_root = json.loads(run["intent"])["engine_run_root"].encode()
    for number in range(count):
        root = root_of(base, 0 if same_root else number)
        key = f"herd-{number:09d}"
        began_us = now_us - _OLDEST_US + (_OLDEST_US - _YOUNGEST_US) * number // count
        own = {"run_id": run_id_of(key), "ts_us": began_us}
        events = [{**event, **own, "details": _moved(event["details"], old_root, root)}
                  for event in template.rows["run_events"]]  # fmt: skip
        yield "runs", {
            **run, "run_id": run_id_of(key), "run_equivalence_key": key, "admitted_us": began_us,
            "updated_us": began_us, "deadline_us": now_us + _LEFT_US, "intent": _moved(run["intent"], old_root, root),
            "lease_owner": "", "lease_until_us": 0, "wakes": _WAKES, "report_digest": _report_digest(events),
            "projected_seq": run["event_seq"], **_schedule(run, root if in_rounds else "", now_us, number),
        }  # fmt: skip
        yield from (("run_events", event) for event in events)


def _schedule(run: Row, root: str, now_us: int, number: int) -> Row:
    """As the release keeps it: due at the deadline where roots are looked at in rounds, else within a minute."""
    if "absent_root" in run:
        return {"absent_root": root, "due_us": now_us + (_LEFT_US if root else _BACK_OFF_US)}
    return {"due_us": now_us + number * 7919 % _MINUTE_US}


def _moved(data: bytes, old_root: bytes, root: str) -> bytes:
    return data.replace(old_root, root.encode())


def _report_digest(events: list[Row]) -> str:
    """That of what the newest event found: equal findings leave no event."""
    report = json.loads(events[-1]["details"])["report"]
    canonical = json.dumps(report, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def measure(herd: Herd, options: argparse.Namespace) -> list[Json]:
    """Serve for a while, and compare what was used at its begin and end."""
    port = free_port()
    world = herd.world
    world.write("wiring", world.wiring() | {"health_listen": port})
    with world.serve() as daemon:
        daemon.wait_for_start()
        note(f"herd: {options.herd_warm_seconds:g} s until the daemon is steady")
        time.sleep(options.herd_warm_seconds)
        before = _reading(daemon, port, herd)
        note(f"herd: measuring for {options.herd_seconds:g} s")
        time.sleep(options.herd_seconds)
        after = _reading(daemon, port, herd)
        ready_ms = _new_run_ms(herd, daemon)
        usage = daemon.stop()
    seconds = after["at"] - before["at"]
    rates = {name: (after[name] - before[name]) / seconds for name in before if name != "at"}
    roots = "one root" if options.herd_same_root else "a root each"
    how = (
        f"{options.herd_runs} runs that wait for {roots}, absent, for 1 to 3 h, on {herd.where}; an idle daemon, "
        f"{seconds:.0f} s"
    )
    more = {f"{name.replace('.', '_')}_per_second": round(rates[name], 3) for name in _SHOWN}
    more |= {"database_cpu_percent": round(100 * rates["database_cpu"], 2), "new_run_ready_ms": round(ready_ms, 1),
             "peak_rss_mb": round(usage.peak_rss / 1e6, 1)}  # fmt: skip
    cpu, lines, calls = 100 * rates["cpu"], rates["lines"], sum(rates[name] for name in _S3)
    entries = [
        result("herd_cpu", cpu, "% of a core", f"<= {_MOST_CPU:g}", how, met=cpu <= _MOST_CPU, **more),
        result("herd_log_lines", lines, "lines/s", f"<= {_MOST_LINES:g}", how, met=lines <= _MOST_LINES),
    ]
    if not herd.where.startswith("files"):  # a file system does not count its calls
        entries.append(result("herd_s3_calls", calls, "calls/s", f"<= {_MOST_CALLS:g}", how, met=calls <= _MOST_CALLS))
    return entries


def _reading(daemon: Daemon, port: int, herd: Herd) -> dict[str, float]:
    """What was used until now."""
    counts = _operations(port)
    return {
        "at": time.perf_counter(), "cpu": cpu_of(daemon.process.pid), "database_cpu": herd.database_cpu(),
        "lines": daemon.log.read_bytes().count(b"\n"), **{name: counts.get(name, 0.0) for name in _SHOWN},
    }  # fmt: skip


def _operations(port: int) -> dict[str, float]:
    """Values of ``sr_operations_total`` by their label."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        if name == "sr_operations_total":
            label, _, value = rest.partition("} ")
            found[label.partition('"')[2].rstrip('"')] = float(value)
    return found


def _new_run_ms(herd: Herd, daemon: Daemon) -> float:
    """From the admission of a new run beside the herd to its READY on the bus."""
    herd.world.drop(herd.request, "beside")
    times: list[tuple[int, int]] = []

    def sent() -> Any:  # noqa: ANN401 - true once it is
        times[:] = herd.world.times()
        return times

    daemon.until(sent, "a new run beside the herd was not READY", seconds=_READY_SECONDS, pause=0.05)
    admitted, published = times[0]
    return (published - admitted) / 1000
