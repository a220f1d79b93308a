"""What an act comes to: a pure function of the act and of what the rows say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scenario_runner.authority.acts import ReemitAct, ReemitLimit
from scenario_runner.authority.reemits import FirstSignal, RunFacts, decide, disposition_of, run_facts
from scenario_runner.authority.values import SignalDraft
from scenario_runner.contracts.documents import ReemitRequest, parse_reemit_request
from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import Disposition, ReemitKind, RunState, SignalKind
from scenario_runner.intake.reemit import UNNAMED, ReemitPolicy, reemit_act

pytestmark = pytest.mark.unit

RUN = "0" * 32
LIMIT = ReemitLimit(2, 60_000_000)
ACT = ReemitAct(key="a", run_id=RUN, kind=ReemitKind.BOTH, actor="ops", via="cli", reason="why", limit=LIMIT)
READY = FirstSignal(
    SignalDraft("m", SignalKind.READY, RUN, {"facts_view_digest": "d", "traceparent": "t"}, b"{}"), 7, 1
)
TERMINAL = FirstSignal(SignalDraft("m", SignalKind.TERMINAL, RUN, {}, b"{}"), 5, 3)
FACTS = {
    RunState.READY: RunFacts(RunState.READY, 9, 100, READY, 0, 0),
    RunState.FAILED: RunFacts(RunState.FAILED, 9, 100, TERMINAL, 0, 0),
    RunState.QUARANTINED: RunFacts(RunState.QUARANTINED, 9, 100, TERMINAL, 0, 0),
}


@pytest.mark.parametrize("state", RunState)
@pytest.mark.parametrize("kind", ReemitKind)
def test_a_signal_is_owed_exactly_when_the_run_has_one_of_the_kind(state: RunState, kind: ReemitKind) -> None:
    facts = FACTS.get(state, RunFacts(state, 3, 100, None, 0, 0))
    decision = decide(replace(ACT, kind=kind), facts, 200)
    wanted = {"READY_ONLY": ("READY",), "TERMINAL_ONLY": ("FAILED", "QUARANTINED")}.get(
        kind, ("READY", "FAILED", "QUARANTINED")
    )
    assert (decision.signal is not None) is (state in wanted) is (decision.outcome == "ACCEPTED")
    if decision.signal is None:
        assert decision.outcome.endswith("_MISMATCH")
        assert bool(decision.events) is (state in FACTS), "the record of a run that has not ended is its lease holder's"
    assert all(event.state is state for event in decision.events)


def test_what_the_first_publication_carried_is_carried_again() -> None:
    decision = decide(ACT, FACTS[RunState.READY], 200)
    assert decision.signal == SignalDraft(
        "m", SignalKind.READY_REEMIT, RUN, {"facts_view_digest": "d", "traceparent": "t", "run_id": RUN}, b"{}"
    )
    assert (decision.emission, decision.needs_seq, decision.at_us) == (1, 7, 200)
    assert decide(ACT, FACTS[RunState.FAILED], 200).emission == 3


@pytest.mark.parametrize(("now", "at"), [(200, 200), (100, 101), (5, 101)])
def test_an_act_is_later_than_the_last_event(now: int, at: int) -> None:
    assert decide(ACT, FACTS[RunState.READY], now).at_us == at


@pytest.mark.parametrize(
    ("changes", "facts", "outcome", "events"),
    [
        ({"denied": "no"}, None, "AUTH_DENIED", 0),
        ({"denied": "no"}, {"attempts": 9}, "AUTH_DENIED", 0),
        ({}, None, "RUN_NOT_FOUND", 0),
        ({}, {"attempts": 1}, "ACCEPTED", 1),
        ({}, {"attempts": 2}, "REEMIT_RATE_LIMIT", 2),
        ({}, {"attempts": 2, "limited": 1}, "REEMIT_RATE_LIMIT", 0),
        ({"kind": ReemitKind.TERMINAL_ONLY}, {"attempts": 2}, "REEMIT_RATE_LIMIT", 2),
        ({"dry_run": True}, {"attempts": 9}, "DRY_RUN", 1),
        ({"dry_run": True, "kind": ReemitKind.TERMINAL_ONLY}, {}, "REEMIT_TERMINAL_ONLY_MISMATCH", 1),
        ({"dry_run": True, "predicted": (Reason.FACTS_VIEW_DRIFT, "d")}, {}, "FACTS_VIEW_DRIFT", 1),
    ],
)
def test_the_order_of_the_checks(
    changes: dict[str, Any], facts: dict[str, Any] | None, outcome: str, events: int
) -> None:
    given = None if facts is None else replace(FACTS[RunState.READY], **facts)
    decision = decide(replace(ACT, **changes), given, 200)
    assert (decision.outcome, len(decision.events)) == (outcome, events)
    assert (decision.signal is None) is (outcome != "ACCEPTED")


def test_a_signal_that_is_not_in_the_outbox_any_more_cannot_be_repeated() -> None:
    decision = decide(ACT, replace(FACTS[RunState.READY], signal=None), 200)
    assert (decision.outcome, decision.signal) == ("REEMIT_READY_ONLY_MISMATCH", None)


def test_no_row_is_no_run() -> None:
    assert run_facts(None) is None
    assert run_facts({"state": None}) is None


def test_only_a_reason_code_refuses_a_record() -> None:
    for outcome in ("ACCEPTED", "DRY_RUN", "PUBLISHED"):
        assert disposition_of(outcome) == (Disposition.ACCEPTED, "")
    for reason in Reason:
        assert disposition_of(reason.value) == (Disposition.REJECTED, reason.value)


# --- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowlist", "requested_by", "denied"),
    [
        (None, None, False), (None, "x", False), (frozenset({"ops"}), "ops", False), (frozenset({"ops"}), "Ops", True),
        (frozenset({"ops"}), None, True), (frozenset({"ops", UNNAMED}), None, True),
    ],
)  # fmt: skip
def test_a_caller_is_denied_unless_the_list_names_it(
    allowlist: frozenset[str] | None, requested_by: str | None, denied: bool
) -> None:
    named = {} if requested_by is None else {"requested_by": requested_by}
    request = ReemitRequest.model_validate({"run_id": RUN, "reemit_kind": "BOTH", **named})
    act = reemit_act(request, ReemitPolicy(allowlist, LIMIT), "k", "bus")
    assert bool(act.denied) is denied
    assert act.actor == (requested_by or UNNAMED)


@pytest.mark.parametrize(
    "payload",
    [
        {}, {"run_id": RUN}, {"run_id": RUN, "reemit_kind": "ready_only"}, {"run_id": RUN[1:], "reemit_kind": "BOTH"},
        {"run_id": RUN + "\n", "reemit_kind": "BOTH"}, {"run_id": RUN, "reemit_kind": "BOTH", "x": 1},
        {"run_id": RUN, "reemit_kind": "BOTH", "dry_run": 1},
        {"run_id": RUN, "reemit_kind": "BOTH", "requested_at_utc": "2026-01-01T00:00:00"},
    ],
)  # fmt: skip
def test_a_malformed_request_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused) as refused:
        parse_reemit_request(payload)
    assert refused.value.reason is Reason.REQUEST_SCHEMA_INVALID
