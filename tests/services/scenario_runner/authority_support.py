"""Values to try an authority with, and a clock that is moved by hand."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from scenario_runner.authority.base import (
    Admission,
    Authority,
    Claim,
    Event,
    NewRun,
    Noted,
    Outcome,
    Parked,
    SignalDraft,
    Verdict,
)
from scenario_runner.contracts.states import Disposition, EventKind, RunState, SignalKind

SECOND = 1_000_000
START = 1_767_225_600 * SECOND
LEASE = 30 * SECOND
WAIT = 3600 * SECOND


class Clock:
    """Microseconds since the epoch, moved by hand."""

    def __init__(self) -> None:
        self._now = START
        self.on_move: Callable[[int], None] = lambda _: None

    @property
    def now(self) -> int:
        return self._now

    @now.setter
    def now(self, value: int) -> None:
        self._now = value
        self.on_move(value)

    def __call__(self) -> int:
        return self._now

    def pass_seconds(self, seconds: float) -> int:
        self.now += round(seconds * SECOND)
        return self.now


def hex32(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def hex64(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def new_run(key: str, fingerprint: str = "one", wait_us: int = WAIT) -> NewRun:
    return NewRun(
        run_id=hex32(key),
        run_equivalence_key=key,
        fingerprint=hex64(fingerprint),
        intent={"seed": 2**64 - 1, "note": fingerprint},
        inputs={"pack_digest": hex64("pack"), "gates": ["g"]},
        plan_hash=hex64("plan" + fingerprint),
        plan_ref=f"plan/{key}",
        evidence_wait_us=wait_us,
    )


def draft(name: str, kind: SignalKind = SignalKind.REQUEST_REJECTED, run_id: str = "") -> SignalDraft:
    return SignalDraft(
        hex64(name),
        kind,
        run_id or "partition",
        {"facts_view_digest": hex64("view")},
        b'{"name":"' + name.encode() + b'"}',
    )


def asking(key: str, record: str = "", fingerprint: str = "one", **more: Any) -> Admission:
    """A record that asks for a run."""
    record = record or f"spool/{key}"
    return Admission(
        record,
        "RUN_REQUEST",
        f"message-{record}",
        hex32(key),
        new_run(key, fingerprint, **more),
        None,
        "",
        "",
        f"raw of {record}".encode(),
        99,
        draft("refusal of " + record),
    )


def settled(record: str, disposition: Disposition, run_id: str = "", refusal: SignalDraft | None = None) -> Admission:
    """A record whose disposition is known already."""
    return Admission(
        record, "RUN_REQUEST", "", run_id, None, disposition, "RECORD_NOT_JSON", "not JSON", b"\xff raw", 5, refusal
    )


def claim_one(authority: Authority, owner: str = "w1", lease_us: int = LEASE) -> Claim:
    (claim,) = authority.claim(owner, 1, lease_us)
    return claim


def event(
    kind: EventKind = EventKind.EVIDENCE_MISSING, state: RunState = RunState.WAITING_EVIDENCE, **details: Any
) -> Event:
    return Event(kind, state, details)


def parked(claim: Claim, due_us: int, events: Sequence[Event] = (), digest: str = "report") -> Parked:
    return Parked(claim, due_us, claim.updated_us + 1, tuple(events), digest)


def ready(claim: Claim, name: str = "ready") -> Verdict:
    events = (
        event(EventKind.GATES_PASSED, RunState.VERIFYING, gates=["g"]),
        event(EventKind.RUN_READY, RunState.READY),
    )
    return Verdict(
        claim,
        RunState.READY,
        "",
        claim.updated_us + 1,
        events,
        draft(name, SignalKind.READY, claim.run_id),
        hex64("view"),
    )


def failed(claim: Claim, name: str = "failed") -> Verdict:
    events = (event(EventKind.RUN_FAILED, RunState.FAILED, reason_code="GATE_FAIL"),)
    return Verdict(
        claim,
        RunState.FAILED,
        "GATE_FAIL",
        claim.updated_us + 1,
        events,
        draft(name, SignalKind.TERMINAL, claim.run_id),
    )


def noted(claim: Claim, digest: str = "passed") -> Noted:
    events = (event(EventKind.GATES_PASSED, RunState.VERIFYING, gates=["g"]),)
    return Noted(claim, claim.updated_us + 1, events, digest)


def settle(authority: Authority, *outcomes: Outcome) -> None:
    assert authority.settle(outcomes) == [None] * len(outcomes)
