"""``reemit --state``: publish the signals of many runs again, at a bounded rate, and so that it can be resumed.

The selection is an act of its own on record, and each run's act has a key that derives from it. So a command that was
broken off goes on with ``--resume``: what was done is recognised, and is not done again.
"""

import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import typer

from scenario_runner.authority.acts import ActionRow, PublishedSignal
from scenario_runner.authority.reemits import ACCEPTED, DRY_RUN, PUBLISHED
from scenario_runner.cli.console import Exit, exit_on_error, print_err, print_json_line, print_line
from scenario_runner.cli.outputs.acting import REEMIT_LINE
from scenario_runner.cli.reemit import ReemitOptions, outcome_fields, require_started
from scenario_runner.contracts.canonical import Json, canonical_bytes, parse_json
from scenario_runner.contracts.errors import LedgerDrift, RequestRefused, Unavailable, UsageError
from scenario_runner.contracts.reasons import CODES, Reason
from scenario_runner.contracts.states import FINAL_STATES
from scenario_runner.contracts.times import format_micros, parse_instant, to_micros
from scenario_runner.intake.reemit import reemit_act
from scenario_runner.service.production import load_to_write
from scenario_runner.service.reemit import Reemitter, open_reemitter, refusal_of

_ACTION: Final = "reemit_many"
#: Acts of one transaction: two batches of the relay. A daemon beside it waits for the write lock no longer than 0.1 s.
_PAGE: Final = 256
_NOBODY: Final = "0" * 32
"""Stands for the run in the check of options that are equal for all runs."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which signals: those of runs of one state, of one kind, that were published first in ``[since_us, until_us)``."""

    state: str
    since_us: int
    until_us: int
    kind: str

    def text(self) -> str:
        """The selection as the subject of its act."""
        document = {
            "state": self.state, "since_utc": format_micros(self.since_us), "until_utc": format_micros(self.until_us),
            "reemit_kind": self.kind,
        }  # fmt: skip
        return canonical_bytes(document).decode()


@dataclass(frozen=True, slots=True)
class ManyOptions:
    """What the command line says of many runs.

    Attributes:
        run_id: None: many runs are selected otherwise.
        resume: Id of a batch that was broken off; empty for a new one.
        rate: Most signals a second; 0 for no bound.
    """

    run_id: str | None
    state: str | None
    since: str
    until: str
    resume: str
    rate: int
    act: ReemitOptions

    def checked(self) -> "ManyOptions":
        """These options, with what a batch that is resumed has on record already.

        Raises:
            UsageError: they do not go together, or one cannot be used.
        """
        if self.run_id is not None:
            raise UsageError("give RUN_ID, or --state with --since, or --resume")
        if self.resume and (self.state or self.since or self.until or self.act.dry_run):
            raise UsageError("--resume goes on with what the batch was begun with; leave out the other selections")
        if not self.resume and not (self.state and self.since):
            raise UsageError("give RUN_ID, or --state with --since, or --resume")
        options = self
        if self.resume and not self.act.reason:
            options = replace(self, act=replace(self.act, reason="resumed"))
        options.act.request(_NOBODY)
        return options


def selection_of(state: str, since: str, until: str, kind: str, now_us: int) -> Selection:
    """The selection that options name; without an end it ends now.

    Raises:
        UsageError: a state without a signal, or a time that cannot be read.
    """
    if state not in FINAL_STATES:
        raise UsageError(f"--state {state!r} is not one of {', '.join(sorted(FINAL_STATES))}")
    return Selection(state, _micros("--since", since), _micros("--until", until) if until else now_us, kind)


def _micros(option: str, text: str) -> int:
    try:
        return to_micros(parse_instant(text))
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: {error}; write 2026-01-01T00:00:00Z") from error


def run(wiring_path: str, options: ManyOptions, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=False):  # stdout holds lines of runs, and nothing else
        counts = reemit_many(wiring_path, options, as_json=as_json)
    print_err(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "no signal was selected")
    raise typer.Exit(Exit.DONE if set(counts) <= {PUBLISHED, DRY_RUN} else Exit.NEGATIVE)


def reemit_many(wiring_path: str, options: ManyOptions, *, as_json: bool) -> Counter[str]:
    """Publish the selected signals again, and print a line for each.

    Returns:
        How many runs came to each outcome.

    Raises:
        UsageError: options that cannot be used, or no such batch.
        Unavailable: infrastructure does not answer; the batch can be resumed.
    """
    options = options.checked()
    wiring = load_to_write(wiring_path)
    require_started(wiring, "the selected runs")
    with open_reemitter(wiring) as reemitter:
        batch = _resumed(reemitter, options) if options.resume else _begun(reemitter, options)
        denied = reemitter.policy.denial(options.act.actor)
        if denied:
            reemitter.authority.end_action(batch.key, Reason.AUTH_DENIED.value, denied)
            raise RequestRefused(denied, Reason.AUTH_DENIED)
        return _Batch(reemitter, batch, options, as_json=as_json).run()


@dataclass(frozen=True, slots=True)
class _Begun:
    """A batch on record."""

    batch_id: str
    selection: Selection
    options: ReemitOptions

    @property
    def key(self) -> str:
        return f"cli/{_ACTION}/{self.batch_id}"


