"""The part of the authority contract that puts lost rows back, over every backend."""

from __future__ import annotations

from dataclasses import replace

import pytest
from authority_support import START, Clock, asking, claim_one, draft, failed, hex32, hex64, settle
from test_authority_contract import authority, backend, clock  # noqa: F401 - fixtures over every backend

from scenario_runner.authority.base import Authority, Claim, Restored, StoredEvent
from scenario_runner.contracts.errors import LeaseLostError
from scenario_runner.contracts.states import RunState, SignalKind

pytestmark = pytest.mark.integration


def stored(seq: int, kind: str, state: str, at_us: int) -> StoredEvent:
    return StoredEvent(seq, kind, at_us, {"seq": seq, "state": state, "n": seq})


def finished(claim: Claim, count: int = 5) -> Restored:
    """The run as another ledger tells it: FAILED, after ``count`` events, an hour before it was admitted here."""
    then = START - 3600 * 1_000_000
    kinds = ["RUN_ADMITTED", "PLAN_COMMITTED", *["VERIFICATION_STARTED"] * (count - 3), "RUN_FAILED"]
    states = ["OPEN", "PLANNED", *["VERIFYING"] * (count - 3), "FAILED"]
    events = tuple(
        stored(seq, kind, state, then + seq) for seq, (kind, state) in enumerate(zip(kinds, states, strict=True), 1)
    )
    return Restored(
        claim, {**claim.inputs, "restored": True}, RunState.FAILED, "GATE_FAIL", then + 1, then + 10, then + count,
        events, "", "", draft("old", SignalKind.TERMINAL, claim.run_id),
    )  # fmt: skip


@pytest.mark.parametrize("count", [3, 5])
def test_a_finished_run_is_put_back_whole_and_owes_its_documents_and_its_signal(
    authority: Authority,  # noqa: F811
    count: int,
) -> None:
    authority.admit([asking("k")])
    restored = finished(claim_one(authority), count)
    assert authority.restore(restored) is None
    run = authority.run(hex32("k"))
    assert run is not None
    assert (run.state, run.reason_code, run.due_us, run.lease_owner) == (RunState.FAILED, "GATE_FAIL", None, "")
    assert (run.admitted_us, run.deadline_us, run.updated_us) == (
        restored.admitted_us,
        restored.deadline_us,
        restored.updated_us,
    )
    assert run.inputs["restored"] is True
    assert tuple(authority.events(hex32("k"))) == restored.events
    assert authority.claim_signals("r", 10, 1) == []
    (owed,) = authority.claim_projections("r", 10, 1_000_000)
    assert owed.events == restored.events
    authority.mark_projected([(hex32("k"), count)])
    (signal,) = authority.claim_signals("r", 10, 1_000_000)
    assert (signal.message_id, signal.created_us) == (hex64("old"), restored.updated_us)
    assert authority.claim("w2", 10, 1) == []


def test_an_unfinished_run_is_put_back_and_due_at_once(authority: Authority, clock: Clock) -> None:  # noqa: F811
    authority.admit([asking("k")])
    claim = claim_one(authority)
    whole = finished(claim)
    waiting = replace(
        whole, state=RunState.WAITING_EVIDENCE, reason_code="", events=whole.events[:4], signal=None, report_digest="r"
    )
    assert authority.restore(waiting) is None
    again = claim_one(authority, "w2")
    assert (again.state, again.report_digest, again.epoch) == (RunState.WAITING_EVIDENCE, "r", claim.epoch + 1)
    assert len(authority.events(hex32("k"))) == 4
    assert authority.signals(hex32("k")).rows == ()


def test_restoring_twice_is_restoring_once(authority: Authority) -> None:  # noqa: F811
    authority.admit([asking("k")])
    restored = finished(claim_one(authority))
    assert [authority.restore(restored), authority.restore(restored)] == [None, None]
    assert len(authority.events(hex32("k"))) == 5
    assert len(authority.signals(hex32("k")).rows) == 1


def test_whoever_lost_the_lease_restores_nothing(authority: Authority, clock: Clock) -> None:  # noqa: F811
    authority.admit([asking("k")])
    claim = claim_one(authority)
    clock.pass_seconds(60)
    other = claim_one(authority, "w2")
    assert isinstance(authority.restore(finished(claim)), LeaseLostError)
    settle(authority, failed(other))
    before = authority.run(hex32("k")), authority.events(hex32("k")), authority.signals(hex32("k"))
    assert isinstance(authority.restore(finished(other)), LeaseLostError)
    assert (authority.run(hex32("k")), authority.events(hex32("k")), authority.signals(hex32("k"))) == before
