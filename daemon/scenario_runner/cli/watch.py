"""``watch``: what changes, as it changes: a table that is written over on a terminal, a line for each change in a pipe.

Without a run it shows those on their way: a bounded page of each state by the time when they are due. No state is
counted beyond its page, and runs that have ended are not counted at all: there may be millions of them.
"""

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import typer

from scenario_runner.audit.explain import explain_run, status_of
from scenario_runner.authority.views.base import Views
from scenario_runner.authority.views.values import MOVING_STATES, RunFilter
from scenario_runner.cli.clock import Clock
from scenario_runner.cli.console import (
    Exit,
    exit_for_state,
    exit_on_error,
    print_err,
    print_json_line,
    print_line,
    rendered,
)
from scenario_runner.cli.explain import answer
from scenario_runner.cli.outputs.looking import RUNS_LIST, STATUS
from scenario_runner.cli.read_only import KeptAuthority
from scenario_runner.cli.runs import shown_runs
from scenario_runner.cli.status import RunSearch
from scenario_runner.cli.text import Part, Word, is_terminal, shortened, width
from scenario_runner.cli.waiting import interruptible
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import Unavailable, UsageError, printable
from scenario_runner.contracts.states import RunState
from scenario_runner.contracts.times import format_micros
from scenario_runner.profiles.wiring import load_wiring

#: Runs of a state that are read at once: more than a screen holds, and read in a millisecond.
_PAGE: Final = 100
_STATES: Final = (*MOVING_STATES, RunState.WAITING_EVIDENCE)
#: Columns of a run id's beginning, which is enough to name the run, and of a state with its glyph.
_ID, _STATE = 12, 18
#: Columns of a row of the table without its key.
_ROW: Final = _ID + _STATE + 44


@dataclass(frozen=True, slots=True)
class Options:
    """How it is shown, and for how long."""

    interval: float
    timeout: float | None
    local: bool
    as_json: bool

    def check(self) -> None:
        """Refuse what is no number of seconds.

        Raises:
            UsageError: an option is ``nan``.
        """
        for option, value in (("--interval", self.interval), ("--timeout", self.timeout)):
            if value is not None and math.isnan(value):
                raise UsageError(f"{option}: is not a number of seconds")


def run(wiring_path: str, run_id: str | None, options: Options) -> None:
    """The command."""
    with exit_on_error(as_json=options.as_json, logs=False):
        options.check()
        wiring = load_wiring(wiring_path)
        with KeptAuthority(wiring) as authority:
            if run_id is None:
                code = _follow(lambda: authority.ask(_on_their_way) or [], _Runs(authority, options), options)
            else:
                describe = status_of if options.as_json else explain_run
                search = RunSearch(wiring, authority, run_id, describe, waits=True)
                code = _follow(lambda: [search.find()], _OneRun(options), options)
    raise typer.Exit(code)


class _Show:
    """Shows what was found, in the form that stdout is for.

    Attributes:
        ended: Set when nothing more will change.
        code: Exit code as things stand.
        shape: Of a line of JSON.
    """

    shape = RUNS_LIST.item

    def __init__(self, options: Options) -> None:
        self._options, self._screen = options, _Screen()
        self._live = is_terminal(sys.stdout) and not options.as_json
        self._known: dict[str, Json] = {}
        self.ended, self.code = False, Exit.DONE

    def show(self, found: Sequence[Json]) -> None:
        """Show what was found now."""
        clock = Clock(local=self._options.local)
        if self._live:
            self._screen.draw(self._table(found, clock))
        changed = [item for item in self._with_ended(found) if _news(item) != self._known.get(item["run_id"])]
        for item in () if self._live else changed:
            self._print_change(item, clock)
        self._known = {item["run_id"]: _news(item) for item in found}

    def _print_change(self, item: Json, clock: Clock) -> None:
        if self._options.as_json:
            print_json_line(item, self.shape)
            sys.stdout.flush()
            return
        at = clock.stamp(format_micros(clock.now_us))
        rest = "  ".join(filter(None, (item.get("reason_code"), item.get("run_equivalence_key"), item.get("detail"))))
        print_line(f"{at}  {item['run_id']}  ", Word(item["state"], _STATE), f"  {rest}", flush=True)

    def _table(self, found: Sequence[Json], clock: Clock) -> Iterable[Sequence[Part]]:
        raise NotImplementedError

    def _with_ended(self, found: Sequence[Json]) -> Sequence[Json]:
        """What was found, and what became of runs that are not among it any more."""
        return found