def _begun(reemitter: Reemitter, options: ManyOptions) -> _Begun:
    act, now_us = options.act, reemitter.authority.now_us()
    selection = selection_of(options.state or "", options.since, options.until, act.kind, now_us)
    begun = _Begun(secrets.token_hex(6), selection, act)
    outcome, detail = (DRY_RUN, "nothing is published") if act.dry_run else (ACCEPTED, "in progress")
    action = ActionRow(begun.key, now_us, act.actor, "cli", _ACTION, selection.text(), act.reason, outcome, detail)
    reemitter.authority.record_action(action)
    if not act.dry_run:
        print_err(f"batch {begun.batch_id}; should it be broken off: scenario-runner reemit --resume {begun.batch_id}")
    return begun


def _resumed(reemitter: Reemitter, options: ManyOptions) -> _Begun:
    """The batch of an id, with the selection and the reason that it began with."""
    nothing = Selection("", 0, 0, "")
    begun = _Begun(options.resume, nothing, options.act)
    found = reemitter.authority.acts([begun.key]).get(begun.key)
    if found is None or found.outcome == DRY_RUN:
        raise UsageError(f"no batch {options.resume[:80]!r} is on record")
    document = parse_json(found.subject.encode())
    kind = document["reemit_kind"]
    selection = selection_of(document["state"], document["since_utc"], document["until_utc"], kind, 0)
    return replace(begun, selection=selection, options=replace(options.act, reason=found.reason, kind=kind))


class _Batch:
    """Goes through a selection page by page."""

    def __init__(self, reemitter: Reemitter, begun: _Begun, options: ManyOptions, *, as_json: bool) -> None:
        self._reemitter, self._begun, self._as_json = reemitter, begun, as_json
        self._rate = options.rate
        self._act = reemit_act(begun.options.request(_NOBODY), reemitter.policy, "", "cli")
        self._counts: Counter[str] = Counter()
        self._started = reemitter.monotonic()
        self._published = 0

    def run(self) -> Counter[str]:
        dry_run = self._begun.options.dry_run
        for page in self._pages():
            if dry_run:
                self._predict(page)
            else:
                self._publish(page)
        if not dry_run:
            while self._reemitter.relay.step():  # the records of these runs, each written once
                pass
            detail = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self._counts.items()))
            self._reemitter.authority.end_action(self._begun.key, "DONE", detail)
        return self._counts

    def _pages(self) -> Iterator[list[PublishedSignal]]:
        selection = self._begun.selection
        size, after = min(_PAGE, self._rate or _PAGE), (selection.since_us, -1)
        while page := self._reemitter.authority.published(selection.state, after, selection.until_us, size):
            yield page
            after = page[-1].cursor

    def _publish(self, page: Sequence[PublishedSignal]) -> None:
        self._hold_rate()
        reemitter = self._reemitter
        keys = {item.run_id: f"cli/reemit/{self._begun.batch_id}/{item.run_id}" for item in page}
        acts = [replace(self._act, run_id=item.run_id, key=keys[item.run_id]) for item in page]
        answers = reemitter.authority.reemit(acts)
        self._published += sum(1 for answer in answers if answer.outcome == ACCEPTED)
        owed = [answer.key for answer in answers if answer.outcome == ACCEPTED]
        found = {answer.key: (answer.outcome, answer.detail) for answer in answers}
        if owed:
            delivered = reemitter.deliver(owed, reemitter.relay.publish)
            found |= {key: (action.outcome, action.detail) for key, action in delivered.items()}
        for item in page:
            self._print(item, *found[keys[item.run_id]])
        if any(outcome == ACCEPTED for outcome, _ in found.values()):
            raise Unavailable(
                "some signals are owed to the control bus and could not be delivered now; a daemon delivers them, and "
                f"`scenario-runner reemit --resume {self._begun.batch_id}` goes on with the others"
            )

    def _hold_rate(self) -> None:
        """Wait until one more page does not exceed the rate."""
        if self._rate:
            ahead = self._published / self._rate - (self._reemitter.monotonic() - self._started)
            if ahead > 0:
                self._reemitter.sleep(ahead)

    def _predict(self, page: Sequence[PublishedSignal]) -> None:
        """Say for each run whether its signal could be published again; nothing is written."""
        rows = [(item, self._reemitter.authority.run(item.run_id)) for item in page]
        views = [
            (item.run_id, row.facts_view_digest) for item, row in rows if row is not None and row.facts_view_digest
        ]
        failures = dict(
            zip((run_id for run_id, _ in views), self._reemitter.ledger.compare_facts_views(views), strict=True)
        )
        for item in page:
            failure = failures.get(item.run_id)
            if isinstance(failure, LedgerDrift):
                reason, detail = refusal_of(failure)
                self._print(item, reason.value, detail)
            elif failure is not None:
                raise failure
            else:
                self._print(item, DRY_RUN, f"{item.kind} would be published again")

    def _print(self, item: PublishedSignal, outcome: str, detail: str) -> None:
        self._counts[outcome] += 1
        if self._as_json:
            document: Json = {
                "run_id": item.run_id, "message_id": item.message_id,
                "first_sent_at_utc": format_micros(item.cursor[0]), **outcome_fields(outcome, detail),
            }  # fmt: skip
            print_json_line(document, REEMIT_LINE)
        else:
            print_line(f"{item.run_id}  {outcome}" + (f"  {detail}" if outcome in CODES else ""))
