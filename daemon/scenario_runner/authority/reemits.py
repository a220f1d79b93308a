"""What grows the record of a run that has ended: its signal is on the control bus, or is published again.

A re-emit publishes a signal again, with the same message id and the same payload.

What an act comes to is decided here, in the transaction that writes it: :func:`decide` is a pure function of the act
and of the rows. A re-emit changes nothing of its run but the number of its events. It needs no lease, and it races with
nobody:

* **Claims.** Only runs that have not ended are claimed, and only the record of a run that has ended grows here. The
  record of any other run is its lease holder's: the holder may have read the clock for its next event already, so an
  event in between could be the later one of the two and stand before it.
* **Projections.** A projection task holds the events up to the ``event_seq`` that its claim read. What is added after
  the claim is left to the next task, and records only ever grow. The status is rendered from columns that no re-emit
  writes.
* **Other re-emits.** Every act that adds something names the ``event_seq`` that it was decided on, and moves it on. So
  the number of the emission and the count of the rate limit are still true when the act is written, or nothing is
  written and the act is decided again. (SQLite decides under its write lock, which comes to the same.)
"""

import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

from scenario_runner.authority.acts import ReemitAct
from scenario_runner.authority.base import RunReader
from scenario_runner.authority.values import Event, OutboxRow, ReemitEnd, Sent, SignalDraft
from scenario_runner.contracts.canonical import Json, parse_json
from scenario_runner.contracts.reasons import CODES, Reason
from scenario_runner.contracts.states import (
    FINAL_STATES,
    REPEATED_BY,
    Disposition,
    EventKind,
    ReemitKind,
    RunState,
    SignalKind,
)

ACTION: Final = "reemit"
"""``operator_actions.action`` of a re-emit."""

#: Outcomes of acts that are not attempts to publish something: neither counted by the rate limit nor refused by it.
UNCOUNTED: Final = ("DRY_RUN", Reason.AUTH_DENIED.value, Reason.RUN_NOT_FOUND.value, Reason.REEMIT_RATE_LIMIT.value)
ACCEPTED: Final = "ACCEPTED"
"""The signal is owed to the control bus."""
DRY_RUN: Final = "DRY_RUN"
"""The signal would have been owed."""
PUBLISHED: Final = "PUBLISHED"
"""The signal is on the control bus once more."""

#: Keys of re-emits by the way they came: of a command, of one of a batch, of a record, of a redrive of a record.
_KEYS: Final = {
    "cli": re.compile(r"cli/[0-9a-f]{32}|cli/reemit/[0-9a-f]{1,32}/(?P<run_id>[0-9a-f]{32})"),
    "bus": re.compile(
        r"(redrive/[1-9][0-9]*/)?(spool/[A-Za-z0-9._-]*#[0-9a-f]{32}|kinesis/[^/\s]+/[^/\s]+/[0-9]+(/[0-9]+)?)"
    ),
}
MOST_EMISSIONS: Final = 2**31 - 1
"""The highest number of an emission: what the column holds on PostgreSQL. A run comes near it only by a ledger that was
tampered with, and then it is refused like any other act, since a number that cannot be stored would hold up intake."""

_WANTED: Final = {
    ReemitKind.READY_ONLY: (SignalKind.READY,),
    ReemitKind.TERMINAL_ONLY: (SignalKind.TERMINAL,),
    ReemitKind.BOTH: (SignalKind.READY, SignalKind.TERMINAL),
}
_FIRST: Final = (SignalKind.READY, SignalKind.TERMINAL)
_MISMATCH: Final = {
    ReemitKind.READY_ONLY: Reason.REEMIT_READY_ONLY_MISMATCH,
    ReemitKind.TERMINAL_ONLY: Reason.REEMIT_TERMINAL_ONLY_MISMATCH,
    ReemitKind.BOTH: Reason.REEMIT_READY_ONLY_MISMATCH,
}


