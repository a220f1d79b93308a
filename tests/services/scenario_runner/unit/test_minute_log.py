"""What a daemon logs once a minute: its metrics, and what it cannot use for as long as it cannot."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from scenario_runner.authority.observed import Backlog
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.counters import count
from scenario_runner.intake.base import IntakeLag
from scenario_runner.service.heartbeats import Heartbeats
from scenario_runner.service.minute_log import MinuteLog
from scenario_runner.service.observer import Observer

pytestmark = pytest.mark.unit

BACKLOG = Backlog(
    now_us=90_000_000, waiting={"5m": 3, "later": 1000}, quarantined=0, dead_letters=0, due_since_us=30_000_000,
    unsent=2, unsent_since_us=80_000_000, unprojected=0, unprojected_since_us=None, daemons=1,
)  # fmt: skip


class Scene:
    """An observer and its minute log, whose clock and bus the test sets."""

    def __init__(self) -> None:
        self.seconds, self.bus, self.backlog = 1000.0, "", True
        lags = [IntakeLag("shard-0", 1.0, 2.0), IntakeLag("shard-1", 3.0, 700.0)]
        daemon: Any = SimpleNamespace(
            intake=SimpleNamespace(lags=lambda: lags), relay=SimpleNamespace(check_bus=self._check_bus),
            store=SimpleNamespace(identity=lambda: "1", where="here"),
            authority=SimpleNamespace(backlog=self._backlog, acts=lambda _keys: {}),
            stopping=threading.Event(), started=threading.Event(),
        )  # fmt: skip
        daemon.started.set()
        heartbeats = Heartbeats(60.0, lambda: self.seconds)
        heartbeats.begin("runner")
        self.observer = Observer(daemon, "all", heartbeats, lambda: self.seconds)
        self.minute_log = MinuteLog(self.observer)

    def _check_bus(self) -> None:
        if self.bus:
            raise Unavailable(self.bus)

    def _backlog(self, _most: int) -> Backlog:
        if not self.backlog:
            raise Unavailable("the database is away")
        return BACKLOG

    def probe(self, bus: str = "", later: float = 5.0) -> list[Any]:
        """What is logged when a probe finds the bus so."""
        self.seconds += later
        self.bus = bus
        with capture_logs() as logs:
            self.observer.refresh()
        return list(logs)

    def minute(self) -> list[Any]:
        """What is logged when a minute is over."""
        with capture_logs() as logs:
            self.minute_log.step()
        return list(logs)


def test_a_failure_is_logged_when_it_begins_once_a_minute_while_it_lasts_and_when_it_is_over() -> None:
    scene = Scene()
    assert scene.probe() == []
    (begun,) = scene.probe("refused")
    event = "a probe failed; the daemon is not ready"
    assert begun == {"event": event, "log_level": "warning", "check": "bus", "detail": "refused", "seconds": 0}
    for number in range(24):
        assert scene.probe(f"refused again, {number}") == [], "a text that changes is no new failure"
    still, metrics = scene.minute()
    assert still == {**begun, "detail": "refused again, 23", "seconds": 120}
    assert metrics["gauges"]["sr_ready"] == 0
    assert scene.probe() == [{"event": "a probe passes again", "log_level": "info", "check": "bus", "seconds": 125}]
    (metrics,) = scene.minute()
    assert metrics["gauges"]["sr_ready"] == 1
    (again,) = scene.probe("refused")
    assert again["seconds"] == 0


def test_a_daemon_whose_first_probe_fails_says_so_and_one_that_was_not_probed_says_nothing() -> None:
    scene = Scene()
    assert [line["event"] for line in scene.minute()] == ["metrics of the last minute"]
    assert [line["check"] for line in scene.probe("refused")] == ["bus"]


def test_a_probe_that_hangs_is_logged_each_minute_too() -> None:
    scene = Scene()
    scene.probe()
    scene.seconds += 50
    *checks, metrics = scene.minute()
    assert {line["check"]: (line["detail"], line["seconds"]) for line in checks} == dict.fromkeys(
        ("authority", "bus", "store"), ("the last probe is 50 s old", 50)
    )
    assert metrics["gauges"]["sr_ready"] == 0


def test_gauges_are_those_of_now_and_of_one_with_a_label_the_worst() -> None:
    scene = Scene()
    scene.probe()
    scene.seconds += 7
    (line,) = scene.minute()
    assert (line["event"], line["log_level"]) == ("metrics of the last minute", "info")
    assert line["gauges"] == {
        "sr_ready": 1, "sr_refresh_age_seconds": 7, "sr_loop_heartbeat_age_seconds": 12, "sr_daemons": 1,
        "sr_runs_waiting": 1003, "sr_runs_waiting_by_deadline": 1000, "sr_quarantine_open": 0, "sr_dead_letters": 0,
        "sr_oldest_due_run_age_seconds": 60, "sr_outbox_depth": 2, "sr_outbox_oldest_age_seconds": 10,
        "sr_projections_owed": 0, "sr_projections_oldest_age_seconds": 0, "sr_intake_lag_seconds": 3,
        "sr_intake_oldest_record_age_seconds": 700, "sr_intake_checkpoint_age_seconds": 0, "sr_scrub_drifted_runs": 0,
        "sr_scrub_last_end_timestamp_seconds": 0,
    }  # fmt: skip


def test_what_the_authority_does_not_say_is_left_out_and_is_not_zero() -> None:
    scene = Scene()
    scene.backlog = False
    scene.probe()
    *_, line = scene.minute()
    assert "sr_outbox_oldest_age_seconds" not in line["gauges"]
    assert line["gauges"]["sr_intake_oldest_record_age_seconds"] == 700


def test_counts_are_those_of_the_minute_summed_over_their_labels() -> None:
    count("sr_runs_accepted_total", by=5)
    scene = Scene()
    count("sr_runs_accepted_total", by=2)
    count("sr_runs_rejected_total", "AUTH_DENIED", by=3)
    count("sr_runs_rejected_total", "RECORD_NOT_JSON")
    count("relay.drift", by=9)
    (line,) = scene.minute()
    assert {name: value for name, value in line["counts"].items() if value} == {
        "sr_runs_accepted_total": 2, "sr_runs_rejected_total": 4,
    }  # fmt: skip
    assert "sr_operations_total" not in line["counts"]
    (line,) = scene.minute()
    assert {"sr_runs_accepted_total", "sr_runs_ready_total", "sr_runs_quarantined_total"} <= line["counts"].keys()
    assert set(line["counts"].values()) == {0}
