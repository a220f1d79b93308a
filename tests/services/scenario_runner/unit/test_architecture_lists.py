"""docs/architecture.md lists every thread and every cache of the code."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import TYPE_CHECKING

import pytest
from support import REPO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit

ARCHITECTURE = (REPO / "docs/architecture.md").read_text("utf-8")
CODE = REPO / "daemon/scenario_runner"
CACHES = {"lru_cache", "cache"}
#: What starts threads, and the position of the name among its arguments.
STARTERS = {"Thread": 2, "ThreadPoolExecutor": 1, "_thread": 0}


@cache
def nodes() -> list[tuple[Path, ast.AST]]:
    paths = sorted(CODE.rglob("*.py"))
    return [(path, node) for path in paths for node in ast.walk(ast.parse(path.read_text("utf-8")))]


def name_of(node: ast.AST) -> str:
    """``cache`` of ``cache``, ``functools.cache`` and ``lru_cache(16)``."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def text_of(node: ast.expr | None) -> str:
    """A name that is written in place, with ``N`` for what is put in; empty where it is a variable."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "N" for part in node.values)
    return ""


def threads() -> Iterator[tuple[str, str]]:
    """Where threads are started, and their name."""
    for path, node in nodes():
        if isinstance(node, ast.Call) and (starter := name_of(node.func)) in STARTERS:
            named = {item.arg: item.value for item in node.keywords}
            place = STARTERS[starter]
            given = named.get("name") or named.get("thread_name_prefix")
            given = given or (node.args[place] if len(node.args) > place else None)
            yield f"{path.relative_to(CODE)}:{node.lineno}", text_of(given)


def caches() -> Iterator[tuple[str, str]]:
    """The file of a cache, and the function whose answers it keeps."""
    for path, node in nodes():
        where = str(path.relative_to(CODE))
        if isinstance(node, ast.FunctionDef):
            yield from ((where, node.name) for item in node.decorator_list if name_of(item) in CACHES)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Call) and name_of(node.func) in CACHES:
            yield where, name_of(node.args[0])


def rows(first: str) -> list[str]:
    """The rows of the tables that begin with a column of this name."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", ARCHITECTURE, flags=re.MULTILINE):
        if table.startswith(f"| {first}"):
            found += table.splitlines()[2:]
    return found


def test_every_thread_has_a_name_that_stands_in_a_table() -> None:
    listed = {name for row in rows("threads of") for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    started = dict(threads())
    nameless = {place.partition(":")[0] for place, name in started.items() if not name}
    assert nameless == {"service/supervisor.py"}, "one starts the loops by their names, which the others give"
    assert set(started.values()) - {""} == listed


def test_every_cache_stands_in_the_table_with_its_file_and_its_function() -> None:
    table, found = rows("cache |"), list(caches())
    assert len(found) >= 10, "the search finds them"
    lost = [item for item in found if not any(all(f"`{text}`" in row for text in item) for row in table)]
    assert lost == []
