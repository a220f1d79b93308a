#!/usr/bin/env python3
r"""Delete each guard of the code once, in a copy of the tree, and say which deletions no test notices.

A guard is an early refusal (``if ...: raise``, ``if ...: return``, ``if ...: continue``), a call that only checks
(``check_...``, ``confirm...``, ``require...``, ``probe``), a step of a lifecycle (``yield ...`` as a statement), the
``if`` of a comprehension, or one term of an ``and`` or ``or`` in a condition. In named SQL it is one term of a WHERE.

  scripts/delete_guards.py                            the rooms of ROOMS and SQL against tier 0
  scripts/delete_guards.py --list                     only list the guards
  scripts/delete_guards.py --room gates --tests tests/services/scenario_runner/unit/test_hashing_laws.py \
      --tests tests/services/scenario_runner/unit     a quick selection first, a slower one for what that misses
  scripts/delete_guards.py --room authority/sql/sqlite.sql \
      --tests tests/services/scenario_runner/integration/test_authority_contract.py
                                                      the terms of the WHERE of every statement of SQLite
  scripts/delete_guards.py --room authority/sql/postgres.sql --room authority/views/postgres.sql \
      --tests "-m parity -k postgres tests/services/scenario_runner"
                                                      those of Postgres; needs scripts/parity_stack.sh
  scripts/delete_guards.py --again                    those that survived, once more

The report is written after each guard, and a later call goes on where the last one was stopped. Guards whose deletion
changes nothing that could be seen are listed in ``scripts/delete_guards.equivalent.json``, each with the reason. Exit
code 0: every deletion was noticed, or is listed there; 1: some were not; 2: the tests fail as it is.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REPO: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = "daemon/scenario_runner"
EQUIVALENT: Final = REPO / "scripts/delete_guards.equivalent.json"
ROOMS: Final = (
    "gates", "evidence", "runs", "ledger", "intake", "audit", "relay", "service/engine_lane.py",
    "authority/sql/sqlite.sql", "authority/views/sqlite.sql",
)  # fmt: skip
#: Nothing of tier 0 can notice what they lose: no database server is there.
PARITY_ROOMS: Final = ("authority/sql/postgres.sql", "authority/views/postgres.sql")
TIER_0: Final = "tests/services/scenario_runner"
MARKS: Final = "not parity and not localstack and not engine_fixture"
Node = ast.expr | ast.stmt
CHECKS: Final = ("check", "_check", "confirm", "_confirm", "require", "_require", "probe")
MINE: Final = "SR_DELETED_GUARD"
"""Environment variable by which processes that a stopped test left running are found."""


@dataclass(frozen=True)
class Guard:
    """One guard and the file without it.

    Attributes:
        file: Path in the repository.
        function: Qualified name of the function that it stands in.
        line: Line, from 1.
        kind: ``refusal``, ``check``, ``step``, ``filter`` or ``term``.
        text: Its source on one line.
        nth: Which of the guards of this function with the same text.
        without: The whole file with the guard deleted.
    """

    file: str
    function: str
    line: int
    kind: str
    text: str
    nth: int
    without: bytes

    @property
    def named(self) -> tuple[str, str, str]:
        """What names it in the list of equivalent ones, but for which of several."""
        return self.file, self.function, self.text

    @property
    def key(self) -> str:
        """Stays the same when the file changes elsewhere."""
        parts = (self.file, self.function, self.kind, self.text, str(self.nth))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


class _Finder(ast.NodeVisitor):
    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source = file, source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.names: list[str] = []
        self.found: list[tuple[str, Node, str, bytes, bytes]] = []

    def _span(self, node: Node) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset)

    def _text(self, node: Node) -> bytes:
        start, end = self._span(node)
        return self.source[start:end]

    def _add(self, kind: str, node: Node, replacement: bytes, text: bytes) -> None:
        guard = (".".join(self.names), node, kind, replacement, text)
        if guard not in self.found:  # a condition within a condition is visited twice
            self.found.append(guard)

    def _named(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self.names.append(node.name)
        self.generic_visit(node)
        self.names.pop()

    visit_FunctionDef = visit_ClassDef = visit_AsyncFunctionDef = _named  # noqa: N815 - names of the base class

    def visit_If(self, node: ast.If) -> None:
        """An early refusal: never true."""
        if isinstance(node.body[-1], ast.Raise | ast.Return | ast.Continue):
            test = self._text(node.test)
            last = self._text(node.body[-1])
            self._add("refusal", node.test, b"((" + test + b") and False)", b"if " + test + b": " + last)
        self._terms(node.test)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        """A call that only checks, or a step of a lifecycle whose answer nobody needs: nothing."""
        call = node.value
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name.startswith(CHECKS):
                self._add("check", node, b"None", self._text(node))
        elif isinstance(call, ast.Yield | ast.YieldFrom):
            self._add("step", node, b"None", self._text(node))
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        """A condition that is returned."""
        if node.value is not None:
            self._terms(node.value)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """A filter: nothing is left out."""
        for condition in node.ifs:
            self._add("filter", condition, b"((" + self._text(condition) + b") or True)", self._text(condition))
            self._terms(condition)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        """A condition of a loop."""
        self._terms(node.test)
        self.generic_visit(node)

    def _terms(self, condition: ast.expr) -> None:
        for node in ast.walk(condition):
            if not isinstance(node, ast.BoolOp):
                continue
            word = b" and " if isinstance(node.op, ast.And) else b" or "
            for dropped in node.values:
                rest = word.join(b"(" + self._text(value) + b")" for value in node.values if value is not dropped)
                self._add("term", node, b"(" + rest + b")", self._text(dropped) + b"   in   " + self._text(node))

    def guards(self) -> Iterator[Guard]:
        """Guards in the order of their lines."""
        seen: dict[tuple[str, str, str], int] = {}
        for function, node, kind, replacement, text in self.found:
            start, end = self._span(node)
            line = " ".join(text.decode().split())
            nth = seen[function, kind, line] = seen.get((function, kind, line), -1) + 1
            without = self.source[:start] + replacement + self.source[end:]
            yield Guard(self.file, function, node.lineno, kind, line, nth, without)


_SQL_TOKEN: Final = re.compile(rb"--[^\n]*|'[^']*'|[A-Za-z_][A-Za-z_0-9]*|[()]|;")
_SQL_COMMENTS_BEHIND: Final = re.compile(rb"(\s|--[^\n]*\n)*\Z")
_SQL_NAME: Final = re.compile(rb"-- name: ([a-z_]+)")
_ENDS_WHERE: Final = frozenset(
    [b"ORDER", b"GROUP", b"LIMIT", b"RETURNING", b"UNION", b"WINDOW", b"FOR", b"ON", b";", b"WHERE"]
)


class _SqlTerms:
    """The terms of every WHERE of a file of named statements.

    ``self.tokens`` are (word, start, end, depth of parentheses outside of it); comments and strings are none.
    """

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.tokens: list[tuple[bytes, int, int, int]] = []
        self.names: list[tuple[int, str]] = []
        depth = 0
        for found in _SQL_TOKEN.finditer(source):
            word = found[0]
            if named := _SQL_NAME.match(word):
                self.names.append((found.start(), named[1].decode()))
            if word.startswith((b"--", b"'")):
                continue
            depth -= word == b")"
            self.tokens.append((word, found.start(), found.end(), depth))
            depth += word == b"("

    def conditions(self) -> Iterator[tuple[int, int]]:
        """Tokens of the condition of each WHERE: the first, and the one after the last."""
        for index, (word, _, _, depth) in enumerate(self.tokens):
            if word != b"WHERE":
                continue
            end = index + 1
            while end < len(self.tokens) and not self._ends(end, depth):
                end += 1
            yield index + 1, end

    def _ends(self, index: int, depth: int) -> bool:
        word, _, _, its_depth = self.tokens[index]
        return its_depth < depth or (its_depth == depth and word in _ENDS_WHERE)

    def terms(self, first: int, end: int, start: int, stop: int, empty: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Bytes of each term, and what stands in its place so that it decides nothing.

        Args:
            first: First token of the condition.
            end: Token after its last.
            start: First byte.
            stop: Byte after the last.
            empty: What stands for the whole of it.
        """
        depth = min((token[3] for token in self.tokens[first:end]), default=0)
        for word, neutral in ((b"OR", b"FALSE"), (b"AND", b"TRUE")):
            cuts = [
                index for index in range(first, end) if self.tokens[index][0] == word and self.tokens[index][3] == depth
            ]
            if cuts:
                firsts = [first, *(cut + 1 for cut in cuts)]
                ends = [*cuts, end]
                starts = [start, *(self.tokens[cut][2] for cut in cuts)]
                stops = [*(self.tokens[cut][1] for cut in cuts), stop]
                for part in zip(firsts, ends, starts, stops, strict=True):
                    yield from self.terms(*part, neutral)
                return
        text = self.source[start:stop]
        kept = _SQL_COMMENTS_BEHIND.sub(b"", text)  # "-- only" and "-- if TERM" are no part of the term
        start, stop = start + len(text) - len(text.lstrip()), stop - len(text) + len(kept)
        yield start, stop, empty
        if self.source[start : start + 1] == b"(" and self.tokens[end - 1][2] == stop:
            inner = list(self.terms(first + 1, end - 1, start + 1, stop - 1, empty))
            yield from inner if len(inner) > 1 else ()

    def statement_at(self, position: int) -> str:
        """Name of the statement that a byte belongs to."""
        return next(name for start, name in reversed(self.names) if start < position)


