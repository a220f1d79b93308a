"""Evidence that is known to cost more than a batch's share: it is not tried there again."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from scenario_runner.authority.base import Claim

_KEPT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Deferred:
    """A run under lease that is to be examined without a share.

    Attributes:
        evidence: What it asks of the evidence; runs with equal ones share an examination.
    """

    claim: Claim
    evidence: Hashable


class KnownLarge:
    """A bounded set that forgets the oldest entry first; losing one costs a share of a batch."""

    def __init__(self, most: int = _KEPT) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, None] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, evidence: Hashable) -> bool:
        """Whether the evidence was added and not forgotten."""
        return evidence in self._kept

    def add(self, evidence: Hashable) -> None:
        """Remember evidence that cost more than a share."""
        with self._lock:
            self._kept[evidence] = None
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def discard(self, evidence: Hashable) -> None:
        """Forget evidence that has become cheap, since its digests are known."""
        with self._lock:
            self._kept.pop(evidence, None)
