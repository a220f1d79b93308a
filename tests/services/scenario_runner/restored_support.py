"""Runs as a rebuild restores them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from authority_support import SECOND, START, asking, draft, hex32, hex64

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.observed import DaemonRow
from scenario_runner.authority.rebuilds import RebuildEnd, RestoredEvent, RestoredRun, RestoredSignal, UnfinishedRebuild
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.states import EventKind, RunState, SignalKind

if TYPE_CHECKING:
    from scenario_runner.authority.base import Authority


#: A minute before the authority's clock.
BEGAN = START - 60 * SECOND


def event(seq: int, kind: str, ts_us: int, details: dict[str, Any]) -> RestoredEvent:
    return RestoredEvent(seq, kind, ts_us, canonical_bytes(details))


def restored(key: str, state: RunState = RunState.WAITING_EVIDENCE, **changes: Any) -> RestoredRun:
    """A run as a ledger may tell of it."""
    run_id, request = hex32(key), asking(key).run
    assert request is not None
    events = (
        event(1, EventKind.RUN_ADMITTED, BEGAN, {"seq": 1, "state": "OPEN", "seed": 2**64 - 1}),
        event(2, EventKind.PLAN_COMMITTED, BEGAN, {"seq": 2, "state": "PLANNED"}),
        event(3, "any", BEGAN + 5, {"seq": 3, "state": state.value, "text": "ä"}),
    )
    run = RestoredRun(
        run_id=run_id, run_equivalence_key=key, fingerprint=request.fingerprint, intent=canonical_bytes(request.intent),
        inputs=canonical_bytes(request.inputs), strategy="", invoker="somebody", state=state, reason_code="",
        admitted_us=BEGAN, deadline_us=BEGAN + 9, updated_us=BEGAN + 5, report_digest=hex64("report"),
        facts_view_digest="", projected_seq=3, missing=("a/b", "c"), events=events, attempts=(), signals=(), actions=(),
    )  # fmt: skip
    return replace(run, **changes)


def terminal(key: str, state: RunState = RunState.READY) -> RestoredRun:
    signal = RestoredSignal(draft(f"signal of {key}", SignalKind.READY, hex32(key)), BEGAN + 5, 3, BEGAN + 7)
    again = replace(
        signal, draft=replace(signal.draft, kind=SignalKind.READY_REEMIT), emission=1, receipt='{"shard":"s"}',
        action_key=f"act {key}",
    )  # fmt: skip
    act = ActionRow(f"act {key}", BEGAN + 6, "ops", "cli", "reemit", hex32(key), "why", "PUBLISHED", "")
    return restored(
        key, state, facts_view_digest=hex64("view"), missing=(), signals=(signal, again), actions=(act,)
    )  # fmt: skip


def begun(authority: Authority, actor: str = "ops") -> UnfinishedRebuild:
    unfinished = authority.begin_rebuild(actor, "terms")
    assert unfinished is not None
    return unfinished


END = RebuildEnd(
    ActionRow("key", 0, "ops", "cli", "authority.rebuild", "ledger", "why", "REBUILT", "2 runs"),
    (("object_store/x", "a" * 32), ("spool/y", "b" * 32)),
)


def report(authority: Authority, owner: str) -> None:
    authority.report_daemon(DaemonRow(owner, "runner", "1.2.3", "host-a"), 3600 * SECOND)