def sql_guards_of(source: bytes, file: str) -> list[Guard]:
    """Every term of a WHERE of a file of named statements."""
    sql, found = _SqlTerms(source), []
    seen: dict[tuple[str, str], int] = {}
    for first, end in sql.conditions():
        stop = sql.tokens[end][1] if end < len(sql.tokens) else len(source)
        for begin, after, neutral in sql.terms(first, end, sql.tokens[first - 1][2], stop, b"TRUE"):
            statement, text = sql.statement_at(begin), " ".join(source[begin:after].decode().split())
            nth = seen[statement, text] = seen.get((statement, text), -1) + 1
            without = source[:begin] + neutral + source[after:]
            found.append(Guard(file, statement, source.count(b"\n", 0, begin) + 1, "term", text, nth, without))
    return found


def guards_of(source: bytes, file: str) -> list[Guard]:
    """Every guard of a module, or of a file of named statements."""
    if file.endswith(".sql"):
        return sql_guards_of(source, file)
    finder = _Finder(file, source)
    finder.visit(ast.parse(source))
    return list(finder.guards())


def all_guards(rooms: Sequence[str]) -> list[Guard]:
    """Every guard of some rooms, or of single modules like ``runs/driver.py``."""
    found: list[Guard] = []
    for room in rooms:
        path = REPO / PACKAGE / room
        modules = [path] if path.is_file() else [*sorted(path.rglob("*.py")), *sorted(path.glob("sql/*.sql"))]
        if not modules:
            raise SystemExit(f"there is no room or module {room!r} under {PACKAGE}")
        for module in modules:
            found += guards_of(module.read_bytes(), module.relative_to(REPO).as_posix())
    return found


