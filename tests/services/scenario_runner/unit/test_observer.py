"""What an observer says of shard workers, which are processes of their own."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner.authority.observed import Backlog
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.intake.base import IntakeLag
from scenario_runner.service.heartbeats import Heartbeats
from scenario_runner.service.observer import Observer

pytestmark = pytest.mark.unit

LIMIT = 60.0


def observed(*lags: IntakeLag, bus: str = "") -> Observer:
    """An observer of a daemon that reads such shards, after one refresh; ``bus`` is what is wrong with its stream."""

    def check_bus() -> None:
        if bus:
            raise Unavailable(bus)

    def backlog(_most: int) -> Any:
        raise Unavailable("not asked here")

    daemon: Any = SimpleNamespace(
        intake=SimpleNamespace(lags=lambda: list(lags)), relay=SimpleNamespace(check_bus=check_bus),
        store=SimpleNamespace(identity=lambda: "1", where="here"), authority=SimpleNamespace(backlog=backlog),
        stopping=threading.Event(), started=threading.Event(),
    )  # fmt: skip
    made = Observer(daemon, "all", Heartbeats(LIMIT))
    made.refresh()
    return made


def test_a_shard_worker_that_hangs_at_work_makes_a_daemon_unhealthy_and_is_named() -> None:
    hung = IntakeLag("shardId-0", 0.0, 0.0, silent_seconds=LIMIT + 1, busy=True)
    fine = IntakeLag("shardId-1", 0.0, 0.0, silent_seconds=1.0, busy=True)
    for bus in ("", "the stream does not answer"):
        healthy, answer = observed(hung, fine, bus=bus).health()
        assert (healthy, answer["stuck"]) == (False, ["shard:shardId-0"])
        assert answer["checks"]["shard:shardId-1"]["ok"]


def test_a_shard_worker_that_nobody_calls_is_stuck_only_while_its_stream_answers() -> None:
    idle = IntakeLag("shardId-0", 0.0, 0.0, silent_seconds=LIMIT + 1)
    assert observed(idle).health()[1]["stuck"] == ["shard:shardId-0"]
    assert observed(idle, bus="the stream does not answer").health()[0]


def test_a_spool_has_no_workers_of_its_own() -> None:
    assert observed(IntakeLag("spool", 900.0, 900.0)).health()[1]["checks"] == {}


def test_an_outage_is_probed_less_often_the_longer_it_lasts_and_what_works_every_15_seconds() -> None:
    found: Any = observed(bus="the stream does not answer")
    waited: list[float] = []

    def backlog(_most: int) -> Backlog:
        return Backlog(now_us=0, waiting={}, quarantined=0, dead_letters=0, due_since_us=None, unsent=0,
                       unsent_since_us=None, unprojected=0, unprojected_since_us=None, daemons=1)  # fmt: skip

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 5:
            found._daemon.authority.backlog, found._daemon.relay.check_bus = backlog, lambda: None

    found._stopped = SimpleNamespace(is_set=lambda: len(waited) == 7, wait=wait)
    found._refresh()
    assert waited == [1, 2, 4, 5, 5, 15, 15]
