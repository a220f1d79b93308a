"""An idle daemon asks whether there is something to do, and does nothing else."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from support import World, need_posix

from scenario_runner.authority import sqlite
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import Daemon, compose_daemon
from scenario_runner.service.loops import Role
from scenario_runner.service.supervisor import Supervisor

pytestmark = pytest.mark.integration

POLL_SECONDS = 0.02


class Counts:
    """Statements of SQLite and tasks of thread pools, while it is asked to count."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.statements: list[str] = []
        self.tasks: list[Any] = []
        connect, submit = sqlite3.connect, ThreadPoolExecutor.submit

        def traced(*given: Any, **named: Any) -> sqlite3.Connection:
            connection = connect(*given, **named)
            connection.set_trace_callback(self.statements.append)
            return connection

        def counted(pool: ThreadPoolExecutor, task: Any, *given: Any, **named: Any) -> Any:
            self.tasks.append(task)
            return submit(pool, task, *given, **named)

        monkeypatch.setattr(sqlite.sqlite3, "connect", traced)
        monkeypatch.setattr(ThreadPoolExecutor, "submit", counted)

    def polls(self) -> int:
        """How often it was asked whether a run is due."""
        return sum("due_us <= " in statement for statement in self.statements)

    def clear(self) -> None:
        self.statements.clear()
        self.tasks.clear()


@contextmanager
def serving(daemon: Daemon) -> Iterator[None]:
    thread = threading.Thread(target=Supervisor(daemon, Role.ALL, until_idle=False).run)
    thread.start()
    try:
        yield
    finally:
        daemon.stopping.set()
        thread.join()
        daemon.authority.close()


def wait_for_polls(counts: Counts, more: int) -> None:
    wanted = counts.polls() + more
    deadline = time.monotonic() + 120
    while counts.polls() < wanted:
        assert time.monotonic() < deadline, "the daemon does not ask for work"
        time.sleep(POLL_SECONDS)


def files_of(world: World) -> dict[Path, int]:
    """Every file and folder with the time of its last change, but for the database, whose statements are counted."""
    paths = [path for path in world.root.rglob("*") if not path.name.startswith(world.database.name)]
    return {path: path.stat().st_mtime_ns for path in paths}


def test_an_idle_daemon_commits_nothing_submits_no_task_writes_no_file_and_logs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_posix()
    world = World(tmp_path / "world", {"poll_seconds": POLL_SECONDS, "lease_seconds": 2})
    world.drop(world.make_run(outputs=["outlet_catalogue"], members=3, member_bytes=64, part_bytes=64)["request"])
    assert world.serve().returncode == 0
    counts = Counts(monkeypatch)
    daemon = compose_daemon(load_wiring(str(world.wiring)), load_policy(str(world.policy)))
    with structlog.testing.capture_logs() as logs, serving(daemon):
        wait_for_polls(counts, 20)  # what a start does is done
        before = files_of(world)
        logs.clear()
        counts.clear()
        idle_since = time.monotonic()
        while time.monotonic() - idle_since < 1.0:  # a sweep of the relay, and a round of housekeeping
            wait_for_polls(counts, 5)
        statements, tasks, said = list(counts.statements), list(counts.tasks), list(logs)
        assert files_of(world) == before
    verbs = {statement.split()[0] for statement in statements}
    assert verbs - {"PRAGMA"} == {"SELECT"}, "beside what a thread says when it opens its connection"
    assert (tasks, said) == ([], [])


def test_a_claim_of_nothing_is_not_driven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_posix()
    world = World(tmp_path / "world", {"poll_seconds": POLL_SECONDS})
    daemon = compose_daemon(load_wiring(str(world.wiring)), load_policy(str(world.policy)))
    driven: list[Any] = []
    monkeypatch.setattr(daemon.driver, "drive", lambda *given: driven.append(given) or [])
    asked: list[int] = []
    claim = daemon.leases.claim
    monkeypatch.setattr(daemon.leases, "claim", lambda limit: asked.append(limit) or claim(limit))
    with serving(daemon):
        deadline = time.monotonic() + 120
        while len(asked) < 3:
            assert time.monotonic() < deadline
            time.sleep(POLL_SECONDS)
    assert driven == []
