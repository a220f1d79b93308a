"""Idle costs nothing: with nothing to do a daemon writes no row and no file, and submits no task to a thread."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from scenario_runner.authority.group_commit import GroupCommitter
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.intake.spool import SpoolConsumer
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.relay.relay import Relay
from scenario_runner.service.loops import Role, Supervisor
from scenario_runner.service.wiring import wire_daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support import World

pytestmark = pytest.mark.integration

POLL_SECONDS = 0.02
POLLS = 60
"""Longer than a second, after which a relay claims without having asked first."""


class Costs:
    """What the process does from now on: statements that read, transactions that write, tasks for threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = self.writes = self.tasks = 0
        self._count(monkeypatch, SqliteAuthority, "_query", "reads")
        self._count(monkeypatch, GroupCommitter, "run", "writes")
        self._count(monkeypatch, ThreadPoolExecutor, "submit", "tasks")

    def _count(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, counter: str) -> None:
        real = getattr(owner, name)

        def counted(*given: Any, **named: Any) -> Any:
            setattr(self, counter, getattr(self, counter) + 1)
            return real(*given, **named)

        monkeypatch.setattr(owner, name, counted)


class Polls:
    """Counts the calls of a method, and lets a test wait for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self._calls, self._changed = 0, threading.Condition()
        real = getattr(owner, name)

        def counted(*given: Any) -> Any:
            with self._changed:
                self._calls += 1
                self._changed.notify_all()
            return real(*given)

        monkeypatch.setattr(owner, name, counted)

    def wait_for(self, more: int) -> None:
        with self._changed:
            wanted = self._calls + more
            assert self._changed.wait_for(lambda: self._calls >= wanted, timeout=60)


@pytest.fixture
def supervised(world: World) -> Iterator[Callable[[Role], None]]:
    """Starts the loops of a role in a world in which one run is READY, and stops them after the test."""
    made = world.make_run("one", outputs=["outlet_catalogue"], members=2, member_bytes=64, parts=2, part_bytes=64)
    world.drop(made["request"])
    assert world.serve().returncode == 0
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [made["run_id"]]
    world.write_profiles(poll_seconds=POLL_SECONDS)
    daemon = wire_daemon(load_wiring(str(world.wiring)), load_policy(str(world.policy)))
    threads: list[threading.Thread] = []

    def start(role: Role) -> None:
        supervisor = Supervisor(daemon, role, until_idle=False)
        threads.append(threading.Thread(target=supervisor.run))
        threads[0].start()

    yield start
    daemon.stopping.set()
    for thread in threads:
        thread.join(60)
    daemon.authority.close()


def times_of(root: Path) -> dict[str, int]:
    """When each folder and file of the ledger and the spool was last written to."""
    return {
        path: os.stat(path).st_mtime_ns
        for folder in ("object-store", "control-bus")
        for parent, _, names in os.walk(root / folder)
        for path in (parent, *(os.path.join(parent, name) for name in names))
    }


@pytest.mark.parametrize(
    ("role", "owner", "method", "reads_per_poll"),
    [(Role.RELAY, Relay, "has_pending", 1), (Role.INTAKE, SpoolConsumer, "step", 0)],
)
def test_a_loop_that_finds_nothing_only_reads(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    supervised: Callable[[Role], None],
    role: Role,
    owner: type,
    method: str,
    reads_per_poll: int,
) -> None:
    polls = Polls(monkeypatch, owner, method)
    supervised(role)
    polls.wait_for(2)
    before, costs = times_of(world.root), Costs(monkeypatch)
    polls.wait_for(POLLS)
    assert (costs.writes, costs.tasks) == (0, 0)
    sweeps = 3 * 4  # two claims, and again whether anything is pending; more than one sweep on a slow machine
    assert costs.reads <= reads_per_poll * (POLLS + 2) + sweeps
    assert times_of(world.root) == before
