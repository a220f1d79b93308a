"""The line of the log about runs that wait: at most one a minute, and none while no run waits."""

from typing import TYPE_CHECKING, Any, cast

import pytest
from structlog.testing import capture_logs

from scenario_runner.authority.observed import WaitingRuns
from scenario_runner.counters import count
from scenario_runner.runs.batch import NOTHING_NEW
from scenario_runner.service.waiting_summary import WaitingSummary

if TYPE_CHECKING:
    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.unit

ADMITTED_US, DEADLINE_US = 1_767_225_600_000_000, 1_767_229_200_000_000


class Waiting:
    """What an authority says of its waiting runs."""

    def __init__(self, runs: int) -> None:
        self.runs, self.asked = runs, 0

    def now_us(self) -> int:
        return ADMITTED_US + 90_000_000

    def waiting_runs(self) -> WaitingRuns:
        self.asked += 1
        return WaitingRuns(self.runs, ADMITTED_US, DEADLINE_US)


class Scene:
    def __init__(self, runs: int) -> None:
        self.seconds = 0.0
        self.authority = Waiting(runs)
        self.summary = WaitingSummary(cast("Authority", self.authority), lambda: self.seconds)

    def steps(self, seconds: int) -> list[Any]:
        """What is logged while housekeeping comes round every ten seconds."""
        with capture_logs() as logs:
            for _ in range(0, seconds, 10):
                self.seconds += 10
                self.summary.step()
        return list(logs)


def test_a_minute_has_one_line_with_what_waits_and_what_comes_next() -> None:
    scene = Scene(2000)
    scene.summary.step()
    assert scene.steps(50) == []
    for _ in range(3):
        count(NOTHING_NEW)
    (line,) = scene.steps(10)
    assert line["examined_in_vain"] >= 3
    assert {key: line[key] for key in ("log_level", "event", "waiting", "oldest_seconds", "next_deadline_utc")} == {
        "log_level": "info", "event": "runs wait for evidence", "waiting": 2000, "oldest_seconds": 90,
        "next_deadline_utc": "2026-01-01T01:00:00.000000Z",
    }  # fmt: skip
    assert [line["examined_in_vain"] for line in scene.steps(600)] == [0] * 10


def test_without_a_waiting_run_nothing_is_logged() -> None:
    scene = Scene(0)
    assert scene.steps(600) == []
    assert scene.authority.asked == 10, "one statement a minute"
