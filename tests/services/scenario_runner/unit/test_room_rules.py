"""The rules of the house: who may import whom, what the pure rooms never touch, where SQL and argv live."""

import ast
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import scenario_runner
from scenario_runner.authority.statements import load_migrations, load_statements

pytestmark = pytest.mark.unit

PACKAGE = Path(scenario_runner.__file__).parent

FLOORS = {
    "counters": 0, "retry": 0, "posix": 0, "procfs": 0, "rounds": 0, "tracing": 0,  # beside the rooms, for who does I/O
    "contracts": 1,
    "storage": 2, "interface_pack": 2, "profiles": 2,
    "authority": 3, "bus": 3, "artifacts": 3,
    "gates": 4, "engine": 4, "ledger": 4,
    "evidence": 5,
    "runs": 6, "audit": 6, "kcl": 6,
    "intake": 7, "relay": 7,
    "service": 8, "rebuild": 8,
    "cli": 9,
}  # fmt: skip

# The rule is "only rooms below". These are the imports on one floor that exist, each with its reason; the list may
# get shorter, and a new one has to be argued for here.
SAME_FLOOR = {
    ("bus", "authority.values"): "an envelope is a pure function of the authority's outbox row, which is a value",
    ("ledger", "gates.receipts"): "the ledger writes the receipts and the facts view that the pure gates room builds",
}

PURE_ROOMS = ("contracts", "gates")
IO_LIBRARIES = frozenset(
    [
        "os",
        "io",
        "sqlite3",
        "socket",
        "subprocess",
        "pathlib",
        "boto3",
        "botocore",
        "obstore",
        "psycopg",
        "psycopg_pool",
        "shutil",
        "tempfile",
        "glob",
        "fcntl",
        "mmap",
        "select",
        "selectors",
        "asyncio",
        "threading",
        "multiprocessing",
        "concurrent",
        "signal",
        "time",
        "random",
        "secrets",
        "uuid",
        "urllib",
        "http",
        "ssl",
        "ftplib",
        "smtplib",
        "requests",
        "httpx",
        "aiohttp",
        "logging",
        "structlog",
        "opentelemetry",
        "prometheus_client",
        "tenacity",
        "ctypes",
        "platform",
        "pwd",
        "grp",
        "getpass",
        "importlib",
        "builtins",
        "sys",
    ]
)
PURE_EXCEPTIONS = {
    ("contracts/strict_yaml.py", "os"): "read_yaml opens the one file that it is given",
    ("contracts/strict_yaml.py", "open"): "read_yaml opens the one file that it is given",
}


@cache
def modules() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))
    }


def room_of(module: str) -> str:
    return module.partition("/")[0] if "/" in module else ""


def imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every imported module, also inside functions, as a dotted name with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def own(name: str) -> str | None:
    """``room.module`` of one of our own modules, else None."""
    head, _, rest = name.partition(".")
    return rest if head == "scenario_runner" and rest else None


def is_module(name: str) -> bool:
    path = PACKAGE / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def own_imports() -> Iterator[tuple[str, str, int]]:
    """(module, imported ``room.module``, line) of every import of one of our own modules."""
    for module, tree in modules().items():
        for name, line in imported(tree):
            target = own(name)
            if target is not None and is_module(target):
                yield module, target, line


# --- rooms and floors -------------------------------------------------------------------------------------------------


def test_every_room_has_a_floor() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(FLOORS)


def test_a_room_imports_only_rooms_below_it() -> None:
    wrong = []
    for module, target, line in own_imports():
        here, there = room_of(module), target.partition(".")[0]
        if here in ("", there):
            continue
        above = FLOORS[there] > FLOORS[here]
        beside = FLOORS[there] == FLOORS[here] and (here, target) not in SAME_FLOOR and target != there
        if above or beside:
            wrong.append(f"{module}:{line} (floor {FLOORS[here]}) imports {target} (floor {FLOORS[there]})")
    assert wrong == []


def test_every_listed_import_on_one_floor_is_still_there() -> None:
    found = {(room_of(module), target) for module, target, _ in own_imports()}
    assert set(SAME_FLOOR) <= found
    assert all(FLOORS[here] == FLOORS[target.partition(".")[0]] for here, target in SAME_FLOOR)


