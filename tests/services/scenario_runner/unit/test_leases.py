"""Leases of a process: what it may still write for, what it renews, and what it gives back."""

from collections.abc import Sequence
from typing import Any

import pytest
from test_lifecycle import claim

from scenario_runner.authority.values import Claim
from scenario_runner.contracts.errors import LeaseLostError, StoppingError, Unavailable
from scenario_runner.runs.leases import Leases

pytestmark = pytest.mark.unit

SECONDS = 30.0


class Rows:
    """An authority that grants one run, and a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.held: set[tuple[str, int]] | None = None
        self.calls: list[str] = []
        self.away = False

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.away:
            raise Unavailable("away")

    def claim(self, _owner: str, _limit: int, lease_us: int, only: str = "") -> list[Claim]:
        del only
        assert lease_us == SECONDS * 1_000_000
        self._call("claim")
        self.now += 1.0  # the answer takes a second: the lease counts from the question
        return [claim()]

    def renew(self, _owner: str, held: Sequence[tuple[str, int]], _lease_us: int) -> set[tuple[str, int]]:
        self._call("renew")
        return set(held) if self.held is None else self.held

    def expire_owner(self, _owner: str) -> None:
        self._call("expire_owner")


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def leases(rows: Rows) -> Leases:
    given: Any = rows
    return Leases(given, "w", SECONDS, lambda: rows.now)


def test_a_lease_is_valid_from_the_question_for_its_length_and_not_a_moment_longer(rows: Rows, leases: Leases) -> None:
    (run,) = leases.claim(1)
    leases.check(run)
    rows.now = 1000.0 + SECONDS - 0.001
    leases.check(run)
    rows.now = 1000.0 + SECONDS
    with pytest.raises(LeaseLostError, match="ran out"):
        leases.check(run)


def test_a_run_that_was_never_claimed_or_whose_lease_was_given_back_is_not_ours(leases: Leases) -> None:
    with pytest.raises(LeaseLostError):
        leases.check(claim())
    (run,) = leases.claim(1)
    leases.release(run)
    with pytest.raises(LeaseLostError):
        leases.check(run)
    assert leases.held == 0


def test_an_older_epoch_of_a_run_that_is_held_is_not_ours(leases: Leases) -> None:
    leases.claim(1)
    with pytest.raises(LeaseLostError):
        leases.check(claim(epoch=0))


@pytest.mark.parametrize(("kept", "away", "valid"), [(True, False, True), (False, False, False), (True, True, False)])
def test_a_lease_is_longer_only_when_the_authority_says_that_it_was_renewed(
    rows: Rows, leases: Leases, kept: bool, away: bool, valid: bool
) -> None:
    (run,) = leases.claim(1)
    rows.held, rows.away = (None if kept else set()), away
    rows.now = 1000.0 + SECONDS - 1
    leases.renew()
    rows.now = 1000.0 + SECONDS
    if valid:
        leases.check(run)
    else:
        with pytest.raises(LeaseLostError):
            leases.check(run)


def test_a_lease_that_somebody_else_has_is_lost_at_once(rows: Rows, leases: Leases) -> None:
    """A clock jumped, or this process was taken for dead: what it works on must not go on until the lease would end."""
    (run,) = leases.claim(1)
    rows.held = set()
    assert leases.renew() == set()
    with pytest.raises(LeaseLostError):
        leases.check(run)
    leases.release(run)
    rows.held = {(run.run_id, run.epoch)}
    leases.renew()
    with pytest.raises(LeaseLostError):
        leases.check(run)


def test_a_process_that_holds_nothing_asks_the_authority_for_nothing(rows: Rows, leases: Leases) -> None:
    leases.renew()
    leases.give_back()
    assert rows.calls == []


def test_when_the_process_stops_what_is_in_progress_ends_and_is_given_back(rows: Rows, leases: Leases) -> None:
    (run,) = leases.claim(1)
    leases.end_in(5.0)
    leases.check(run)
    rows.now += 5.0
    with pytest.raises(StoppingError):
        leases.check(run)
    leases.release(run)
    leases.give_back()
    assert rows.calls == ["claim", "expire_owner"], "it was not finished, though it is not held any more"
    rows.away = True
    leases.give_back()


def test_what_may_outlast_a_stop_ends_when_the_stop_begins_and_is_given_back(rows: Rows, leases: Leases) -> None:
    (run,) = leases.claim(1)
    leases.check(run, may_outlast_stop=True)
    leases.end_in(5.0)
    leases.check(run)
    with pytest.raises(StoppingError):
        leases.check(run, may_outlast_stop=True)
    leases.release(run)
    leases.give_back()
    assert rows.calls == ["claim", "expire_owner"]


def test_a_process_that_finished_everything_has_nothing_to_give_back(rows: Rows, leases: Leases) -> None:
    (run,) = leases.claim(1)
    leases.release(run)
    leases.give_back()
    assert rows.calls == ["claim"]
