"""Scrubs: the acts that a scrub leaves, and the event beside a run whose evidence has drifted. Pure.

The event grows the record of a run that has ended, as a re-emit does, and races with nobody for the same reasons (see
:mod:`scenario_runner.authority.reemits`). Nothing else of the run is changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scenario_runner.authority.acts import ActionRow, DriftAct
from scenario_runner.authority.values import Event
from scenario_runner.contracts.canonical import Json, canonical_bytes, parse_json
from scenario_runner.contracts.states import EventKind, RunState

ACTION: Final = "scrub"
"""``operator_actions.action`` of a scrub, and of each drift that it found."""
DRIFT: Final = "DRIFT"
"""Outcome of an act: evidence is not as it was published."""
LAST_KEY: Final = "scrub/last"
"""Key of the act whose detail says how the last scrub ended; daemons show it as metrics."""
_FOUND_KEPT: Final = 16
"""Scrubs with drift that are kept apart: a row of the database holds them."""


@dataclass(frozen=True, slots=True)
class LastScrub:
    """How the last scrubs ended.

    Attributes:
        ended_us: When one ended that went over all READY runs; 0 when none has.
        found: Scrubs that found drift which no later scrub of all runs has taken back: when, id, and how many runs.
    """

    ended_us: int = 0
    found: tuple[tuple[int, str, int], ...] = ()

    @property
    def drifted(self) -> int:
        """READY runs with drift, as far as is known: what the scrubs found may be the same runs."""
        return max((count for _, _, count in self.found), default=0)

    def after(self, now_us: int, scrub_id: str, drifted: int, whole_since_us: int | None = None) -> "LastScrub":
        """How it stands after another scrub, or in the midst of one.

        Args:
            now_us: The time.
            scrub_id: The scrub.
            drifted: READY runs with drift that it has found.
            whole_since_us: When one began that has gone over all READY runs, without an outage, and read all that had
                drifted before; None for any other. It takes back what was found before it began, and nothing that was
                found since.
        """
        since = -1 if whole_since_us is None else whole_since_us
        found = [item for item in self.found if item[0] >= since and item[1] != scrub_id]
        if drifted:
            found.append((now_us, scrub_id, drifted))
        found.sort()
        while len(found) > _FOUND_KEPT:
            (_, _, first), (at_us, second_id, second), *rest = found
            found = [(at_us, second_id, max(first, second)), *rest]
        return LastScrub(self.ended_us if whole_since_us is None else now_us, tuple(found))

    def text(self) -> str:
        """As it is kept; daemons of an older release read ``drifted``."""
        found = [list(item) for item in self.found]
        return canonical_bytes({"drifted": self.drifted, "ended_us": self.ended_us, "found": found}).decode()


def last_scrub(action: ActionRow | None) -> LastScrub:
    """How the last scrubs ended, from their act; None when none has."""
    if action is None or not action.detail:
        return LastScrub()
    document: Json = parse_json(action.detail.encode())
    ended_us = int(document["ended_us"])
    if "found" not in document:  # as it was kept before: how many, and not when
        drifted = int(document["drifted"])
        return LastScrub(ended_us, ((ended_us, "", drifted),) if drifted else ())
    return LastScrub(ended_us, tuple((at_us, scrub_id, count) for at_us, scrub_id, count in document["found"]))


def told_lately(act: DriftAct, actions: Sequence[ActionRow], now_us: int) -> bool:
    """Whether a drift of the run was put on record too lately for another one.

    Args:
        act: The act.
        actions: All acts on its run.
        now_us: The time.
    """
    since_us = now_us - act.quiet_us
    return act.quiet_us > 0 and any(item.action == ACTION and item.at_us > since_us for item in actions)


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