@dataclass(frozen=True, slots=True)
class FirstSignal:
    """The signal that is repeated, as it was published first.

    Attributes:
        emissions: How often it has been put into the outbox.
    """

    draft: SignalDraft
    needs_seq: int
    emissions: int


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What an act is decided on.

    Attributes:
        event_seq: Number of the run's last event.
        last_event_us: Its time.
        signal: The run's READY or TERMINAL; None while it has none.
        attempts: Acts on the run within the window that count for the rate limit.
        limited: Acts within the window that the rate limit refused.
    """

    state: RunState
    event_seq: int
    last_event_us: int
    signal: FirstSignal | None
    attempts: int
    limited: int


@dataclass(frozen=True, slots=True)
class ReemitDecision:
    """What an act comes to.

    Attributes:
        outcome: ``ACCEPTED``, ``DRY_RUN``, or the reason code of a refusal.
        detail: What and why, for a person.
        at_us: Time of the events and of the signal.
        events: Appended to the run's record; none where the record stays as it is.
        signal: The signal to publish once more.
        emission: Its number; the first publication has 0.
        needs_seq: Documents up to this event must be in the ledger first.
    """

    outcome: str
    detail: str
    at_us: int
    events: tuple[Event, ...] = ()
    signal: SignalDraft | None = None
    emission: int = 0
    needs_seq: int = 0


def is_reemit_key(key: str, via: str, run_id: str) -> bool:
    """Whether the act of a key may be a re-emit of a run: no other act has a key of these forms."""
    found = _KEYS[via].fullmatch(key) if via in _KEYS else None
    return found is not None and found.groupdict().get("run_id") in (None, run_id)


def run_facts(row: Any) -> RunFacts | None:  # noqa: ANN401 - a row of either engine
    """The facts of a row; None when there is no such run."""
    if row is None or row["state"] is None:
        return None
    signal = None
    if row["message_id"] is not None:
        attributes = orjson.loads(row["attributes"])
        kind, payload = SignalKind(row["kind"]), bytes(row["payload"])
        draft = SignalDraft(row["message_id"], kind, row["partition_key"], attributes, payload)
        signal = FirstSignal(draft, row["needs_seq"], row["emissions"])
    return RunFacts(
        RunState(row["state"]), row["event_seq"], row["last_event_us"], signal, row["attempts"], row["limited"]
    )


def facts_now(reader: RunReader, act: ReemitAct, now_us: int) -> RunFacts | None:
    """The facts of an act as they are just now, for a prediction: nothing is held until something is written."""
    run = reader.run(act.run_id)
    if run is None:
        return None
    rows = [row for row in reader.signals(act.run_id).rows if row.kind in _FIRST or row.emission]
    first = next((row for row in rows if row.emission == 0), None)
    signal = None
    if first is not None:
        draft = SignalDraft(first.message_id, SignalKind(first.kind), act.run_id, {}, b"")
        signal = FirstSignal(draft, run.event_seq, 1 + max(row.emission for row in rows))
    acts = [
        item for item in reader.actions(act.run_id)
        if item.action == ACTION and item.at_us > now_us - act.limit.window_us and item.outcome not in UNCOUNTED
    ]  # fmt: skip
    return RunFacts(run.state, run.event_seq, run.updated_us, signal, len(acts), limited=0)


def decide(act: ReemitAct, facts: RunFacts | None, now_us: int) -> ReemitDecision:
    """What an act comes to: in this order the caller, the run, the rate limit, the kind of signal, the dry run."""
    if act.denied:
        return ReemitDecision(Reason.AUTH_DENIED.value, act.denied, now_us)
    if facts is None:
        return ReemitDecision(Reason.RUN_NOT_FOUND.value, f"no run {act.run_id} is known", now_us)
    at_us = max(now_us, facts.last_event_us + 1)
    limit = act.limit
    if not act.dry_run and facts.attempts >= limit.most:
        detail = (
            f"{facts.attempts} re-emits of this run within {limit.window_us // 1_000_000} s, and "
            f"reemit_rate_limit_max is {limit.most}; wait, or raise it in the wiring profile"
        )
        # Said once in the record: a caller in a loop must not make it grow without end. Every act has its own row.
        return _refused(act, facts, at_us, Reason.REEMIT_RATE_LIMIT, detail, record=facts.limited == 0)
    signal = facts.signal
    if facts.state not in FINAL_STATES or signal is None or signal.draft.kind not in _WANTED[act.kind]:
        has = f"its signal is {signal.draft.kind}" if signal is not None else "it has no signal that could be repeated"
        return _refused(act, facts, at_us, _MISMATCH[act.kind], f"the run is {facts.state}: {has}")
    if act.predicted is not None and signal.draft.kind is SignalKind.READY:
        return _refused(act, facts, at_us, *act.predicted)
    return _repeated(act, facts, signal, at_us)


def _repeated(act: ReemitAct, facts: RunFacts, first: FirstSignal, at_us: int) -> ReemitDecision:
    if first.emissions > MOST_EMISSIONS:
        detail = (
            f"its record tells of emission {first.emissions - 1}, and there is no number after it; check the record"
        )
        return _refused(act, facts, at_us, Reason.REEMIT_RATE_LIMIT, detail, record=facts.limited == 0)
    kind = REPEATED_BY[first.draft.kind]
    named = {"kind": kind.value, "message_id": first.draft.message_id, "emission": first.emissions}
    if act.dry_run:
        event = Event(EventKind.REEMIT_DRY_RUN, facts.state, {**_asked(act), "would_publish": named})
        return ReemitDecision(DRY_RUN, f"{kind} would be published, emission {first.emissions}", at_us, (event,))
    draft = SignalDraft(
        first.draft.message_id, kind, first.draft.partition_key, {**first.draft.attributes, "run_id": act.run_id},
        first.draft.payload,
    )  # fmt: skip
    event = Event(EventKind.REEMIT_REQUESTED, facts.state, {**_asked(act), **named})
    detail = f"{kind} is owed to the control bus, emission {first.emissions}"
    return ReemitDecision(ACCEPTED, detail, at_us, (event,), draft, first.emissions, first.needs_seq)


def _refused(
    act: ReemitAct, facts: RunFacts, at_us: int, reason: Reason, detail: str, *, record: bool = True
) -> ReemitDecision:
    """A refusal; the record of a run that has ended says it, in one event for a dry run."""
    why = {"reason_code": reason.value, "detail": detail}
    if act.dry_run:
        events: tuple[Event, ...] = (Event(EventKind.REEMIT_DRY_RUN, facts.state, {**_asked(act), **why}),)
    else:
        requested = Event(EventKind.REEMIT_REQUESTED, facts.state, _asked(act))
        events = (requested, Event(EventKind.REEMIT_FAILED, facts.state, {"action_key": act.key, **why}))
    if not record or facts.state not in FINAL_STATES:
        events = ()
    return ReemitDecision(reason.value, detail, at_us, events)


def _asked(act: ReemitAct) -> Json:
    """Who asked for what, and why: the details of the first event of an act."""
    return {
        "action_key": act.key, "requested_by": act.actor, "via": act.via, "reason": act.reason,
        "reemit_kind": act.kind.value,
    }  # fmt: skip


def sent(row: OutboxRow, receipt: str) -> Sent:
    """A signal that was published first. Where a stream answered, the record of the run says where its READY lies.

    On a spool the message id names the file, so there is no receipt to keep; the event would cost each run a second
    write of its record, which is a fifth of the throughput (ADR 0028).
    """
    if row.kind is not SignalKind.READY or not receipt:
        return Sent(row, receipt)
    details: Json = {"kind": row.kind.value, "message_id": row.message_id, "receipt": orjson.loads(receipt)}
    return Sent(row, receipt, Event(EventKind.READY_PUBLISHED, RunState.READY, details))


def delivery_event(end: ReemitEnd) -> Event:
    """The event that says what became of a re-emit that was owed."""
    row = end.row
    details: Json = {
        "action_key": row.action_key, "kind": row.kind.value, "message_id": row.message_id, "emission": row.emission,
    }  # fmt: skip
    if end.failure is None:
        receipt = {"receipt": orjson.loads(end.receipt)} if end.receipt else {}
        return Event(EventKind.REEMIT_PUBLISHED, _state_of(row), details | receipt)
    failure = end.failure
    details |= {"reason_code": failure.reason.value, "detail": failure.detail, **failure.facts()}
    return Event(EventKind.REEMIT_FAILED, _state_of(row), details)


def delivery_outcome(end: ReemitEnd) -> tuple[str, str]:
    """``outcome`` and ``detail`` of the act's row once its signal was delivered, or was refused."""
    if end.failure is not None:
        return end.failure.reason.value, end.failure.detail
    return PUBLISHED, f"{end.row.kind} is on the control bus, emission {end.row.emission}"


def _state_of(row: OutboxRow) -> RunState:
    """The state of the run that a re-emit is of: its payload says which end it tells of."""
    if row.kind is SignalKind.READY_REEMIT:
        return RunState.READY
    return RunState(parse_json(row.payload)["status_state"])


def disposition_of(outcome: str) -> tuple[Disposition, str]:
    """Disposition and reason code of a record whose act had an outcome."""
    if outcome in CODES:
        return Disposition.REJECTED, outcome
    return Disposition.ACCEPTED, ""
