"""``scrub``: read the published evidence of READY runs again, at a bounded rate, and put drift on record.

A scrub is an act on record, whose detail says how far it has come. So one that was broken off, however it was, goes on
with ``--resume``. Memory holds a page of runs, and digests of the evidence that was read.
"""

import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import typer

from scenario_runner.audit.required import Named, Unknown
from scenario_runner.audit.scrub import Clock, Pace, SharedEvidence, drift_of
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
from scenario_runner.contracts.canonical import Json, canonical_bytes, canonical_sha256, parse_json
from scenario_runner.contracts.errors import Unavailable, UsageError
from scenario_runner.contracts.states import RunState
from scenario_runner.contracts.times import format_micros
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

#: Runs between two notes of how far a scrub has come: what is read twice after a break is small, and so are the writes.
_PAGE: Final = 16
#: Runs in a row that cannot be read: then it is the store or the network, and the next run will fare no better.
_UNREADABLE_IN_A_ROW: Final = 5
_BEGUN, _DONE, _UNREADABLE = "ACCEPTED", "DONE", "UNREADABLE"


@dataclass(frozen=True, slots=True)
class ScrubOptions:
    """What the command line says.

    Attributes:
        rate: Megabytes a second; 0 for no bound.
        since: Only runs whose READY was published since then; None for all.
        resume: Id of a scrub that was broken off; empty for a new one.
    """

    rate: float
    since: str | None
    resume: str
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
        counts = {name: self.counts[name] for name in ("runs", "drifted", "unreadable")}
        return canonical_bytes({"cursor": list(self.cursor), **counts}).decode()


def run(wiring_path: str, options: ScrubOptions, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        document = scrub(load_to_write(wiring_path), options, as_json=as_json)
    if as_json:
        print_json_line({"summary": document}, SCRUB_SUMMARY)
    else:
        print_line(
            f"{document['outcome']}: {document['runs']} READY runs, {document['drifted']} with drift, "
            f"{document['unreadable']} that could not be read; {document['bytes_read'] / 1e6:.1f} MB read"
        )
    if document["drifted"]:
        raise typer.Exit(Exit.NEGATIVE)
    raise typer.Exit(Exit.UNAVAILABLE if document["unreadable"] else Exit.DONE)


def scrub(wiring: Wiring, options: ScrubOptions, *, as_json: bool) -> Json:
    """Scrub the READY runs of a profile; what is found is printed and put on record run by run.

    Returns:
        The summary.

    Raises:
        UsageError: options that cannot be used, or no such scrub.
        Unavailable: the authority or the store does not answer, or nothing could be read any more; resume it later.
    """
    reason, actor = checked_reason(options.reason, needed=False) or "scrub", checked_actor(options.requested_by)
    if options.resume and options.since:
        raise UsageError("--resume goes on with what the scrub was begun with; leave out --since")
    require_started(wiring, "the READY runs")
    with _opened(wiring) as (authority, store):
        options = replace(options, reason=reason, requested_by=actor)
        course = _resumed(authority, options) if options.resume else _begun(authority, options)
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


def _resumed(authority: Authority, options: ScrubOptions) -> _Course:
    course = _Course(options.resume, str(options.requested_by), options.reason, 0, 0, (0, -1))
    found = authority.acts([course.key]).get(course.key)
    if found is None or found.outcome != _BEGUN:
        raise UsageError(f"no scrub {options.resume[:80]!r} that could go on is on record")
    selection, progress = parse_json(found.subject.encode()), parse_json(found.detail.encode())
    cursor = progress.pop("cursor")
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
            wiring.control_bus_topic, _not_asked, self._pace.note,
            lambda run_id: authority.run(run_id) or Unknown("the authority does not know the run"), Named(),
            self._evidence,
        )  # fmt: skip
        self._in_a_row = 0
        self._progress = Progress()

    def run(self) -> Json:
        course, began = self._course, time.monotonic()
        try:
            for page in self._pages():
                for item in page:
                    self._one(item)
                    self._progress(self._told)
                course.cursor = page[-1].cursor
                self._authority.end_action(course.key, _BEGUN, course.progress())
        finally:
            self._artifacts.close()
        counts = course.counts
        outcome = scrubs.DRIFT if counts["drifted"] else _UNREADABLE if counts["unreadable"] else _DONE
        self._authority.end_action(course.key, outcome, course.progress())
        self._tell_daemons()
        return {
            "scrub_id": course.scrub_id, "outcome": outcome, "runs": counts["runs"], "drifted": counts["drifted"],
            "unreadable": counts["unreadable"],
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

    def _one(self, item: PublishedSignal) -> None:
        counts = self._course.counts
        try:
            checks = drift_of(item.run_id, self._store, self._verifier)
        except Unavailable as error:
            counts["unreadable"] += 1
            self._print(item.run_id, _UNREADABLE, error.detail)
            self._in_a_row += 1
            if self._in_a_row >= _UNREADABLE_IN_A_ROW:
                raise Unavailable(
                    f"{self._in_a_row} runs in a row could not be read, the last one because: {error.detail}; once it "
                    f"answers: scenario-runner scrub --resume {self._course.scrub_id}"
                ) from error
            return
        self._in_a_row = 0
        counts["runs"] += 1
        if checks:
            counts["drifted"] += 1
            self._put_on_record(item.run_id, checks)

    def _put_on_record(self, run_id: str, checks: list[Json]) -> None:
        detail = ": ".join(filter(None, (str(checks[0]["check"]), str(checks[0].get("detail", "")))))
        act = DriftAct(
            key=f"scrub/{run_id}/{canonical_sha256(checks)[:32]}", run_id=run_id, actor=self._course.actor,
            reason=self._course.reason, detail=detail, checks=tuple(checks),
        )  # fmt: skip
        new = self._authority.record_drift(act)
        self._print(run_id, scrubs.DRIFT, detail, checks, repeated=not new)

    def _tell_daemons(self) -> None:
        """Note how the last scrub ended, where daemons read what their metrics show."""
        authority, course = self._authority, self._course
        key = scrubs.LAST_KEY
        last = scrubs.last_scrub(authority.acts([key]).get(key))
        whole = not course.since_us and not course.counts["unreadable"]
        last = last.after(authority.now_us(), course.counts["drifted"], whole=whole)
        authority.record_action(ActionRow(key, 0, course.actor, "cli", scrubs.ACTION, key, "metrics", "", ""))
        authority.end_action(key, _DONE, last.text())

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
