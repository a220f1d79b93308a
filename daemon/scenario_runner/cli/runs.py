"""``runs list``: which runs there are, a page at a time."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from scenario_runner.audit.explain import next_look_of
from scenario_runner.authority.views.base import Views
from scenario_runner.authority.views.values import FOREVER_US, Cursor, Order, RunFilter, RunSummary
from scenario_runner.cli.clock import Clock
from scenario_runner.cli.console import exit_on_error
from scenario_runner.cli.lists import Form, Page, print_list
from scenario_runner.cli.outputs.looking import RUNS_LIST
from scenario_runner.cli.read_only import existing_views
from scenario_runner.cli.run_ids import checked_name
from scenario_runner.cli.text import Part, Word
from scenario_runner.cli.when import micros_of
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import UsageError
from scenario_runner.contracts.ids import HEX32, run_id_of
from scenario_runner.contracts.states import REFUSED, RunState
from scenario_runner.contracts.times import format_micros
from scenario_runner.profiles.wiring import load_wiring

#: Runs that are read at once: a second page is rare, and so many take 2 MB.
_CHUNK: Final = 1_000
#: Columns of a state with its glyph, and of a time of today.
_STATE, _CHANGED = 18, 26
#: Bytes of a line of a file of requests: the largest record of a control bus.
_LONGEST_LINE: Final = 1 << 20
_CURSOR: Final = re.compile(r"(admitted|key|due|deadline)-([0-9]{1,19})-([0-9a-f]{32})", re.ASCII)
#: Shown for a run of a file that the authority does not know; its request may still lie on the control bus.
_NOT_SEEN: Final = "NOT_SEEN"
_REJECTED: Final = "REJECTED"


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for; None or empty when it was not."""

    state: str | None = None
    reason: str = ""
    key: str = ""
    missing: str = ""
    since: str | None = None
    until: str | None = None
    batch: str = ""
    sort: str = "admitted"
    after: str = ""
    limit: int = 100
    local: bool = False
    acked: bool | None = None

    def filter(self) -> RunFilter:
        """The filter.

        Raises:
            UsageError: an option cannot be used, or contradicts another.
        """
        if self.state is not None and self.state not in set(RunState):
            raise UsageError(f"--state {self.state!r} is not one of {', '.join(RunState)}")
        if self.sort not in (Order.ADMITTED, Order.DEADLINE):
            raise UsageError(f"--sort {self.sort!r} is not one of {Order.ADMITTED}, {Order.DEADLINE}")
        for option, text in (("--reason", self.reason), ("--key", self.key), ("--missing", self.missing)):
            if text and not text.isprintable():
                raise UsageError(f"{option}: holds characters that are not printable")
        return RunFilter(
            state=RunState(self.state) if self.state is not None else None, reason=self.reason, key=self.key,
            missing=self.missing, since_us=micros_of("--since", self.since, 0),
            until_us=micros_of("--until", self.until, FOREVER_US), by_deadline=self.sort == Order.DEADLINE,
            acked=self.acked,
        )  # fmt: skip

    def cursor(self) -> Cursor | None:
        """Where to begin.

        Raises:
            UsageError: it is no cursor.
        """
        if not self.after:
            return None
        found = _CURSOR.fullmatch(self.after)
        if found is None:
            raise UsageError(f"--after {self.after[:80]!r} is none of the places that a list ends with")
        return Cursor(Order(found[1]), int(found[2]), found[3])

    def check_batch(self) -> None:
        """Refuse options that a file of requests leaves no room for.

        Raises:
            UsageError: one of them is given.
        """
        others = (self.reason, self.key, self.missing, self.since, self.until, self.after)
        if any(others) or self.sort != Order.ADMITTED:
            raise UsageError("--batch lists the runs of a file, in its order; only --state can be given too")


def run(wiring_path: str, options: Options, *, as_json: bool, as_lines: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json or as_lines, logs=False), existing_views(load_wiring(wiring_path)) as views:
        asked, after = options.filter(), options.cursor()
        if options.batch:
            options.check_batch()
            found, limit = _of_file(views, options.batch, asked.state), FOREVER_US
        else:
            found, limit = _found(views, asked, after, options.limit + 1), options.limit
        page = Page(found, limit, lambda item: cursor_of(item, asked))
        print_list(RUNS_LIST, page, Form.of(as_json=as_json, as_lines=as_lines), line_with(Clock(local=options.local)))


def list_runs(wiring_path: str, state: str | None, limit: int) -> list[Json]:
    """Runs of one state or of all, in the order of ``runs list``.

    Raises:
        UsageError: no such state.
    """
    asked = Options(state=state).filter()
    with existing_views(load_wiring(wiring_path)) as views:
        return list(_found(views, asked, None, limit))


def _found(views: Views | None, asked: RunFilter, after: Cursor | None, most: int) -> Iterator[Json]:
    """Runs as they are shown, read a page at a time."""
    for rows in pages_of(views, asked, after, most):
        yield from shown_runs(views, rows)


