"""What a claim takes first, over every backend: neither new runs nor those that were woken keep the others waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from authority_support import LEASE, START, WAIT, Clock, asking, commit, hex32, retried, waiting

from scenario_runner.authority.claims import share_of_new

if TYPE_CHECKING:
    from authority_backends import Backend

    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.integration
HERD = 40
LIMIT = 8


def admit(authority: Authority, clock: Clock, kind: str, count: int, **more: str) -> set[str]:
    """So many new runs, each due a moment after the one before; returns their ids."""
    keys = [f"{kind}-{number:03d}" for number in range(count)]
    for key in keys:
        clock.now += 1
        authority.admit([asking(key, **more)])
    return set(map(hex32, keys))


def woken(authority: Authority, clock: Clock, count: int) -> set[str]:
    """So many waiting runs that are due; returns their ids."""
    herd = admit(authority, clock, "herd", count)
    claims = authority.claim("w0", count, LEASE)
    commit(authority, *(waiting(claim, START + WAIT // 2) for claim in claims))
    clock.now += 1
    assert authority.make_waiting_due() == count
    return herd


def claimed(authority: Authority, limit: int = LIMIT) -> set[str]:
    claims = authority.claim("w1", limit, LEASE)
    found = {claim.run_id for claim in claims}
    assert len(found) == len(claims) <= limit, "each run once"
    return found


def test_half_of_a_claim_may_be_new_runs_and_a_claim_of_one_is_no_exception() -> None:
    assert [share_of_new(limit) for limit in (0, 1, 2, 7, 8, 64)] == [0, 0, 1, 3, 4, 32]


def test_a_new_run_is_in_the_next_claim_behind_thousands_that_were_woken(authority: Authority, clock: Clock) -> None:
    herd = woken(authority, clock, HERD)
    new = admit(authority, clock, "new", 1)
    first = claimed(authority)
    assert new < first
    assert len(first & herd) == LIMIT - 1, "the herd has what new runs leave"


def test_many_new_runs_get_half_of_a_claim_the_oldest_first(authority: Authority, clock: Clock) -> None:
    herd = woken(authority, clock, HERD)
    admit(authority, clock, "new", HERD)
    first = claimed(authority)
    assert first - herd == {hex32(f"new-{number:03d}") for number in range(LIMIT // 2)}
    assert len(first & herd) == LIMIT // 2


@pytest.mark.parametrize("herd", [0, HERD])
@pytest.mark.parametrize("new", [0, 1, HERD])
def test_a_claim_is_full_whatever_is_due(authority: Authority, clock: Clock, herd: int, new: int) -> None:
    due = woken(authority, clock, herd) | admit(authority, clock, "new", new)
    found = claimed(authority)
    assert len(found) == min(LIMIT, len(due))
    assert found <= due


def test_new_runs_alone_are_claimed_the_oldest_first(authority: Authority, clock: Clock) -> None:
    admit(authority, clock, "new", 2 * LIMIT)
    assert claimed(authority) == {hex32(f"new-{number:03d}") for number in range(LIMIT)}
    assert claimed(authority) == {hex32(f"new-{number:03d}") for number in range(LIMIT, 2 * LIMIT)}


def test_a_stream_of_new_runs_slows_those_that_wait_down_to_half_and_no_more(
    authority: Authority,
    clock: Clock,
) -> None:
    left = woken(authority, clock, HERD)
    for number in range(2 * HERD // LIMIT):
        admit(authority, clock, f"new-{number}", 2 * LIMIT)  # twice as many as a claim can take
        left -= claimed(authority)
    assert left == set()


def test_a_stream_of_woken_runs_slows_new_ones_down_to_half_and_no_more(
    authority: Authority,
    clock: Clock,
) -> None:
    woken(authority, clock, HERD)
    left = admit(authority, clock, "new", HERD)
    for _ in range(2 * HERD // LIMIT):
        claims = authority.claim("w1", LIMIT, LEASE)
        left -= {claim.run_id for claim in claims}
        commit(authority, *(waiting(claim, START) for claim in claims))  # due again, before everything else
    assert left == set()


def test_a_run_whose_engine_could_not_be_launched_is_not_new_any_more(authority: Authority, clock: Clock) -> None:
    put_off = admit(authority, clock, "forced", HERD, strategy="FORCE_INVOKE")
    clock.now += 1
    commit(authority, *(retried(claim, clock.now, "no engine") for claim in authority.claim("w0", HERD, LEASE)))
    new = admit(authority, clock, "new", 1)
    first = claimed(authority)
    assert new < first
    assert first - new < put_off


def test_a_new_run_that_stays_planned_under_lease_is_not_claimed_again(authority: Authority, clock: Clock) -> None:
    forced = admit(authority, clock, "forced", 2, strategy="FORCE_INVOKE")
    assert claimed(authority) == forced
    assert claimed(authority) == set()
    clock.pass_seconds(31)
    assert claimed(authority) == forced, "its lease has run out"


def test_a_new_run_is_not_due_while_the_clock_stands_before_its_admission(authority: Authority, clock: Clock) -> None:
    herd = woken(authority, clock, 2)
    clock.pass_seconds(60)
    new = admit(authority, clock, "new", 1)
    clock.pass_seconds(-60)
    assert claimed(authority) == herd
    clock.pass_seconds(60)
    assert claimed(authority) > new, "and the leases of the others have run out"


def test_one_run_is_claimed_alone_whether_it_is_new_or_was_woken(authority: Authority, clock: Clock) -> None:
    woken(authority, clock, HERD)
    admit(authority, clock, "new", HERD)
    for key in ("new-030", "herd-030"):
        assert [claim.run_id for claim in authority.claim("w1", LIMIT, LEASE, only=hex32(key))] == [hex32(key)]
        assert authority.claim("w1", LIMIT, LEASE, only=hex32(key)) == []


def test_two_processes_that_claim_new_and_woken_runs_never_hold_the_same_one(backend: Backend) -> None:
    authority, clock = backend.open(), backend.clock
    due = woken(authority, clock, 60) | admit(authority, clock, "new", 60)
    outcomes = backend.in_processes(
        f"authority = connect(lambda: {clock.now})\n"
        "while claims := authority.claim(f'w{me}', 4, 60_000_000):\n"
        "    print(*[claim.run_id for claim in claims])\n"
        "authority.close()\n"
    )
    assert sorted(outcomes[0] + outcomes[1]) == sorted(due)
