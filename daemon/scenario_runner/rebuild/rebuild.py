"""Rebuilding an empty authority: runs are read and verified in parallel, and inserted in batches by one writer."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from scenario_runner.audit.ends_on_bus import EndsOnBus, without_run
from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.audit.ledger_listing import listed_runs
from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.base import Authority
from scenario_runner.authority.rebuilds import SEEN_US, NotStorableError, RebuildEnd, RestoredRun
from scenario_runner.authority.rows import storable
from scenario_runner.contracts import refs
from scenario_runner.contracts.states import RunState, SignalKind
from scenario_runner.rebuild.documents import RunToRead, superseded_runs
from scenario_runner.rebuild.reading import Outcome
from scenario_runner.rebuild.refusals import daemons_run, ended_by_another, not_empty, other_terms
from scenario_runner.rebuild.supersessions import Both, Link, completed, link_of
from scenario_runner.rebuild.values import Restored
from scenario_runner.storage.base import ObjectStore

ACTION: Final = "authority.rebuild"
"""``operator_actions.action`` of a rebuild; its subject is the ledger."""
#: Runs of one transaction: it takes some 200 ms, and the rows of as many runs, some 20 MB, are held in memory.
BATCH: Final = 1000
#: Bytes of their events and documents at most, unless one run has more: PostgreSQL takes no statement of 1 GB.
BATCH_BYTES: Final = 64 << 20

CANNOT_KNOW: Final = tuple(
    """