def test_there_are_no_circles_between_rooms() -> None:
    edges: dict[str, set[str]] = {}
    for module, target, _ in own_imports():
        here, there = room_of(module), target.partition(".")[0]
        if here and here != there:
            edges.setdefault(here, set()).add(there)
    done: list[str] = []
    while len(done) < len(FLOORS):
        free = [room for room in FLOORS if room not in done and edges.get(room, set()) <= set(done)]
        assert free, f"a circle among {sorted(set(FLOORS) - set(done))}"
        done += free


def test_the_package_itself_imports_no_room() -> None:
    assert [item for item in own_imports() if room_of(item[0]) == ""] == []


def test_there_are_no_circles_between_modules() -> None:
    edges: dict[str, set[str]] = {}
    for module, target, _ in own_imports():
        here = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if target not in (here, here.partition(".")[0]):
            edges.setdefault(here, set()).add(target)
    names = set(edges) | {target for targets in edges.values() for target in targets}
    done: set[str] = set()
    while names - done:
        free = {name for name in names - done if edges.get(name, set()) <= done}
        assert free, f"a circle among {sorted(names - done)}"
        done |= free


# --- purity -----------------------------------------------------------------------------------------------------------


def pure_modules() -> list[str]:
    return [module for module in modules() if room_of(module) in PURE_ROOMS]


@pytest.mark.parametrize("module", pure_modules())
def test_a_pure_module_imports_no_library_that_touches_the_outside(module: str) -> None:
    names = {name.partition(".")[0] for name, _ in imported(modules()[module])}
    allowed = {name for where, name in PURE_EXCEPTIONS if where == module}
    assert names & IO_LIBRARIES - allowed == set()


@pytest.mark.parametrize("module", pure_modules())
def test_a_pure_module_opens_nothing_prints_nothing_and_reads_no_clock(module: str) -> None:
    allowed = {name for where, name in PURE_EXCEPTIONS if where == module}
    wrong = []
    for node in ast.walk(modules()[module]):
        if not isinstance(node, ast.Call):
            continue
        name = (
            node.func.id
            if isinstance(node.func, ast.Name)
            else node.func.attr
            if isinstance(node.func, ast.Attribute)
            else ""
        )
        builtin = isinstance(node.func, ast.Name) and name in {
            "open",
            "print",
            "input",
            "eval",
            "exec",
            "__import__",
            "breakpoint",
        }
        clock = name in {"now", "utcnow", "today", "fromtimestamp", "time_ns", "getenv", "urandom"}
        if (builtin or clock) and name not in allowed:
            wrong.append(f"line {node.lineno}: {name}()")
    assert wrong == []


def test_the_listed_exceptions_are_still_needed() -> None:
    for module, name in PURE_EXCEPTIONS:
        tree = modules()[module]
        calls = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert name in calls | {imported_name for imported_name, _ in imported(tree)}


def fresh(statements: str) -> set[str]:
    """Modules that a new interpreter has loaded after some statements."""
    script = f"{statements}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


def test_the_gates_room_loads_no_room_and_no_library_that_touches_the_outside() -> None:
    """Also not through what it imports: whatever is loaded beyond pydantic and the standard library's basics counts."""
    gates = [
        f"scenario_runner.gates.{path.stem}" for path in (PACKAGE / "gates").glob("*.py") if path.stem != "__init__"
    ]
    ground = fresh("import pydantic, orjson, hashlib, json, re, dataclasses, enum, typing, datetime\n"
                   "class M(pydantic.BaseModel):\n    a: int\nM.model_json_schema()")  # fmt: skip
    loaded = fresh("import " + ", ".join(gates))
    assert {name.partition(".")[0] for name in loaded - ground} & (
        IO_LIBRARIES - {"sys", "importlib", "builtins"}
    ) == set()
    ours = {name for name in loaded if name.startswith("scenario_runner.")}
    assert {name.split(".")[1] for name in ours} <= {"contracts", "interface_pack", "artifacts", "gates"}
    assert ours & {"scenario_runner.contracts.strict_yaml", "scenario_runner.interface_pack.loader",
                   "scenario_runner.artifacts.local", "scenario_runner.artifacts.reuse"} == set()  # fmt: skip


# --- SQL --------------------------------------------------------------------------------------------------------------

