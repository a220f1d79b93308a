"""Daemons killed at random moments while many engines run: no launch twice, no two at a time, no orphan, every verdict.

Twenty kills; ``SR_RANDOM_KILLS=1000`` for as many as one wants, ``SR_RANDOM_SEED`` for other moments. Daemons are forks
of this process: the code of the installed command, without the start of an interpreter for each of a thousand.
"""

import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from crashing import Fork, log_of, until, until_up
from engine_traces import TracedEngine, marked_processes
from invariants import Watch, check, paths_of
from support import World

pytestmark = pytest.mark.integration

GRACE = 0.5
#: Half of the shutdown is the grace; a lease that is renewed often, and runs out soon after a daemon was stopped.
WIRING: dict[str, Any] = {"lease_seconds": 3, "shutdown_seconds": 1, "poll_seconds": 0.05}
#: For keepers to see the end of their daemon and to kill what ignores SIGTERM, on a machine that has much to do.
ORPHAN_SECONDS = GRACE + 8.0
LIMIT = 1000


@dataclass
class Storm:
    """A world with an engine, and daemons that die.

    Attributes:
        in_flight: How many runs are unfinished at any time.
        killed: Kills so far.
        amid: Kills while at least one engine ran.
        ended_engines: Engines whose daemon was killed.
        continued: Daemons that were stopped past their lease and continued.
    """

    world: World
    engine: TracedEngine
    chance: random.Random
    in_flight: int = 20
    daemons: list[Fork] = field(default_factory=list)
    killed: int = 0
    amid: int = 0
    ended_engines: int = 0
    continued: int = 0
    records: list[bytes] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _orphans_at: list[tuple[float, set[str]]] = field(default_factory=list)

    def top_up(self) -> None:
        """Ask for so many more runs that enough are unfinished."""
        for _ in range(self.in_flight - self.unfinished()):
            number = len(self.records)
            self.records.append(json.dumps(self.engine.request(f"{self.world.root}-{number}")).encode())
            self.world.drop(self.records[-1], f"{number:06d}.json")

    def unfinished(self) -> int:
        """Requests whose run has no verdict yet."""
        return len(self.records) - int(self.sql("SELECT count(*) FROM runs WHERE due_us IS NULL")[0][0])

    def hurry(self) -> None:
        """The pause before another attempt grows to a minute; here it is over at once."""
        self.sql("UPDATE runs SET due_us = 0 WHERE lease_until_us = 0 AND due_us > 0")

    def sql(self, statement: str) -> list[Any]:
        try:
            with closing(sqlite3.connect(self.world.database, timeout=15)) as connection, connection:
                return connection.execute(statement).fetchall()
        except sqlite3.OperationalError:  # no daemon has made the tables yet
            return [(0,)]

    def start(self, count: int) -> None:
        """Start daemons until there are so many."""
        while len(self.daemons) < count:
            self.daemons.append(Fork(self.world))

    def await_moment(self) -> None:
        """Mostly wait until a daemon has launched an engine, then a while; sometimes only a while."""
        if self.chance.random() < 0.75:
            with suppress(AssertionError):  # all engines may belong to the other daemon
                until(lambda: any(self.launched_by(one.pid) for one in self.daemons), "an engine runs", seconds=4)
        time.sleep(self.chance.uniform(0.0, 1.2))

    @staticmethod
    def launched_by(daemon: int) -> set[str]:
        """Attempts whose keeper is a child of a daemon."""
        return {attempt for pid, attempt in marked_processes().items() if _stat(pid)[1] == str(daemon)}

    def kill(self) -> None:
        """Kill one daemon, and remember what it had launched."""
        victim = self.daemons.pop(self.chance.randrange(len(self.daemons)))
        victim.send_signal(signal.SIGSTOP)  # what it starts between the next line and its end would not be remembered
        until(lambda: _stat(victim.pid)[0] in "TZ", "it is stopped")
        running = self.launched_by(victim.pid)
        if self.chance.random() < 0.1:  # past its lease: another daemon takes its runs over, and it finds that out
            self.continued += 1
            time.sleep(WIRING["lease_seconds"] + 0.5)
            victim.send_signal(signal.SIGCONT)
            time.sleep(self.chance.uniform(0, 0.3))
        victim.kill()
        if victim.wait() != -signal.SIGKILL:
            self.problems.append(f"a daemon ended with {victim.returncode}: {log_of(self.world).read_text()[-3000:]}")
        self.killed += 1
        self.amid += bool(running)
        self.ended_engines += len(running)
        self._orphans_at.append((time.monotonic() + ORPHAN_SECONDS, running))

    def look_for_orphans(self, *, wait: bool = False) -> None:
        """What a daemon launched must be gone some seconds after it was killed."""
        while self._orphans_at and (wait or self._orphans_at[0][0] <= time.monotonic()):
            at, attempts = self._orphans_at.pop(0)
            while marked_processes(attempts) and time.monotonic() < at:
                time.sleep(0.05)
            if left := marked_processes(attempts):
                self.problems.append(f"engines outlived their daemon: {left}")

    def end_all(self) -> None:
        """SIGTERM; a daemon that does not end well is a problem."""
        until_up(*self.daemons)
        for one in self.daemons:
            one.send_signal(signal.SIGTERM)
        for one in self.daemons:
            if code := one.wait():
                self.problems.append(f"a daemon ended with {code}: {log_of(self.world).read_text()[-3000:]}")
        self.daemons.clear()


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[:2]
    except OSError:
        return ["Z", "0"]


