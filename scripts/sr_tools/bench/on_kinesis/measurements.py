"""The measurements on a stream; each has a stream and a world of its own."""

import argparse
import json
import random
import statistics
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from sr_tools.bench.on_kinesis.daemon import KinesisDaemon
from sr_tools.bench.on_kinesis.load import KILLS, Load, kill_something
from sr_tools.bench.on_kinesis.world import Endpoints, KinesisWorld
from sr_tools.bench.report import MICROS, CheckFailedError, Json, note
from sr_tools.bench.subject import Subject
from sr_tools.bench.submissions import require_all, submit_file
from sr_tools.bench.world import run_id_of
from sr_tools.waiting import until

#: Requests a second of the measurement of latency, and for how many seconds.
RATE, LATENCY_SECONDS = 20.0, 30.0
#: Seconds between kills: long enough for KCL to come back sometimes, and to be hit while it comes back at other times.
KILL_PAUSE: Final = (4.0, 9.0)


@dataclass
class Measurements:
    """What all measurements share.

    Attributes:
        root: Folder for worlds.
        subject: What is measured.
        endpoints: Where Kinesis and DynamoDB are.
        options: Of the command.
    """

    root: Path
    subject: Subject
    endpoints: Endpoints
    options: argparse.Namespace
    _worlds: int = field(default=0, init=False)

    def _world(self, shards: int = 1, *, leases: bool = True) -> KinesisWorld:
        self._worlds += 1
        return KinesisWorld.on_stream(
            self.root / f"world-{self._worlds}", self.subject, self.endpoints,
            shards=shards, timing=self.options.timing, leases=leases,
        )  # fmt: skip

    def submit(self) -> Json:
        """Requests a second that `submit --jsonl` puts into one shard, and the same records put by boto3 alone."""
        world = self._world(leases=False)
        count = self.options.records
        done = submit_file(world, count)
        found = world.records()
        require_all(done.records, [key for key, _ in found], "records on the stream")
        require_all(done.run_ids, [json.loads(data)["partition_key"] for _, data in found], "runs on the stream")
        bare = self._world(leases=False)
        client = bare.endpoints.client()
        started = time.perf_counter()
        bare.put(*(data for _, data in found), client=client)
        alone = time.perf_counter() - started
        return {
            "requests": count, "wall_seconds": round(done.seconds, 3),
            "requests_per_second": round(count / done.seconds, 1),
            "boto3_alone_per_second": round(count / alone, 1),
        }  # fmt: skip

    def admit(self) -> Json:
        """Records a second that are admitted from one shard with a backlog: valid requests, each a run of its own."""
        world = self._world()
        requests = world.requests_for(self.options.records)
        note(f"admit: putting {len(requests)} requests")
        keys = world.put(*requests)
        with world.serve("--role", "intake") as running:
            until(lambda: world.disposed() >= len(keys), "all are admitted", 600, pause=0.5)
            running.stop()
        if world.dispositions() != dict.fromkeys(keys, "ACCEPTED"):
            raise CheckFailedError("not every record was accepted once")
        ((first, last),) = world.query("SELECT min(received_us), max(received_us) FROM intake_records")
        return {"records": len(keys), "records_per_second": round(len(keys) / max((last - first) / MICROS, 0.001), 1)}

    def latency(self) -> Json:
        """From the put to READY on the stream, 20 requests a second over four engine runs that SR has seen before."""
        world = self._world()
        warm = world.requests_for(4, key="warm", worlds=4)
        with world.serve() as running:
            world.put(*warm)
            until(lambda: len(world.sent()) >= len(warm), "the engine runs are known", 120)
            put_us = _put_steadily(world, warm)
            until(lambda: set(put_us) <= world.sent().keys(), "READY for each", 120)
            running.stop()
        sent = world.sent()
        took = sorted((sent[run_id] - at) / MICROS for run_id, at in put_us.items())
        return {
            "requests": len(took), "per_second": RATE, "p50_seconds": round(statistics.median(took), 3),
            "p99_seconds": round(took[int(len(took) * 0.99) - 1], 3), "max_seconds": round(took[-1], 3),
        }  # fmt: skip

    def start(self) -> Json:
        """From the command to the first record: a new application, a restart after a stop, a restart after kill -9."""
        world = self._world(leases=False)
        found: Json = {}
        for number, name in enumerate(("first", "after_stop", "after_kill")):
            (key,) = world.put(json.dumps({"n": number}).encode())
            running = world.serve()
            rows = f"SELECT received_us FROM intake_records WHERE record_key = '{key}'"
            ((at,),) = until(partial(world.query, rows), "the record is disposed of", 180, pause=0.05)
            found[f"{name}_seconds"] = round((at - running.started_us) / MICROS, 1)
            if number == 0:
                time.sleep(2)  # KCL writes its checkpoint a moment after the record
                running.stop()
            else:
                running.kill()
        return found

    def takeover(self) -> Json:
        """From kill -9 of one of two workers to the first record of its shard at the other one."""
        return {f"{name}_seconds": self._takeover(kill_older=name == "older_worker")
                for name in ("older_worker", "newer_worker")}  # fmt: skip

    def _takeover(self, *, kill_older: bool) -> float:
        world = self._world(shards=2)
        load = Load(world)
        with world.serve() as older:
            until(lambda: set(world.lease_owners().values()) == {older.worker_id()}, "one has all", 90)
            with world.serve() as newer:
                load.start()
                until(lambda: len(set(world.lease_owners().values())) == 2, "each has a shard", 120)
                time.sleep(5)  # both read and write checkpoints by then
                seconds = _seconds_without(older if kill_older else newer, world)
        load.finish()
        return seconds

    def kills(self) -> Json:
        """Many records over two shards and two daemons while something is killed every few seconds."""
        world = self._world(shards=2)
        chance = random.Random(self.options.seed)
        load = Load(world, total=self.options.kill_records, batch=500, pause=0.5)
        counts = dict.fromkeys(KILLS, 0)
        running = [world.serve("--role", "intake") for _ in range(2)]
        load.start()
        began = time.monotonic()
        while load.is_alive() or world.disposed() < len(load.keys):
            if time.monotonic() - began > self.options.kill_seconds:
                break
            time.sleep(chance.uniform(*KILL_PAUSE))
            counts[kill_something(running, world, chance)] += 1
        load.finish()
        until(lambda: world.disposed() >= len(load.keys), "every record has a disposition", 600, pause=1.0)
        for one in running:
            one.kill()
        found = world.dispositions()
        if found.keys() != set(load.keys):
            raise CheckFailedError("records are missing, or there are dispositions of no record")
        ((rows,),) = world.query("SELECT count(*) FROM intake_records")
        return {"records": len(load.keys), "dispositions": rows, "missing": 0, "doubled": rows - len(found),
                "kills": counts, "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def _put_steadily(world: KinesisWorld, warm: list[Json]) -> dict[str, int]:
    """Put requests at a steady rate; returns when each was put, in microseconds, by run id."""
    client, put_us = world.endpoints.client(), dict[str, int]()
    begin = time.monotonic()
    for number in range(int(RATE * LATENCY_SECONDS)):
        request = {**warm[number % len(warm)], "run_equivalence_key": f"key-{number}"}
        time.sleep(max(0.0, begin + number / RATE - time.monotonic()))
        put_us[run_id_of(f"key-{number}")] = time.time_ns() // 1000
        world.put(request, client=client)
    return put_us


def _seconds_without(victim: KinesisDaemon, world: KinesisWorld) -> float:
    """Kill a worker; seconds until a record of its shard is received by another one."""
    (shard,) = [key for key, owner in world.lease_owners().items() if owner == victim.worker_id()]
    victim.kill()
    killed_us = time.time_ns() // 1000
    time.sleep(1)
    query = (  # what the victim received is committed within half a second
        f"SELECT min(received_us) FROM intake_records WHERE record_key LIKE 'kinesis/{world.stream}/{shard}/%' "
        f"AND received_us > {killed_us + MICROS // 2}"
    )
    until(lambda: world.query(query) != [(None,)], "taken over", 240, pause=0.2)
    ((at,),) = world.query(query)
    return round((int(at) - killed_us) / MICROS, 1)
