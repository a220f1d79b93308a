"""What every bench does around its measurements: options, folders, rounds, failures, the report.

A bench makes its own worlds, runs the installed command as a subprocess, and checks that what it timed was really done:
exactly the READY signals asked for, each pointing at a facts view with the promised digest. Next to every number stands
a reference that was taken in the same run without Scenario Runner. Nothing here imports ``scenario_runner``. Times from
the authority are microseconds since the epoch.
"""

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sr_tools.arguments import at_least_one
from sr_tools.bench.comparison import compare, comparison_table
from sr_tools.bench.report import CheckFailedError, Json, machine, note, results_table
from sr_tools.bench.subject import Subject, find_command, other_checkout, this_checkout

Measurement = Callable[[argparse.Namespace, Path], list[Json]]
"""Takes the options (with ``subject``) and a folder of its own; returns entries of the report."""

FAILURES: Final = (CheckFailedError, OSError, subprocess.SubprocessError, sqlite3.Error)
#: Rounds of a comparison: the median of three outlives one disturbance.
_ROUNDS: Final = 3


@dataclass(frozen=True)
class Bench:
    """A command that measures.

    Attributes:
        name: Of the command, for messages.
        measurements: By name, in the order in which they are taken.
        failures: Errors that make a measurement fail, and let the next one be taken.
        conditions: What the report says about all figures.
        on_request: Measurements that are taken only when they are named: they take minutes, or gigabytes of disk.
    """

    name: str
    measurements: Mapping[str, Measurement]
    failures: tuple[type[Exception], ...]
    conditions: Mapping[str, object] = field(default_factory=dict)
    on_request: Collection[str] = ()


def add_arguments(parser: argparse.ArgumentParser, measurements: Iterable[str]) -> None:
    """The options that every bench has."""
    add = parser.add_argument
    add("--only", action="append", choices=list(measurements), help="take only this measurement (repeatable)")
    add("--dir", type=Path, help="where worlds are made (default: the system's temporary folder)")
    add("--json", type=Path, metavar="FILE", help="also write the report there")
    add("--keep", action="store_true", help="do not remove the worlds")
    add("--command", default=find_command(), help="the command to measure")
    add("--timeout", type=float, default=900, metavar="S", help="seconds before a daemon counts as stuck")
    add("--against", type=Path, metavar="CHECKOUT",
        help="measure another checkout in turns with this one, and compare; without a .venv of its own its sources run "
        "in this environment")  # fmt: skip
    add("--rounds", type=at_least_one, metavar="N",
        help=f"take everything N times and report medians (default: 1, with --against {_ROUNDS})")  # fmt: skip


def run(bench: Bench, options: argparse.Namespace) -> int:
    """Take the measurements that were asked for, and print the report.

    Returns:
        0 when all checks held, 1 when one failed, 2 when the other checkout is none.
    """
    subjects = [this_checkout(options.command)]
    if options.against:
        try:
            subjects.append(other_checkout(options.against, options.command))
        except ValueError as error:
            print(f"{bench.name}: {error}", file=sys.stderr)
            return 2
    rounds = options.rounds or (_ROUNDS if options.against else 1)
    with _folder(options) as root:
        report: Json = {"machine": machine(), "command": options.command, **bench.conditions}
        results = _take_all(bench, options, subjects, rounds, root)
        if len(subjects) * rounds > 1:
            report |= {"against": str(options.against) if options.against else None, "rounds": rounds}
            report["comparison"] = compare(results)
        report["results"] = results
        report["checks_failed"] = list(dict.fromkeys(item["name"] for item in results if "error" in item))
        _print(report, options.json)
    return 1 if report["checks_failed"] else 0


@contextmanager
def _folder(options: argparse.Namespace) -> Iterator[Path]:
    """A folder for all worlds, removed at the end.

    Nothing is removed before the last measurement: some file systems (ext4 without a journal) create files more
    slowly for a while after others were removed.
    """
    if options.dir:
        options.dir.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="sr-bench-", dir=options.dir)).resolve()
    try:
        yield root
    finally:
        if not options.keep:
            note("removing the worlds")
            shutil.rmtree(root, ignore_errors=True)


def _take_all(
    bench: Bench, options: argparse.Namespace, subjects: Sequence[Subject], rounds: int, root: Path
) -> list[Json]:
    """Every measurement of every round and subject; subjects take turns, and who is first alternates.

    A machine that gets slower or faster meanwhile then does so for both.
    """
    results: list[Json] = []
    once = len(subjects) * rounds == 1
    usual = [name for name in bench.measurements if name not in bench.on_request]
    for name in dict.fromkeys(options.only or usual):
        for number in range(rounds):
            for subject in subjects if number % 2 == 0 else reversed(subjects):
                options.subject = subject
                marks = {} if once else {"subject": subject.name, "round": number}
                folder = root / (name if once else f"{name}-{subject.name}-{number}")
                note(name if once else f"{name}: round {number}, {subject.name}")
                results += [item | marks for item in _take(bench, name, options, folder)]
    return results


def _take(bench: Bench, name: str, options: argparse.Namespace, folder: Path) -> list[Json]:
    """One measurement in a folder of its own."""
    try:
        return bench.measurements[name](options, folder)
    except bench.failures as error:
        note(f"{name} FAILED: {error}")
        return [{"name": name, "value": None, "met": False, "error": str(error)}]


def _print(report: Json, file: Path | None) -> None:
    """The report as JSON for programs, and as a table for people."""
    text = json.dumps(report, indent=2)
    print(text, flush=True)
    if file:
        file.write_text(text + "\n", "utf-8")
    shown = comparison_table(report["comparison"]) if "comparison" in report else results_table(report["results"])
    print(shown, file=sys.stderr, flush=True)
