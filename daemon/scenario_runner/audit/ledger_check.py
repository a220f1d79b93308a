"""The ledger against the authority, and both against themselves: every object and every row, in bounded memory.

Objects are listed in the order of the run ids, rows are read by pages in the same order, and the two are merged. What
is found wrong with a run is looked at once more with new rows before it counts: a daemon may be working.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from scenario_runner.audit.ends_on_bus import EndsOnBus, without_run
from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.audit.ledger_listing import RUN_FOLDERS, ListedRun, listed_runs
from scenario_runner.audit.ledger_run import RunCheck
from scenario_runner.audit.parallel import in_order
from scenario_runner.authority.values import RunRow, StoredEvent
from scenario_runner.authority.views.base import Views
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import sha256_hex
from scenario_runner.contracts.errors import Unavailable, UsageError
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import SignalKind
from scenario_runner.ledger.write_once import MAX_DOCUMENT
from scenario_runner.storage.base import ListedObject, ObjectStore, UnreadableObjectError

#: Runs of one page of rows: with their events some megabytes.
_PAGE: Final = 250
#: Runs that are being read at a time.
_WINDOW: Final = 128
#: A run moves on some times a second at most, and a look takes milliseconds.
_TRIES: Final = 5
#: A temporary file of this age has no writer any more: writing one takes milliseconds.
_STALE_US: Final = 3600 * 1_000_000

_ID: Final = "[0-9a-f]{32}"
_KNOWN: Final = {
    folder: re.compile(f"{folder}/{_ID}{re.escape(ending)}") for folder, ending in RUN_FOLDERS.items()
} | {
    "interface_pack": re.compile(r"interface_pack/[0-9a-f]{64}\.json"),
    "engine_invocations": re.compile(rf"engine_invocations/{_ID}\.json"),
    "engine_attempt_logs": re.compile(
        rf"engine_attempt_logs/run_id={_ID}/attempt_no=[1-9][0-9]*/(stdout|stderr)\.log"
    ),
    "instance_receipts": re.compile(
        r"instance_receipts/output_id=[^/]+(/[a-z_]+=[^/]+)+/(instance_receipt|bundle_manifest)\.json"
    ),
    ".private": re.compile(r"\.private/.+"),
}  # fmt: skip
"""Names of objects of SR, by folder."""


@dataclass
class CheckReport:
    """What was compared.

    Attributes:
        runs: By state in the authority.
        objects: By folder.
        owed: Runs whose documents are not written yet, and may be.
        findings: By code.
    """

    runs: Counter[str] = field(default_factory=Counter)
    objects: Counter[str] = field(default_factory=Counter)
    owed: int = 0
    findings: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A run on both sides; one of them may be missing."""

    run_id: str
    row: RunRow | None
    listed: ListedRun | None


