"""A transition checks itself when it is made: a run goes only where the table of states lets it go."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from authority_support import START, draft

from scenario_runner.authority.values import Claim, Event, Transition
from scenario_runner.contracts.errors import SequenceError
from scenario_runner.contracts.states import FINAL_STATES, TRANSITIONS, EventKind, RunState, SignalKind
from scenario_runner.rounds import rounds_without_repeats
from scenario_runner.runs.transitions import ended, gates_recorded, retry_later, waiting

pytestmark = pytest.mark.unit

VERIFYING, WAITING, READY = RunState.VERIFYING, RunState.WAITING_EVIDENCE, RunState.READY
SIGNAL = draft("signal", SignalKind.TERMINAL, "run")
LATER = START + 1


def claim(state: RunState = VERIFYING) -> Claim:
    return Claim(
        "a" * 32, "key", 3, "w1", state, {}, {}, START, START + 9, START, wakes=2, retries=1, report_digest="found",
        now_us=START, last_error="away",
    )  # fmt: skip


def on_record(*states: RunState) -> tuple[Event, ...]:
    return tuple(Event(EventKind.VERIFICATION_STARTED, state, {}) for state in states)


def going(start: RunState, *states: RunState, to: RunState | None = None) -> Transition:
    """A transition with an event for each of some states."""
    end = to or (states[-1] if states else start)
    ends = end in FINAL_STATES
    return Transition(
        claim(start), end, START + bool(states), None if ends else LATER, keep_lease=False, wakes=0, retries=0,
        last_error="", report_digest="", events=on_record(*states), signal=SIGNAL if ends else None,
    )  # fmt: skip


def is_legal(start: RunState, *states: RunState, **more: Any) -> bool:
    try:
        going(start, *states, **more)
    except SequenceError:
        return False
    return True


@pytest.mark.parametrize(("start", "end"), list(product(RunState, RunState)))
def test_a_run_goes_in_one_step_exactly_where_the_table_says(start: RunState, end: RunState) -> None:
    stays = start is end and start not in FINAL_STATES
    assert is_legal(start, end) is (end in TRANSITIONS[start] or stays)


@pytest.mark.parametrize(("start", "end"), list(product(RunState, RunState)))
def test_a_run_goes_through_verifying_exactly_where_the_table_says(start: RunState, end: RunState) -> None:
    begins = VERIFYING in TRANSITIONS[start] or start is VERIFYING
    assert is_legal(start, VERIFYING, end) is (begins and (end in TRANSITIONS[VERIFYING] or end is VERIFYING))


@pytest.mark.parametrize(("start", "end"), list(product(RunState, RunState)))
def test_a_state_changes_only_with_an_event(start: RunState, end: RunState) -> None:
    assert is_legal(start, to=end) is (start is end and start not in FINAL_STATES)


def test_the_last_event_and_the_row_have_the_same_state() -> None:
    assert not is_legal(VERIFYING, VERIFYING, to=WAITING)
    assert not is_legal(VERIFYING, WAITING, to=VERIFYING)


CHANGES: dict[str, tuple[Transition, dict[str, Any]]] = {
    "an end without a signal": (going(VERIFYING, READY), {"signal": None}),
    "an end that is due again": (going(VERIFYING, READY), {"due_us": LATER}),
    "an end that keeps its lease": (going(VERIFYING, READY), {"keep_lease": True}),
    "a signal without an end": (going(VERIFYING, WAITING), {"signal": SIGNAL}),
    "a wait without a due time": (going(VERIFYING, WAITING), {"due_us": None}),
    "an event at a time that is on record": (going(VERIFYING, WAITING), {"at_us": START}),
    "an event before what is on record": (going(VERIFYING, WAITING), {"at_us": START - 1}),
    "a later time without an event": (going(VERIFYING), {"at_us": LATER}),
    "an earlier time without an event": (going(VERIFYING), {"at_us": START - 1}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_transition_that_no_run_may_make_cannot_be_made(change: str) -> None:
    legal, changed = CHANGES[change]
    fields = {name: getattr(legal, name) for name in Transition.__dataclass_fields__}
    with pytest.raises(SequenceError):
        Transition(**{**fields, **changed})


def test_recorded_gates_keep_the_lease_and_all_that_was_counted() -> None:
    made = gates_recorded(claim(WAITING), LATER, on_record(VERIFYING, VERIFYING), "passed")
    assert (made.to_state, made.keep_lease, made.due_us, made.signal) == (VERIFYING, True, START, None)
    after = made.claim_after
    assert (after.state, after.updated_us, after.report_digest) == (VERIFYING, LATER, "passed")
    assert (after.wakes, after.retries, after.last_error) == (2, 1, "away")
    assert (after.run_id, after.owner, after.epoch) == ("a" * 32, "w1", 3)


def test_a_wait_counts_an_examination_and_forgets_failures() -> None:
    made = waiting(claim(WAITING), LATER, START, (), "found")
    assert (made.wakes, made.retries, made.last_error, made.due_us) == (3, 0, "", LATER)
    with pytest.raises(SequenceError):
        _ = made.claim_after


@pytest.mark.parametrize("state", [VERIFYING, WAITING])
def test_a_retry_changes_nothing_but_when_how_often_and_why(state: RunState) -> None:
    made = retry_later(claim(state), LATER, "the store is away")
    assert (made.to_state, made.at_us, made.due_us, made.events) == (state, START, LATER, ())
    assert (made.wakes, made.retries, made.last_error, made.report_digest) == (2, 2, "the store is away", "found")


def test_an_end_keeps_what_was_counted_and_has_no_error() -> None:
    made = ended(claim(), READY, "", LATER, on_record(READY), SIGNAL, "view")
    assert (made.due_us, made.keep_lease, made.wakes, made.retries, made.last_error) == (None, False, 2, 1, "")
    assert (made.facts_view_digest, made.report_digest, made.signal) == ("view", "found", SIGNAL)


def test_rounds_hold_each_key_once_and_keep_the_order_of_each() -> None:
    assert rounds_without_repeats("abacab") == [[0, 1, 3], [2, 5], [4]]
    assert rounds_without_repeats("") == []
