"""``scrub``: read the published evidence of READY runs again, at a bounded rate, and put drift on record.

A scrub is an act on record, whose detail says how far it has come. So one that was broken off, however it was, goes on
with ``--resume``. Memory holds a page of runs, and digests of the evidence that was read.
"""

import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final

import typer

from scenario_runner.audit.required import Named, Unknown
from scenario_runner.audit.scrub import Clock, EvidenceUnreadError, Pace, SharedEvidence, drift_digest, drift_of
from scenario_runner.audit.verify import Verifier
from scenario_runner.authority import scrubs
from scenario_runner.authority.acts import ActionRow, DriftAct, PublishedSignal
from scenario_runner.authority.base import Authority
from scenario_runner.bus.base import SearchInconclusive
from scenario_runner.cli.acting import checked_actor, checked_reason
from scenario_runner.cli.console import Exit, exit_on_error, print_err, print_json_line, print_line
from scenario_runner.cli.ledger_reading import Progress
from scenario_runner.cli.outputs.acting import SCRUB_LINE, SCRUB_SUMMARY
from scenario_runner.cli.reemit import require_started
from scenario_runner.cli.when import micros_of
from scenario_runner.contracts.canonical import Json, canonical_bytes, parse_json
from scenario_runner.contracts.errors import Unavailable, UsageError
from scenario_runner.contracts.states import EventKind, RunState
from scenario_runner.contracts.times import MICROS, format_micros
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.ledger.packs import PinnedPacks
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.service.compose import (
    open_artifacts,
    open_authority,
    open_pack,
    open_schemas,
    open_store,
    require_rebuilt,
)
from scenario_runner.service.control_bus import state_modes
from scenario_runner.service.identity import NamedStore, require_known
from scenario_runner.service.production import load_to_write
from scenario_runner.storage.base import ObjectStore

#: Runs that are taken from the authority at once.
_PAGE: Final = 16
#: Between two notes of how far a scrub has come: what is read twice after a break is little.
_NOTE_SECONDS: Final = 1.0
#: Drift of one run that differs each time is put on record as often as this.
_RECORD_US: Final = 24 * 3600 * MICROS
#: Megabytes a second: a kilobyte a second reads a day for 90 MB, and what is slower ends never.
_LEAST_RATE: Final = 0.001
#: Outages in a row: then it is the store or the network, and the next run will fare no better.
_UNREADABLE_IN_A_ROW: Final = 5
_BEGUN, _DONE, _UNREADABLE = "ACCEPTED", "DONE", "UNREADABLE"


@dataclass(frozen=True, slots=True)
class ScrubOptions:
    """What the command line says.

    Attributes:
        rate: Megabytes a second; 0 for no bound.
        since: Only runs whose READY was published since then; None for all.
        resume: Id of a scrub that was broken off; None for a new one.
    """

    rate: float
    since: str | None
    resume: str | None
    reason: str
    requested_by: str | None


@dataclass
class _Course:
    """A scrub on record, and how far it has come."""

    scrub_id: str
    actor: str
    reason: str
    since_us: int
    until_us: int
    cursor: tuple[int, int]
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def key(self) -> str:
        return f"cli/scrub/{self.scrub_id}"

    def progress(self) -> str:
        """As it is kept: what a scrub that is resumed goes on with."""
        counts = {name: self.counts[name] for name in ("runs", "drifted", "superseded", "unreadable", "unsettled")}
        return canonical_bytes({"cursor": list(self.cursor), **counts}).decode()


def run(wiring_path: str, options: ScrubOptions, *, as_json: bool) -> None:
    """The command."""
    counts: Counter[str] = Counter()
    try:
        with exit_on_error(as_json=as_json):
            document = scrub(load_to_write(wiring_path), options, counts, as_json=as_json)
    except typer.Exit as ended:
        # What broke it off is said; drift that was found before is no less true.
        raise (typer.Exit(Exit.NEGATIVE) if counts["drifted"] else ended) from ended
    if as_json:
        print_json_line({"summary": document}, SCRUB_SUMMARY)
    else:
        print_line(
            f"{document['outcome']}: {document['runs']} READY runs, {document['drifted']} with drift, "
            f"{document['superseded']} with drift that are superseded, {document['unreadable']} that could not "
            f"be read; {document['bytes_read'] / 1e6:.1f} MB read"
        )
    if document["drifted"]:
        raise typer.Exit(Exit.NEGATIVE)
    raise typer.Exit(Exit.UNAVAILABLE if document["unreadable"] else Exit.DONE)


