"""Records that come all the while, and daemons that are killed meanwhile."""

import json
import os
import random
import signal
import threading
import time
from contextlib import suppress

from sr_tools.bench.on_kinesis.daemon import KinesisDaemon
from sr_tools.bench.on_kinesis.world import KinesisWorld


class Load(threading.Thread):
    """Puts small records that are refused quickly, spread over all shards.

    Args:
        world: Where.
        total: So many; None until :meth:`finish`.
        batch: Records of one put.
        pause: Seconds between puts.
    """

    def __init__(self, world: KinesisWorld, total: int | None = None, batch: int = 20, pause: float = 0.2) -> None:
        super().__init__(daemon=True)
        self._world, self._total, self._batch, self._pause = world, total, batch, pause
        self.keys: list[str] = []
        self._enough = threading.Event()

    def run(self) -> None:
        """Put batch after batch."""
        client = self._world.endpoints.client()
        while not self._enough.is_set():
            start = len(self.keys)
            end = start + self._batch if self._total is None else min(start + self._batch, self._total)
            if start == end:
                return
            batch = [json.dumps({"n": n}).encode() for n in range(start, end)]
            self.keys += self._world.put(*batch, client=client)
            time.sleep(self._pause)

    def finish(self) -> None:
        """Stop, unless a total was asked for: then wait for it."""
        if self._total is None:
            self._enough.set()
        self.join()


KILLS = ("record_processor", "jvm", "supervisor", "everything")
"""What :func:`kill_something` can kill."""


def kill_something(running: list[KinesisDaemon], world: KinesisWorld, chance: random.Random) -> str:
    """Kill one thing of one daemon; a supervisor that is killed is started again. Returns what it was."""
    number, what = chance.randrange(len(running)), chance.choice(KILLS)
    victim = running[number]
    with suppress(ProcessLookupError):  # it had ended by itself
        _kill(victim, what)
    if victim.ended:
        running[number] = world.serve("--role", "intake")
    return what


def _kill(victim: KinesisDaemon, what: str) -> None:
    if what == "record_processor":
        for pid in victim.processors()[:1]:
            os.kill(pid, signal.SIGKILL)
    elif what == "jvm":
        os.kill(victim.jvm(), signal.SIGKILL)
    elif what == "supervisor":
        victim.process.kill()
        victim.process.wait()
    else:
        victim.kill()
