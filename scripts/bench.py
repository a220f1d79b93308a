#!/usr/bin/env python3
"""Measure the installed ``scenario-runner`` against its targets, and print one JSON object.

Every measurement makes its own world (a profile, engine runs, requests) in a folder of its own, runs the installed
command as a subprocess, and checks that what it timed was really done: exactly the READY signals asked for, each
pointing at a facts view with the promised digest. Beside every number stands a reference that was taken in the
same process run without Scenario Runner: ``openssl dgst`` for GB/s, bare fsynced files and commits for runs/s.

This file imports nothing from ``scenario_runner``. Times from the authority are microseconds since the epoch.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import yaml

import make_engine_run

REPO: Final = Path(__file__).resolve().parent.parent
PACK: Final = REPO / "config/engine/interface_pack"
TOPIC: Final = "fp.bus.control.v1"
MICROS: Final = 1_000_000
RACY_SECONDS: Final = 2.5  # files younger than 2 s are read again by rule; older than this they need not be
RUNS_PER_COMMIT, COMMITS_PER_GROUP = 16, 5
WRITER_THREADS: Final = 8
FILE_BYTES: Final = 2048
RSS_LIMIT_MB: Final = 300
SMALL: Final = "10 gates of 6 members, 9 parts of 4 KB"
RATE: Final = "value: runs over the wall time of the whole `serve --until-idle`; steady: first admission to last READY"

Json = dict[str, Any]


class CheckFailedError(Exception):
    """What was timed was not done; the number would mean nothing."""


def note(text: str) -> None:
    """Progress, for people."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- a world


