"""What each statement of a daemon reads: the plans of those that it executes, with their parameters.

A daemon that is started by :func:`explaining` plans and executes each statement of the authority twice: first under
EXPLAIN (ANALYZE, BUFFERS) in a transaction that is rolled back, with the generic plan of its sessions, then as ever.
"""

import importlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sr_tools.bench.report import REPO, Json
from sr_tools.bench.subject import Subject

#: Names the file for the plans, in the environment of the daemon.
VARIABLE: Final = "SR_BENCH_EXPLAINED"
_BEGIN: Final = (
    "import os\nif os.environ.get('{variable}'):\n"
    "    from sr_tools.bench.on_parity.explained import install\n    install()\n"
)
#: Begins of a statement that has a plan; comments stand before it.
_PLANNED: Final = re.compile(r"(\s|--.*\n)*(WITH|SELECT|INSERT|UPDATE|DELETE)\b")
#: They ask for settings of the session, and read no table of the authority.
_OF_SESSIONS: Final = ("begin_session", "session_facts", "dropped_options")
_EXPLAIN: Final = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE"


def explaining(subject: Subject, folder: Path, plans: Path) -> Subject:
    """The same command, whose daemons write the plans into a file; the folder is for what they begin with."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_BEGIN.format(variable=VARIABLE), "utf-8")
    paths = os.pathsep.join(filter(None, (str(folder), str(REPO / "scripts"), subject.sources)))
    return replace(subject, variables={**subject.variables, "PYTHONPATH": paths, VARIABLE: str(plans)})


def install() -> None:
    """In the daemon: explain before each statement of the authority that is a transaction of its own."""
    import psycopg  # noqa: PLC0415 - every Python process of the daemon begins here
    from psycopg.pq import TransactionStatus  # noqa: PLC0415

    # This runs in the daemon that is measured, and takes the names from it.
    load_statements = importlib.import_module("scenario_runner.authority.statements").load_statements
    plain: Any = psycopg.Connection.execute
    names = {text.encode(): name for name, text in load_statements("postgres").items()
             if _PLANNED.match(text) and name not in _OF_SESSIONS}  # fmt: skip
    path = Path(os.environ[VARIABLE])

    def execute(connection: Any, query: Any, params: Any = None, **more: Any) -> Any:  # noqa: ANN401 - of psycopg
        name = names.get(query) if isinstance(query, bytes) else None
        if name and connection.info.transaction_status == TransactionStatus.IDLE:
            _explain(plain, connection, name, query.decode(), params or {}, path)
        return plain(connection, query, params, **more)

    setattr(psycopg.Connection, "execute", execute)  # noqa: B010 - its own signature is overloaded


def _explain(plain: Any, connection: Any, name: str, text: str, params: Mapping[str, Any], path: Path) -> None:  # noqa: ANN401
    import psycopg  # noqa: PLC0415
    from psycopg.rows import tuple_row  # noqa: PLC0415

    given = [key for key in params if f"%({key})b" in text]
    for position, key in enumerate(given, 1):
        text = text.replace(f"%({key})b", f"${position}")
    values = psycopg.ClientCursor(connection).mogrify(", ".join(["%s"] * len(given)), [params[key] for key in given])
    line: Json = {"statement": name}
    try:
        plain(connection, f"PREPARE explained AS {text}".encode())
        plain(connection, b"BEGIN")
        with connection.cursor(row_factory=tuple_row) as cursor:
            called = f"{_EXPLAIN} explained{values and f' ({values})'}"
            (found,) = cursor.execute(called.encode()).fetchone()[0]
        line |= {"ms": found["Execution Time"], "plan": found["Plan"]}
    except psycopg.Error as error:
        line |= {"error": str(error)}
    plain(connection, b"ROLLBACK")
    plain(connection, b"DEALLOCATE explained")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def summary(plans: Path) -> dict[str, Json]:
    """Of each statement by name: calls, pages that it looked at (mean, most), and which of the tables they are of.

    Raises:
        ValueError: A statement could not be explained.
    """
    found: dict[str, Json] = {}
    for line in map(json.loads, plans.read_text("utf-8").splitlines()):
        if "error" in line:
            raise ValueError(f"{line['statement']}: {line['error']}")
        pages = pages_of(line["plan"])
        one = found.setdefault(line["statement"], {"calls": 0, "mean_pages": 0.0, "most_pages": -1, "most_ms": 0.0})
        one["calls"] += 1
        one["mean_pages"] += (pages - one["mean_pages"]) / one["calls"]
        one["most_ms"] = max(one["most_ms"], line["ms"])
        if pages > one["most_pages"]:
            one |= {"most_pages": pages, "of": dict(_pages_by_table(line["plan"])), "plan": line["plan"]}
    return {name: {**one, "mean_pages": round(one["mean_pages"], 1)} for name, one in sorted(found.items())}


def pages_of(plan: Mapping[str, Any]) -> int:
    """Pages that a node and all below it looked at, in memory or not."""
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def _pages_by_table(plan: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    pages: dict[str, int] = {}
    for name, number in _own_pages(plan):
        pages[name] = pages.get(name, 0) + number
    yield from sorted(pages.items(), key=lambda item: -item[1])


def _own_pages(plan: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    below = plan.get("Plans", ())
    name = plan.get("Index Name") or plan.get("Relation Name")
    if name:
        own = pages_of(plan) - sum(pages_of(each) for each in below)
        kind = str(plan["Node Type"])
        yield f"{kind} {name}", own
    for each in below:
        yield from _own_pages(each)
