"""From rows to values and back, the same for every engine."""

from dataclasses import astuple, replace
from functools import lru_cache
from typing import Any, Final, Protocol

import orjson

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.values import (
    AttemptRow,
    Claim,
    Event,
    NewRun,
    OutboxRow,
    RecordRow,
    RunRow,
    SignalRow,
    StoredEvent,
    SupersessionRow,
    Transition,
)
from scenario_runner.contracts.canonical import Json, rendered_again, sha256_hex
from scenario_runner.contracts.errors import LeaseLostError
from scenario_runner.contracts.states import Disposition, EventKind, RunState, SignalKind
from scenario_runner.contracts.supersession import supersession_from
from scenario_runner.contracts.times import MICROS
from scenario_runner.tracing import caller_of

QUIET_PERIOD_US: Final = 2 * MICROS
"""How long a run under lease must not have changed before its documents are projected. A small run is decided in less,
so its documents are written once, at its end; of a long one the record shows after 2 s that it is being verified."""

RUN_HORIZON_US: Final = 1200 * MICROS
"""Twice the longest pause of a run: 10 min until missing evidence is examined again. A run whose root is absent is due
at its deadline, however far ahead: its root is looked at in rounds by no clock of the authority."""

RELAY_HORIZON_US: Final = 1800 * MICROS
"""At least twice the longest pause of a document or signal, and longer than a lease of the relay."""

LEASE_HORIZON_US: Final = 3660 * MICROS
"""Longer than the longest lease of a run: ``lease_seconds`` is 3600 at most."""

#: Characters of an error that a run keeps: as many as :func:`~scenario_runner.contracts.errors.one_line` leaves.
_LONGEST_ERROR: Final = 2000
#: Characters of missing paths that a run keeps: those of a dozen gates. With them a row still fits into a page.
_LONGEST_MISSING: Final = 2000


class Row(Protocol):
    """A row that is read by the names of its columns."""

    def __getitem__(self, key: str, /) -> Any: ...  # noqa: ANN401 - a column holds anything


def run_row(row: Row) -> RunRow:
    """A run as stored."""
    return RunRow(
        run_id=row["run_id"], run_equivalence_key=row["run_equivalence_key"], state=RunState(row["state"]),
        reason_code=row["reason_code"], intent=orjson.loads(row["intent"]), inputs=orjson.loads(row["inputs"]),
        admitted_us=row["admitted_us"], deadline_us=row["deadline_us"], updated_us=row["updated_us"],
        due_us=row["due_us"], lease_owner=row["lease_owner"], lease_epoch=row["lease_epoch"],
        lease_until_us=row["lease_until_us"], wakes=row["wakes"], retries=row["retries"], last_error=row["last_error"],
        event_seq=row["event_seq"], projected_seq=row["projected_seq"], facts_view_digest=row["facts_view_digest"],
        relay_retries=row["relay_retries"], relay_error=row["relay_error"], relay_since_us=row["relay_since_us"],
        relay_until_us=row["relay_until_us"], absent_root=row["absent_root"],
    )  # fmt: skip


def claim_of(
    row: Row, owner: str, state: RunState, updated_us: int, now_us: int, attempts: tuple[AttemptRow, ...]
) -> Claim:
    """A run that has just been claimed."""
    return Claim(
        run_id=row["run_id"], run_equivalence_key=row["run_equivalence_key"], epoch=row["lease_epoch"], owner=owner,
        state=state, intent=orjson.loads(row["intent"]), inputs=orjson.loads(row["inputs"]),
        admitted_us=row["admitted_us"], deadline_us=row["deadline_us"], updated_us=updated_us, wakes=row["wakes"],
        retries=row["retries"], report_digest=row["report_digest"], now_us=now_us,
        invoker=row["invoker"], last_error=row["last_error"], attempts=attempts,
        supersession=supersession_from(row["supersession"]), traceparent=_traceparent_in(row["traced_admission"]),
    )  # fmt: skip


def _traceparent_in(details: bytes | None) -> str:
    """The trace context in the details of an admission; None stands for an admission without one."""
    caller = caller_of(orjson.loads(details)) if details is not None else None
    return caller.text() if caller is not None else ""


def attempt_row(row: Row) -> AttemptRow:
    """An attempt as stored."""
    return AttemptRow(
        row["attempt_no"], row["attempt_id"], row["invoker"], row["handle"], row["launched_us"], row["timeout_us"],
        row["ended_us"], row["outcome"], row["reason_code"], row["exit_code"], row["stop_code"],
        bool(row["another_attempt"]), row["duration_ms"], row["detail"], row["stderr_tail"],
    )  # fmt: skip


def storable_attempt(attempt: AttemptRow) -> AttemptRow:
    """An attempt as a row keeps it: what the engine and its backend say is for people."""
    return replace(
        attempt, handle=storable(attempt.handle), stop_code=storable(attempt.stop_code),
        detail=shortened(attempt.detail), stderr_tail=storable(attempt.stderr_tail),
    )  # fmt: skip


def stored_event(row: Row) -> StoredEvent:
    """An event; its details hold its number on every engine, also where only a column stores it."""
    return StoredEvent(row["seq"], row["kind"], row["ts_us"], {**_parsed(row["details"]), "seq": row["seq"]})


