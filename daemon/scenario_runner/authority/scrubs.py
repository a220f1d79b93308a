"""Scrubs: the acts that a scrub leaves, and the event beside a run whose evidence has drifted. Pure.

The event grows the record of a run that has ended, as a re-emit does, and races with nobody for the same reasons (see
:mod:`scenario_runner.authority.reemits`). Nothing else of the run is changed.
"""

from dataclasses import dataclass
from typing import Final

from scenario_runner.authority.acts import ActionRow, DriftAct
from scenario_runner.authority.values import Event
from scenario_runner.contracts.canonical import Json, parse_json
from scenario_runner.contracts.states import EventKind, RunState

ACTION: Final = "scrub"
"""``operator_actions.action`` of a scrub, and of each drift that it found."""
DRIFT: Final = "DRIFT"
"""Outcome of an act: evidence is not as it was published."""
LAST_KEY: Final = "scrub/last"
"""Key of the act whose detail says how the last scrub ended; daemons show it as metrics."""


@dataclass(frozen=True, slots=True)
class LastScrub:
    """How the last scrub ended.

    Attributes:
        ended_us: When one ended that went over all READY runs; 0 when none has.
        drifted: READY runs with drift that it found; a later one over fewer runs can only find more.
    """

    ended_us: int = 0
    drifted: int = 0

    def after(self, now_us: int, drifted: int, *, whole: bool) -> "LastScrub":
        """How it stands after another scrub, of all runs or of some."""
        if whole:
            return LastScrub(now_us, drifted)
        return LastScrub(self.ended_us, max(self.drifted, drifted))

    def text(self) -> str:
        """As it is kept."""
        return f'{{"drifted":{self.drifted},"ended_us":{self.ended_us}}}'


def last_scrub(action: ActionRow | None) -> LastScrub:
    """How the last scrub ended, from its act; None when none has."""
    if action is None or not action.detail:
        return LastScrub()
    document: Json = parse_json(action.detail.encode())
    return LastScrub(int(document["ended_us"]), int(document["drifted"]))


def drift_event(act: DriftAct) -> Event:
    """The event beside the run."""
    details: Json = {
        "action_key": act.key, "requested_by": act.actor, "via": act.via, "reason": act.reason,
        "checks": list(act.checks),
    }  # fmt: skip
    return Event(EventKind.EVIDENCE_DRIFTED, RunState.READY, details)


def drift_action(act: DriftAct, at_us: int) -> ActionRow:
    """The row of the act."""
    return ActionRow(act.key, at_us, act.actor, act.via, ACTION, act.run_id, act.reason, DRIFT, act.detail)
