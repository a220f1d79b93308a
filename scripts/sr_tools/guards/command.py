r"""Delete each guard of the code once, in a copy of the tree, and say which deletions no test notices.

A guard is an early refusal (``if ...: raise``, ``if ...: return``, ``if ...: continue``), a call that only checks
(``check_...``, ``confirm...``, ``require...``, ``probe``), a step of a lifecycle (``yield ...`` as a statement), the
``if`` of a comprehension, or one term of an ``and`` or ``or`` in a condition. In named SQL it is one term of a WHERE.

  scripts/delete_guards.py                            the rooms of ROOMS and SQL against tier 0
  scripts/delete_guards.py --list                     only list the guards
  scripts/delete_guards.py --room gates --tests tests/services/scenario_runner/unit/test_hashing_laws.py \
      --tests tests/services/scenario_runner/unit     a quick selection first, a slower one for what that misses
  scripts/delete_guards.py --room authority/sql/sqlite.sql \
      --tests "tests/services/scenario_runner/integration -k authority"
                                                      the terms of the WHERE of every statement of SQLite
  scripts/delete_guards.py --room authority/sql/postgres.sql --room authority/views/postgres.sql \
      --tests "-m parity -k postgres tests/services/scenario_runner"
                                                      what those of Postgres do; needs scripts/parity_stack.sh
  scripts/delete_guards.py --again                    those that survived, once more

Tier 0 has no server of Postgres. It compares the terms of each statement with those of its twin for SQLite.

The report is written after each guard, and a later call goes on where the last one was stopped. Guards whose deletion
changes nothing that could be seen are listed in ``scripts/delete_guards.equivalent.json``, each with the reason. Exit
code 0: every deletion was noticed, or is listed there; 1: some were not; 2: the tests fail as it is.
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sr_tools.guards.copies import Copy
from sr_tools.guards.guard import Guard
from sr_tools.guards.report import Report, read_report, unexplained, write_report
from sr_tools.guards.rooms import PACKAGE, REPO, ROOMS, all_guards

TIER_0: Final = ("tests/services/scenario_runner", "-m", "not parity and not localstack and not engine_fixture")


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delete_guards.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--room", action="append", help=f"room or module under {PACKAGE}; default: {' '.join(ROOMS)}")
    add("--tests", action="append", help="pytest arguments; more than once: the next for what survives")
    add("--report", type=Path, default=REPO / ".local/deleted_guards.json", help="default: %(default)s")
    add("--seconds", type=float, default=1800, help="time limit of one test run (default: %(default)s)")
    add("--most", type=float, default=None, metavar="MINUTES", help="stop after so many minutes")
    add("--again", action="store_true", help="try what survived in the report once more")
    add("--list", action="store_true", help="list the guards and stop")
    return parser


def _run(options: argparse.Namespace, guards: Sequence[Guard], report: Report) -> int:
    selections: list[Sequence[str]] = [shlex.split(given) for given in options.tests or ()] or [TIER_0]
    todo = [
        item for item in guards if item.key not in report or (options.again and report[item.key]["said"] == "survived")
    ]
    with tempfile.TemporaryDirectory(prefix="sr-deleted-guards-") as folder:
        copy = Copy(Path(folder), sys.executable)
        began = time.monotonic()
        if todo and any(copy.test(arguments, options.seconds) != "passed" for arguments in selections):
            print("the tests do not pass as it is", file=sys.stderr)
            return 2
        for number, guard in enumerate(todo, 1):
            if options.most is not None and time.monotonic() - began > options.most * 60:
                print(f"stopped: {len(todo) - number + 1} guards are left for the next call")
                break
            said = copy.try_without(guard, selections, options.seconds)
            report[guard.key] = {"key": guard.key, "file": guard.file, "function": guard.function, "line": guard.line,
                                 "kind": guard.kind, "guard": guard.text, "said": said}  # fmt: skip
            write_report(options.report, report)
            print(f"{number}/{len(todo)} {said:9} {guard.file}:{guard.line} {guard.text[:100]}", flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = _build_parser().parse_args(argv)
    guards = all_guards(options.room or ROOMS)
    if options.list:
        for guard in guards:
            print(f"{guard.file}:{guard.line} {guard.function} [{guard.kind}] {guard.text}")
        return 0
    options.report.parent.mkdir(parents=True, exist_ok=True)
    report = read_report(options.report)
    code = _run(options, guards, report)
    tried = [item for item in guards if item.key in report]
    survived = [item for item in tried if report[item.key]["said"] == "survived"]
    unknown = unexplained(survived)
    print(f"{len(tried)} of {len(guards)} tried, {len(survived)} survived, {len(unknown)} without a reason")
    for item in unknown:
        print(f"  {item.file}:{item.line} {item.function} [{item.kind}] {item.text}")
    return code or int(bool(unknown))
