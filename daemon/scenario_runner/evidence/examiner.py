"""The examiner: opens engine run roots and examines them, as often as that needs and as far as a share allows."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from scenario_runner.artifacts.base import Artifacts
from scenario_runner.artifacts.budget import (
    BATCH_SHARE,
    ExaminationTooLongError,
    ReadBudget,
    ReadBudgetExceeded,
    Share,
)
from scenario_runner.contracts.errors import EvidenceChanged, EvidenceMissing, EvidenceRefused
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.counters import count
from scenario_runner.evidence.cache import EvidenceBusyError, EvidenceCache
from scenario_runner.evidence.examine import examine
from scenario_runner.evidence.findings import Finding, Outcome, refused_without_report
from scenario_runner.evidence.key import EvidenceKey, evidence_key
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.ledger.packs import PinnedPacks

#: Pauses before evidence that changed while it was read is examined again; after the last it is refused. Writing one
#: file takes milliseconds; an engine that still writes after half a second has not sealed its run.
EXAMINE_AGAIN_SECONDS: Final = (0.1, 0.4)
#: Between two lines of the log about one examination: a person who waits sees it move, and a night makes no flood.
LOG_HASHING_SECONDS: Final = 30.0

_log = structlog.get_logger("evidence")


class ExaminationDeferred(Exception):  # noqa: N818 - no error: the examination is put off
    """The examination costs more than the share, or would have to wait. Nothing was decided.

    Examine again with a patient share: see :class:`~scenario_runner.artifacts.budget.Share`.

    Attributes:
        key: What was to be examined.
    """

    def __init__(self, key: EvidenceKey) -> None:
        super().__init__(key)
        self.key = key


class Examiner:
    """Examines the evidence of runs.

    Args:
        artifacts: Opens engine run roots.
        packs: Interface packs by digest.
        cache: Findings that may be used again; None examines everything anew.
        sleep: Waits some seconds.
    """

    def __init__(
        self, artifacts: Artifacts, packs: PinnedPacks, cache: EvidenceCache | None, sleep: Callable[[float], None]
    ) -> None:
        self._artifacts, self._packs, self._cache, self._sleep = artifacts, packs, cache, sleep
        self._bulk_keys = BulkKeys()

    @property
    def remote(self) -> bool:
        """Whether examinations wait for a network more than for this machine."""
        return self._artifacts.remote

    def key_of(self, intent: Intent, inputs: PlanInputs) -> EvidenceKey:
        """The key of a run's evidence.

        Raises:
            LedgerDrift: ``PACK_DRIFT``: the ledger holds something else in the place of the pinned pack.
            Unavailable: the pinned pack is not in the ledger, or this release cannot read it.
        """
        pack = self._packs.get(inputs.pack_digest)
        return evidence_key(
            inputs.root_of(intent), pack, intent.tokens(), inputs.gates, inputs.outputs, inputs.bounds,
            inputs.output_digest_source,
        )  # fmt: skip

    def examine(self, key: EvidenceKey, heartbeat: Callable[[], None], share: Share, run_id: str = "") -> Finding:
        """Examine until nothing changes meanwhile.

        Args:
            key: What is to be examined.
            heartbeat: Called once in a while; raises to end the examination (a lost lease, a process that stops).
            share: Most that the examination may cost.
            run_id: The run that it is for; a long examination logs it.

        Raises:
            ExaminationDeferred: it costs more than the share; what was learned of it (digests) is kept.
            Unavailable: something could not be read.
        """
        if not share.patient and key in self._bulk_keys:
            raise ExaminationDeferred(key)
        try:
            return self._until_stable(key, heartbeat, share, run_id)
        except (ReadBudgetExceeded, EvidenceBusyError) as error:
            self._bulk_keys.add(key)
            raise ExaminationDeferred(key) from error
        except ExaminationTooLongError as error:
            return refused_without_report(Outcome.CONFLICT, EvidenceRefused(error.detail, error.reason))

    def _until_stable(self, key: EvidenceKey, heartbeat: Callable[[], None], share: Share, run_id: str) -> Finding:
        for pause in EXAMINE_AGAIN_SECONDS:
            try:
                return self._examine_once(key, heartbeat, share, run_id)
            except EvidenceChanged as changed:
                if not share.patient:
                    raise ExaminationDeferred(key) from changed  # a batch must not sleep: other runs wait for it
                self._sleep(pause)
        try:
            return self._examine_once(key, heartbeat, share, run_id)
        except EvidenceChanged as changed:
            return refused_without_report(Outcome.CONFLICT, EvidenceRefused(changed.detail, changed.reason))

    def _examine_once(self, key: EvidenceKey, heartbeat: Callable[[], None], share: Share, run_id: str) -> Finding:
        pack = self._packs.get(key.pack_digest)
        progress = HashingLog(run_id)

        def beat(_hashed: int) -> None:
            heartbeat()  # first: what is only observed must not keep a lost lease from ending the examination
            progress.note(budget.seconds, budget.hashed, budget.to_hash)

        # An examination in a batch ends long before there is anything to log.
        with ReadBudget(beat if share.patient else lambda _hashed: heartbeat(), share, key.bounds) as budget:
            try:
                finding = self._examine_root(key, pack, budget)
            finally:
                count("sr_verification_bytes_total", by=budget.hashed)
                count("sr_verification_seconds_total", by=budget.seconds)
            if share.patient and budget.fits(BATCH_SHARE):
                self._bulk_keys.discard(key)  # its digests are known by now
            return finding

    def _examine_root(self, key: EvidenceKey, pack: InterfacePack, budget: ReadBudget) -> Finding:
        try:
            root = self._artifacts.open(key.root, budget)
        except EvidenceMissing as missing:
            return replace(refused_without_report(Outcome.MISSING, missing), root_absent=True)
        except EvidenceRefused as refused:
            return refused_without_report(Outcome.CONFLICT, refused)
        try:
            if self._cache is None:
                return examine(root, pack, key)[0]
            with self._cache.exclusive(key, budget):
                finding = self._cache.get(key, root)
                if finding is None:
                    finding, snapshot = examine(root, pack, key)
                    self._cache.put(key, finding, snapshot)
                return finding
        finally:
            root.close()


class HashingLog:
    """Logs, at intervals, how far a long examination has come.

    Args:
        run_id: The run that it is for.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id, self._next = run_id, LOG_HASHING_SECONDS

    def note(self, seconds: float, done: int, total: int) -> None:
        """Log when it is time; from any thread, and then one line too many does no harm.

        Args:
            seconds: Since the examination began.
            done: Bytes hashed.
            total: Bytes to hash, of the files that were listed so far; 0 before any was.
        """
        if seconds < self._next or not total:
            return
        self._next = seconds + LOG_HASHING_SECONDS
        _log.info("hashing", run_id=self._run_id, bytes_done=done, bytes_total=total, seconds=round(seconds))


class BulkKeys:
    """Keys whose examination is left to the bulk workers: it cost more than a batch's share, or was in progress.

    Bounded; the key that was added first is dropped first. Losing one costs one more try in a batch.

    Args:
        most: Keys that are kept.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._kept: OrderedDict[EvidenceKey, None] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, key: EvidenceKey) -> bool:
        """Whether the key was added and not dropped since."""
        return key in self._kept

    def add(self, key: EvidenceKey) -> None:
        """Add a key that no batch is to try again."""
        with self._lock:
            self._kept[key] = None
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def discard(self, key: EvidenceKey) -> None:
        """Drop a key whose examination has become cheap."""
        with self._lock:
            self._kept.pop(key, None)