def scrub(wiring: Wiring, options: ScrubOptions, counts: Counter[str], *, as_json: bool) -> Json:
    """Scrub the READY runs of a profile; what is found is printed and put on record run by run.

    Args:
        wiring: The profile.
        options: What is asked for.
        counts: Receives what the scrub has come to, also when it is broken off.
        as_json: Print lines of JSON.

    Returns:
        The summary.

    Raises:
        UsageError: options that cannot be used, or no such scrub.
        Unavailable: the authority or the store does not answer, or nothing could be read any more; resume it later.
    """
    reason, actor = checked_reason(options.reason, needed=False) or "scrub", checked_actor(options.requested_by)
    if options.resume is not None and options.since:
        raise UsageError("--resume goes on with what the scrub was begun with; leave out --since")
    if 0 < options.rate < _LEAST_RATE:
        raise UsageError(f"--rate is at least {_LEAST_RATE} MB/s, or 0 for no bound")
    require_started(wiring, "the READY runs")
    with _opened(wiring) as (authority, store):
        options = replace(options, reason=reason, requested_by=actor)
        course = _begun(authority, options) if options.resume is None else _resumed(authority, options, options.resume)
        counts.update(course.counts)
        course.counts = counts
        return _Scrub(wiring, authority, store, course, options.rate, as_json=as_json).run()


@contextmanager
def _opened(wiring: Wiring) -> Iterator[tuple[Authority, ObjectStore]]:
    os.umask(state_modes(wiring).umask)
    authority = open_authority(wiring)
    try:
        require_rebuilt(authority, wiring)
        store = open_store(wiring)
        require_known(NamedStore("object_store", store.where, store), authority)
        yield authority, store
    finally:
        authority.close()


def _begun(authority: Authority, options: ScrubOptions) -> _Course:
    since_us = micros_of("--since", options.since, 0)
    until_us = authority.now_us()
    course = _Course(
        secrets.token_hex(6), str(options.requested_by), options.reason, since_us, until_us, (since_us, -1)
    )
    subject = canonical_bytes({"since_us": since_us, "until_us": until_us}).decode()
    authority.record_action(
        ActionRow(course.key, 0, course.actor, "cli", scrubs.ACTION, subject, course.reason, _BEGUN, course.progress())
    )
    print_err(f"scrub {course.scrub_id}; should it be broken off: scenario-runner scrub --resume {course.scrub_id}")
    return course


def _resumed(authority: Authority, options: ScrubOptions, scrub_id: str) -> _Course:
    course = _Course(scrub_id, str(options.requested_by), options.reason, 0, 0, (0, -1))
    found = authority.acts([course.key]).get(course.key)
    if found is None or found.outcome != _BEGUN:
        raise UsageError(f"no scrub {scrub_id[:80]!r} that could go on is on record")
    selection, progress = parse_json(found.subject.encode()), parse_json(found.detail.encode())
    cursor = progress.pop("cursor")
    progress.setdefault("unsettled", progress["unreadable"])  # an older release counted none
    return replace(
        course, since_us=selection["since_us"], until_us=selection["until_us"], cursor=(cursor[0], cursor[1]),
        counts=Counter(progress),
    )  # fmt: skip