class LedgerCheck:
    """Checks a ledger.

    Args:
        store: Its store.
        views: The authority, for reading only. Used by the calling thread alone.
        pool: Threads that read objects; None to read them in the calling thread.
        now_us: Now, in microseconds since the epoch.
        on_finding: Receives every finding as it is made.
        on_progress: Called after every page.
        ends: What the control bus says of the ends of runs. It was read before: a run is in the ledger before its
            signal is published.
    """

    def __init__(
        self, store: ObjectStore, views: Views, pool: Executor | None, now_us: Callable[[], int],
        on_finding: Callable[[LedgerFinding], None], on_progress: Callable[[CheckReport], None],
        ends: EndsOnBus | None = None,
    ) -> None:  # fmt: skip
        self._store, self._views, self._pool, self._now_us = store, views, pool, now_us
        self._on_finding, self._on_progress, self._ends = on_finding, on_progress, ends or EndsOnBus()
        self._check = RunCheck(store)
        self._packs: set[str] = set()
        self.report = CheckReport()

    def everything(self) -> None:
        """Check every run and every object.

        Raises:
            Unavailable: the store or the authority does not answer.
        """
        pairs = _merged(self._rows(0), listed_runs(self._store))
        self._pairs(pair for pair, _ in self._ends.beside(pairs, lambda pair: pair.run_id, self._without_objects))
        self._check_packs()
        self._check_names()

    def since(self, since_us: int) -> None:
        """Check the runs that were admitted since then; whether an object is nobody's is not looked at."""
        self._pairs(_Pair(row.run_id, row, None) for row in self._rows(since_us))
        self._check_packs()

    def one(self, run_id: str) -> None:
        """Check one run.

        Raises:
            UsageError: ``RUN_NOT_FOUND``: neither side knows it.
        """
        row = self._views.run(run_id)
        listed = self._listed(run_id)
        if row is None and not listed.objects:
            raise UsageError(f"neither the authority nor the ledger knows a run {run_id}", Reason.RUN_NOT_FOUND)
        self._pairs(iter([_Pair(run_id, row, listed if listed.objects else None)]))
        self._check_packs()

    def _listed(self, run_id: str) -> ListedRun:
        found = {}
        for folder, ending in RUN_FOLDERS.items():
            key = f"{refs.PREFIX}/{folder}/{run_id}{ending}"
            try:
                there = self._store.read(key, MAX_DOCUMENT) is not None
            except UnreadableObjectError:
                there = True
            if there:
                found[folder] = ListedObject(key, 0, 0)
        return ListedRun(run_id, found)

    # --- runs

    def _rows(self, since_us: int) -> Iterator[RunRow]:
        after = ""
        while page := self._views.runs_by_id(after, since_us, _PAGE):
            yield from page
            after = page[-1].run_id

    def _pairs(self, pairs: Iterator[_Pair]) -> None:
        while page := list(islice(pairs, _PAGE)):
            self._page(page)
            self._on_progress(self.report)

    def _page(self, page: Sequence[_Pair]) -> None:
        events = self._views.events_of([pair.run_id for pair in page if pair.row is not None])
        items = [(pair, events.get(pair.run_id, ())) for pair in page]
        for (pair, _), wrong in zip(items, in_order(self._pool, self._of_pair, items, _WINDOW), strict=True):
            self._count(pair)
            if wrong:
                self._again(pair)

    def _of_pair(self, item: tuple[_Pair, tuple[StoredEvent, ...]]) -> list[LedgerFinding]:
        pair, events = item
        listed = pair.listed.objects if pair.listed is not None else {}
        if pair.row is None:
            return [self._unknown(pair.run_id, listed)]
        return self._check.check(pair.row, events, listed, self._now_us())

    def _again(self, pair: _Pair) -> None:
        """Look at a run once more, until its row is the same before and after: a relay may write meanwhile."""
        for _ in range(_TRIES):
            row = self._views.run(pair.run_id)
            listed = pair.listed if pair.listed is None or not pair.listed.objects else self._listed(pair.run_id)
            events = self._views.events_of([pair.run_id]).get(pair.run_id, ()) if row is not None else ()
            found = self._of_pair((_Pair(pair.run_id, row, listed), events))
            if not found or _progress(self._views.run(pair.run_id)) == _progress(row):
                break
        for finding in found:
            self._find(finding)

    def _count(self, pair: _Pair) -> None:
        if pair.row is not None:
            self.report.runs[pair.row.state.value] += 1
            self.report.owed += pair.row.projected_seq < pair.row.event_seq
            self._packs.add(str(pair.row.inputs.get("pack_digest", "")))

    def _unknown(self, run_id: str, listed: dict[str, ListedObject]) -> LedgerFinding:
        keys = [item.key for item in listed.values()]
        detail = f"the authority does not know this run; there are {', '.join(sorted(listed))}"
        return LedgerFinding(FindingCode.RUN_UNKNOWN, run_id, self._store.locate(keys[0]) if keys else "", detail)

    def _without_objects(self, run_id: str, kind: SignalKind) -> None:
        self._find(without_run(run_id, kind, self._store.locate))

    def _find(self, finding: LedgerFinding) -> None:
        self.report.findings[finding.code.value] += 1
        self._on_finding(finding)

    # --- what belongs to no single run

    def _check_packs(self) -> None:
        """Every pack that a run is pinned to is there, and is that pack."""
        for digest in sorted(self._packs):
            key = refs.pack_ref(digest)
            try:
                stored = self._store.read(key, MAX_DOCUMENT)
                actual = "" if stored is None else sha256_hex(stored.data)
            except UnreadableObjectError as error:
                stored, actual = None, error.detail
            if actual != digest:
                code = FindingCode.PACK_DRIFT if actual else FindingCode.PACK_MISSING
                detail = "runs are pinned to this interface pack"
                self._find(LedgerFinding(code, "", self._store.locate(key), detail, digest, actual))

    def _check_names(self) -> None:
        """Every object has the name of a document of SR; nothing that a killed process left is old."""
        stale_us, start = self._now_us() - _STALE_US, len(refs.PREFIX) + 1
        for item in self._store.list_objects(refs.PREFIX):
            name = item.key[start:]
            folder = name.partition("/")[0]
            self.report.objects[folder if folder in _KNOWN else "others"] += 1
            if folder not in _KNOWN or _KNOWN[folder].fullmatch(name) is None:
                place = f"{self._store.where}/{item.key}"
                self._find(LedgerFinding(FindingCode.FOREIGN_OBJECT, "", place, "it has no name of a document of SR"))
            elif folder == ".private" and name.endswith(".tmp") and item.modified_us < stale_us:
                place = self._store.locate(item.key)
                self._find(LedgerFinding(FindingCode.TEMPORARY_LEFT, "", place, "a write that never ended"))


def _progress(row: RunRow | None) -> tuple[int, int] | None:
    """How far a run and its documents are; None of a run that is not known."""
    return None if row is None else (row.event_seq, row.projected_seq)


def _merged(rows: Iterator[RunRow], listed: Iterator[ListedRun]) -> Iterator[_Pair]:
    """Both sides by run id; foreign objects are left to the check of names."""
    row = next(rows, None)
    for item in listed:
        if not item.run_id:
            continue
        while row is not None and row.run_id < item.run_id:
            yield _Pair(row.run_id, row, ListedRun(row.run_id, {}))
            row = next(rows, None)
        if row is not None and row.run_id == item.run_id:
            yield _Pair(row.run_id, row, item)
            row = next(rows, None)
        else:
            yield _Pair(item.run_id, None, item)
    while row is not None:
        yield _Pair(row.run_id, row, ListedRun(row.run_id, {}))
        row = next(rows, None)


def require_known_store(store: ObjectStore, views: Views, kind: str = "object_store") -> None:
    """Refuse a store that is not the one that the authority knows.

    Raises:
        Unavailable: another store is there, or none.
    """
    known = views.store_identity(f"{kind}/{store.where}")
    if not known:
        raise Unavailable(f"the authority does not know {store.where}: no daemon worked on both")
    store.expect(known)
