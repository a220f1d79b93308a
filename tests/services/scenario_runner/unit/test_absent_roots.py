"""Rounds over absent roots: how many looks, in which order, at which pace, and what a look leads to."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

import pytest
from structlog.testing import capture_logs

from scenario_runner.artifacts.base import RootsSeen
from scenario_runner.authority.observed import DaemonRow
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.runs.absent_roots import AbsentRoots

if TYPE_CHECKING:
    from scenario_runner.artifacts.base import Artifacts
    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.unit


class Scene:
    """Runs by the root that they wait for, and a store that answers for some roots at a time."""

    def __init__(self, roots: Sequence[str], answered: int = 10, runs: int = 1) -> None:
        self.waiting = dict.fromkeys(roots, runs)
        self.there: set[str] = set()
        self.unknown: set[str] = set()
        self.answered = answered
        self.seconds = 0.0
        self.pages: list[str] = []
        self.looks: list[list[str]] = []
        self.woken: list[int] = []
        self.roles = ["all", "intake", "relay"]
        self.rounds = AbsentRoots(cast("Authority", self), cast("Artifacts", self), lambda: self.seconds, "only")

    # the authority

    def absent_roots(self, after: str, limit: int, only: str) -> list[str]:
        assert only == "only"
        self.pages.append(after)
        return sorted(root for root, runs in self.waiting.items() if root > after and runs)[:limit]

    def wake_waiting_for_roots(self, roots: Collection[str], limit: int, only: str) -> int:
        assert only == "only"
        left = limit
        for root in roots:
            taken = min(left, self.waiting[root])
            self.waiting[root] -= taken
            left -= taken
        self.woken.append(limit - left)
        return limit - left

    def daemons_seen(self, within_us: int) -> list[DaemonRow]:
        assert within_us == 60_000_000
        return [DaemonRow(f"daemon-{number}", role, "1", "host") for number, role in enumerate(self.roles)]

    # the store

    def look(self, roots: Sequence[str]) -> RootsSeen:
        asked = list(roots[: self.answered])
        self.looks.append(asked)
        unknown = {root: "away" for root in asked if root in self.unknown}
        there = frozenset(asked) & self.there
        return RootsSeen(there, frozenset(asked) - there - unknown.keys(), unknown)

    # time

    def pass_seconds(self, seconds: float) -> list[Any]:
        """What is logged while the loop goes round for so long."""
        until = self.seconds + seconds
        with capture_logs() as logs:
            while self.seconds < until:
                self.rounds.step()
                self.seconds += self.rounds.pause_seconds
        return list(logs)


def names(count: int) -> list[str]:
    return [f"/runs/{number:06d}" for number in range(count)]


def test_a_round_looks_at_every_root_once_and_begins_a_minute_after_the_last_one() -> None:
    scene = Scene(names(25))
    assert scene.pass_seconds(59) == []
    assert [len(look) for look in scene.looks] == [10, 10, 5]
    scene.pass_seconds(60)
    assert [root for look in scene.looks for root in look] == 2 * names(25)
    assert scene.woken == [], "nothing is asked of the authority for roots that are absent"


@pytest.mark.parametrize("count", [100, 2500])
def test_the_pace_is_eight_looks_a_second_however_many_roots_there_are(count: int) -> None:
    scene = Scene(names(count), answered=1)
    scene.pass_seconds(10)
    assert len(scene.looks) == min(count, 80)
    scene.pass_seconds(400)
    assert {root for look in scene.looks for root in look} == set(names(count)), "a long round ends too"
    assert len(scene.looks) <= 410 * 8


@pytest.mark.parametrize("roles", [[], ["all"], ["all", "runner", "relay", "runner"]])
def test_daemons_that_look_share_the_pace(roles: list[str]) -> None:
    scene = Scene(names(2500), answered=1)
    scene.roles = roles
    scene.pass_seconds(30)
    sharers = max(1, len(roles) - roles.count("relay"))
    assert len(scene.looks) == pytest.approx(30 * 8 / sharers, abs=1)


def test_without_a_waiting_run_there_is_one_question_a_minute_and_no_look() -> None:
    scene = Scene([])
    assert scene.pass_seconds(600) == []
    assert (len(scene.pages), scene.looks) == (10, [])


def test_a_root_that_has_come_makes_all_its_runs_due_a_thousand_at_a_time() -> None:
    scene = Scene(names(3), runs=2500)
    scene.there = {names(3)[1]}
    (line,) = scene.pass_seconds(10)
    assert (line["event"], line["roots"], line["runs"]) == ("roots that runs waited for have come", 1, 2500)
    assert scene.woken == [1000, 1000, 500, 0]
    assert scene.waiting == {names(3)[0]: 2500, names(3)[1]: 0, names(3)[2]: 2500}


def test_a_step_says_how_many_runs_it_made_due() -> None:
    scene = Scene(names(2), runs=3)
    scene.there = set(names(2))
    assert scene.rounds.step() == 6


def test_roots_of_which_nothing_can_be_said_keep_no_others_waiting_and_are_told_of_once_a_round() -> None:
    scene = Scene(names(30))
    scene.unknown = set(names(30)[:20])
    (line,) = scene.pass_seconds(59)
    assert (line["log_level"], line["detail"]) == ("warning", "away")
    assert sum(len(look) for look in scene.looks) == 30
    assert scene.waiting == dict.fromkeys(names(30), 1), "nobody is woken for them"
    assert len(scene.pass_seconds(60)) == 1


def test_a_run_that_begins_to_wait_behind_the_round_is_looked_at_in_the_next_one() -> None:
    scene = Scene(names(5))
    scene.pass_seconds(10)
    scene.waiting["/runs/000000a"] = 1
    scene.pass_seconds(60)
    assert "/runs/000000a" in scene.looks[-1]


@pytest.mark.parametrize("question", ["daemons_seen", "absent_roots", "wake_waiting_for_roots"])
def test_a_round_that_an_outage_breaks_off_goes_on_when_it_ends(monkeypatch: pytest.MonkeyPatch, question: str) -> None:
    def away(*_: object) -> None:
        raise Unavailable("the authority does not answer")

    scene = Scene(names(15))
    scene.there = {names(15)[0], names(15)[14]}
    with monkeypatch.context() as outage:
        outage.setattr(scene, question, away)
        for _ in range(3):
            with pytest.raises(Unavailable):
                scene.rounds.step()
    scene.pass_seconds(5)
    assert [root for root in names(15) if not scene.waiting[root]] == [names(15)[0], names(15)[14]]