class _Scrub:
    """Goes over READY runs in the order in which they were published."""

    def __init__(
        self, wiring: Wiring, authority: Authority, store: ObjectStore, course: _Course, rate: float, *, as_json: bool
    ) -> None:
        self._authority, self._store, self._course, self._as_json = authority, store, course, as_json
        self._pace = Pace(rate * 1e6, Clock(time.monotonic, time.sleep))
        self._artifacts = open_artifacts(wiring, None)
        self._evidence = SharedEvidence(self._artifacts, store, self._pace)
        self._verifier = Verifier(
            store, PinnedPacks(open_pack(wiring), Ledger(store, open_schemas(wiring))), self._artifacts,
            wiring.control_bus_topic, _not_asked, lambda _done, _total: None,
            lambda run_id: authority.run(run_id) or Unknown("the authority does not know the run"), Named(),
            self._evidence,
        )  # fmt: skip
        self._in_a_row, self._told_drifted, self._noted = 0, 0, time.monotonic()
        self._progress = Progress()

    def run(self) -> Json:
        course, began = self._course, time.monotonic()
        try:
            for page in self._pages():
                for item in page:
                    outage = self._one(item)
                    course.cursor = item.cursor
                    self._progress(self._told)
                    if time.monotonic() - self._noted >= _NOTE_SECONDS:
                        self._note()
                    self._break_off(outage)
                self._note()
        except BaseException:
            with suppress(Unavailable):
                self._note()
            raise
        finally:
            self._artifacts.close()
        counts = course.counts
        outcome = scrubs.DRIFT if counts["drifted"] else _UNREADABLE if counts["unreadable"] else _DONE
        self._authority.end_action(course.key, outcome, course.progress())
        self._tell_daemons(ended=True)
        return {
            "scrub_id": course.scrub_id, "outcome": outcome, "runs": counts["runs"], "drifted": counts["drifted"],
            "superseded": counts["superseded"], "unreadable": counts["unreadable"],
            "since_utc": format_micros(course.since_us) if course.since_us else None,
            "until_utc": format_micros(course.until_us), "evidence_read": self._evidence.readings,
            "bytes_read": self._pace.read, "seconds": round(time.monotonic() - began, 3), "requested_by": course.actor,
        }  # fmt: skip

    def _told(self, seconds: float) -> str:
        counts = self._course.counts
        return (
            f"{counts['runs']} runs scrubbed, {counts['drifted']} with drift; {self._pace.read / 1e6:.0f} MB read "
            f"({self._pace.read / 1e6 / seconds:.1f} MB/s)"
        )

    def _pages(self) -> Iterator[list[PublishedSignal]]:
        course = self._course
        while page := self._authority.published(RunState.READY, course.cursor, course.until_us, _PAGE):
            yield page

    def _note(self) -> None:
        """Note how far it has come, and drift that is new."""
        self._noted = time.monotonic()
        self._authority.end_action(self._course.key, _BEGUN, self._course.progress())
        if self._course.counts["drifted"] != self._told_drifted:
            self._tell_daemons(ended=False)

    def _one(self, item: PublishedSignal) -> str:
        """Scrub a run; returns what does not answer, empty when all does."""
        counts = self._course.counts
        try:
            checks = drift_of(item.run_id, self._store, self._verifier)
        except Unavailable as error:
            counts["unreadable"] += 1
            outage = "" if isinstance(error, EvidenceUnreadError) else error.detail
            if outage or any(act.action == scrubs.ACTION for act in self._authority.actions(item.run_id)):
                counts["unsettled"] += 1  # whether it has drifted, or still has, is not known
            self._print(item.run_id, _UNREADABLE, error.detail)
            return outage
        self._in_a_row = 0
        if checks:
            self._put_on_record(item.run_id, checks)
            events = self._authority.events(item.run_id)
            superseded = any(event.kind == EventKind.SUPERSEDED_BY for event in events)
            counts["superseded" if superseded else "drifted"] += 1
        counts["runs"] += 1
        return ""

    def _break_off(self, outage: str) -> None:
        if not outage:
            return
        self._in_a_row += 1
        if self._in_a_row >= _UNREADABLE_IN_A_ROW:
            raise Unavailable(
                f"{self._in_a_row} times in a row evidence could not be read, the last time because: {outage}; once it "
                f"answers: scenario-runner scrub --resume {self._course.scrub_id} for the runs after these"
            )

    def _put_on_record(self, run_id: str, checks: list[Json]) -> None:
        detail = ": ".join(filter(None, (str(checks[0]["check"]), str(checks[0].get("detail", "")))))
        act = DriftAct(
            key=f"scrub/{run_id}/{drift_digest(checks)[:32]}", run_id=run_id, actor=self._course.actor,
            reason=self._course.reason, detail=detail, checks=tuple(checks), quiet_us=_RECORD_US,
        )  # fmt: skip
        new = self._authority.record_drift(act)
        self._print(run_id, scrubs.DRIFT, detail, checks, repeated=not new)

    def _tell_daemons(self, *, ended: bool) -> None:
        """Note what this scrub has found, and that it has ended, where daemons read what their metrics show."""
        authority, course, key = self._authority, self._course, scrubs.LAST_KEY
        whole = ended and not course.since_us and not course.counts["unsettled"]
        authority.record_action(ActionRow(key, 0, course.actor, "cli", scrubs.ACTION, key, "metrics", _DONE, ""))
        while True:
            kept = authority.acts([key])[key]
            last = scrubs.last_scrub(kept).after(
                authority.now_us(), course.scrub_id, course.counts["drifted"], course.until_us if whole else None
            )
            if authority.replace_detail(key, kept.detail, last.text()):
                break
        self._told_drifted = course.counts["drifted"]

    def _print(
        self, run_id: str, outcome: str, detail: str, checks: list[Json] | None = None, *, repeated: bool = False
    ) -> None:
        if self._as_json:
            document: Json = {
                "run_id": run_id, "outcome": outcome, "detail": detail, "checks": checks or [], "repeated": repeated,
            }  # fmt: skip
            print_json_line(document, SCRUB_LINE)
            return
        print_line(f"{run_id}  {outcome}  {detail}" + ("  (on record already)" if repeated else ""))


def _not_asked(_message_id: str, _run_id: str) -> SearchInconclusive:
    """READY on the control bus is no evidence, and a stream keeps it for days only."""
    return SearchInconclusive("a scrub asks for evidence only; verify asks the control bus")