def pages_of(views: Views | None, asked: RunFilter, after: Cursor | None, most: int) -> Iterator[Sequence[RunSummary]]:
    """Runs, a page at a time."""
    while views is not None and most > 0:
        rows = views.list_runs(asked, after, min(most, _CHUNK))
        yield rows
        most -= len(rows)
        if len(rows) < _CHUNK:
            return
        after = rows[-1].cursor(asked.order)


def cursor_of(item: Json, asked: RunFilter) -> str:
    """The place after a run that was shown."""
    place = {Order.ADMITTED: "admitted_at_utc", Order.DUE: "next_look_utc", Order.DEADLINE: "evidence_deadline_utc"}
    key = place.get(asked.order)
    return str(Cursor(asked.order, micros_of("", item[key], 0) if key else 0, item["run_id"]))


def shown_runs(views: Views | None, rows: Sequence[RunSummary]) -> Iterator[Json]:
    """Runs as a list has them in JSON, with both ends of the corrections that they take part in."""
    pairs = views.supersessions_of([row.run_id for row in rows]) if views is not None and rows else []
    old = dict(pairs)
    for row in rows:
        by = [new_run_id for new_run_id, old_run_id in pairs if old_run_id == row.run_id] if pairs else []
        yield _shown(row) | {"supersedes": old.get(row.run_id), "superseded_by": by}


def _shown(row: RunSummary) -> Json:
    item: Json = {
        "run_id": row.run_id,
        "run_equivalence_key": row.run_equivalence_key,
        "state": row.state.value,
        "admitted_at_utc": format_micros(row.admitted_us),
        "updated_at_utc": format_micros(row.updated_us),
        "evidence_deadline_utc": format_micros(row.deadline_us),
    }
    return item | next_look_of(row) | ({"reason_code": row.reason_code} if row.reason_code else {})


def line_with(clock: Clock) -> Callable[[Json], list[Part]]:
    """A run as a line of text: run id, state, last change, reason, key, corrections."""

    def line(item: Json) -> list[Part]:
        changed = clock.moment(item["updated_at_utc"]) if "updated_at_utc" in item else "-"
        rest = f"  {changed:{_CHANGED}}  {item.get('reason_code', ''):26}  {item['run_equivalence_key']}"
        return [f"{item['run_id']}  ", Word(item["state"], _STATE), rest, _corrections(item)]

    return line


def _corrections(item: Json) -> str:
    """What a run corrects, and what corrects it; empty for most runs."""
    supersedes = f"  supersedes {item['supersedes']}" if item.get("supersedes") else ""
    return supersedes + (f"  superseded by {', '.join(item['superseded_by'])}" if item.get("superseded_by") else "")


# --- the runs of a file of requests


def _of_file(views: Views | None, path: str, state: RunState | None) -> Iterator[Json]:
    """The runs that a file asks for, in its order."""
    names = _names(path)
    while chunk := list(islice(names, _CHUNK)):
        rows = views.summaries([run_id for run_id, _ in chunk]) if views else []
        known = {item["run_id"]: item for item in shown_runs(views, rows)} if views else {}
        for run_id, key in chunk:
            item = known[run_id] if run_id in known else _without_run(views, run_id, key)
            if state in (None, item["state"]):
                yield item


def _without_run(views: Views | None, run_id: str, key: str) -> Json:
    """What is shown for a run that does not exist: its request was refused, or nobody has taken it yet."""
    records = views.records(run_id) if views is not None else []
    none: Json = {"supersedes": None, "superseded_by": []}
    item: Json = {"run_id": run_id, "run_equivalence_key": key, "state": _NOT_SEEN, **none}
    if not records or records[-1].disposition not in REFUSED:
        return item
    last = records[-1]
    return item | {
        "state": _REJECTED,
        "reason_code": last.reason_code,
        "updated_at_utc": format_micros(last.received_us),
    }


def _names(path: str) -> Iterator[tuple[str, str]]:
    """(run id, key) of each line: a request, an answer of ``submit --jsonl``, a run id, or a key."""
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if line.strip():
                    yield _name(line.decode("utf-8", "replace").strip(), f"{path}, line {number}")
    except OSError as error:
        hint = "; for the size of a page use --limit" if path.isdecimal() else ""
        raise UsageError(f"--batch: cannot read {path}: {error.strerror}{hint}") from error


def _name(text: str, place: str) -> tuple[str, str]:
    if not text.startswith("{"):
        key = checked_name(text)
        return (key, "") if HEX32.fullmatch(key) else (run_id_of(key), key)
    try:
        document = json.loads(text)
        document = document.get("payload", document)
        run_id, key = document.get("run_id") or "", document.get("run_equivalence_key") or ""
        if HEX32.fullmatch(run_id):
            return run_id, key
        return run_id_of(checked_name(key)), key
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UsageError(f"--batch: {place} names no run: neither run_id nor run_equivalence_key") from error
