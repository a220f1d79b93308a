"""A world whose engine leaves traces and whose daemons are forks, for the tests that kill, stop and starve them."""

import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from crashing import Fork, is_locked, log_of, until, until_up
from engine_traces import TracedEngine, marked_processes
from invariants import Watch, check, paths_of
from support import ForkedWorld

ROWS: Final = "scenario_runner.authority.sqlite:SqliteAuthority."
LEDGER: Final = "scenario_runner.ledger.ledger:Ledger."
INVOKER: Final = "scenario_runner.engine.subprocess_invoker:"
FOLDER: Final = "scenario_runner.engine.attempt_folder:AttemptFolder."
LANE: Final = "scenario_runner.service.engine_lane:EngineLane."
EFFECTS: Final = "scenario_runner.runs.engine_effects:EngineEffects."
WIRING: Final[dict[str, Any]] = {"lease_seconds": 2, "shutdown_seconds": 2, "poll_seconds": 0.05}
LIMIT: Final = 30


class EngineScene:
    """A world with an engine, whose daemons are forks."""

    def __init__(self, folder: Path, runs: int = 1, seconds: float = 1.0, **wiring: Any) -> None:
        self.folder = folder
        self.world = ForkedWorld(folder / "world", policy_changes={"attempt_limit": LIMIT})
        self.engine = TracedEngine(folder / "engine", seconds=(seconds, seconds))
        self.engine.wiring(self.world, **{**WIRING, **wiring})
        self.records: list[bytes] = []
        self.ask(runs)
        self.watch = Watch(paths_of(self.world))

    def ask(self, runs: int = 1) -> None:
        """Ask for more runs; their keys are of this world only, since attempts of equal keys have equal ids."""
        for _ in range(runs):
            number = len(self.records)
            self.records.append(json.dumps(self.engine.request(f"{self.folder}-{number}")).encode())
            self.world.drop(self.records[-1], f"{number}.json")

    def hurry(self) -> None:
        """The pause before another attempt, a second and more, is over at once."""
        self.sql("UPDATE runs SET due_us = 0 WHERE lease_until_us = 0 AND due_us > 0")

    def sql(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.world.database, timeout=15)) as connection, connection:
            return connection.execute(statement).fetchall()

    def is_locked(self) -> bool:
        """Whether a daemon, which may be stopped, is in the middle of a transaction."""
        return is_locked(self.world.database)

    def settled(self) -> bool:
        """Every run has its verdict, and it is delivered."""
        owed = (
            "SELECT (SELECT count(*) FROM outbox WHERE sent_us IS NULL) + count(*) FROM runs WHERE due_us IS NOT NULL"
        )
        return self.sql(owed) == [(0,)] and len(self.sql("SELECT 1 FROM runs")) == len(self.records)

    def finish(self, *daemons: Fork, killed: bool = False) -> None:
        """Wait for the verdicts, end the daemons, and judge."""
        self.finish_without_judging(*daemons)
        self.judge(killed=killed)

    def finish_without_judging(self, *daemons: Fork) -> None:
        """Wait for the verdicts, and end the daemons."""
        try:
            until(lambda: self.hurry() or self.settled(), "every run has its verdict", 60, pause=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.sql('SELECT * FROM engine_attempts')}; {self.log()}") from error
        until_up(*daemons)
        for daemon in daemons:
            daemon.send_signal(signal.SIGTERM)
        assert [daemon.wait() for daemon in daemons] == [0] * len(daemons), self.log()

    def judge(self, *, killed: bool = False) -> None:
        assert list(self.engine.problems(LIMIT)) == []
        assert self.sql("SELECT state, count(*) FROM runs GROUP BY state") == [("READY", len(self.records))], self.log()
        assert check(paths_of(self.world), dropped=self.records, watch=self.watch, killed=killed) == []
        assert marked_processes(self.engine.launches()) == {}

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
