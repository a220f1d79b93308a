"""Runs that have ended, and acts that publish their signals again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from authority_support import LEASE, SECOND, asking, claim_one, commit, hex32, ready

from scenario_runner.authority.acts import ActionRow, ReemitAct, ReemitAnswer, ReemitLimit
from scenario_runner.authority.values import OutboxRow, Sent
from scenario_runner.contracts.errors import LedgerDrift
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import ReemitKind

if TYPE_CHECKING:
    from scenario_runner.authority.base import Authority
    from scenario_runner.authority.values import RunRow


LIMIT = ReemitLimit(3, 60 * SECOND)
DRIFT = LedgerDrift("another one is there", Reason.FACTS_VIEW_DRIFT, place="place", expected="e" * 64, actual="a" * 64)


def act(key: str, run: str = "k", kind: ReemitKind = ReemitKind.BOTH, **changes: Any) -> ReemitAct:
    made = ReemitAct(key=key, run_id=hex32(run), kind=kind, actor="ops", via="cli", reason="why", limit=LIMIT)
    return replace(made, **changes)


def ended(authority: Authority, key: str = "k", how: Any = ready, *, sent: bool = True) -> RunRow:
    """A run that has ended, delivered unless it is not to be."""
    authority.admit([asking(key)])
    commit(authority, how(claim_one(authority), f"signal of {key}"))
    deliver_documents(authority)
    if sent:
        authority.mark_sent([Sent(row) for row in authority.claim_signals("p", 10, LEASE)])
    return run_of(authority, key)


def deliver_documents(authority: Authority) -> None:
    tasks = authority.claim_projections("relay", 100, LEASE)
    if tasks:
        authority.mark_projected("relay", [(task.run.run_id, task.run.event_seq) for task in tasks])


def run_of(authority: Authority, key: str = "k") -> RunRow:
    run = authority.run(hex32(key))
    assert run is not None
    return run


def one(authority: Authority, asked: ReemitAct) -> ReemitAnswer:
    (answer,) = authority.reemit([asked])
    return answer


def told(authority: Authority, key: str = "k") -> list[str]:
    """Kinds of the events after the end."""
    kinds = [event.kind for event in authority.events(hex32(key))]
    return [kind for kind in kinds if kind.startswith("REEMIT_")]


def owed(authority: Authority) -> list[OutboxRow]:
    return authority.claim_signals("p", 10, LEASE)


def action_of(authority: Authority, key: str) -> ActionRow:
    return authority.acts([key])[key]


RECEIPT = '{"sequence_number":"7","shard_id":"shard-1","stream":"control"}'
