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
#: engine runs take twice as much as large ones. A name in a listing takes as much as a path whose kind was asked for.
#: Characters of names and paths come on top.
_BYTES_AN_ENTRY, _BYTES_A_FILE, _BYTES_A_NAME = 25_000, 400, 120
#: All entries together: some 260 small engine runs.
_MAX_BYTES: Final = 20_000_000
#: An entry that takes more than this part of all is not kept: few of them would drive out all others. 8,000 files.
_LARGEST_PART: Final = 4
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
        max_bytes: All entries together, about; the entry that was kept first goes first. One of more than a quarter is
            not kept.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._kept: OrderedDict[EvidenceKey, tuple[Snapshot, Finding, int]] = OrderedDict()
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
        snapshot, finding, _ = kept
        try:
            root.confirm(snapshot)
        except (Refusal, EvidenceChanged):
            return None
        return finding

    def put(self, key: EvidenceKey, finding: Finding, snapshot: Snapshot) -> None:
        """Keep a finding, if it passed and nothing in its snapshot had changed shortly before it was read."""
        if finding.verified is None or not snapshot.stable:
            return
        size = bytes_of(snapshot)
        with self._lock:
            self._drop(key)
            if size > self._max_bytes // _LARGEST_PART:
                return
            self._kept[key] = (snapshot, finding, size)
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: EvidenceKey) -> None:
        dropped = self._kept.pop(key, None)
        self._bytes -= dropped[2] if dropped else 0


def bytes_of(snapshot: Snapshot) -> int:
    """About what an entry with a snapshot takes, in bytes."""
    files = sum(map(len, snapshot.files)) + _BYTES_A_FILE * len(snapshot.files)
    names = sum(len(name) + _BYTES_A_NAME for listing in snapshot.listings.values() for name, _ in listing)
    folders = sum(len(path) + _BYTES_A_NAME for paths in (snapshot.listings, snapshot.kinds) for path in paths)
    return _BYTES_AN_ENTRY + files + names + folders
