"""What a record tells of re-emits is bounded by the record itself: whoever plants one must not stop what follows."""

from __future__ import annotations

from typing import Any

import pytest

from scenario_runner.authority.rebuilds import RestoredSignal
from scenario_runner.authority.values import SignalDraft, StoredEvent
from scenario_runner.contracts.states import EventKind, SignalKind
from scenario_runner.rebuild.course import acts_of, first_published

pytestmark = pytest.mark.unit

RUN = "0" * 32
NOW = 1_000_000
FIRST = RestoredSignal(SignalDraft("m", SignalKind.READY, RUN, {}, b"{}"), 1, 1, 1)


def event(kind: EventKind, number: int = 1, ts_us: int = 1, **details: Any) -> StoredEvent:
    asked: dict[str, Any] = {"requested_by": "ops", "via": "cli", "reason": "why"}
    asked["action_key"] = f"cli/{number:032x}"
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


# --- acts

KEYS = {
    "cli": [f"cli/{7:032x}", f"cli/reemit/0123456789ab/{RUN}"],
    "bus": [
        f"spool/again.json#{7:032x}",
        "kinesis/sr-control.1/shardId-000000000000/4957",
        "kinesis/sr-control.1/shardId-000000000000/4957/3",
        f"redrive/2/spool/again.json#{7:032x}",
        "redrive/12/kinesis/s/shardId-1/4957",
    ],
}


@pytest.mark.parametrize(("via", "key"), [(via, key) for via, keys in KEYS.items() for key in keys])
def test_keys_of_reemits_come_back_by_the_way_they_came(via: str, key: str) -> None:
    published = event(EventKind.REEMIT_PUBLISHED, 2, NOW, action_key=key)
    (act,) = acts_of(RUN, [requested(1, action_key=key, via=via), published], NOW)
    assert (act.action_key, act.via, act.outcome, act.subject) == (key, via, "PUBLISHED", RUN)
    other = {"cli": "bus", "bus": "cli"}[via]
    with pytest.raises(ValueError, match="event 1 has no key of a re-emit"):
        acts_of(RUN, [requested(1, action_key=key, via=other)], NOW)


@pytest.mark.parametrize(
    "key",
    [
        f"quarantine_ack/{RUN}",
        "bus/m1",
        "",
        "cli/reemit/0123456789ab",
        f"cli/reemit/0123456789ab/{1:032x}",
        f"cli/wake/0123456789ab/{RUN}",
        f"redrive/{7:064x}",
        f"cli/{7:032x}\n",
        f"retention/{RUN}",
    ],
)
@pytest.mark.parametrize("via", ["cli", "bus", "nobody"])
@pytest.mark.parametrize("kind", [EventKind.REEMIT_REQUESTED, EventKind.REEMIT_DRY_RUN])
def test_a_key_of_another_act_is_of_no_record_of_ours(kind: EventKind, via: str, key: str) -> None:
    with pytest.raises(ValueError, match="event 1 has no key of a re-emit"):
        acts_of(RUN, [event(kind, action_key=key, via=via)], NOW)


@pytest.mark.parametrize(
    ("kind", "details", "outcome"),
    [
        (EventKind.REEMIT_PUBLISHED, {}, "PUBLISHED"),
        (EventKind.REEMIT_FAILED, {"reason_code": "FACTS_VIEW_DRIFT"}, "FACTS_VIEW_DRIFT"),
        (EventKind.REEMIT_FAILED, {}, None),
        (EventKind.REEMIT_FAILED, {"reason_code": "REBUILT"}, None),
        (EventKind.REEMIT_PUBLISHED, {"reason_code": "ADMITTED"}, None),
        (EventKind.REEMIT_DRY_RUN, {}, "DRY_RUN"),
        (EventKind.REEMIT_DRY_RUN, {"reason_code": "REEMIT_RATE_LIMIT"}, "REEMIT_RATE_LIMIT"),
        (EventKind.REEMIT_DRY_RUN, {"reason_code": "PUBLISHED"}, None),
        (EventKind.REEMIT_REQUESTED, {"reason_code": "DRY_RUN"}, None),
    ],
)
def test_outcomes_are_those_of_the_closed_list(kind: EventKind, details: dict[str, Any], outcome: str | None) -> None:
    events = [requested(1), event(kind, 1, **details)]
    if outcome is None:
        with pytest.raises(ValueError, match="event 1 has no outcome of a re-emit"):
            acts_of(RUN, events, NOW)
    else:
        assert [act.outcome for act in acts_of(RUN, events, NOW)] == [outcome]


def test_no_act_is_from_after_the_rebuild() -> None:
    assert acts_of(RUN, [requested(1, ts_us=NOW)], NOW)
    with pytest.raises(ValueError, match="event 1 is later than the rebuild"):
        acts_of(RUN, [requested(1, ts_us=NOW + 1)], NOW)
