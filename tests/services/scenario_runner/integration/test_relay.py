"""The leases of the relay: what a pass claimed and left undelivered, the next one claims again before they end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from authority_support import asking, claim_one, hex32, ready, settle

from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.bus.base import Published
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.relay.relay import Lane, Projections, Publications

pytestmark = pytest.mark.integration


class Flaky:
    """An authority one of whose calls fails, before or after it is done, or whose answer is never heard."""

    def __init__(self, inner: SqliteAuthority) -> None:
        self._inner, self.fault = inner, ("", "")

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._inner, name)
        failing, how = self.fault

        def guarded(*arguments: Any) -> Any:
            if name != failing:
                return call(*arguments)
            self.fault = ("", "")
            if how == "unheard":
                call(*arguments)
                return call(*arguments)  # as a retry after a lost answer
            if how == "after":
                call(*arguments)
            raise Unavailable("the connection is gone")

        return guarded


class Sink:
    """A ledger and a stream that take everything, or nothing."""

    def __init__(self) -> None:
        self.projected: list[str] = []
        self.sent: list[str] = []

    def project_many(self, owed: Any) -> list[None]:
        self.projected += [item.run.run_id for item in owed]
        return [None for _ in owed]

    def publish(self, rows: Any) -> list[Published]:
        self.sent += [row.message_id for row in rows]
        return [Published(row.outbox_id, "") for row in rows]


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[SqliteAuthority]:
    """Two READY runs whose documents and signals are owed."""
    made = SqliteAuthority(str(tmp_path / "authority.db"))
    for key in ("a", "b"):
        made.admit([asking(key)])
        settle(made, ready(claim_one(made), f"ready {key}"))
    yield made
    made.close()


def lanes_of(authority: Any, sink: Sink) -> list[Lane]:
    """Both lanes of a relay."""
    return [
        Projections(authority, sink, "projections"),  # type: ignore[arg-type]
        Publications(authority, sink, "publications"),
    ]


@pytest.mark.parametrize("how", ["before", "after", "unheard"])
@pytest.mark.parametrize("call", ["claim_projections", "mark_projected", "claim_signals", "mark_sent", "expire_owner"])
def test_what_a_broken_pass_had_claimed_is_delivered_by_the_next_ones_without_waiting_for_a_lease(
    authority: SqliteAuthority, call: str, how: str
) -> None:
    flaky, sink = Flaky(authority), Sink()
    lanes = lanes_of(flaky, sink)
    flaky.fault = (call, how)
    if call == "expire_owner":
        for lane in lanes:
            lane._abandoned = True
    for lane in lanes * 4:
        try:
            lane.step()
        except Unavailable:
            continue
    assert authority.pending().nothing
    assert set(sink.projected) == {hex32("a"), hex32("b")}
    assert len(set(sink.sent)) == 2
    assert {sent for run in ("a", "b") for _, _, sent in authority.signals(hex32(run)).rows} != {None}


def test_what_another_relay_has_claimed_is_left_to_it(authority: SqliteAuthority) -> None:
    assert len(authority.claim_projections("other", 10, 60_000_000)) == 2
    sink = Sink()
    assert [lane.step() for lane in lanes_of(authority, sink) * 3] == [0] * 6
    assert (sink.projected, sink.sent) == ([], [])


def test_a_lane_is_owed_only_what_it_can_deliver(authority: SqliteAuthority) -> None:
    sink = Sink()
    projections, publications = lanes_of(authority, sink)
    assert (projections.owed(), publications.owed()) == (True, False)
    assert publications.step() == 0, "a signal was published before its documents were written"
    assert projections.step() == 2
    assert (projections.owed(), publications.owed()) == (False, True)
    assert publications.step() == 2
    assert (projections.owed(), publications.owed()) == (False, False)
