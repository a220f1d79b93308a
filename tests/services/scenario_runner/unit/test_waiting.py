"""Waiting for a verdict: when it is asked again, how it ends, and that an authority which is away is waited for."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import typer

from scenario_runner.cli import waiting
from scenario_runner.cli.waiting import check_timeout, wait_for_verdict
from scenario_runner.contracts.errors import ConfigurationError, Unavailable, UsageError

pytestmark = pytest.mark.unit


@dataclass
class Clock:
    """Stands for the module ``time``; nobody really waits."""

    now: float = 1000.0
    pauses: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(waiting, "time", made)
    return made


def answers(*given: str | BaseException) -> Callable[[], dict[str, Any]]:
    """Answers one after the other; the last one for ever."""
    left = list(given)

    def ask() -> dict[str, Any]:
        item = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(item, BaseException):
            raise item
        return {"state": item}

    return ask


@pytest.mark.parametrize("state", ["READY", "FAILED", "REJECTED", "QUARANTINED"])
def test_a_verdict_ends_the_wait(clock: Clock, state: str) -> None:
    assert wait_for_verdict(answers("SUBMITTED", "PLANNED", "EXECUTING", state), None)["state"] == state
    assert len(clock.pauses) == 3


def test_pauses_grow_from_a_twentieth_of_a_second_to_two(clock: Clock) -> None:
    wait_for_verdict(answers("VERIFYING"), 60.0)
    assert clock.pauses[0] == 0.05
    assert all(before <= after for before, after in zip(clock.pauses[:-2], clock.pauses[1:-1], strict=True))
    assert max(clock.pauses) == 2.0
    assert clock.now == pytest.approx(1060.0)


def test_the_state_at_the_end_of_the_time_is_the_answer(clock: Clock) -> None:
    assert wait_for_verdict(answers("VERIFYING", "WAITING_EVIDENCE"), 0.07)["state"] == "WAITING_EVIDENCE"
    assert wait_for_verdict(answers("VERIFYING", "READY"), 0.0)["state"] == "VERIFYING"


def test_an_authority_that_is_away_is_waited_for_and_each_outage_is_one_line(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    away = Unavailable("the database is away")
    ask = answers(away, away, away, "VERIFYING", away, away, "READY")
    assert wait_for_verdict(ask, 60.0)["state"] == "READY"
    assert capsys.readouterr().err.splitlines() == ["waiting for the authority: the database is away"] * 2


def test_an_authority_that_is_away_at_the_end_of_the_time_is_unavailable(clock: Clock) -> None:
    with pytest.raises(Unavailable):
        wait_for_verdict(answers("VERIFYING", Unavailable("away")), 1.0)
    assert clock.now == pytest.approx(1001.0)


def test_another_error_ends_the_wait_at_once(clock: Clock) -> None:
    with pytest.raises(ConfigurationError):
        wait_for_verdict(answers(ConfigurationError("a", "b", "c")), None)
    assert clock.pauses == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_with_the_newest_state(
    clock: Clock, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    states = answers("PLANNED", "VERIFYING")

    def ask() -> dict[str, Any]:
        if len(clock.pauses) == 2:
            os.kill(os.getpid(), number)
        return states()

    assert wait_for_verdict(ask, None) == {"state": "VERIFYING"}
    assert "no verdict yet" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_before_the_first_answer_means_that_there_is_no_verdict(clock: Clock) -> None:
    with pytest.raises(typer.Exit) as raised:
        wait_for_verdict(answers(KeyboardInterrupt()), None)
    assert raised.value.exit_code == 3


def test_a_timeout_is_a_number_and_belongs_to_a_wait() -> None:
    check_timeout(wait=True, timeout=None)
    check_timeout(wait=True, timeout=0.0)
    check_timeout(wait=False, timeout=None)
    with pytest.raises(UsageError, match="--wait"):
        check_timeout(wait=False, timeout=1.0)
    with pytest.raises(UsageError, match="--timeout"):
        check_timeout(wait=True, timeout=float("nan"))
