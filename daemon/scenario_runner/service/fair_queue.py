"""Runs that wait for the long lane, and whose turn it is. Pure data: the caller has the threads and the lock."""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

from scenario_runner.authority.base import Claim
from scenario_runner.runs.batch import Deferred

#: Length of a first turn. Every further one is twice as long, so that what is done again costs half of it at most.
TURN_SECONDS: Final = 5.0
#: Every so many turns the oldest run has one, however many it had before: newcomers alone do not keep it waiting.
_OLDEST_EVERY: Final = 4


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
        """Length of the turn that the group is in."""
        return TURN_SECONDS * float(1 << min(self.turns, 20))


class FairQueue:
    """Next is who had the fewest turns; of those the invoker with the fewest examinations in progress, then the oldest.

    Evidence that is being examined is not taken a second time: whoever asks for it waits here, not on a worker. Runs
    without an invoker count as those of one invoker.

    Args:
        together: Most runs of one group.
    """

    def __init__(self, together: int = 64) -> None:
        self._together = together
        self._waiting: dict[tuple[str, Hashable], Group] = {}
        self._in_progress: Counter[str] = Counter()
        self._examined: set[Hashable] = set()
        self._taken = 0

    def add(self, deferred: Deferred) -> None:
        """Let a run wait for its first turn."""
        claim = deferred.claim
        self._put(Group(deferred.evidence, claim.invoker, claim.admitted_us, [claim]))

    def _put(self, group: Group) -> None:
        kept = self._waiting.setdefault((group.invoker, group.evidence), group)
        if kept is not group:
            kept.claims.extend(group.claims)

    def _able(self) -> list[Group]:
        return [group for group in self._waiting.values() if group.evidence not in self._examined]

    def take(self) -> Group | None:
        """The runs whose turn it is; None when none may begin now. Tell :meth:`done` when the turn is over."""
        able = self._able()
        if not able:
            return None
        self._taken += 1
        if self._taken % _OLDEST_EVERY:
            group = min(able, key=lambda group: (group.turns, self._in_progress[group.invoker], group.admitted_us))
        else:
            group = min(able, key=lambda group: group.admitted_us)
        del self._waiting[group.invoker, group.evidence]
        more, group.claims = group.claims[self._together :], group.claims[: self._together]
        if more:
            self._put(Group(group.evidence, group.invoker, more[0].admitted_us, more))
        self._in_progress[group.invoker] += 1
        self._examined.add(group.evidence)
        return group

    def is_over(self, group: Group, seconds: float) -> bool:
        """Whether a group that has been in its turn for so long makes way for others that wait.

        After a first turn's length for those that had fewer turns; after its own for those that had as many.
        """
        mine = group.turn_seconds
        return any(
            seconds > (TURN_SECONDS if other.turns < group.turns else mine) and other.turns <= group.turns
            for other in self._able()
        )

    def done(self, group: Group, unfinished: list[Claim], seconds: float) -> None:
        """A turn is over.

        Args:
            group: What :meth:`take` gave.
            unfinished: Those of its runs that wait for another turn.
            seconds: How long it was.
        """
        self._in_progress[group.invoker] -= 1
        self._examined.discard(group.evidence)
        if unfinished:
            turns, spent = group.turns + 1, group.spent_seconds + seconds
            self._put(Group(group.evidence, group.invoker, group.admitted_us, unfinished, turns, spent))