@lru_cache(maxsize=16)
def _parsed(details: bytes) -> Json:
    """Details as stored, parsed once for the runs that share their evidence. Shared: nobody may change them.

    The last 16 are kept: such runs come one after the other with a handful of events each, and details may be large.
    """
    return dict(orjson.loads(details))


def outbox_row(row: Row) -> OutboxRow:
    """A signal to publish."""
    return OutboxRow(
        row["outbox_id"], row["message_id"], row["run_id"], SignalKind(row["kind"]), row["partition_key"],
        orjson.loads(row["attributes"]), bytes(row["payload"]), row["created_us"], row["attempts"], row["emission"],
        row["action_key"], row["lease_owner"],
    )  # fmt: skip


def supersession_row(row: Row) -> SupersessionRow:
    """A run that corrects another."""
    supersession = supersession_from(row["supersession"])
    assert supersession is not None
    return SupersessionRow(row["run_id"], RunState(row["state"]), supersession)


def signal_row(row: Row) -> SignalRow:
    """A signal of a run."""
    return SignalRow(row["message_id"], row["kind"], row["sent_us"], row["emission"], row["receipt"], row["action_key"])


def action_row(row: Row) -> ActionRow:
    """An act of an operator."""
    return ActionRow(
        row["action_key"], row["at"], row["actor"], row["via"], row["action"], row["subject"], row["reason"],
        row["outcome"], row["detail"],
    )  # fmt: skip


def action_columns(action: ActionRow) -> dict[str, str]:
    """An act as its row keeps it, but for its time."""
    return {
        "action_key": storable(action.action_key), "actor": storable(action.actor), "via": action.via,
        "action": action.action, "subject": storable(action.subject), "reason": storable(action.reason),
        "outcome": action.outcome, "detail": shortened(action.detail),
    }  # fmt: skip


def record_row(row: Row) -> RecordRow:
    """The disposition of a record."""
    return RecordRow(
        row["record_key"], row["message_id"], row["kind"], Disposition(row["disposition"]), row["reason_code"],
        row["detail"], row["received_us"], row["raw_sha256"], row["raw_size"],
    )  # fmt: skip


def first_events(run: NewRun) -> tuple[Event, ...]:
    """The events of an admission, numbered from 1; auditors filter by the kinds of the last two.

    They hold all that the run's row is made of, so that it can be made again from the record (rebuild/).
    """
    admitted: Json = {
        "fingerprint": run.fingerprint, "run_equivalence_key": run.run_equivalence_key, "intent": run.intent,
        "inputs": run.inputs, "invoker": run.invoker,
    }  # fmt: skip
    if run.supersession is not None:
        admitted |= run.supersession.attributes()
    if run.traceparent:
        admitted["traceparent"] = run.traceparent
    plan = {"plan_hash": run.plan_hash, "plan_ref": run.plan_ref, "interface_pack_digest": run.inputs["pack_digest"]}
    return (
        Event(EventKind.RUN_ADMITTED, RunState.OPEN, admitted),
        Event(EventKind.PLAN_COMMITTED, RunState.PLANNED, plan),
        Event(EventKind.GOV_POLICY_REV, RunState.PLANNED, run.inputs["policy_rev"]),
        Event(EventKind.GOV_PLAN_HASH, RunState.PLANNED, {"plan_hash": run.plan_hash}),
    )


def storable(text: str) -> str:
    """Text for a person, as every engine can hold it: no NUL and no half of a surrogate pair."""
    if "\x00" in text or not text.isascii():
        return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\\x00")
    return text


def shortened(error: str) -> str:
    """An error as a row keeps it."""
    return storable(error[:_LONGEST_ERROR])


def searchable(missing: tuple[str, ...] | None) -> str | None:
    """Missing paths as a row keeps them; empty when they are too many, None to leave what the row has."""
    if missing is None:
        return None
    text = "".join(f"\n{storable(path)}" for path in dict.fromkeys(missing))
    return text if len(text) <= _LONGEST_MISSING else ""


def token_of(transition: Transition) -> str:
    """The idempotency token of a transition: what the row keeps of the one that was committed last.

    Whoever does not know whether a commit succeeded sends it again, and finds the token. Details of events and the
    payload of the signal are left out, because hashing them would cost as much as storing them: of two transitions of
    one claim with the same time, the report digest, the view digest or the message id differs when those do.
    """
    signal, attempt = transition.signal, transition.attempt
    return sha256_hex(rendered_again([
        transition.claim.epoch, transition.to_state, transition.at_us, transition.due_us, transition.keep_lease,
        transition.wakes, transition.retries, shortened(transition.last_error), transition.report_digest,
        transition.reason_code, transition.facts_view_digest, [event.kind for event in transition.events],
        [signal.kind, signal.message_id] if signal is not None else None, transition.deadline_us,
        astuple(storable_attempt(attempt)) if attempt is not None else None,
    ]))  # fmt: skip


def lease_lost(claim: Claim) -> LeaseLostError:
    """The answer to a transition that found no row under its guards."""
    return LeaseLostError(f"the lease of run {claim.run_id} (epoch {claim.epoch}) belongs to another worker now")