class Copy:
    """A copy of the tree that tests run in."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self._python = folder, python
        listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPO,
                                capture_output=True, check=True).stdout  # fmt: skip
        for name in filter(None, listed.decode().split("\0")):
            if (REPO / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPO / name, folder / name)

    def test(self, arguments: Sequence[str], seconds: float) -> str:
        """``passed``, ``failed`` or ``too long``."""
        token = secrets.token_hex(8)
        env = {**os.environ, "PYTHONPATH": str(self.folder / "daemon"), "PYTHONDONTWRITEBYTECODE": "1", MINE: token}
        command = [self._python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments]
        null = subprocess.DEVNULL
        process = subprocess.Popen(
            command, cwd=self.folder, env=env, stdin=null, stdout=null, stderr=null, start_new_session=True
        )
        try:
            return "passed" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            return "too long"
        finally:
            _end_processes(f"{MINE}={token}".encode())
            process.wait()

    def try_without(self, guard: Guard, selections: Sequence[Sequence[str]], seconds: float) -> str:
        """What the tests say without a guard: ``noticed``, ``noticed: too long`` or ``survived``."""
        path = self.folder / guard.file
        whole = path.read_bytes()
        try:
            if guard.file.endswith(".py"):
                compile(guard.without, guard.file, "exec")
            path.write_bytes(guard.without)
            for arguments in selections:
                said = self.test(arguments, seconds)
                if said != "passed":
                    return "noticed" if said == "failed" else "noticed: too long"
        finally:
            path.write_bytes(whole)
        return "survived"


def _end_processes(mark: bytes) -> None:
    for name in os.listdir("/proc"):
        with suppress(OSError, ValueError):
            if mark in Path(f"/proc/{int(name)}/environ").read_bytes().split(b"\0"):
                os.kill(int(name), signal.SIGKILL)


def read_report(path: Path) -> dict[str, dict[str, Any]]:
    """A report by the guards' keys; empty when there is none."""
    return {item["key"]: item for item in json.loads(path.read_text("utf-8"))} if path.exists() else {}


def write_report(path: Path, report: dict[str, dict[str, Any]]) -> None:
    """Write it whole or not at all."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(list(report.values()), indent=1) + "\n", "utf-8")
    beside.replace(path)


def reasons() -> dict[tuple[str, str, str, int | None], str]:
    """Why nothing notices the deletion of a guard that is listed as equivalent.

    Returns:
        Reasons by file, function, text, and which of the guards of the function with this text; None is all of them.
    """
    listed = json.loads(EQUIVALENT.read_text("utf-8"))
    return {(item["file"], item["function"], item["guard"], item.get("nth")): item["reason"] for item in listed}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", action="append", help=f"room or module under {PACKAGE}; default: {' '.join(ROOMS)}")
    parser.add_argument("--tests", action="append", help="pytest arguments; more than once: the next for what survives")
    parser.add_argument("--report", type=Path, default=REPO / ".local/deleted_guards.json", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=1800, help="time limit of one test run (default: %(default)s)")
    parser.add_argument("--most", type=float, default=None, metavar="MINUTES", help="stop after so many minutes")
    parser.add_argument("--again", action="store_true", help="try what survived in the report once more")
    parser.add_argument("--list", action="store_true", help="list the guards and stop")
    return parser.parse_args()


def _run(options: argparse.Namespace, guards: Sequence[Guard], report: dict[str, dict[str, Any]]) -> int:
    selections = [shlex.split(given) for given in options.tests or ()] or [[TIER_0, "-m", MARKS]]
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


def main() -> int:
    """Entry point."""
    options = _arguments()
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
    known = reasons()
    unknown = [item for item in survived if known.keys().isdisjoint((*item.named, which) for which in (None, item.nth))]
    print(f"{len(tried)} of {len(guards)} tried, {len(survived)} survived, {len(unknown)} without a reason")
    for item in unknown:
        print(f"  {item.file}:{item.line} {item.function} [{item.kind}] {item.text}")
    return code or int(bool(unknown))


if __name__ == "__main__":
    sys.exit(main())