@dataclass(frozen=True)
class World:
    """One profile and everything it names, under one folder; engine runs may be shared between worlds."""

    root: Path
    runs: Path
    command: str
    timeout: float

    @classmethod
    def make(cls, root: Path, options: argparse.Namespace, runs: Path | None = None) -> "World":
        """A world, ready to serve in."""
        world = cls(root, runs or root / "runs", options.command, options.timeout)
        world.prepare()
        return world

    def prepare(self) -> None:
        """Write both profiles and the folders."""
        for folder in (self.runs, self.requests):
            folder.mkdir(parents=True, exist_ok=True)
        for name, document in (("wiring", self.wiring()), ("policy", self.policy())):
            (self.root / f"{name}.yaml").write_text(yaml.safe_dump(document), "utf-8")

    @property
    def requests(self) -> Path:
        """Where requests are dropped."""
        return self.root / "control-bus/requests"

    @property
    def signals(self) -> Path:
        """Where SR publishes."""
        return self.root / "control-bus" / TOPIC

    @property
    def store(self) -> Path:
        """The object store."""
        return self.root / "object-store"

    @property
    def log(self) -> Path:
        """What the daemon logs."""
        return self.root / "serve.log"

    def wiring(self) -> Json:
        """The wiring profile."""
        return {
            "profile_id": "bench",
            "object_store_root": str(self.store),
            "authority_store_dsn": f"sqlite:///{self.root / 'authority.db'}",
            "control_bus_kind": "spool",
            "control_bus_root": str(self.root / "control-bus"),
            "control_bus_topic": TOPIC,
            "engine_catalogue_path": str(PACK / "engine_outputs.catalogue.yaml"),
            "gate_map_path": str(PACK / "engine_gates.map.yaml"),
            "engine_contracts_root": str(PACK / "contracts"),
            "schema_root": str(REPO / "config/platform/contracts/scenario_runner"),
            "engine_roots": [str(self.runs)],
            "auth_mode": "disabled",
        }

    @staticmethod
    def policy() -> Json:
        """The policy profile."""
        policy: Json = {
            "policy_id": "bench",
            "revision": "v0",
            "reuse_policy": "ALLOW",
            "evidence_wait_seconds": 3600,
            "attempt_limit": 3,
            "traffic_output_ids": list(make_engine_run.DEFAULT_OUTPUTS),
        }
        canonical = json.dumps(policy, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return policy | {"content_digest": hashlib.sha256(canonical.encode()).hexdigest()}

    def drop(self, request: Mapping[str, Any], key: str) -> str:
        """Drop a request under a run equivalence key; returns the run id it will have."""
        data = json.dumps({**request, "run_equivalence_key": key}).encode()
        temporary = self.requests / f".{key}.tmp"
        temporary.write_bytes(data)
        temporary.rename(self.requests / f"{key}.json")
        return hashlib.sha256(f"sr_run|{key}".encode()).hexdigest()[:32]

    def serve(self, *more: str) -> "Served":
        """Start the daemon; its log goes to a file in the world."""
        arguments = [self.command, "serve", "--wiring", str(self.root / "wiring.yaml")]
        arguments += ["--policy", str(self.root / "policy.yaml"), *more]
        with self.log.open("ab") as log:
            started = time.perf_counter()
            return Served(subprocess.Popen(arguments, stdout=log, stderr=log), started, self.timeout)

    def drain(self) -> "Usage":
        """Run ``serve --until-idle`` to its end."""
        return self.serve("--until-idle").finish(self.log)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of the authority, read only; none when there is no database."""
        path = self.root / "authority.db"
        if not path.exists():
            return []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
            return connection.execute(sql).fetchall()

    def ready(self) -> dict[str, Json]:
        """Envelopes of READY by file name."""
        found = {path.name: json.loads(path.read_bytes()) for path in self.signals.glob("*.json")}
        return {name: item for name, item in found.items() if item["attributes"]["kind"] == "READY"}

    def times(self) -> list[tuple[int, int]]:
        """(admitted, published) of every READY run, in order of publishing."""
        return [
            (int(row[0]), int(row[1]))
            for row in self.query(
                "SELECT r.admitted_us, o.sent_us FROM outbox o JOIN runs r ON r.run_id = o.run_id "
                "WHERE o.kind = 'READY' AND o.sent_us IS NOT NULL ORDER BY o.sent_us"
            )
        ]

    def documents(self) -> int:
        """How many durable files SR wrote: ledger documents and signals."""
        ledger = sum(1 for path in self.store.rglob("*") if path.is_file() and ".private" not in path.parts)
        return ledger + sum(1 for _ in self.signals.glob("*.json"))

    def contents(self, refs: Sequence[str]) -> Iterator[bytes]:
        """The bytes of documents that SR wrote."""
        return ((self.store / ref).read_bytes() for ref in refs)

    def check(self, run_ids: Sequence[str]) -> None:
        """Exactly these runs are READY, once each, and every facts view has the promised digest.

        Raises:
            CheckFailedError: says what is missing, doubled or different.
        """
        envelopes = list(self.ready().values())
        found = sorted(str(item["payload"]["run_id"]) for item in envelopes)
        if found != sorted(run_ids):
            missing, extra = len(set(run_ids) - set(found)), len(found) - len(set(found) & set(run_ids))
            raise CheckFailedError(
                f"{len(run_ids)} READY expected, {len(found)} found: {missing} missing, {extra} doubled or unasked; "
                f"{log_tail(self.log)}"
            )
        views = [str(item["payload"]["facts_view_ref"]) for item in envelopes]
        for item, view, data in zip(envelopes, views, self.contents(views), strict=True):
            if hashlib.sha256(data).hexdigest() != item["attributes"]["facts_view_digest"]:
                raise CheckFailedError(f"{view} does not have the digest that READY promises")


def log_tail(path: Path) -> str:
    """The last line of a log, to say why."""
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    return f"the log ends with: {lines[-1][:300]}" if lines else "the log is empty"


# ---------------------------------------------------------------- the daemon as a subprocess


@dataclass(frozen=True)
class Usage:
    """What a finished process took: seconds and bytes."""

    wall: float
    cpu: float
    peak_rss: int


@dataclass
class Served:
    """A daemon that runs; its peak memory is sampled, since wait4's own figure includes the parent's."""

    process: subprocess.Popen[bytes]
    started: float
    timeout: float
    peak: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    sampler: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.sampler = threading.Thread(target=self._sample, daemon=True)
        self.sampler.start()

    def _sample(self) -> None:
        killed = False
        while not self.done.wait(0.05):
            self.peak = max(self.peak, high_water(self.process.pid))
            if not killed and time.perf_counter() - self.started > self.timeout:
                killed = True
                os.kill(self.process.pid, signal.SIGKILL)

    def finish(self, log: Path) -> Usage:
        """Wait for the end of the process.

        Raises:
            CheckFailedError: it did not exit with 0.
        """
        _, status, usage = os.wait4(self.process.pid, 0)
        wall = time.perf_counter() - self.started
        self.done.set()
        self.sampler.join()
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode != 0:
            raise CheckFailedError(f"serve ended with {self.process.returncode}; {log_tail(log)}")
        return Usage(wall, usage.ru_utime + usage.ru_stime, self.peak)

    def stop(self, log: Path) -> Usage:
        """Ask the daemon to stop, and wait."""
        self.process.send_signal(signal.SIGTERM)
        return self.finish(log)


@contextmanager
def serving(world: World) -> Iterator[Served]:
    """A daemon for as long as the block lasts; never left behind."""
    served = world.serve()
    try:
        yield served
    finally:
        if served.process.returncode is None:
            served.process.kill()
            served.process.wait()
            served.done.set()


def high_water(pid: int) -> int:
    """Peak resident memory of a running process in bytes; 0 when it cannot be told."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


# ---------------------------------------------------------------- references


def bare_writes(folder: Path, files: int, runs: int) -> Json:
    """Write that many durable files and commits with no SR; returns seconds and counts."""
    commits = max(1, runs * COMMITS_PER_GROUP // RUNS_PER_COMMIT)
    for name in ("temporary", "files"):
        (folder / name).mkdir(parents=True)
    started = time.perf_counter()
    with ThreadPoolExecutor(WRITER_THREADS + 1) as pool:
        committing = pool.submit(bare_commits, folder / "bare.db", commits)
        for _ in pool.map(lambda number: bare_file(str(folder), number), range(files)):
            pass
        committing.result()
    return {"files": files, "commits": commits, "seconds": round(time.perf_counter() - started, 3)}


def bare_file(folder: str, number: int) -> None:
    """One file: temporary, fsync, link, directory fsync."""
    temporary, target = f"{folder}/temporary/{number}", f"{folder}/files/{number}.json"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, bytes(FILE_BYTES))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.link(temporary, target)
    os.unlink(temporary)
    directory = os.open(f"{folder}/files", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def bare_commits(path: Path, commits: int) -> None:
    """Commits of 16 rows of 1 KB each, in WAL mode with synchronous=FULL."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, data BLOB)")
        for _ in range(commits):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO rows (data) VALUES (?)", [(bytes(1024),)] * RUNS_PER_COMMIT)
            connection.execute("COMMIT")


def openssl_seconds(files: Sequence[Path]) -> float:
    """Seconds for ``openssl dgst -sha256`` over files, one process per file, as many at once as cores."""
    names = b"".join(os.fsencode(path) + b"\0" for path in files)
    command = ["xargs", "-0", "-n", "1", "-P", str(cores()), "openssl", "dgst", "-sha256"]
    started = time.perf_counter()
    subprocess.run(command, input=names, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


# ---------------------------------------------------------------- small runs


def result(name: str, value: float, unit: str, target: str, how: str, *, met: bool, **more: object) -> Json:
    """One entry of the report."""
    return {"name": name, "value": round(value, 4), "unit": unit, "target": target, "met": met, **more, "how": how}


def make_many(world: World, count: int) -> list[str]:
    """Engine runs, each with its own identity, and a request for each; returns run ids."""
    run_ids = []
    for number in range(count):
        request = make_world_run(world, f"own-{number}", number)
        run_ids.append(world.drop(request, f"own-{number}"))
    return run_ids


def make_world_run(world: World, key: str, number: int, part_bytes: int = 4096) -> Json:
    """One engine run with an identity of its own; returns a request for it."""
    path = world.root / "request.json"
    make_engine_run.make_run(
        runs=world.runs,
        run_key=key,
        seed=1000 + number,
        manifest_fingerprint=hashlib.sha256(f"manifest {number}".encode()).hexdigest(),
        parameter_hash=hashlib.sha256(f"parameters {number}".encode()).hexdigest(),
        request=path,
        part_bytes=part_bytes,
    )
    return dict(json.loads(path.read_bytes()))


def make_shared(world: World, count: int) -> list[str]:
    """One engine run and that many requests for it under different keys; returns run ids."""
    request = make_world_run(world, "shared", 0)
    return [world.drop(request, f"shared-{number}") for number in range(count)]


def drained(world: World, run_ids: Sequence[str]) -> Usage:
    """Let the engine runs get older than the racily-clean rule, drain, and check."""
    time.sleep(RACY_SECONDS)
    usage = world.drain()
    world.check(run_ids)
    return usage


def rates(world: World, usage: Usage, count: int) -> Json:
    """Runs per second in both ways, the reference, and the cost."""
    times = world.times()
    span = (times[-1][1] - min(admitted for admitted, _ in times)) / MICROS
    files = world.documents()
    bare = bare_writes(world.root / "bare", files, count)
    return {
        "runs": count,
        "wall_seconds": round(usage.wall, 3),
        "wall_runs_per_second": round(count / usage.wall, 1),
        "steady_seconds": round(span, 3),
        "steady_runs_per_second": round(count / span, 1),
        "cpu_seconds": round(usage.cpu, 3),
        "cpu_ms_per_run": round(usage.cpu * 1000 / count, 2),
        "peak_rss_mb": round(usage.peak_rss / 1e6, 1),
        "durable_files_per_run": round(files / count, 2),
        "reference": {
            "value": round(count / bare["seconds"], 1),
            "unit": "runs/s",
            **bare,
            "how": f"no SR: the same number of files of {FILE_BYTES} bytes (temporary, fsync, link, directory fsync) "
            f"from {WRITER_THREADS} threads, beside {COMMITS_PER_GROUP} SQLite WAL FULL commits of "
            f"{RUNS_PER_COMMIT} rows of 1 KB per {RUNS_PER_COMMIT} runs",
        },
        "ratio_to_reference": round(bare["seconds"] / span, 3),
    }


def small_runs(
    name: str, target: int, how: str, make: Callable[[World, int], list[str]], count: int, world: World
) -> list[Json]:
    """Drain small runs and report their rate."""
    note(f"{name}: making {count} runs")
    run_ids = make(world, count)
    note(f"{name}: draining")
    usage = drained(world, run_ids)
    more = rates(world, usage, count)
    rate = count / usage.wall
    return [result(name, rate, "runs/s", f">= {target}", how, met=rate >= target, **more)]


def one_world(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Small runs that all look at the same engine run."""
    how = f"{options.one_world_runs} requests for one engine run ({SMALL}) lay in the spool; {RATE}"
    world = World.make(folder, options)
    return small_runs("one_world", 250, how, make_shared, options.one_world_runs, world)


def own_worlds(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Small runs with an engine run each."""
    how = f"{options.own_worlds_runs} requests, each for an engine run of its own ({SMALL}), lay in the spool; {RATE}"
    world = World.make(folder, options)
    return small_runs("own_worlds", 100, how, make_many, options.own_worlds_runs, world)


def drain(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Many requests in the spool: does the rate fall?"""
    count, world = options.drain_runs, World.make(folder, options)
    note(f"drain: {count} requests")
    usage = drained(world, make_shared(world, count))
    tenths = rate_per_tenth(world.times())
    first, middle = tenths[-1] / tenths[0], tenths[-1] / statistics.median(tenths)
    ratio = min(first, middle)  # the first tenth shares the cores with intake, so a fall could hide behind it
    how = (
        f"{count} requests on one engine run lay in the spool; rate of each tenth of the READY signals by sent time; "
        "value: the last tenth over the first, or over the median tenth: the smaller"
    )
    more: Json = {"rate_per_tenth": [round(rate, 1) for rate in tenths], "wall_seconds": round(usage.wall, 2)}
    more |= {"last_over_first": round(first, 3), "last_over_median": round(middle, 3)}
    more |= {"cpu_seconds": round(usage.cpu, 2), "wall_runs_per_second": round(count / usage.wall, 1)}
    return [
        result("drain", ratio, "ratio", ">= 0.9", how, met=ratio >= 0.9, **more),
        rss_result("drain_peak_rss", usage.peak_rss, f"peak resident memory of a daemon that drained {count} requests"),
    ]


def rate_per_tenth(times: Sequence[tuple[int, int]]) -> list[float]:
    """READY per second in each tenth of the runs; the first starts at the first admission."""
    sent = [published for _, published in times]
    edges = [len(sent) * tenth // 10 for tenth in range(11)]
    moments = [min(admitted for admitted, _ in times), *(sent[edge - 1] for edge in edges[1:])]
    return [(edges[at + 1] - edges[at]) * MICROS / max(1, moments[at + 1] - moments[at]) for at in range(10)]


def rss_result(name: str, peak: int, how: str) -> Json:
    """Peak memory against its target."""
    value = peak / 1e6
    return result(name, value, "MB", f"<= {RSS_LIMIT_MB}", how, met=value <= RSS_LIMIT_MB)


# ---------------------------------------------------------------- the large run


@dataclass
class Look:
    """One request on the large run: run id, seconds from admission to READY sent, seconds from drop to READY seen."""

    run_id: str
    admitted_to_ready: float
    drop_to_ready: float


def look(world: World, request: Json, key: str, served: Served) -> Look:
    """Drop one request into a running daemon's spool and wait for its READY."""
    before = set(world.ready())
    started = time.perf_counter()
    run_id = world.drop(request, key)
    while not set(os.listdir(world.signals) if world.signals.is_dir() else ()) - before:
        if served.process.poll() is not None or time.perf_counter() - started > world.timeout:
            raise CheckFailedError(f"no READY for {key}; {log_tail(world.log)}")
        time.sleep(0.002)
    seen = time.perf_counter() - started
    row: list[tuple[Any, ...]] = []
    while not row:
        row = world.query(
            "SELECT r.admitted_us, o.sent_us FROM outbox o JOIN runs r ON r.run_id = o.run_id "
            f"WHERE r.run_id = '{run_id}' AND o.sent_us IS NOT NULL"
        )
    return Look(run_id, (row[0][1] - row[0][0]) / MICROS, seen)


@dataclass
class LargeRound:
    """One profile that has never seen the large run: cold, warm, warm in a new process, and openssl beside them."""

    cold: Look
    warm: list[Look]
    warm_new_process: Look
    peak: int
    openssl: float


def large_round(world: World, request: Json, files: Sequence[Path], warm: int) -> LargeRound:
    """Measure one round; ``openssl`` is the faster of a run before and a run after the cold look.

    Raises:
        CheckFailedError: a READY is missing.
    """
    before = openssl_seconds(files)
    log = world.log
    with serving(world) as served:
        wait_for_start(world, served)
        cold = look(world, request, "cold", served)
        after = openssl_seconds(files)
        time.sleep(RACY_SECONDS)
        again = [look(world, request, f"warm-{number}", served) for number in range(warm)]
        peak = served.stop(log).peak_rss
    with serving(world) as served:
        wait_for_start(world, served)
        new = look(world, request, "warm-new-process", served)
        served.stop(log)
    world.check([item.run_id for item in (cold, *again, new)])
    return LargeRound(cold, again, new, peak, min(before, after))


def wait_for_start(world: World, served: Served) -> None:
    """Wait until the daemon has logged that it started."""
    log, size = world.log, 0
    deadline = time.perf_counter() + 30
    while time.perf_counter() < deadline and served.process.poll() is None:
        text = log.read_text("utf-8", "replace")
        if text.count('"started"') > text.count('"stopped"'):
            return
        size = len(text)
        time.sleep(0.01)
    raise CheckFailedError(f"the daemon did not start ({size} bytes of log); {log_tail(log)}")


def large(options: argparse.Namespace, folder: Path) -> list[Json]:
    """One engine run of large outputs: cold GB/s, warm seconds, memory."""
    first = World.make(folder / "engine", options)
    note(f"large: writing 9 parts of {options.large_part_mb} MB")
    request = make_world_run(first, "large", 0, part_bytes=options.large_part_mb * 1_000_000)
    root = Path(request["engine_run_root"])
    files = sorted((path for path in root.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
    size = sum(path.stat().st_size for path in files)
    big = [path for path in files if path.stat().st_size >= 1_000_000] or files
    openssl_seconds(big)  # brings every file into the page cache
    time.sleep(RACY_SECONDS)
    rounds = []
    for number in range(options.large_rounds):
        world = World.make(folder / f"round-{number}", options, first.runs)
        rounds.append(large_round(world, request, big, options.large_warm))
        last = rounds[-1]
        note(f"large: round {number}: cold {last.cold.admitted_to_ready:.3f} s, openssl {last.openssl:.3f} s")
    return large_results(rounds, size, sum(path.stat().st_size for path in big))


def large_results(rounds: Sequence[LargeRound], size: int, big: int) -> list[Json]:
    """The rounds as entries of the report."""
    cold = [size / item.cold.admitted_to_ready / 1e9 for item in rounds]
    reference = [big / item.openssl / 1e9 for item in rounds]
    ratio = statistics.median(ours / theirs for ours, theirs in zip(cold, reference, strict=True))
    how = (
        f"{size} bytes in the page cache, digests not known; GB/s from admission to READY sent; value: median over "
        f"{len(rounds)} fresh profiles of that over openssl in the same round"
    )
    openssl = {
        "value": round(statistics.median(reference), 3),
        "unit": "GB/s",
        "each": [round(value, 3) for value in reference],
        "how": f"`xargs -n 1 -P {cores()} openssl dgst -sha256` over the same files just before and after: the faster",
    }
    whole = [round(size / item.cold.drop_to_ready / 1e9, 3) for item in rounds]
    return [
        result("large_cold", ratio, "of openssl", ">= 0.9", how, met=ratio >= 0.9, bytes=size,
               gb_per_second=round(statistics.median(cold), 3), gb_per_second_each=[round(value, 3) for value in cold],
               gb_per_second_drop_to_ready=whole, reference=openssl),
        warm_result("large_warm", [seen for item in rounds for seen in item.warm],
                    "another request on the same engine run, same process: median seconds from admission to READY"),
        warm_result("large_warm_new_process", [item.warm_new_process for item in rounds],
                    "the first request of a new process on the same profile: median seconds from admission to READY"),
        rss_result("large_peak_rss", max(item.peak for item in rounds), f"peak resident memory, {size} bytes read"),
    ]  # fmt: skip


def warm_result(name: str, looks: Sequence[Look], how: str) -> Json:
    """Seconds of looks at artifacts that were digested before."""
    seconds = [item.admitted_to_ready for item in looks]
    value = statistics.median(seconds)
    return result(
        name, value, "s", "<= 0.05", how, met=value <= 0.05, each=[round(item, 4) for item in seconds],
        drop_to_ready_seconds=round(statistics.median(item.drop_to_ready for item in looks), 4),
    )  # fmt: skip


# ---------------------------------------------------------------- the command line's own cost


def help_time(options: argparse.Namespace, folder: Path) -> list[Json]:
    """Wall time of ``scenario-runner --help``."""
    folder.mkdir(parents=True)
    ours = [timed([options.command, "--help"]) for _ in range(7)]
    bare = [timed([sys.executable, "-c", "pass"]) for _ in range(7)]
    value = statistics.median(ours)
    reference = {"value": round(statistics.median(bare), 4), "unit": "s", "how": "median of 7 of `python -c pass`"}
    how = "median wall time of 7 `scenario-runner --help`"
    each = [round(item, 4) for item in ours]
    return [result("help", value, "s", "<= 0.3", how, met=value <= 0.3, each=each, reference=reference)]


def timed(command: Sequence[str]) -> float:
    """Seconds that a command takes.

    Raises:
        CheckFailedError: it fails.
    """
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        raise CheckFailedError(f"{' '.join(command)} ended with {done.returncode}")
    return time.perf_counter() - started


# ---------------------------------------------------------------- the report

Measurement = Callable[[argparse.Namespace, Path], list[Json]]
MEASUREMENTS: Final[Mapping[str, Measurement]] = {
    "one_world": one_world,
    "own_worlds": own_worlds,
    "drain": drain,
    "large": large,
    "help": help_time,
}


FAILURES: Final = (CheckFailedError, OSError, subprocess.SubprocessError, sqlite3.Error)


def measure(
    take: Measurement, name: str, options: argparse.Namespace, folder: Path, failures: tuple[type[Exception], ...]
) -> list[Json]:
    """One measurement in a folder of its own.

    Nothing is removed before the last measurement: some file systems (ext4 without a journal) create files more
    slowly for a while after others were removed.
    """
    note(name)
    try:
        return take(options, folder)
    except failures as error:
        note(f"{name} FAILED: {error}")
        return [{"name": name, "value": None, "met": False, "error": str(error)}]


def machine() -> Json:
    """What the numbers were taken on."""
    return {
        "cores": cores(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def find_command() -> str:
    """The installed command: beside this interpreter, else on PATH."""
    beside = Path(sys.executable).parent / "scenario-runner"
    return str(beside) if beside.exists() else shutil.which("scenario-runner") or str(beside)


def at_least_one(text: str) -> int:
    """A count of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def add_arguments(parser: argparse.ArgumentParser, measurements: Iterable[str]) -> None:
    """The options that every bench has."""
    add = parser.add_argument
    add("--only", action="append", choices=list(measurements), help="take only this measurement (repeatable)")
    add("--dir", type=Path, help="where worlds are made (default: the system's temporary folder)")
    add("--json", type=Path, metavar="FILE", help="also write the report there")
    add("--keep", action="store_true", help="do not remove the worlds")
    add("--command", default=find_command(), help="the command to measure")
    add("--timeout", type=float, default=900, metavar="S", help="seconds before a daemon counts as stuck")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench.py",
        description="Measure the installed scenario-runner; one JSON object on stdout, progress on stderr.",
        epilog="Exit codes: 0 measurements were taken (met or not), 1 a check failed, 2 usage.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser, MEASUREMENTS)
    add = parser.add_argument
    for name, default, text in (
        ("one-world-runs", 2000, "small runs on one engine run"),
        ("own-worlds-runs", 400, "small runs with an engine run each"),
        ("drain-runs", 10_000, "requests in the spool of `drain`; at least 10"),
        ("large-part-mb", 230, "MB (10^6) per part of the large run; it has 9 parts"),
        ("large-rounds", 3, "fresh profiles that look at the large run"),
        ("large-warm", 5, "further requests per round"),
    ):
        add(f"--{name}", type=at_least_one, default=default, metavar="N", help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Take the measurements; returns 0 when all checks held, else 1."""
    return run(build_parser().parse_args(argv), MEASUREMENTS, FAILURES)


def run(
    options: argparse.Namespace,
    measurements: Mapping[str, Measurement],
    failures: tuple[type[Exception], ...],
    conditions: Mapping[str, object] = MappingProxyType({}),
) -> int:
    """Take the measurements that were asked for, and print the report; 0 when all checks held, else 1."""
    if options.dir:
        options.dir.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="sr-bench-", dir=options.dir)).resolve()
    report: Json = {"machine": machine(), "command": options.command, **conditions, "results": []}
    try:
        for name in dict.fromkeys(options.only or measurements):
            report["results"] += measure(measurements[name], name, options, root / name, failures)
        report["checks_failed"] = [item["name"] for item in report["results"] if "error" in item]
        text = json.dumps(report, indent=2)
        print(text, flush=True)
        if options.json:
            options.json.write_text(text + "\n", "utf-8")
    finally:
        if not options.keep:
            note("removing the worlds")
            shutil.rmtree(root, ignore_errors=True)
    return 1 if report["checks_failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
