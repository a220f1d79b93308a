"""Leases of this process: what it asks of the authority, and when it stops believing in them."""

from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner.contracts.errors import LeaseLostError, StoppingError, Unavailable
from scenario_runner.runs.leases import Leases

pytestmark = pytest.mark.unit


class Granting:
    """An authority that grants two leases once and renews what it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.kept: set[tuple[str, int]] = {("a", 1), ("b", 1)}
        self.away = False

    def claim(self, *_: Any) -> list[Any]:
        return [SimpleNamespace(run_id=name, epoch=1) for name in ("a", "b")]

    def renew(self, _owner: str, held: Any, _micros: int) -> set[tuple[str, int]]:
        self.asked.append("renew")
        if self.away:
            raise Unavailable("the authority is away")
        return self.kept & set(held)

    def expire_owner(self, owner: str) -> None:
        self.asked.append(f"expire {owner}")
        if self.away:
            raise Unavailable("the authority is away")


class Held:
    """Leases of 30 seconds on ``a`` and ``b``, at second 100."""

    def __init__(self) -> None:
        self.now = 100.0
        self.authority = Granting()
        authority: Any = self.authority
        self.leases = Leases(authority, "w", 30.0, lambda: self.now)
        self.a, self.b = self.leases.claim(2)


@pytest.fixture
def held() -> Held:
    return Held()


def test_a_lease_is_believed_until_it_has_run_out_and_no_longer(held: Held) -> None:
    held.now = 129.9
    held.leases.check(held.a)
    held.now = 130.0
    with pytest.raises(LeaseLostError):
        held.leases.check(held.a)


def test_a_lease_of_another_epoch_or_that_was_given_back_is_none(held: Held) -> None:
    with pytest.raises(LeaseLostError):
        held.leases.check(SimpleNamespace(run_id="a", epoch=2))  # type: ignore[arg-type]
    held.leases.release(held.b)
    with pytest.raises(LeaseLostError):
        held.leases.check(held.b)
    held.leases.check(held.a)


def test_what_the_authority_does_not_renew_runs_out(held: Held) -> None:
    held.now = 120.0
    held.authority.kept = {("a", 1)}
    held.leases.renew()
    held.now = 149.9
    held.leases.check(held.a)
    with pytest.raises(LeaseLostError):
        held.leases.check(held.b)


def test_a_renewal_is_not_asked_for_when_nothing_is_held_and_may_fail(held: Held) -> None:
    held.authority.away = True
    held.leases.renew()
    held.leases.check(held.a)
    held.leases.release(held.a)
    held.leases.release(held.b)
    held.authority.asked.clear()
    held.leases.renew()
    assert held.authority.asked == []


def test_when_the_process_stops_the_time_that_is_left_ends_before_the_lease(held: Held) -> None:
    held.leases.end_in(5.0)
    held.now = 104.9
    held.leases.check(held.a)
    held.now = 105.0
    with pytest.raises(StoppingError):
        held.leases.check(held.a)


def test_what_is_held_or_was_broken_off_at_the_stop_is_given_back_and_nothing_else(held: Held) -> None:
    held.leases.give_back()
    assert held.authority.asked == ["expire w"], "both are held"
    held.leases.release(held.a)
    held.leases.release(held.b)
    held.authority.asked.clear()
    held.leases.give_back()
    assert held.authority.asked == [], "nothing is held"
    held.leases.end_in(0.0)
    with pytest.raises(StoppingError):
        held.leases.check(held.a)
    held.leases.give_back()
    assert held.authority.asked == ["expire w"], "a run was broken off, though its lease is forgotten"
    held.authority.away = True
    held.leases.give_back()
