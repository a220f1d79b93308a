"""The evidence cache: passed findings, used again while everything that they were derived from is unchanged."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from scenario_runner.artifacts.base import RunRoot, Snapshot
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.contracts.errors import EvidenceChanged, Refusal, ScenarioRunnerError
from scenario_runner.contracts.reasons import Reason
from scenario_runner.evidence.findings import Finding
from scenario_runner.evidence.key import EvidenceKey

#: What an entry takes, measured with 10 gates and 9 outputs: 75 KB with 94 files. Bounding files alone would let small
#: engine runs take twice as much as large ones.
_BYTES_AN_ENTRY, _BYTES_A_FILE = 25_000, 550
#: All entries together: some 260 small engine runs, or one of 36,000 files.
_MAX_BYTES: Final = 20_000_000
#: Locks of keys that nobody holds are dropped once there are more than this: a lock and its key take about 1 KB.
_MAX_LOCKS: Final = 1_000
#: How often a thread that waits for a key reports that it is still alive, so that it ends with its lease.
_WAITING_BEAT_SECONDS: Final = 0.5


class EvidenceBusyError(ScenarioRunnerError):
    """Another thread examines the same evidence, and this examination may not wait. Nothing was decided."""

    default_reason = Reason.UNAVAILABLE


class EvidenceCache:
    """Passed findings by evidence key, each with the snapshot that it was derived from.

    A finding is a pure function of its key and of the files, listings and kinds in its snapshot. So an entry is used
    only after the run root has confirmed that all of these are the same now; what is saved is reading their bytes.
    Losing an entry costs time only. What an entry that lies would cost: READY for evidence that was not read. So
    nothing is kept but passed findings of files that had last changed long enough before they were read that equal
    identities mean equal bytes.

    Args:
        max_bytes: All entries together, about; the entry that was kept first goes first.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._kept: OrderedDict[EvidenceKey, tuple[Snapshot, Finding]] = OrderedDict()
        self._locks: dict[EvidenceKey, threading.Lock] = {}
        self._lock = threading.Lock()

    @contextmanager
    def exclusive(self, key: EvidenceKey, budget: ReadBudget) -> Iterator[None]:
        """Hold a key, so that no two threads of this process read the same evidence at the same time.

        Raises:
            EvidenceBusyError: another thread holds it, and the budget does not allow to wait.
        """
        with self._lock:
            if len(self._locks) > _MAX_LOCKS:
                self._locks = {key: lock for key, lock in self._locks.items() if lock.locked()}
            lock = self._locks.setdefault(key, threading.Lock())
        while not lock.acquire(timeout=_WAITING_BEAT_SECONDS if budget.share.patient else 0):
            if not budget.share.patient:
                raise EvidenceBusyError("another thread examines the same evidence")
            budget.beat()
        try:
            yield
        finally:
            lock.release()

    def get(self, key: EvidenceKey, root: RunRoot) -> Finding | None:
        """The finding under a key, if everything that it was derived from is the same now.

        Args:
            key: What is to be examined.
            root: The engine run root of the key, opened.
        """
        kept = self._kept.get(key)
        if kept is None:
            return None
        snapshot, finding = kept
        try:
            root.confirm(snapshot)
        except (Refusal, EvidenceChanged):
            return None
        return finding

    def put(self, key: EvidenceKey, finding: Finding, snapshot: Snapshot) -> None:
        """Keep a finding, if it passed and nothing in its snapshot had changed shortly before it was read."""
        if finding.verified is None or not snapshot.stable:
            return
        with self._lock:
            self._drop(key)
            self._kept[key] = (snapshot, finding)
            self._bytes += bytes_of(snapshot)
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: EvidenceKey) -> None:
        dropped = self._kept.pop(key, None)
        self._bytes -= bytes_of(dropped[0]) if dropped else 0


def bytes_of(snapshot: Snapshot) -> int:
    """About what an entry with a snapshot takes, in bytes."""
    return _BYTES_AN_ENTRY + _BYTES_A_FILE * len(snapshot.files)
