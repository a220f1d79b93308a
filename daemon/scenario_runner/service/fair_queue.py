"""Runs that wait for the long lane, and whose turn it is. Pure data: the caller has the threads and the lock."""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

from scenario_runner.authority.base import Claim
from scenario_runner.runs.known_large import Deferred


@dataclass(slots=True)
class Group:
    """Runs of one invoker that one examination serves.

    Attributes:
        admitted_us: When the first of them was admitted, in microseconds since the epoch.
        claims: The runs, under lease.
    """

    evidence: Hashable
    invoker: str
    admitted_us: int
    claims: list[Claim] = field(default_factory=list)


class FairQueue:
    """Next is the run of the invoker with the fewest examinations in progress; of those, the oldest run.

    Evidence that is being examined is not taken a second time: whoever asks for it waits here, not on a worker. Runs
    without an invoker count as those of one invoker.

    Args:
        workers: How many examinations there may be at a time. One invoker has at most all but one of them.
        together: Most runs of one group.
    """

    def __init__(self, workers: int, together: int = 64) -> None:
        self._most, self._together = max(1, workers - 1), together
        self._waiting: dict[tuple[str, Hashable], Group] = {}
        self._in_progress: Counter[str] = Counter()
        self._examined: set[Hashable] = set()

    def add(self, deferred: Deferred) -> None:
        """Let a run wait."""
        claim = deferred.claim
        key = claim.invoker, deferred.evidence
        group = self._waiting.setdefault(key, Group(deferred.evidence, claim.invoker, claim.admitted_us))
        group.claims.append(claim)

    def take(self) -> Group | None:
        """The runs whose turn it is; None when nothing may begin now. Tell :meth:`done` when they are driven."""
        able = [
            group
            for group in self._waiting.values()
            if group.evidence not in self._examined and self._in_progress[group.invoker] < self._most
        ]
        if not able:
            return None
        group = min(able, key=lambda group: (self._in_progress[group.invoker], group.admitted_us))
        del self._waiting[group.invoker, group.evidence]
        for claim in group.claims[self._together :]:
            self.add(Deferred(claim, group.evidence))
        del group.claims[self._together :]
        self._in_progress[group.invoker] += 1
        self._examined.add(group.evidence)
        return group

    def done(self, group: Group) -> None:
        """The examination of what :meth:`take` gave has ended."""
        self._in_progress[group.invoker] -= 1
        if not self._in_progress[group.invoker]:
            del self._in_progress[group.invoker]
        self._examined.discard(group.evidence)
