"""Drift of published evidence on record, over every backend: an act and an event, and nothing else of the run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from authority_support import SECOND, Clock, asking, claim_one, commit, failed, hex32, ready

from scenario_runner.authority.acts import ActionRow, DriftAct
from scenario_runner.contracts.states import RunState

if TYPE_CHECKING:
    from scenario_runner.authority.base import Authority

pytestmark = pytest.mark.integration


def drift(key: str, found: str = "first") -> DriftAct:
    checks = ({"check": "output o re-hashes", "ok": False, "expected": "a", "actual": found},)
    return DriftAct(key=f"scrub/{hex32(key)}/{found}", run_id=hex32(key), actor="night", reason="weekly",
                    detail="output o re-hashes", checks=checks)  # fmt: skip


def test_drift_of_a_ready_run_is_an_act_and_an_event_once(
    authority: Authority,
    clock: Clock,
) -> None:
    authority.admit([asking("k")])
    commit(authority, ready(claim_one(authority)))
    before = authority.run(hex32("k"))
    assert before is not None
    clock.pass_seconds(5)
    assert authority.record_drift(drift("k"))
    assert not authority.record_drift(drift("k"))
    after = authority.run(hex32("k"))
    assert after == replace(before, event_seq=before.event_seq + 1)
    event = authority.events(hex32("k"))[-1]
    assert (event.kind, event.seq) == ("EVIDENCE_DRIFTED", before.event_seq + 1)
    assert (event.details["checks"], event.details["state"]) == ([dict(drift("k").checks[0])], "READY")
    (action,) = authority.actions(hex32("k"))
    assert (action.action, action.actor, action.outcome, action.reason) == ("scrub", "night", "DRIFT", "weekly")
    assert authority.record_drift(drift("k", "second"))
    assert [event.seq for event in authority.events(hex32("k"))] == list(range(1, before.event_seq + 3))
    times = [event.ts_us for event in authority.events(hex32("k"))]
    assert times == sorted(times)


def test_drift_grows_the_record_of_a_ready_run_only(authority: Authority) -> None:
    authority.admit([asking("waits"), asking("failed")])
    claims = {claim.run_id: claim for claim in authority.claim("owner", 10, 60_000_000)}
    commit(authority, failed(claims[hex32("failed")]))
    for key in ("waits", "failed", "unknown"):
        assert not authority.record_drift(drift(key))
        assert authority.actions(hex32(key)) == []
    assert [run.state for run in map(authority.run, (hex32("waits"), hex32("failed"))) if run] == [
        RunState.VERIFYING, RunState.FAILED,
    ]  # fmt: skip


def test_drifts_that_are_found_at_once_have_numbers_of_their_own(authority: Authority) -> None:
    authority.admit([asking("k")])
    commit(authority, ready(claim_one(authority)))
    last = authority.events(hex32("k"))[-1].seq
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(authority.record_drift, [drift("k", str(number)) for number in range(8)]))
    assert [event.seq for event in authority.events(hex32("k"))][last:] == list(range(last + 1, last + 9))


def test_scrubs_at_once_leave_one_event_of_a_run_whatever_each_of_them_found(
    authority: Authority,
    clock: Clock,
) -> None:
    authority.admit([asking("k"), asking("other")])
    for _ in range(2):
        commit(authority, ready(claim_one(authority)))
    acts = [replace(drift("k", str(number)), quiet_us=60 * SECOND) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(authority.record_drift, acts)) == 1
    assert len([event for event in authority.events(hex32("k")) if event.kind == "EVIDENCE_DRIFTED"]) == 1
    assert len(authority.actions(hex32("k"))) == 1
    assert authority.record_drift(replace(drift("other"), quiet_us=60 * SECOND)), "each run is told of"
    clock.pass_seconds(59)
    assert not any(authority.record_drift(act) for act in acts)
    clock.pass_seconds(2)
    assert sum(authority.record_drift(act) for act in acts) == 1


def test_only_drift_of_late_keeps_drift_off_the_record(authority: Authority, clock: Clock) -> None:
    authority.admit([asking("k")])
    commit(authority, ready(claim_one(authority)))
    clock.pass_seconds(5)
    authority.record_action(ActionRow("other", 0, "a", "cli", "reemit", hex32("k"), "r", "PUBLISHED", ""))
    assert authority.record_drift(replace(drift("k", "first"), quiet_us=60 * SECOND)), "another act is none"
    clock.pass_seconds(-3)
    assert authority.record_drift(drift("k", "second")), "nobody asked for quiet, though the clock was set back"


def test_the_detail_of_an_act_is_replaced_only_if_nobody_else_has_done_so(authority: Authority) -> None:
    authority.record_action(ActionRow("scrub/last", 0, "a", "cli", "scrub", "scrub/last", "metrics", "DONE", ""))
    assert authority.replace_detail("scrub/last", "", "first")
    assert not authority.replace_detail("scrub/last", "", "second")
    assert not authority.replace_detail("unknown", "", "second")
    found = authority.acts(["scrub/last"])["scrub/last"]
    assert (found.detail, found.outcome) == ("first", "DONE")
