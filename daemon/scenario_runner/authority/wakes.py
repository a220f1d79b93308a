"""Waking: what comes of the act that has a waiting run examined now. Pure.

The act changes ``due_us`` and nothing else, so it races with nobody: a claim that is at work holds the lease by then,
and whoever holds a lease sets the next time itself when it gives the run back. The PostgreSQL authority decides in SQL,
in the same order.
"""

from typing import Final

from scenario_runner.authority.values import RunRow
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import RunState

ACTION: Final = "runs_wake"
"""``operator_actions.action`` of a wake."""

WOKEN: Final = "WOKEN"
"""The run is due now."""
DUE_ALREADY: Final = "DUE_ALREADY"
"""It was due before; a runner takes it next."""
BEING_EXAMINED: Final = "BEING_EXAMINED"
"""A runner holds its lease: its evidence is being read at this moment."""
NOT_WAITING: Final = Reason.RUN_NOT_WAITING.value
"""It does not wait for evidence."""

DETAILS: Final = {
    WOKEN: "due now; a daemon examines it within its poll_seconds",
    DUE_ALREADY: "it was due already; a daemon examines it within its poll_seconds",
    BEING_EXAMINED: "a daemon is examining it at this moment, and may miss a file that has just come: ask again later",
    NOT_WAITING: "it does not wait for evidence, and nothing of it is changed",
}
"""The outcomes for a person."""


def wake_outcome(run: RunRow, now_us: int) -> str:
    """What a wake of a run comes to."""
    if run.state is not RunState.WAITING_EVIDENCE or run.due_us is None:
        return NOT_WAITING
    if run.lease_until_us > now_us:
        return BEING_EXAMINED
    return DUE_ALREADY if run.due_us <= now_us else WOKEN
