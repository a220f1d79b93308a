"""Runs that wait for the bulk pool, and the order of their turns. Pure data: the caller has the threads and a lock."""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

from scenario_runner.authority.values import Claim
from scenario_runner.runs.batch import Deferred

#: Length of a first turn: a run of a few gigabytes ends in it. Every further turn is twice as long as the one before,
#: so that work that is repeated (with ``digest_reuse: off`` a turn begins anew) is at most half of all.
TURN_SECONDS: Final = 5.0
#: Every fourth turn is the oldest run's, however many it had before: newcomers, who had fewer, take three quarters of
#: the pool at most and never delay it for ever.
_OLDEST_EVERY: Final = 4
#: Bound of the exponent of a turn's length: 5 s doubled 20 times is two months, longer than any policy allows.
_MOST_DOUBLINGS: Final = 20


@dataclass(slots=True)
class Group:
    """Runs of one invoker that one examination serves.

    Attributes:
        admitted_us: When the first of them was admitted, in microseconds since the epoch.
        claims: The runs, under lease.
        turns: How many turns they have had.
        spent_seconds: How long those were together.
    """

    evidence: Hashable
    invoker: str
    admitted_us: int
    claims: list[Claim] = field(default_factory=list)
    turns: int = 0
    spent_seconds: float = 0.0

    @property
    def turn_seconds(self) -> float:
        """Length of the group's next or current turn, in seconds."""
        return TURN_SECONDS * float(1 << min(self.turns, _MOST_DOUBLINGS))


class FairQueue:
    """Takes the group with the fewest turns; of those one of the invoker with the fewest examinations; then the oldest.

    Evidence that is being examined is not taken a second time: runs that ask for it wait here and occupy no thread.
    Runs without an invoker count as those of one invoker.

    Args:
        together: Most runs of one group; by default as many as a batch has.
    """

    def __init__(self, together: int = 64) -> None:
        self._together = together
        self._waiting: dict[tuple[str, Hashable], Group] = {}
        self._in_progress: Counter[str] = Counter()
        self._examined: set[Hashable] = set()
        self._taken = 0

    def add(self, deferred: Deferred) -> None:
        """Queue a run for its first turn."""
        claim = deferred.claim
        self._put(Group(deferred.evidence, claim.invoker, claim.admitted_us, [claim]))

    def _put(self, group: Group) -> None:
        kept = self._waiting.setdefault((group.invoker, group.evidence), group)
        if kept is not group:
            # What one of them has spent, both have: the turns of an examination must grow until one is long enough.
            kept.claims.extend(group.claims)
            kept.turns, kept.spent_seconds = max(kept.turns, group.turns), max(kept.spent_seconds, group.spent_seconds)
            kept.admitted_us = min(kept.admitted_us, group.admitted_us)

    def _startable(self) -> list[Group]:
        return [group for group in self._waiting.values() if group.evidence not in self._examined]

    def take(self) -> Group | None:
        """Begin the next turn; None when no group may begin one now. Call :meth:`done` when the turn is over."""
        startable = self._startable()
        if not startable:
            return None
        self._taken += 1
        if self._taken % _OLDEST_EVERY:
            group = min(startable, key=lambda group: (group.turns, self._in_progress[group.invoker], group.admitted_us))
        else:
            group = min(startable, key=lambda group: group.admitted_us)
        del self._waiting[group.invoker, group.evidence]
        more, group.claims = group.claims[self._together :], group.claims[: self._together]
        if more:
            spent = group.spent_seconds
            self._put(Group(group.evidence, group.invoker, more[0].admitted_us, more, group.turns, spent))
        self._in_progress[group.invoker] += 1
        self._examined.add(group.evidence)
        return group

    def is_over(self, group: Group, seconds: float) -> bool:
        """Whether a group's turn ends because another group waits.

        It ends after the length of a first turn when the other had fewer turns, and after its own length when the other
        had as many.

        Args:
            group: What :meth:`take` returned.
            seconds: How long its turn has lasted.
        """
        mine = group.turn_seconds
        return any(
            seconds > (TURN_SECONDS if other.turns < group.turns else mine) and other.turns <= group.turns
            for other in self._startable()
        )

    def done(self, group: Group, unfinished: list[Claim], seconds: float) -> None:
        """End a turn.

        Args:
            group: What :meth:`take` returned.
            unfinished: Those of its runs that wait for another turn.
            seconds: How long the turn lasted.
        """
        self._in_progress[group.invoker] -= 1
        self._examined.discard(group.evidence)
        if unfinished:
            turns, spent = group.turns + 1, group.spent_seconds + seconds
            self._put(Group(group.evidence, group.invoker, group.admitted_us, unfinished, turns, spent))