@contextmanager
def storm(folder: Path, seed: int, **engine: Any) -> Iterator[Storm]:
    world = World(folder / "world", policy_changes={"attempt_limit": LIMIT})
    traced = TracedEngine(folder / "engine", **engine)
    traced.wiring(world, **WIRING)
    one = Storm(world, traced, random.Random(seed))
    try:
        yield one
    finally:
        for daemon in one.daemons:
            daemon.kill()
            daemon.wait()


@pytest.mark.timeout(7200)  # as many kills as one asks for
@pytest.mark.parametrize("daemons", [1, 2])
def test_engines_of_daemons_killed_at_random(daemons: int, tmp_path: Path) -> None:
    kills = int(os.environ.get("SR_RANDOM_KILLS", "20")) // 2
    seed = int(os.environ.get("SR_RANDOM_SEED", str(daemons)))
    in_flight = 20 if kills > 10 else 6
    with storm(tmp_path, seed, seconds=(0.3, 2.0), ignores_sigterm=0.3, leaves_daemon=0.3, breaks=0.1) as one:
        one.in_flight = in_flight
        watch, began = Watch(paths_of(one.world)), time.monotonic()
        while one.killed < kills:
            one.top_up()
            one.hurry()
            one.start(daemons)
            one.await_moment()
            one.kill()
            one.look_for_orphans()
            if one.killed % 25 == 0:
                watch.look()
                _report(one, began)
        one.start(daemons)

        def settled() -> bool:
            one.hurry()
            return one.unfinished() == 0 and one.sql("SELECT count(*) FROM outbox WHERE sent_us IS NULL") == [(0,)]

        until(settled, "every run has its verdict", seconds=600, pause=0.5)
        one.end_all()
        one.look_for_orphans(wait=True)
        _report(one, began)
        assert [*one.problems, *one.engine.problems(LIMIT)] == []
        states = one.sql("SELECT state, count(*) FROM runs GROUP BY state")
        assert states == [("READY", len(one.records))]
        assert check(paths_of(one.world), dropped=one.records, watch=watch, killed=True) == []


def _report(one: Storm, began: float) -> None:
    launches, problems = len(one.engine.launches()), [*one.problems, *one.engine.problems(LIMIT)]
    print(
        f"{one.killed} kills, {one.amid} of them amid engines, {one.ended_engines} engines lost their daemon, "
        f"{one.continued} daemons stopped past their lease, {len(one.records)} runs, {launches} launches, "
        f"{time.monotonic() - began:.0f} s, problems: {problems}",
        flush=True,
    )
