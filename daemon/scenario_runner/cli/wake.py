"""``runs wake``: waiting runs are examined now, not at the end of their pause."""

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

import typer

from scenario_runner.authority.acts import WakeAct
from scenario_runner.authority.base import Authority
from scenario_runner.authority.views.base import Views
from scenario_runner.authority.wakes import DETAILS, NOT_WAITING, wake_outcome
from scenario_runner.cli import runs
from scenario_runner.cli.acting import checked_actor, checked_reason
from scenario_runner.cli.console import (
    Exit,
    exit_on_error,
    print_err,
    print_fields,
    print_json,
    print_json_line,
    print_line,
)
from scenario_runner.cli.outputs.acting import WAKE
from scenario_runner.cli.read_only import existing_authority, existing_views
from scenario_runner.cli.run_ids import checked_name, named_run
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import UsageError
from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.contracts.times import format_micros
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.service.production import load_to_write

#: Runs of one transaction: a daemon beside it waits for the write lock for milliseconds.
_CHUNK: Final = 256
_FIELDS: Final = ("run_id", "outcome", "reason_code", "sentence", "detail", "evidence_deadline_utc", "requested_by")


@dataclass(frozen=True, slots=True)
class WakeOptions:
    """What was asked for.

    Attributes:
        run: Which run; empty for those that ``missing`` names.
        missing: Beginning of a path, as for ``runs list``.
        most: At most so many runs.
    """

    run: str
    missing: str
    most: int
    reason: str
    requested_by: str | None
    dry_run: bool

    def check(self) -> None:
        """Refuse options that do not go together.

        Raises:
            UsageError: they name no run, or too many.
        """
        if bool(self.run) == bool(self.missing):
            raise UsageError("give RUN_ID, or --missing PATH for every run that waits for it")
        checked_reason(self.reason, needed=False)


def run(wiring_path: str, options: WakeOptions, *, as_json: bool) -> None:
    """The command."""
    one = bool(options.run)
    with exit_on_error(as_json=as_json and one):
        found = wake_runs(load_to_write(wiring_path), options)
        if one:
            (document,) = found
            if as_json:
                print_json(document, WAKE)
            else:
                print_fields(document, _FIELDS)
            raise typer.Exit(Exit.NEGATIVE if document["reason_code"] else Exit.DONE)
        counts: Counter[str] = Counter()
        for document in found:
            counts[document["outcome"]] += 1
            _print_one_of_many(document, as_json=as_json)
    print_err(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "no run waits for that")


def wake_runs(wiring: Wiring, options: WakeOptions) -> Iterator[Json]:
    """Wake runs, or say what a wake would come to.

    Yields:
        What came of each.

    Raises:
        UsageError: options that cannot be used, or no such run.
        Unavailable: the authority does not answer. What was done is done; the command can be given again.
    """
    options.check()
    actor, batch = checked_actor(options.requested_by), secrets.token_hex(16)
    with existing_views(wiring) as views, _writer(wiring, options) as authority:
        selected = _selected(views, options)
        while chunk := list(islice(selected, _CHUNK)):
            if authority is None:
                outcomes = _predicted(views, chunk)
            else:
                acts = [
                    WakeAct(key=f"cli/wake/{batch}/{run_id}", run_id=run_id, actor=actor, reason=options.reason)
                    for run_id in chunk
                ]
                outcomes = authority.wake(acts)
            for run_id in chunk:
                yield _shown(views, run_id, outcomes[run_id]) | {"requested_by": actor, "dry_run": authority is None}


def _writer(wiring: Wiring, options: WakeOptions) -> AbstractContextManager[Authority | None]:
    """The authority to act in; None for a dry run, and when there is none yet."""
    return nullcontext() if options.dry_run else existing_authority(wiring)


def _selected(views: Views | None, options: WakeOptions) -> Iterator[str]:
    """Ids of the runs that are meant.

    Raises:
        UsageError: there is no such run.
    """
    if options.run:
        yield _named(views, options.run)
        return
    waiting = runs.Options(missing=options.missing).filter()
    found = chain.from_iterable(runs.pages_of(views, waiting, None, options.most + 1))
    for number, row in enumerate(found):
        if number == options.most:
            print_err(f"more runs wait for that: --max is {options.most}")
            return
        yield row.run_id


def _named(views: Views | None, name: str) -> str:
    checked_name(name)
    if views is not None:
        run_id = named_run(lambda question: question(views), name)
        if views.summary(run_id) is not None:
            return run_id
    raise UsageError(f"no run is known as {name!r}", Reason.RUN_NOT_FOUND)


def _predicted(views: Views | None, run_ids: list[str]) -> dict[str, str]:
    """What wakes would come to by this host's clock; nothing is written."""
    now_us = time.time_ns() // 1000
    rows = [views.run(run_id) for run_id in run_ids] if views is not None else []
    return {row.run_id: wake_outcome(row, now_us) for row in rows if row is not None}


def _shown(views: Views | None, run_id: str, outcome: str) -> Json:
    run = views.summary(run_id) if views is not None else None
    refused = outcome == NOT_WAITING
    return {
        "run_id": run_id,
        "state": run.state.value if run else None,
        "outcome": outcome,
        "reason_code": outcome if refused else None,
        "sentence": SENTENCES[Reason(outcome)] if refused else None,
        "detail": DETAILS[outcome],
        "evidence_deadline_utc": format_micros(run.deadline_us) if run else None,
    }


def _print_one_of_many(document: Json, *, as_json: bool) -> None:
    if as_json:
        print_json_line(document, WAKE)
    else:
        would = "would be " if document["dry_run"] else ""
        print_line(f"{document['run_id']}  {would}{document['outcome']}")
