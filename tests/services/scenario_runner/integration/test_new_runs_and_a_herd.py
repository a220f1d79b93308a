"""A daemon drives new runs beside thousands of waiting ones that are due at once, on both databases."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from postgres_support import Schema, given_dsn
from support import World, need_posix

from scenario_runner.contracts.states import RunState
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import Daemon, compose_daemon
from scenario_runner.service.loops import Role
from scenario_runner.service.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.integration
SMALL = {"outputs": ["outlet_catalogue"], "members": 3, "member_bytes": 64, "part_bytes": 64}
PATIENCE_SECONDS = 120


@dataclass
class Scene:
    """A world, and the batches that the runner of its daemon drove."""

    world: World
    schema: Schema | None
    batches: list[set[str]] = field(default_factory=list)

    def daemon(self) -> Daemon:
        return compose_daemon(load_wiring(str(self.world.wiring)), load_policy(str(self.world.policy)))

    def drain(self) -> None:
        daemon = self.daemon()
        Supervisor(daemon, Role.ALL, until_idle=True).run()
        daemon.authority.close()

    def copy_run(self, run_id: str, count: int, **changes: Any) -> set[str]:
        """Make so many more rows of a run, under other keys; returns their run ids."""
        postgres = self.schema is not None
        connection: Any = self.schema.admin if self.schema else sqlite3.connect(self.world.database)
        cursor = connection.cursor()
        cursor.execute(f"SELECT * FROM runs WHERE run_id = '{run_id}'")
        columns = [column[0] for column in cursor.description]
        row = dict(zip(columns, cursor.fetchone(), strict=True)) | changes
        rows = [row | {"run_id": f"{number:032x}", "run_equivalence_key": f"copy-{number}"} for number in range(count)]
        places = ", ".join(["%s" if postgres else "?"] * len(columns))
        text = f"INSERT INTO runs ({', '.join(columns)}) VALUES ({places})"
        cursor.executemany(text, [tuple(item.values()) for item in rows])
        if not postgres:
            connection.commit()
            connection.close()
        return {item["run_id"] for item in rows}

    def herd(self, count: int) -> tuple[dict[str, Any], set[str]]:
        """A request whose evidence is there, and waiting runs that have been due for a minute."""
        here, waits = self.world.make_run("here", **SMALL), self.world.make_run("waits", seed=8, **SMALL)
        Path(waits["engine_run_root"]).rename(self.world.root / "not-yet")
        self.world.drop(waits["request"], "waits.json")
        self.drain()
        minute_ago = time.time_ns() // 1000 - 60_000_000
        return here, self.copy_run(waits["run_id"], count, due_us=minute_ago, absent_root="")

    def serve(self, daemon: Daemon, done: Callable[[], bool], before_batch: Callable[[], None]) -> None:
        """Drive batches until it is done."""
        driver: Any = daemon.driver
        drive = driver.drive

        def driving(claims: Any, share: Any) -> Any:
            self.batches.append({claim.run_id for claim in claims})
            before_batch()
            return drive(claims, share)

        driver.drive = driving
        supervisor = Supervisor(daemon, Role.RUNNER)
        thread = threading.Thread(target=supervisor.run)
        thread.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            while not done():
                assert supervisor.failure is None, supervisor.failure
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            daemon.stopping.set()
            thread.join()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.parity)])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    need_posix()
    schema = Schema(given_dsn()) if request.param == "postgres" else None
    yield Scene(World(tmp_path / "world", {"authority_store_dsn": schema.dsn} if schema else {}), schema)
    if schema is not None:
        schema.drop()


def ask(scene: Scene, daemon: Daemon, made: dict[str, Any], keys: list[str]) -> None:
    """Admit new runs, in this thread."""
    for key in keys:
        scene.world.drop(made["request"] | {"run_equivalence_key": key}, f"{key}.json")
    while daemon.intake.step():
        pass


def test_a_new_run_is_in_the_first_batch_beside_thousands_that_were_woken(scene: Scene) -> None:
    made, herd = scene.herd(3000)
    daemon = scene.daemon()
    with closing(daemon.authority), closing(daemon.intake):
        daemon.intake.open()
        ask(scene, daemon, made, [made["request"]["run_equivalence_key"]])

        def ready() -> bool:
            run = daemon.authority.run(made["run_id"])
            return run is not None and run.state is RunState.READY

        scene.serve(daemon, ready, before_batch=lambda: None)
    first = scene.batches[0]
    assert made["run_id"] in first
    assert len(first & herd) == len(first) - 1


def test_neither_a_stream_of_new_runs_nor_a_herd_gets_less_than_half_of_a_batch(scene: Scene) -> None:
    made, herd = scene.herd(150)
    daemon = scene.daemon()
    turns = iter(range(1000))

    def stream() -> None:
        """More new runs than any batch takes, before each batch."""
        turn = next(turns)
        ask(scene, daemon, made, [f"new-{turn}-{number}" for number in range(64)])

    with closing(daemon.authority), closing(daemon.intake):
        daemon.intake.open()
        stream()
        scene.serve(daemon, lambda: herd <= set().union(*scene.batches), before_batch=stream)
    left = set(herd)
    for batch in scene.batches:
        half = len(batch) // 2
        assert len(batch & left) >= min(half, len(left))
        assert len(batch - herd) >= half
        left -= batch
    assert left == set()
