"""Scrub: published evidence of READY runs is read again, at a bounded rate, and compared with what was published.

It is the verification of :mod:`~scenario_runner.audit.verify`, run after run, with two differences. Runs whose facts
views name the same evidence share one reading of it. And what cannot be read at the moment is no finding: an archived
object, a root that is not allowed, a file that changes each time it is read, an outage.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from typing_extensions import override

from scenario_runner.artifacts.base import Artifacts, RootNotAllowedError
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.audit.documents import PublishedDocuments, PublishedView
from scenario_runner.audit.findings import Findings
from scenario_runner.audit.recomputed import EvidenceCheck
from scenario_runner.audit.verify import Verifier
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_sha256
from scenario_runner.contracts.errors import EvidenceChanged, Unavailable
from scenario_runner.evidence.findings import Finding
from scenario_runner.evidence.key import EvidenceKey
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.ledger.write_once import MAX_DOCUMENT
from scenario_runner.storage.base import ObjectStore, UnreadableObjectError

#: Evidence that was read in one scrub, and need not be read again for another run: some 10 MB.
_EVIDENCE_KEPT: Final = 50_000
#: Seconds between two readings of evidence that changes: who touches a file for a moment has gone by then.
_PAUSE_SECONDS: Final = 2.0
_READ_CHECK: Final = "the evidence can be read"
#: What a report says of that which was not read because of something else.
_NOT_REACHED: Final = ("BLOCKED", "NOT_READ")
#: Checks that did not hold which are kept of one run: the first ones explain the others, and an event stays small.
_CHECKS_KEPT: Final = 20
#: Characters of a text in such a check: a path is 1,024 at most.
_TEXT_KEPT: Final = 2_000
_OWN: Final = ("run_id", "pins", "plan_ref", "record_ref", "status_ref")
"""Fields of a facts view that are its run's own; what they say of the evidence stands in paths and scopes too."""


class EvidenceUnreadError(Unavailable):
    """The evidence of one run cannot be read, which says nothing about that of the next one."""


class SharedEvidence(EvidenceCheck):
    """Checks evidence once for all runs whose facts views name the same, also where it could not be read.

    Args:
        artifacts: Reader of engine run roots, without digest reuse: every byte is read.
        store: The object store.
        pace: Holds the reading to a rate.

    Attributes:
        readings: How often evidence was read.
    """

    def __init__(self, artifacts: Artifacts, store: ObjectStore, pace: "Pace") -> None:
        super().__init__(artifacts, PublishedDocuments(store), lambda _done, _total: None)
        self.readings = 0
        self._pace = pace
        self._kept: dict[tuple[str, str, str], tuple[Json, ...] | str] = {}
        self._finding: Finding | None = None

    @override
    def check(self, view: PublishedView, pack: InterfacePack, gates: tuple[str, ...], found: Findings) -> None:
        shared = {name: value for name, value in view.document.items() if name not in _OWN}
        pins = {name: value for name, value in view.document["pins"].items() if name != "run_id"}
        key = (canonical_sha256(shared), canonical_sha256(pins), pack.digest)
        if key not in self._kept:
            if len(self._kept) >= _EVIDENCE_KEPT:
                self._kept.clear()
            try:
                self._kept[key] = self._read(view, pack, gates)
            except (EvidenceUnreadError, RootNotAllowedError) as error:
                self._kept[key] = error.detail
            except Unavailable as error:
                self._kept[key] = error.detail
                raise
        kept = self._kept[key]
        if isinstance(kept, str):
            found.not_possible(_READ_CHECK, kept)
        else:
            found.checks.extend(kept)

    def _read(self, view: PublishedView, pack: InterfacePack, gates: tuple[str, ...]) -> tuple[Json, ...]:
        """The checks that did not hold, but for those that an archived object explains."""
        part, self._finding = Findings(), None
        super().check(view, pack, gates, part)
        self.readings += 1
        failed = [item for item in part.checks if not item["ok"]]
        finding: Finding | None = self._finding
        if finding is None or not finding.archived:
            return tuple(failed)
        reports = [*finding.report["gates"], *finding.report["outputs"]]
        explained = {str(item["detail"]) for item in reports if item["outcome"] in _NOT_REACHED}
        drifted = [item for item in failed if item.get("detail") not in explained.union(finding.archived)]
        if not drifted:
            raise EvidenceUnreadError(finding.archived[0])
        return tuple(drifted)

    @override
    def _examine(self, pack: InterfacePack, key: EvidenceKey) -> Finding:
        try:
            self._finding = super()._examine(pack, key)
        except EvidenceChanged as error:
            raise EvidenceUnreadError(f"{error.detail}; it was read several times, and changed each time") from error
        return self._finding

    @override
    def _has_read(self, more: int, budget: ReadBudget) -> None:
        self._pace.note(more)

    @override
    def _before_next_try(self) -> None:
        self._pace.pause(_PAUSE_SECONDS)


