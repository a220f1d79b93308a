"""Where SQL lives, and what holds of every statement."""

import ast
import re
import sqlite3

import pytest
from package_modules import PACKAGE, imported, modules

from scenario_runner.authority.statements import load_migrations, load_statements

pytestmark = pytest.mark.unit

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
