"""What a record tells of re-emits is bounded by the record itself: whoever plants one must not stop what follows."""

from __future__ import annotations

from typing import Any

import pytest

from scenario_runner.authority.rebuilds import RestoredSignal
from scenario_runner.authority.values import SignalDraft, StoredEvent
from scenario_runner.contracts.states import EventKind, SignalKind
from scenario_runner.rebuild.course import first_published

pytestmark = pytest.mark.unit

RUN = "0" * 32
NOW = 1_000_000
FIRST = RestoredSignal(SignalDraft("m", SignalKind.READY, RUN, {}, b"{}"), 1, 1, 1)


def event(kind: EventKind, number: int = 1, ts_us: int = 1, **details: Any) -> StoredEvent:
    asked = {"action_key": f"cli/{number:032x}", "requested_by": "ops", "via": "cli", "reason": "why"}
    return StoredEvent(number, kind, ts_us, {"seq": number, "state": "READY", **asked, **details})


def requested(number: int, **details: Any) -> StoredEvent:
    return event(EventKind.REEMIT_REQUESTED, number, **details)


# --- numbers of emissions


def test_the_highest_number_is_that_of_the_requests() -> None:
    events = [
        requested(1, emission=1),
        event(EventKind.REEMIT_FAILED, 1, emission=1, reason_code="FACTS_VIEW_DRIFT"),
        requested(2, emission=1),
        event(EventKind.REEMIT_PUBLISHED, 2, emission=1),
        requested(3, emission=2),
    ]
    assert first_published(FIRST, events).removed_emission == 2


@pytest.mark.parametrize("number", [3, 2**31 - 1, 2**62])
@pytest.mark.parametrize("kind", [EventKind.REEMIT_REQUESTED, EventKind.REEMIT_PUBLISHED, EventKind.REEMIT_FAILED])
def test_a_number_above_that_of_the_requests_is_of_no_record_of_ours(kind: EventKind, number: int) -> None:
    events = [requested(1, emission=1), event(kind, 2, emission=number)]
    with pytest.raises(ValueError, match=f"it names emission {number}, and [12] were requested"):
        first_published(FIRST, events)
