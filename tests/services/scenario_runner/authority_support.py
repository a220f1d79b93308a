"""Values to try an authority with, and a clock that is moved by hand."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from scenario_runner.authority.base import Authority
from scenario_runner.authority.values import Admission, AttemptRow, Claim, Event, NewRun, SignalDraft, Transition
from scenario_runner.contracts.states import Disposition, EventKind, RunState, SignalKind
from scenario_runner.runs import transitions

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


def new_run(key: str, fingerprint: str = "one", wait_us: int = WAIT, strategy: str = "AUTO") -> NewRun:
    return NewRun(
        run_id=hex32(key),
        run_equivalence_key=key,
        fingerprint=hex64(fingerprint),
        intent={"seed": 2**64 - 1, "note": fingerprint},
        inputs={
            "pack_digest": hex64("pack"),
            "gates": ["g"],
            "strategy": strategy,
            "policy_rev": {"policy_id": "policy"},
        },
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
        record_key=record,
        kind="RUN_REQUEST",
        message_id=f"message-{record}",
        run_id=hex32(key),
        run=new_run(key, fingerprint, **more),
        raw=f"raw of {record}".encode(),
        raw_size=99,
        refusal=draft("refusal of " + record),
    )


def disposed(record: str, disposition: Disposition, run_id: str = "", refusal: SignalDraft | None = None) -> Admission:
    """A record whose disposition is known already."""
    return Admission(
        record_key=record, kind="RUN_REQUEST", run_id=run_id, disposition=disposition, reason_code="RECORD_NOT_JSON",
        detail="not JSON", raw=b"\xff raw", raw_size=5, refusal=refusal,
    )  # fmt: skip


def claim_one(authority: Authority, owner: str = "w1", lease_us: int = LEASE) -> Claim:
    (claim,) = authority.claim(owner, 1, lease_us)
    return claim


def event(
    kind: EventKind = EventKind.EVIDENCE_MISSING, state: RunState = RunState.WAITING_EVIDENCE, **details: Any
) -> Event:
    return Event(kind, state, details)


def resumed(claim: Claim) -> tuple[Event, ...]:
    """What leads a run that waited to its end."""
    if claim.state is RunState.WAITING_EVIDENCE:
        return (event(EventKind.VERIFICATION_STARTED, RunState.VERIFYING),)
    return ()


def waiting(
    claim: Claim, due_us: int, events: Sequence[Event] | None = None, digest: str = "report", root: str = ""
) -> Transition:
    """Wait for evidence; by default with the event that a run needs to get there from where it is."""
    if events is None:
        events = () if claim.state is RunState.WAITING_EVIDENCE else (event(),)
    at_us = claim.updated_us + bool(events)
    return transitions.waiting(claim, due_us, at_us, tuple(events), digest, absent_root=root)


def retried(claim: Claim, due_us: int, error: str) -> Transition:
    return transitions.retry_later(claim, due_us, error)


def ready(claim: Claim, name: str = "ready") -> Transition:
    events = (
        event(EventKind.GATES_PASSED, RunState.VERIFYING, gates=["g"]),
        event(EventKind.RUN_READY, RunState.READY),
    )
    signal = draft(name, SignalKind.READY, claim.run_id)
    return transitions.ended(claim, RunState.READY, "", claim.updated_us + 1, events, signal, hex64("view"))


def failed(claim: Claim, name: str = "failed") -> Transition:
    events = (*resumed(claim), event(EventKind.RUN_FAILED, RunState.FAILED, reason_code="GATE_FAIL"))
    signal = draft(name, SignalKind.TERMINAL, claim.run_id)
    return transitions.ended(claim, RunState.FAILED, "GATE_FAIL", claim.updated_us + 1, events, signal)


def gates_recorded(claim: Claim, digest: str = "passed") -> Transition:
    events = (event(EventKind.GATES_PASSED, RunState.VERIFYING, gates=["g"]),)
    return transitions.gates_recorded(claim, claim.updated_us + 1, events, digest)


def next_attempt(claim: Claim, **changes: Any) -> AttemptRow:
    """An attempt that is about to be launched."""
    number = len(claim.attempts) + 1
    attempt_id = hex32(f"{claim.run_id} {number}")
    return replace(AttemptRow(number, attempt_id, "subprocess", "place", claim.now_us, WAIT), **changes)


def executing(claim: Claim, attempt: AttemptRow, kind: EventKind, state: RunState = RunState.EXECUTING) -> Transition:
    """Put an attempt on record and go on with the run under the lease."""
    return Transition(
        claim, state, claim.updated_us + 1, due_us=claim.now_us, keep_lease=True, wakes=claim.wakes, retries=0,
        last_error="", report_digest=claim.report_digest, events=(*resumed(claim), event(kind, state)), attempt=attempt,
    )  # fmt: skip


def launched(claim: Claim, **changes: Any) -> Transition:
    """The commit before a launch."""
    return executing(claim, next_attempt(claim, **changes), EventKind.ENGINE_ATTEMPT_LAUNCH_REQUESTED)


def submitted(claim: Claim, **changes: Any) -> Transition:
    """The commit after a launch."""
    return executing(claim, replace(claim.attempts[-1], **changes), EventKind.ENGINE_JOB_SUBMITTED)


def finished(claim: Claim, outcome: str = "FAILED", **changes: Any) -> Transition:
    """The commit after the end of an engine."""
    attempt = replace(claim.attempts[-1], ended_us=claim.updated_us + 1, outcome=outcome, **changes)
    state = RunState.VERIFYING if outcome == "SUCCEEDED" else RunState.EXECUTING
    return executing(claim, attempt, EventKind.ENGINE_ATTEMPT_FINISHED, state)


def commit(authority: Authority, *given: Transition) -> None:
    assert authority.commit(given) == [None] * len(given)
