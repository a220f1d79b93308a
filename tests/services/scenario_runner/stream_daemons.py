"""Daemons that consume a real stream: started, watched by their log, ended; what they have published; load for them."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streaming import KinesisWorld, client, records_of, seed_leases
from support import COMMAND

from sr_tools.waiting import until


def world_of(folder: Path, shards: int = 1, **wiring: Any) -> KinesisWorld:
    world = KinesisWorld(folder / "world", shards=shards, wiring_changes=wiring)
    seed_leases(world)
    return world


def junk(start: int, count: int) -> list[bytes]:
    """Records that are refused quickly, each with bytes of its own."""
    return [json.dumps({"junk": number}).encode() for number in range(start, start + count)]


class Daemon:
    """A running ``serve`` with its log in a file."""

    def __init__(self, world: KinesisWorld, *more: str) -> None:
        self.world, self.log = world, world.root / f"serve-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            arguments = ["serve", "--wiring", str(world.wiring), "--policy", str(world.policy), *more]
            self.process = subprocess.Popen([COMMAND, *arguments], stdout=log, stderr=log, start_new_session=True)

    def events(self, name: str) -> list[dict[str, Any]]:
        found = []
        for line in self.log.read_text("utf-8", "replace").splitlines():
            if line.startswith("{") and name in line:
                event = json.loads(line)
                if event["event"] == name:
                    found.append(event)
        return found

    def until_consuming(self, shards: int = 1) -> None:
        until(lambda: len({item["shard_id"] for item in self.events("consuming a shard")}) >= shards,
              f"{shards} shards are consumed", 60)  # fmt: skip

    def jvm(self) -> int:
        return int(until(lambda: self.events("KCL started"), "the JVM runs")[-1]["jvm"])

    def children(self) -> list[int]:
        """Record processors."""
        found = subprocess.run(["pgrep", "-P", str(self.jvm())], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def stop(self) -> None:
        """SIGTERM; must exit 0 and leave nothing running."""
        group = self.jvm()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=40) == 0, self.log.read_text("utf-8", "replace")[-3000:]
        assert not group_runs(group)

    def end(self) -> None:
        started = self.events("KCL started") if self.log.exists() else []
        self.process.kill()
        self.process.wait()
        for event in started:
            try:
                os.killpg(int(event["jvm"]), signal.SIGKILL)
            except ProcessLookupError:
                continue


def group_runs(group: int) -> bool:
    """True while a process of the group runs; one that nobody has waited for yet runs no more."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text("ascii", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            return True
    return False


@contextmanager
def daemon(world: KinesisWorld, *more: str) -> Iterator[Daemon]:
    running = Daemon(world, *more)
    try:
        yield running
    finally:
        running.end()


def settled(world: KinesisWorld, keys: list[str]) -> dict[str, str]:
    """Wait until every record has a disposition, and assert that there is no other one."""
    try:
        until(lambda: set(keys) <= world.dispositions().keys(), f"{len(keys)} dispositions", 90, pause=0.3)
    except AssertionError as error:
        missing = sorted(set(keys) - world.dispositions().keys())
        raise AssertionError(f"{error}: {len(missing)} missing, the first is {missing[:1]}") from error
    found = world.dispositions()
    assert found.keys() == set(keys)
    return found


def ready(world: KinesisWorld) -> list[str]:
    """Run ids of READY envelopes, one for each record on the stream."""
    found = []
    for record in records_of(world.stream, world.kinesis):
        try:
            document = json.loads(record["Data"])
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict) and document.get("attributes", {}).get("kind") == "READY":
            found.append(document["payload"]["run_id"])
    return found


class Load(threading.Thread):
    """Puts records until told to stop; every tenth is a good request."""

    def __init__(self, world: KinesisWorld, requests: list[dict[str, Any]], pause: float = 0.05) -> None:
        super().__init__(daemon=True)
        self.world, self.requests, self.pause = world, requests, pause
        self.keys: list[str] = []
        self.put = 0
        self.enough = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            kinesis = client()
            while not self.enough.is_set():
                batch: list[Any] = list(junk(self.put * 20, 19))
                if self.put < len(self.requests):
                    batch.append(self.requests[self.put])
                self.keys += self.world.put(*batch, kinesis=kinesis)
                self.put += 1
                self.enough.wait(self.pause)
        except BaseException as error:  # noqa: BLE001 - raised again by finish
            self.error = error

    def finish(self) -> list[str]:
        self.enough.set()
        self.join()
        assert self.error is None, self.error
        assert self.put >= len(self.requests)
        return self.keys
