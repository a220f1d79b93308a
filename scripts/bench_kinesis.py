#!/usr/bin/env python3
"""Measure the stream consumer, the real KCL between, and print one JSON object.

Runs against the endpoint that ``SR_KINESIS_ENDPOINT_URL`` (and ``SR_KINESIS_DYNAMODB_ENDPOINT_URL``) name, with the
production timings unless told otherwise. Every measurement has a stream and a world of its own, and checks that what
was timed was really done: every record has exactly one disposition.

    scripts/bench_kinesis.py --only admit,latency,start,takeover,kills [--records N] [--kill-records N]
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/services/scenario_runner"))

from streaming import ENDPOINT, WHY_NOT, KinesisWorld, client, requests_of, run_ids, seed_leases, until
from support import COMMAND

Json = dict[str, Any]
MICROS: Final = 1_000_000
RATE: Final = 20.0
LATENCY_SECONDS: Final = 30.0


def note(text: str) -> None:
    """Progress, for people."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Daemon:
    """A running ``serve``."""

    def __init__(self, world: KinesisWorld, *more: str) -> None:
        self.log = world.root / f"serve-{time.monotonic_ns()}.log"
        self.started_us = time.time_ns() // 1000
        with self.log.open("wb") as log:
            arguments = [COMMAND, "serve", "--wiring", str(world.wiring), "--policy", str(world.policy), *more]
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log, start_new_session=True)

    def _last(self, event: str) -> Json | None:
        found = None
        for line in self.log.read_text("utf-8", "replace").splitlines():
            if line.startswith("{") and f'"{event}"' in line:
                found = json.loads(line)
        return found

    def jvm(self) -> int:
        """Process id of the JVM that was started last."""
        return int(until(lambda: self._last("KCL started"), "a JVM starts")["jvm"])

    def worker_id(self) -> str:
        """Its worker id."""
        return str(until(lambda: self._last("KCL started"), "a JVM starts")["worker_id"])

    def processors(self) -> list[int]:
        """Its record processors."""
        found = subprocess.run(["pgrep", "-P", str(self.jvm())], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def vanish(self) -> None:
        """Kill everything at once, as when the machine is gone."""
        last = self._last("KCL started")
        self.process.kill()
        if last is not None:
            with suppress(ProcessLookupError):
                os.killpg(int(last["jvm"]), signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """An orderly stop."""
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(timeout=60) != 0:
            raise RuntimeError(f"serve did not stop in order; see {self.log}")


@contextmanager
def daemon(world: KinesisWorld, *more: str) -> Iterator[Daemon]:
    """A daemon that is gone in the end."""
    running = Daemon(world, *more)
    try:
        yield running
    finally:
        running.vanish()


class Bench:
    """The measurements."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.root, self.options = root, options
        self.worlds = 0

    def world(self, shards: int = 1, *, seeded: bool = True) -> KinesisWorld:
        """A new world."""
        self.worlds += 1
        world = KinesisWorld(self.root / f"world-{self.worlds}", shards=shards, timing=self.options.timing)
        if seeded:
            seed_leases(world)
        return world

    def admit(self) -> Json:
        """Records a second that are admitted from one shard with a backlog: valid requests, each a run of its own."""
        world = self.world()
        requests = requests_of(world, self.options.records)
        note(f"admit: putting {len(requests)} requests")
        keys = world.put(*requests)
        with daemon(world, "--role", "intake") as running:
            until(lambda: disposed(world) >= len(keys), "all are admitted", 600, pause=0.5)
            running.stop()
        assert world.dispositions() == dict.fromkeys(keys, "ACCEPTED")
        ((first, last),) = world.rows("SELECT min(received_us), max(received_us) FROM intake_records")
        return {"records": len(keys), "records_per_second": round(len(keys) / max((last - first) / MICROS, 0.001), 1)}

    def latency(self) -> Json:
        """From the put to READY on the stream, 20 requests a second over four engine runs that SR has seen before."""
        world = self.world()
        warm = requests_of(world, 4, key="warm", worlds=4)
        requests = [{**warm[n % 4], "run_equivalence_key": f"key-{n}"} for n in range(int(RATE * LATENCY_SECONDS))]
        put_us: dict[str, int] = {}
        with daemon(world) as running:
            world.put(*warm)
            until(lambda: len(sent(world)) >= len(warm), "the engine runs are known", 120)
            kinesis = client()
            begin = time.monotonic()
            for number, request in enumerate(requests):
                time.sleep(max(0.0, begin + number / RATE - time.monotonic()))
                (run_id,) = run_ids([request])
                put_us[run_id] = time.time_ns() // 1000
                world.put(request, kinesis=kinesis)
            until(lambda: set(put_us) <= sent(world).keys(), "READY for each", 120)
            running.stop()
        took = sorted((sent(world)[run_id] - at) / MICROS for run_id, at in put_us.items())
        return {
            "requests": len(took), "per_second": RATE, "p50_seconds": round(statistics.median(took), 3),
            "p99_seconds": round(took[int(len(took) * 0.99) - 1], 3), "max_seconds": round(took[-1], 3),
        }  # fmt: skip

    def start(self) -> Json:
        """From the command to the first record: a new application, a restart after a stop, a restart after kill -9."""
        world = self.world(seeded=False)
        found: Json = {}
        for number, name in enumerate(("first", "after_stop", "after_kill")):
            (key,) = world.put(json.dumps({"n": number}).encode())
            running = Daemon(world)
            until(lambda key=key: key in world.dispositions(), "the record is disposed of", 180, pause=0.05)
            ((at,),) = world.rows(f"SELECT received_us FROM intake_records WHERE record_key = '{key}'")
            found[f"{name}_seconds"] = round((at - running.started_us) / MICROS, 1)
            if number == 0:
                time.sleep(2)
                running.stop()
            else:
                running.vanish()
        return found

    def takeover(self) -> Json:
        """From kill -9 of one of two workers to the first record of its shard at the other one."""
        found: Json = {}
        for name in ("older_worker", "newer_worker"):
            world = self.world(shards=2)
            load = Load(world)
            with daemon(world) as one:
                until(lambda one=one, world=world: set(world.leases().values()) == {one.worker_id()}, "one has all", 90)
                with daemon(world) as two:
                    load.start()
                    until(lambda world=world: len(set(world.leases().values())) == 2, "each has a shard", 120)
                    time.sleep(5)
                    victim = one if name == "older_worker" else two
                    (shard,) = [key for key, owner in world.leases().items() if owner == victim.worker_id()]
                    victim.vanish()
                    killed_us = time.time_ns() // 1000
                    prefix = f"kinesis/{world.stream}/{shard}/"
                    time.sleep(1)
                    query = (
                        f"SELECT min(received_us) FROM intake_records WHERE record_key LIKE '{prefix}%' "
                        f"AND received_us > {killed_us + MICROS // 2}"
                    )
                    until(lambda world=world, query=query: world.rows(query) != [(None,)], "taken over", 240, pause=0.2)
                    ((at,),) = world.rows(query)
                    found[f"{name}_seconds"] = round((at - killed_us) / MICROS, 1)
            load.finish()
        return found

    def kills(self) -> Json:
        """Many records over two shards and two daemons while something is killed every few seconds."""
        world = self.world(shards=2)
        chance = random.Random(self.options.seed)
        load = Load(world, total=self.options.kill_records, batch=500, pause=0.5)
        counts = {"record_processor": 0, "jvm": 0, "supervisor": 0, "everything": 0}
        running = [Daemon(world, "--role", "intake"), Daemon(world, "--role", "intake")]
        load.start()
        began = time.monotonic()
        while load.is_alive() or disposed(world) < len(load.keys):
            if time.monotonic() - began > self.options.kill_seconds:
                break
            time.sleep(chance.uniform(4, 9))
            counts[kill_something(running, world, chance)] += 1
        load.finish()
        until(lambda: disposed(world) >= len(load.keys), "every record has a disposition", 600, pause=1.0)
        for one in running:
            one.vanish()
        found = world.dispositions()
        assert found.keys() == set(load.keys), "records are missing, or there are dispositions of no record"
        ((rows,),) = world.rows("SELECT count(*) FROM intake_records")
        return {"records": len(load.keys), "dispositions": rows, "missing": 0, "doubled": rows - len(found),
                "kills": counts, "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def kill_something(running: list[Daemon], world: KinesisWorld, chance: random.Random) -> str:
    """Kill one thing of one daemon; a supervisor that is killed is started again. Returns what it was."""
    number = chance.randrange(len(running))
    what = chance.choice(("record_processor", "jvm", "supervisor", "everything"))
    victim = running[number]
    try:
        if what == "record_processor":
            for pid in victim.processors()[:1]:
                os.kill(pid, signal.SIGKILL)
        elif what == "jvm":
            os.kill(victim.jvm(), signal.SIGKILL)
        elif what == "supervisor":
            victim.process.kill()
            victim.process.wait()
        else:
            victim.vanish()
    except ProcessLookupError:
        pass
    if victim.process.poll() is not None:
        running[number] = Daemon(world, "--role", "intake")
    return what


class Load(threading.Thread):
    """Puts small records that are refused quickly, spread over all shards."""

    def __init__(self, world: KinesisWorld, total: int = 1 << 40, batch: int = 20, pause: float = 0.2) -> None:
        super().__init__(daemon=True)
        self.world, self.total, self.batch, self.pause = world, total, batch, pause
        self.keys: list[str] = []
        self.enough = threading.Event()

    def run(self) -> None:
        """Put batch after batch."""
        kinesis = client()
        while len(self.keys) < self.total and not self.enough.is_set():
            start = len(self.keys)
            batch = [json.dumps({"n": n}).encode() for n in range(start, min(start + self.batch, self.total))]
            self.keys += self.world.put(*batch, kinesis=kinesis)
            time.sleep(self.pause)

    def finish(self) -> None:
        """Stop, unless a total was asked for: then wait for it."""
        if self.total >= 1 << 40:
            self.enough.set()
        self.join()


def disposed(world: KinesisWorld) -> int:
    """How many records have a disposition, our own signals left out."""
    rows = world.rows("SELECT count(*) FROM intake_records WHERE disposition != 'IGNORED'")
    return int(rows[0][0]) if rows else 0


def sent(world: KinesisWorld) -> dict[str, int]:
    """When READY of each run was on the stream, microseconds since the epoch."""
    return {str(run_id): int(at) for run_id, at in world.rows(
        "SELECT run_id, sent_us FROM outbox WHERE kind = 'READY' AND sent_us IS NOT NULL")}  # fmt: skip


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="admit,latency,start,takeover,kills")
    parser.add_argument("--records", type=int, default=10_000, help="requests of the measurement 'admit'")
    parser.add_argument("--kill-records", type=int, default=100_000, help="records of the measurement 'kills'")
    parser.add_argument("--kill-seconds", type=float, default=240, help="after so long nothing more is killed")
    parser.add_argument("--timing", choices=["production", "fast"], default="production")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if not ENDPOINT:
        sys.exit(f"error: {WHY_NOT}")
    root = Path(tempfile.mkdtemp(prefix="sr-bench-kinesis-"))
    bench = Bench(root, options)
    results: Json = {"machine": {"cores": os.cpu_count(), "python": platform.python_version()},
                     "timing": options.timing, "endpoint": ENDPOINT}  # fmt: skip
    measurements: dict[str, Callable[[], Json]] = {
        "admit": bench.admit, "latency": bench.latency, "start": bench.start, "takeover": bench.takeover,
        "kills": bench.kills,
    }  # fmt: skip
    for name in options.only.split(","):
        note(name)
        results[name] = measurements[name]()
        note(f"{name}: {results[name]}")
    shutil.rmtree(root)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