Requests that were refused, their dead letters and signals: nothing of them is in the ledger.
Records of the control bus that were disposed of: one that is delivered again is DUPLICATE, or is refused anew.
Runs that were admitted and not driven yet: send their requests again (on a spool, drop consumed/ again).
Leases and their epochs: every epoch begins above any that could be in use.
Whether a signal was published, unless the spool has its file: each counts as published; reemit publishes it on demand.
On a stream: whether a run ended after the state that an older copy of the ledger shows; look at what readers have.
Receipts of TERMINAL, exit codes and output of engine attempts that have ended, errors, numbers of tries.
Acts of operators other than re-emits, and digests that were kept for reuse.
""".strip().splitlines()
)


@dataclass
class Report:
    """What came of a rebuild.

    Attributes:
        by_state: Restored runs by state.
        findings: By code.
        seconds: How long it took.
    """

    runs: int = 0
    events: int = 0
    signals: int = 0
    attempts: int = 0
    by_state: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def restored(self) -> int:
        """Runs that were restored."""
        return self.by_state.total()


@dataclass(frozen=True, slots=True)
class Begun:
    """A rebuild that has begun: the authority, and the epoch of its runs."""

    authority: Authority
    epoch: int


def begin(authority: Authority, act: ActionRow, terms: str) -> Begun:
    """Mark an authority as being rebuilt, or go on after an interruption. From then on no daemon publishes anything.

    Args:
        authority: The authority.
        act: Who rebuilds it, and from which ledger.
        terms: By what runs are restored.

    Raises:
        UsageError: ``AUTHORITY_NOT_EMPTY``, ``DAEMONS_RUN``, or ``REBUILD_UNFINISHED`` on other terms.
        Unavailable: the authority does not answer.
    """
    unfinished = authority.begin_rebuild(act.actor, terms)
    if unfinished is None:
        daemons = authority.daemons_seen(SEEN_US)
        raise daemons_run(daemons) if daemons and not authority.runs(None, 1) else not_empty(act.subject)
    if unfinished.terms != storable(terms):
        raise other_terms(unfinished, terms)
    return Begun(authority, unfinished.epoch)


@dataclass(frozen=True)
class Rebuild:
    """A rebuild of one authority from one ledger.

    Attributes:
        into: What :func:`begin` gave; None for a dry run, which writes nothing.
        reading: Reads and verifies runs.
        on_finding: Receives every finding as it is made.
        on_progress: Receives the report after every batch.
        terms: By what runs are restored: ledger, witness and policy. A rebuild that was interrupted goes on by the
            same, because the runs that it has restored stay.
        ends: What the control bus says of the ends of runs.
        locate_signal: Where an object of the control bus is, for a person.
    """

    into: Begun | None
    store: ObjectStore
    reading: Callable[[Iterable[RunToRead]], Iterator[Outcome]]
    on_finding: Callable[[LedgerFinding], None]
    on_progress: Callable[[Report], None]
    terms: str
    ends: EndsOnBus = field(default_factory=EndsOnBus)
    locate_signal: Callable[[str], str] = str
    monotonic: Callable[[], float] = time.monotonic

    def run(self, act: ActionRow, identities: tuple[tuple[str, str], ...]) -> Report:
        """Rebuild, or say what would be restored.

        Args:
            act: The operator's act; its outcome and detail are made here.
            identities: (name, identity) of each store that the authority is to know.

        Raises:
            UsageError: ``AUTHORITY_NOT_EMPTY``: another process has ended the rebuild.
            Unavailable: the store, the authority, the control bus or an engine run root does not answer. The rebuild is
                unfinished, and begins again when it is called again.
        """
        began, report = self.monotonic(), Report()
        for finding in self.ends.findings(self.locate_signal):
            self._find(finding, report)
        for batch in _batches(self._all(report)):
            restored = batch if self.into is None else self._insert(self.into, batch, report)
            self._count(restored, report)
            report.seconds = self.monotonic() - began
            self.on_progress(report)
        if self.into is not None:
            self._end(self.into, RebuildEnd(_ended(act, report, self.terms), identities))
        report.seconds = self.monotonic() - began
        return report

    @staticmethod
    def _end(into: Begun, end: RebuildEnd) -> None:
        """End the rebuild with its act. Two processes may rebuild at once, by the same terms: the first one ends it."""
        authority = into.authority
        authority.restore([], into.epoch, end)
        if end.action.action_key not in authority.acts([end.action.action_key]):
            acts = [item for item in authority.actions(end.action.subject) if item.action == ACTION]
            raise ended_by_another(acts[-1] if acts else None)

    def _all(self, report: Report) -> Iterator[RestoredRun]:
        """Runs that hold together; what does not is a finding.

        Runs at an end of a supersession come last and are read once more, so that only what links them is in memory.
        """
        links, named = dict[str, Link](), superseded_runs(self.store)
        for run, own in self._restored(self._listed(report), report):
            report.runs += 1
            link = own or (link_of(run) if run.run_id in named else None)
            if link is None:
                yield run
            else:
                links[run.run_id] = link
        yield from self._linked(links, report)

    def _linked(self, links: dict[str, Link], report: Report) -> Iterator[RestoredRun]:
        both = Both(links, self._state_of)
        for run_id, problem in both.one_sided().items():
            self._find(self._finding(FindingCode.SUPERSESSION_ONE_SIDED, run_id, problem), report)
        for run, own in self._restored(map(self._to_read, both.kept), report):
            if (own or link_of(run)) == links[run.run_id]:
                yield completed(run, links[run.run_id], both.corrections_of(run.run_id))
            else:
                detail = "it was changed while it was read"
                self._find(self._finding(FindingCode.RECORD_DRIFT, run.run_id, detail), report)

    def _state_of(self, run_id: str) -> RunState | None:
        """State of a run that is at no end of a supersession by its own documents, if it is restored."""
        found = next(iter(self.reading([self._to_read(run_id)])))
        return found.run.state if isinstance(found, Restored) else None

    def _to_read(self, run_id: str) -> RunToRead:
        return RunToRead(run_id, None, self.ends.of_run(run_id))

    def _listed(self, report: Report) -> Iterator[RunToRead]:
        def without_objects(run_id: str, kind: SignalKind) -> None:
            self._find(without_run(run_id, kind, self.store.locate), report)

        listing = listed_runs(self.store)
        for listed, on_bus in self.ends.beside(listing, lambda item: item.run_id, without_objects):
            if listed.run_id:
                yield RunToRead(listed.run_id, {folder: item.md5 for folder, item in listed.objects.items()}, on_bus)
            for item in listed.foreign:
                place = f"{self.store.where}/{item.key}"
                finding = LedgerFinding(FindingCode.FOREIGN_OBJECT, "", place, "no run has such an object")
                self._find(finding, report)

    def _restored(self, runs: Iterable[RunToRead], report: Report) -> Iterator[Restored]:
        for found in self.reading(runs):
            if isinstance(found, Restored):
                yield found
            else:
                report.runs += 1
                self._find(found, report)

    def _finding(self, code: FindingCode, run_id: str, detail: str) -> LedgerFinding:
        return LedgerFinding(code, run_id, self.store.locate(refs.record_ref(run_id)), detail)

    def _insert(self, into: Begun, batch: list[RestoredRun], report: Report) -> list[RestoredRun]:
        """Insert a batch, and halve one that cannot be stored until the run is found; returns what was inserted."""
        try:
            known = into.authority.restore(batch, into.epoch)
        except NotStorableError as error:
            if len(batch) == 1:
                detail = f"the database cannot hold what its record says: {error!s}"
                self._find(self._finding(FindingCode.RECORD_DAMAGED, batch[0].run_id, detail), report)
                return []
            half = len(batch) // 2
            halves = (batch[:half], batch[half:])
            return [run for part in halves for run in self._insert(into, part, report)]
        for run in batch:
            if run.run_id not in known:
                detail = "another process admitted this run while the authority was rebuilt"
                self._find(self._finding(FindingCode.RUN_EXISTS, run.run_id, detail), report)
        return [run for run in batch if run.run_id in known]

    def _find(self, finding: LedgerFinding, report: Report) -> None:
        report.findings[finding.code.value] += 1
        self.on_finding(finding)

    @staticmethod
    def _count(batch: list[RestoredRun], report: Report) -> None:
        for run in batch:
            report.by_state[run.state.value] += 1
            report.events += len(run.events)
            report.signals += len(run.signals)
            report.attempts += len(run.attempts)


def _batches(runs: Iterable[RestoredRun]) -> Iterator[list[RestoredRun]]:
    """Runs in lists that one transaction takes."""
    batch, held = list[RestoredRun](), 0
    for run in runs:
        size = run.size()
        if batch and (len(batch) == BATCH or held + size > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(run)
        held += size
    if batch:
        yield batch


def _ended(act: ActionRow, report: Report, terms: str) -> ActionRow:
    """The act as it is written at the end."""
    values: dict[str, Any] = {name: getattr(act, name) for name in act.__slots__}
    detail = f"{report.runs} runs read, {report.findings.total()} findings; {terms}"
    return ActionRow(**values | {"outcome": "FINDINGS" if report.findings else "REBUILT", "detail": detail})
