"""Engines of runs that change hands: launched once, one at a time, none left over, whoever stops, dies or is late."""

import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from crashing import Fork, Moment, is_stopped, log_of, until, until_up
from engine_traces import TracedEngine, marked_processes
from invariants import Watch, check, paths_of
from support import World

pytestmark = pytest.mark.integration

ROWS, LEDGER = "scenario_runner.authority.sqlite:SqliteAuthority.", "scenario_runner.ledger.ledger:Ledger."
INVOKER = "scenario_runner.engine.subprocess_invoker:"
LANE = "scenario_runner.service.engine_lane:EngineLane."
EFFECTS = "scenario_runner.runs.engine_effects:EngineEffects."
WIRING: dict[str, Any] = {"lease_seconds": 2, "shutdown_seconds": 2, "poll_seconds": 0.05}
LIMIT = 20


class Scene:
    """A world with an engine, whose daemons are forks."""

    def __init__(self, folder: Path, runs: int = 1, seconds: float = 1.0, **wiring: Any) -> None:
        self.world = World(folder / "world", policy_changes={"attempt_limit": LIMIT})
        self.engine = TracedEngine(folder / "engine", seconds=(seconds, seconds))
        self.engine.wiring(self.world, **{**WIRING, **wiring})
        self.records = [json.dumps(self.engine.request(f"{folder}-{n}")).encode() for n in range(runs)]
        for number, record in enumerate(self.records):
            self.world.drop(record, f"{number}.json")
        self.watch = Watch(paths_of(self.world))

    def sql(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.world.database, timeout=15)) as connection, connection:
            return connection.execute(statement).fetchall()

    def settled(self) -> bool:
        """Every run has its verdict, and it is delivered."""
        owed = (
            "SELECT (SELECT count(*) FROM outbox WHERE sent_us IS NULL) + count(*) FROM runs WHERE due_us IS NOT NULL"
        )
        return self.sql(owed) == [(0,)] and len(self.sql("SELECT 1 FROM runs")) == len(self.records)

    def finish(self, *daemons: Fork, killed: bool = False) -> None:
        """Wait for the verdicts, end the daemons, and judge."""
        until(self.settled, f"every run has its verdict; {self.log()}", 60, pause=0.1)
        until_up(*daemons)
        for daemon in daemons:
            daemon.send_signal(signal.SIGTERM)
        assert [daemon.wait() for daemon in daemons] == [0] * len(daemons), self.log()
        self.judge(killed=killed)

    def judge(self, *, killed: bool = False) -> None:
        assert list(self.engine.problems(LIMIT)) == []
        assert self.sql("SELECT state, count(*) FROM runs GROUP BY state") == [("READY", len(self.records))], self.log()
        assert check(paths_of(self.world), dropped=self.records, watch=self.watch, killed=killed) == []

    def log(self) -> str:
        path = log_of(self.world)
        return path.read_text()[-3000:] if path.exists() else ""


@contextmanager
def ended(*daemons: Fork) -> Iterator[None]:
    """Whatever happens, no daemon is left behind."""
    try:
        yield
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait()


STOPPED: dict[str, Moment] = {
    "before its attempt is on record": Moment(ROWS + "commit"),
    "after its attempt is on record": Moment(ROWS + "commit", "after"),
    "before the attempt has a folder": Moment("scenario_runner.engine.attempt_folder:AttemptFolder.create"),
    "after the attempt has a folder": Moment("scenario_runner.engine.attempt_folder:AttemptFolder.create", "after"),
    "before it hands the launch over": Moment(INVOKER + "hand_over"),
    "after it handed the launch over": Moment(INVOKER + "hand_over", "after"),
    "before the submission is on record": Moment(ROWS + "commit", nth=2),
    "after the submission is on record": Moment(ROWS + "commit", "after", nth=2),
    "while the engine runs": Moment(LANE + "_park", "after"),
    "after it saw the end": Moment(INVOKER + "SubprocessInvoker.poll", "after", after_result=True),
    "after it read the receipt": Moment(EFFECTS + "_read_receipt", "after"),
    "before it writes the logs": Moment(LEDGER + "write_attempt_logs"),
    "after it wrote the logs": Moment(LEDGER + "write_attempt_logs", "after"),
    "before the end is on record": Moment(ROWS + "commit", nth=3),
    "after the end is on record": Moment(ROWS + "commit", "after", nth=3),
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_daemon_stopped_past_its_lease_and_continued_launches_nothing_twice(name: str, tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    first = Fork(scene.world, moment=STOPPED[name], action="stop")
    with ended(first):
        until(lambda: is_stopped(first), f"it stops; {scene.log()}")
        launched = len(scene.engine.launches())
        second = Fork(scene.world)
        with ended(second):
            # The engine of the second daemon runs when the first one goes on; where there cannot be one, it has waited.
            late = time.monotonic() + 2 * WIRING["lease_seconds"] + 2
            while len(scene.engine.launches()) == launched and not scene.settled() and time.monotonic() < late:
                time.sleep(0.05)
            scene.watch.look()
            first.send_signal(signal.SIGCONT)
            scene.finish(first, second)
    assert marked_processes(scene.engine.launches()) == {}