def drift_of(run_id: str, store: ObjectStore, verifier: Verifier) -> list[Json]:
    """What of a READY run is not any more as it was published; empty when nothing is.

    Args:
        run_id: A run that the authority calls READY.
        store: The object store.
        verifier: Verifies facts views, with :class:`SharedEvidence`.

    Returns:
        The checks that did not hold, a bounded number.

    Raises:
        EvidenceUnreadError: the evidence cannot be read, and all else is as it was published.
        Unavailable: something cannot be read at the moment.
    """
    ref = refs.facts_view_ref(run_id)
    try:
        stored = store.read(ref, MAX_DOCUMENT)
    except UnreadableObjectError as error:
        return [{"check": "facts view is well formed", "ok": False, "detail": error.detail}]
    if stored is None:
        return [{"check": "facts view is there", "ok": False, "detail": f"{store.locate(ref)} is absent"}]
    found_id, found = verifier.verify(stored.data)
    found.expect("facts view is this run's", ok=found_id == run_id, detail=f"it is that of {found_id or 'no run'}")
    failed = [item for item in found.checks if not item["ok"]]
    for item in found.checks:
        if item["check"] == _READ_CHECK and not failed:
            raise EvidenceUnreadError(item["detail"])
    return [_bounded(item) for item in failed[:_CHECKS_KEPT]]


def drift_digest(checks: Sequence[Json]) -> str:
    """Identity of what has drifted: equal for two scrubs that find the same, in whatever words.

    Args:
        checks: What did not hold, as of :func:`drift_of`.
    """
    return canonical_sha256([
        [item["check"], item.get("expected"), item.get("actual"), *([] if item.get("actual") else [item.get("detail")])]
        for item in checks
    ])  # fmt: skip


def _bounded(check: Json) -> Json:
    return {key: value[:_TEXT_KEPT] if isinstance(value, str) else value for key, value in check.items()}


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds that never go back, and a wait of some seconds."""

    monotonic: Callable[[], float]
    sleep: Callable[[float], object]


class Pace:
    """Holds whoever reads to a rate, from any number of threads. What was read is reported after it was read.

    Args:
        bytes_per_second: 0 for no bound.
        clock: The time.

    Attributes:
        read: Bytes that were read.
    """

    def __init__(self, bytes_per_second: float, clock: Clock) -> None:
        self._rate, self._clock = bytes_per_second, clock
        self._lock, self._free_at = threading.Lock(), clock.monotonic()
        self.read = 0

    def pause(self, seconds: float) -> None:
        """Wait."""
        self._clock.sleep(seconds)

    def note(self, more: int) -> None:
        """Wait until more may be read.

        Args:
            more: Bytes that were read since the last call of this thread. Not those of all threads: two that note them
                in another order than they read would seem to begin anew.
        """
        with self._lock:
            self.read += more
            if not self._rate or not more:
                return
            now = self._clock.monotonic()
            # A pause (documents, other runs) is not made up for by a burst.
            self._free_at = max(self._free_at, now) + more / self._rate
            wait = self._free_at - now
        if wait > 0:
            self._clock.sleep(wait)