SQL = re.compile(
    r"\bSELECT\b.*\bFROM\b|\bINSERT\s+(OR\s+\w+\s+)?INTO\b|\bREPLACE\s+INTO\b|\bUPDATE\s+\w+\s+SET\b|\bDELETE\s+FROM\b|\bMERGE\s+INTO\b"
    r"|\b(CREATE|DROP|ALTER)\s+(TABLE|INDEX|VIEW|TRIGGER|SCHEMA)\b|\bTRUNCATE\s+TABLE\b",
    re.DOTALL,
)
SQL_LOWER = re.compile(
    r"^\s*(select|insert|update|delete|replace|create|drop|alter|with)\s.*\b(from|into|set|table|values)\b", re.DOTALL
)


def docstrings(tree: ast.Module) -> set[int]:
    found = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            found.add(id(body[0].value))
    return found


@pytest.mark.parametrize("module", list(modules()))
def test_there_is_no_sql_in_python(module: str) -> None:
    tree = modules()[module]
    prose = docstrings(tree)
    wrong = [f"line {node.lineno}: {node.value[:60]!r}" for node in ast.walk(tree)
             if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
             and (SQL.search(node.value) or SQL_LOWER.search(node.value))]  # fmt: skip
    assert wrong == []


def test_the_search_for_sql_would_find_some() -> None:
    for text in (
        "SELECT 1 FROM x",
        "INSERT OR IGNORE INTO x VALUES (1)",
        "UPDATE runs SET a = 1",
        "DELETE FROM x",
        "CREATE TABLE x (a)",
    ):
        assert SQL.search(text)
        assert SQL_LOWER.search(text.lower())


ENGINES = sorted(path.stem for path in (PACKAGE / "authority/sql").glob("*.sql"))


def modules_of(engine: str) -> list[ast.Module]:
    """Modules of the authority that use the statements of an engine."""
    return [
        tree for module, tree in modules().items() if module.startswith((f"authority/{engine}", "authority/queries"))
    ]


def texts_of(engine: str) -> set[str]:
    return {node.value for tree in modules_of(engine) for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)}  # fmt: skip


def names_used(engine: str) -> set[str]:
    """Names in ``sql["name"]`` and in the first two arguments of the helpers that take a statement's name."""
    found = set()
    for node in (node for tree in modules_of(engine) for node in ast.walk(tree)):
        candidates: list[ast.expr] = []
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("self._sql", "sql"):
            candidates = [node.slice]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("_query", "_guarded")
        ):
            candidates = node.args[:2]
        found |= {item.value for item in candidates if isinstance(item, ast.Constant) and isinstance(item.value, str)}
    return found


def test_there_is_a_file_of_statements_for_each_engine() -> None:
    assert ENGINES == ["postgres", "sqlite"]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_named_statement_is_used(engine: str) -> None:
    assert set(load_statements(engine)) - texts_of(engine) == set()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_used_statement_exists(engine: str) -> None:
    assert len(names_used(engine)) > 10
    assert names_used(engine) - set(load_statements(engine)) == set()


@pytest.mark.parametrize("engine", ENGINES)
def test_no_name_is_given_twice_and_each_names_one_statement(engine: str) -> None:
    text = (PACKAGE / f"authority/sql/{engine}.sql").read_text("utf-8")
    names = re.findall(r"^--\s*name:\s*(\S+)", text, re.MULTILINE)
    of_one_run = [name for name in load_statements(engine) if name.endswith("_only")]
    assert len(names) == len(set(names)) == len(load_statements(engine)) - len(of_one_run)
    for name, statement in load_statements(engine).items():
        assert statement, name
        assert ";" not in statement, name


_OF_THE_RUN = re.compile(
    r"\n *AND ((o\.)?run_id = (:only|%\(only\)b)"
    r"|run_id IN \((?P<only>:only|%\(only\)b), \(SELECT n.supersedes FROM runs n WHERE n.run_id = (?P=only)\)\)"
    r"|(o\.)?outbox_id = ANY \(ARRAY \(SELECT outbox_id FROM outbox WHERE run_id = %\(only\)b\)\))(?=\n)"
)
#: Or by leaving a part of the statement out, as a claim does.
_NOTHING = re.compile(r"\n *AND FALSE(?=\n)")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_statement_for_the_work_of_one_run_differs_from_the_other_by_naming_the_run(engine: str) -> None:
    statements = load_statements(engine)
    of_one_run = {name for name in statements if name.endswith("_only")}
    assert {"any_pending_only", "claim_signals_only", "claim_unprojected_only"} < of_one_run
    for name in of_one_run:
        whole, of_the_run = _OF_THE_RUN.subn("", _NOTHING.sub("", statements[name]))
        assert of_the_run, name
        assert whole == statements[name.removesuffix("_only")]
        assert "only" not in whole