class _OneRun(_Show):
    """Shows a run until it has ended."""

    shape = STATUS

    def show(self, found: Sequence[Json]) -> None:
        # Before anything is shown: a signal that comes meanwhile ends the command with this code.
        self.code = exit_for_state(found[0]["state"])
        super().show(found)
        self.ended = self.code is not Exit.WAITING

    def _table(self, found: Sequence[Json], clock: Clock) -> Iterable[Sequence[Part]]:
        return answer(found[0], clock, width() - 1).lines


class _Runs(_Show):
    """Shows the runs on their way."""

    def __init__(self, authority: KeptAuthority, options: Options) -> None:
        super().__init__(options)
        self._authority = authority

    def _with_ended(self, found: Sequence[Json]) -> Sequence[Json]:
        gone = list(self._known.keys() - {item["run_id"] for item in found})
        ended = (self._authority.ask(lambda views: _ended(views, gone)) or []) if gone else []
        return [*found, *ended]

    def _table(self, found: Sequence[Json], clock: Clock) -> Iterator[Sequence[Part]]:
        counts = [f"{state} {_count(found, state)}" for state in _STATES]
        yield [shortened(f"{clock.stamp(format_micros(clock.now_us))}   {'   '.join(counts)}", width() - 1)]
        for item in found:
            waits = item["state"] == RunState.WAITING_EVIDENCE
            when = clock.deadline(item["evidence_deadline_utc"]) if waits else clock.moment(item["updated_at_utc"])
            key = shortened(printable(item["run_equivalence_key"]), max(width() - 1 - _ROW, 10))
            yield [f"{item['run_id'][:_ID]}  ", Word(item["state"], _STATE), f"  {when:40}{key}"]


def _on_their_way(views: Views) -> list[Json]:
    """Runs that have not ended: a page of each state, those that are due first; waiting ones by their deadline."""
    filters = [RunFilter(state=state, by_deadline=state is RunState.WAITING_EVIDENCE) for state in _STATES]
    return [item for asked in filters for item in shown_runs(views, views.list_runs(asked, None, _PAGE))]


def _ended(views: Views, run_ids: Sequence[str]) -> list[Json]:
    """Those of some runs that have ended."""
    return list(shown_runs(views, [row for row in views.summaries(run_ids) if row.state not in _STATES]))


def _count(found: Sequence[Json], state: str) -> str:
    count = sum(1 for item in found if item["state"] == state)
    return f"{count}" if count < _PAGE else f"{count}+"


def _news(item: Json) -> Json:
    """What of a run is worth a line when it differs."""
    compared = ("state", "reason_code", "detail", "last_infrastructure_error", "documents_owed", "reemits")
    return {key: item[key] for key in compared if key in item}


def _follow(ask: Callable[[], Sequence[Json]], show: _Show, options: Options) -> Exit:
    """Ask and show until it has ended, the time is over, or a signal comes."""
    try:
        with interruptible():
            _until_ended(ask, show, options)
    except KeyboardInterrupt:
        pass  # as asked for; the code is that of the state that was seen last
    return show.code


def _until_ended(ask: Callable[[], Sequence[Json]], show: _Show, options: Options) -> None:
    deadline = math.inf if options.timeout is None else time.monotonic() + options.timeout
    show.show(ask())  # an authority that is away now is an error; one that goes away later is waited for
    away = False
    while not show.ended:
        left = deadline - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(options.interval, left))
        try:
            show.show(ask())
            away = False
        except Unavailable as error:
            if not away:
                print_err(f"waiting for the authority: {error.detail}")
            away = True


class _Screen:
    """Lines on a terminal that are written over."""

    def __init__(self) -> None:
        self._drawn = 0

    def draw(self, lines: Iterable[Sequence[Any]]) -> None:
        """Write lines in the place of those before; as many as the terminal has room for."""
        room = max(shutil.get_terminal_size().lines - 1, 1)
        shown = [rendered(line, sys.stdout) for line in lines][:room]
        back = f"\x1b[{self._drawn}F" if self._drawn else ""
        # Each line is cleared to its end, and the screen below the last: nothing flickers.
        sys.stdout.write(back + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J")
        sys.stdout.flush()
        self._drawn = len(shown)
