"""The loops that hear of evidence beside the control bus: a queue that is away harms nobody, and a stop ends them."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support import World, need_posix

from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import Daemon, compose_daemon
from scenario_runner.service.loops import Role
from scenario_runner.service.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Source:
    """A queue, or a watch of folders, that answers as a test says."""

    def __init__(self) -> None:
        self.asked, self.closed = 0, False
        self.away: Unavailable | None = None

    def step(self) -> int:
        self.asked += 1
        if self.away is not None:
            raise self.away
        return 0

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    need_posix()
    world = World(tmp_path / "world", {"health_stuck_seconds": 1, "poll_seconds": 0.02})
    made = compose_daemon(load_wiring(str(world.wiring)), load_policy(str(world.policy)))
    yield made
    made.authority.close()


def served(daemon: Daemon, role: Role, queue: Source, folders: Source) -> tuple[Supervisor, threading.Thread]:
    sources: Any = {"open_evidence_queue": lambda: queue, "open_folder_watch": lambda: folders}
    supervisor = Supervisor(replace(daemon, **sources), role, until_idle=False)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    return supervisor, thread


def test_a_queue_that_is_away_is_asked_again_and_its_loop_is_not_taken_for_stuck(daemon: Daemon) -> None:
    queue, folders = Source(), Source()
    queue.away = Unavailable("the queue is away")
    supervisor, thread = served(daemon, Role.ALL, queue, folders)
    until(lambda: queue.asked >= 2, "it is asked again")
    until(lambda: folders.asked >= 2, "folders are looked at beside it")
    (state,) = [state for state in supervisor.heartbeats.loops() if state.loop == "arrivals"]
    assert state.limit_seconds > 60, "its longest pause is no reason to restart the daemon"
    daemon.stopping.set()
    thread.join(30)
    assert not thread.is_alive()
    assert supervisor.failure is None
    assert folders.closed


def test_a_stop_does_not_wait_for_the_queue_before_it_gives_leases_back_and_delivers(daemon: Daemon) -> None:
    class Polled(Source):
        answers = threading.Event()

        def step(self) -> int:
            self.asked += 1
            self.answers.wait(60)
            return 0

    queue = Polled()
    supervisor, thread = served(daemon, Role.ALL, queue, Source())
    until(lambda: queue.asked, "the queue is asked")
    daemon.stopping.set()
    try:
        until(lambda: {state.loop for state in supervisor.heartbeats.loops()} == {"arrivals"}, "all others have ended")
        assert thread.is_alive()
    finally:
        queue.answers.set()
        thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("role", [Role.INTAKE, Role.RELAY, Role.HOUSEKEEPING])
def test_only_a_runner_listens(daemon: Daemon, role: Role) -> None:
    queue, folders = Source(), Source()
    supervisor, thread = served(daemon, role, queue, folders)
    until(lambda: "housekeeping" in {state.loop for state in supervisor.heartbeats.loops()}, "its loops run")
    assert {"arrivals", "folders"} & {state.loop for state in supervisor.heartbeats.loops()} == set()
    daemon.stopping.set()
    thread.join(30)
    assert (queue.asked, folders.asked) == (0, 0)


def test_a_queue_that_cannot_be_opened_refuses_the_start_and_leaves_no_thread(daemon: Daemon) -> None:
    def refuses() -> None:
        raise ConfigurationError("key 'evidence_events_queue_url'", "its host names no region", "set s3_region")

    before = threading.active_count()
    with pytest.raises(ConfigurationError, match="names no region"):
        Supervisor(replace(daemon, open_evidence_queue=refuses), Role.ALL).run(5)
    assert threading.active_count() == before
    Supervisor(replace(daemon, open_evidence_queue=refuses), Role.ALL, until_idle=True).run(60)
