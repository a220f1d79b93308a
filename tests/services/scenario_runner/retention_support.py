"""Batches of a retention, and what they find."""

from __future__ import annotations

from typing import TYPE_CHECKING

from authority_support import SECOND, Clock, asking

from scenario_runner.authority.acts import ActionRow, ReemitLimit
from scenario_runner.authority.retention import ACTION, RUNNING, Expiry, Kind, count_of, counted

if TYPE_CHECKING:
    from scenario_runner.authority.base import Authority


DAY = 86_400 * SECOND
MANY = ReemitLimit(1000, 60 * SECOND)


def begun(authority: Authority, kind: Kind, key: str = "act") -> str:
    authority.record_action(ActionRow(key, 0, "ops", "cli", ACTION, kind, "why", RUNNING, counted(0, "rows removed")))
    return key


def swept(authority: Authority, expiry: Expiry, limit: int = 100, key: str = "act") -> int:
    """Remove everything that has expired; returns what the act counts."""
    begun(authority, expiry.kind, key)
    after, more, batches = 0, True, 0
    while more:
        batches += 1
        assert batches < 100, "the batches do not come to an end"
        removal = authority.remove_expired(expiry, after, limit, key)
        after, more = removal.after, removal.more
    return count_of(authority.acts([key])[key].detail)


def admitted_apart(authority: Authority, clock: Clock, *keys: str) -> None:
    for key in keys:
        authority.admit([asking(key, f"bus/{key}")])
        clock.pass_seconds(1)
