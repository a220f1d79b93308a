"""What is read out of the events of a run: how it ended, what it supersedes, and whether it can have gone that way."""

from typing import Any

import pytest
from authority_support import SECOND, START, hex32

from scenario_runner.authority.values import StoredEvent
from scenario_runner.contracts.states import EventKind, RunState
from scenario_runner.ledger.documents import ending, ready_payload, record_bytes, supersession_document
from scenario_runner.ledger.records import DamagedRecordError, read_record

pytestmark = pytest.mark.unit

RUN = hex32("run")
POLICY = {"policy_id": "p"}


def events(*kinds: tuple[EventKind, RunState | str, dict[str, Any]]) -> tuple[StoredEvent, ...]:
    first: list[tuple[EventKind, Any, dict[str, Any]]] = [
        (EventKind.RUN_ADMITTED, "OPEN", {}), (EventKind.PLAN_COMMITTED, RunState.PLANNED, {}),
        (EventKind.VERIFICATION_STARTED, RunState.VERIFYING, {}),
    ]  # fmt: skip
    return tuple(
        StoredEvent(seq, kind, START + seq * SECOND, {**details, "seq": seq, "state": state})
        for seq, (kind, state, details) in enumerate([*first, *kinds], 1)
    )


READY = (EventKind.RUN_READY, RunState.READY, {"ready": {"run_id": RUN}})
SUPERSEDES = (EventKind.SUPERSEDES, RunState.READY, {"supersedes": {"old_run_id": "old"}})
REEMIT = (EventKind.REEMIT_REQUESTED, RunState.READY, {})


def test_a_run_ended_with_its_verdict_whatever_was_recorded_afterwards() -> None:
    assert ending(events(READY, SUPERSEDES, REEMIT)).kind == EventKind.RUN_READY
    assert ready_payload(events(READY, REEMIT)) == {"run_id": RUN}
    assert ending(events()).kind == EventKind.VERIFICATION_STARTED, "the last one where none did"


def test_only_a_correction_has_a_supersession() -> None:
    assert supersession_document(events(READY, SUPERSEDES, REEMIT)) == {"old_run_id": "old"}
    assert supersession_document(events(READY, REEMIT)) is None


def test_a_record_is_read_with_one_end_or_none_and_never_with_two() -> None:
    for told in (events(), events(READY, REEMIT)):
        assert read_record(record_bytes(RUN, told, POLICY), RUN).events == told
    for told in (events(READY, READY), events(READY, (EventKind.RUN_FAILED, RunState.READY, {}))):
        with pytest.raises(DamagedRecordError):
            read_record(record_bytes(RUN, told, POLICY), RUN)