def test_a_statement_for_a_record_of_an_act_differs_from_the_other_by_the_lines_that_write_the_act() -> None:
    plain, by = load_statements("postgres"), load_statements("postgres", by=True)
    different = {name for name in plain if plain[name] != by[name]}
    assert different == {"admit_records", "commit_reemits"}
    for name in different:
        lines = iter(by[name].splitlines())
        assert all(line in lines for line in plain[name].splitlines()), "only lines are added"
        assert "INSERT INTO operator_actions" in by[name]
        assert "-- by" not in plain[name] + by[name]


def migrated() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    for _, _, text in load_migrations("sqlite"):
        connection.executescript(text)
    return connection


@pytest.mark.parametrize("name", sorted(load_statements("sqlite")))
def test_every_sqlite_statement_can_be_prepared_on_the_migrated_schema(name: str) -> None:
    statement = load_statements("sqlite")[name]
    parameters = dict.fromkeys(re.findall(r":([a-z_0-9]+)", statement), 0)
    connection = migrated()
    try:
        assert connection.execute(f"EXPLAIN {statement}", parameters).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize("name", sorted(load_statements("sqlite")))
def test_no_sqlite_statement_reads_a_whole_table(name: str) -> None:
    """Runs that have ended and signals that were sent only grow in number: partial indexes leave them out."""
    statement = load_statements("sqlite")[name]
    parameters = dict.fromkeys(re.findall(r":([a-z_0-9]+)", statement), 0)
    connection = migrated()
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    connection.close()
    scans = [step for step in plan if step.startswith("SCAN ") and " INDEX " not in step]
    # Subqueries with a limit are no tables.
    # Selections that end at a LIMIT: what is in them is searched, and then counted.
    bounded = {f"SCAN {part}" for part in re.findall(r"LIMIT :most\) AS ([a-z])\b", statement)}
    if name.startswith("claim_due"):  # the two parts of a claim, each with its limit
        bounded |= {"SCAN new_runs", "SCAN oldest"}
    assert {re.sub(r"subquery-\d+", "page", step) for step in scans} <= {
        "SCAN CONSTANT ROW", "SCAN page", "SCAN (page)", "SCAN gone",
        *bounded,
    }  # fmt: skip
    if name.endswith("_only"):
        assert [
            step
            for step in plan
            if step.startswith("SEARCH ")
            and not re.search(r"\((run_id|rowid|message_id)=\?", step)
            and "runs_new" not in step  # shown, and not searched: AND FALSE
        ] == []


def test_migrations_are_numbered_from_one_without_gaps() -> None:
    for engine in ENGINES:
        assert [number for number, _, _ in load_migrations(engine)] == list(range(1, len(load_migrations(engine)) + 1))


@pytest.mark.parametrize(
    ("engine", "writers"),
    [("sqlite", {"commit_run", "start_verifying"}), ("postgres", {"commit_runs", "claim_runs", "claim_runs_only"})],
)
def test_only_a_claim_and_a_transition_change_the_state_of_a_run(engine: str, writers: set[str]) -> None:
    """Each term of their WHERE is held by the authority's contract tests."""
    sets = re.compile(r"UPDATE runs( r)?\s+SET (?:(?!WHERE).)*?\bstate =", re.DOTALL)
    found = {name for name, text in load_statements(engine).items() if sets.search(text)}
    assert found == writers


def test_every_clock_reading_of_the_postgres_authority_is_the_databases() -> None:
    """And each statement reads it once, so that all its rows tell one time."""
    for name, statement in load_statements("postgres").items():
        assert statement.count("sr_now_us()") <= 1, name
        assert not re.search(r"\b(now\(\)|clock_timestamp|statement_timestamp|current_timestamp)", statement, re.I), (
            name
        )
    for module, tree in modules().items():
        if module.startswith("authority/postgres"):
            assert {name.partition(".")[0] for name, _ in imported(tree)} & {"time", "datetime"} == set(), module


# --- argv -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [module for module in modules() if room_of(module) != "cli"])
def test_only_the_commands_read_argv(module: str) -> None:
    tree = modules()[module]
    names = {name.partition(".")[0] for name, _ in imported(tree)}
    assert names & {"argparse", "typer", "click", "optparse", "getopt"} == set()
    reads = [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("argv", "orig_argv"))
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "sys"
            and any("argv" in alias.name for alias in node.names)
        )
    ]
    assert reads == []
