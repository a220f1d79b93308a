"""Slim runs: very many runs whose rows the database makes itself, with short documents.

The first runs are made as :mod:`sr_tools.bench.many_runs` makes them. They are cut: of runs that are READY or planned
only the first event stays, and documents and payloads become a few bytes. The others stay whole, since people look
them up. The database repeats these runs under the keys and times that a full fill gives. So keys, states, times, and
the number and depth of everything but the events are those of real runs, at a tenth of their size.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from sr_tools.bench.many_runs import APART_US, TABLES, Row, States, Template, copy_rows, rows_of, state_of
from sr_tools.bench.report import note
from sr_tools.bench.world import run_id_of

#: What the rows of a run depend on repeats after so many runs: states after 100, of which every third has one reason.
BLOCK: Final = 300
#: Blocks of one statement: 30,000 runs, which the server sorts in memory.
_BLOCKS_AT_ONCE: Final = 100
#: Statements between two lines of progress: 1.5 million runs.
_NOTED: Final = 50
#: What stays of a wide column.
_CUT: Final[Mapping[str, Mapping[str, bytes]]] = {
    "runs": {"intent": b"{}", "inputs": b"{}"}, "run_events": {"details": b"{}"},
    "outbox": {"attributes": b"{}", "payload": b"{}"},
}  # fmt: skip
#: By table: columns that depend on the number n of the run. All others are those of the block.
_CHANGED: Final[Mapping[str, Mapping[str, str]]] = {
    "runs": {"run_id": "bench_id(bench_key(n))", "run_equivalence_key": "bench_key(n)",
             "missing": "replace(missing, 'elsewhere/' || number || '/', 'elsewhere/' || n || '/')"},
    "run_events": {"run_id": "bench_id(bench_key(n))"},
    "intake_records": {
        "record_key": "CASE disposition WHEN 'REJECTED' THEN bench_record(n) || 'r' ELSE bench_record(n) END",
        "message_id": "CASE disposition WHEN 'REJECTED' THEN message_id ELSE bench_hex(n, 64) END",
        "run_id": "CASE disposition WHEN 'REJECTED' THEN bench_id(bench_record(n) || 'r') "
                  "ELSE bench_id(bench_key(n)) END",
    },
    "outbox": {"run_id": "bench_id(bench_key(n))", "partition_key": "bench_id(bench_key(n))",
               "message_id": "bench_id(bench_key(n)) || bench_hex(n, 32)"},
    "dead_letters": {"record_key": "bench_record(n) || 'r'"},
}  # fmt: skip
_TIMES: Final[Mapping[str, Sequence[str]]] = {
    "runs": ("admitted_us", "updated_us", "deadline_us", "due_us"), "run_events": ("ts_us",),
    "intake_records": ("received_us",), "outbox": ("created_us", "sent_us"), "dead_letters": (),
}  # fmt: skip
#: Not declared immutable: the server unfolds a call only if the function promises no more than what its body calls.
_FUNCTIONS: Final = """
CREATE FUNCTION bench_key(n bigint) RETURNS text LANGUAGE sql
AS $$ SELECT 'bench-' || n % 10 || '-' || lpad(n::text, 9, '0') $$;
CREATE FUNCTION bench_id(name text) RETURNS text LANGUAGE sql
AS $$ SELECT left(encode(sha256(convert_to('sr_run|' || name, 'UTF8')), 'hex'), 32) $$;
CREATE FUNCTION bench_record(n bigint) RETURNS text LANGUAGE sql
AS $$ SELECT 'bench/shardId-' || lpad((n % 4)::text, 12, '0') || '/' || lpad(n::text, 20, '0') $$;
CREATE FUNCTION bench_hex(n bigint, width integer) RETURNS text LANGUAGE sql
AS $$ SELECT lpad(to_hex(n), width, '0') $$;
"""
_FUNCTION_NAMES: Final = ("bench_key", "bench_id", "bench_record", "bench_hex")
#: What makes constraints and indexes of a table again, and what drops them; the index of a constraint goes with it.
_CONSTRAINTS: Final = """
SELECT format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', conrelid::regclass, conname, pg_get_constraintdef(oid)),
       format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname)
FROM pg_constraint WHERE conrelid = %s::regclass AND contype IN ('p', 'u') ORDER BY conname
"""
_INDEXES: Final = """
SELECT pg_get_indexdef(i.indexrelid), 'DROP INDEX ' || i.indexrelid::regclass FROM pg_index i
WHERE i.indrelid = %s::regclass AND NOT EXISTS (SELECT 1 FROM pg_constraint c WHERE c.conindid = i.indexrelid)
ORDER BY i.indexrelid
"""


def block(templates: Mapping[str, Template], count: int, now_us: int, states: States) -> dict[str, list[Row]]:
    """The rows of the first runs, cut, by table; each with the number of its run."""
    found: dict[str, list[Row]] = {table: [] for table in TABLES}
    for number in range(min(BLOCK, count)):
        state = states(number)
        first = True
        for table, row in rows_of(templates, number, now_us - (count - number) * APART_US, state):
            if state not in ("READY", "PLANNED"):
                found[table].append({**row, "number": number})
            elif table != "run_events" or first:
                found[table].append({**row, **_CUT.get(table, {}), "number": number})
            first = first and table != "run_events"
    return found


def _inserts(made: Mapping[str, Sequence[Row]], count: int) -> Iterator[str]:
    """Statements that repeat the block, some thousand runs each. Series and functions are those of both engines."""
    blocks = -(-count // BLOCK)
    for table in TABLES:
        if not made[table]:
            continue
        names = [name for name in made[table][0] if name != "number"]
        values = ", ".join(_value(table, name) for name in names)
        note(f"{table}: repeating {len(made[table])} rows {blocks} times")
        for nth, first in enumerate(range(0, blocks, _BLOCKS_AT_ONCE), 1):
            last = min(first + _BLOCKS_AT_ONCE, blocks) - 1
            yield (
                f"INSERT INTO {table} ({', '.join(names)}) "
                f"WITH RECURSIVE series(block) AS (SELECT CAST({first} AS bigint) UNION ALL "
                f"SELECT block + 1 FROM series WHERE block < {last}) "
                f"SELECT {values} FROM (SELECT b.*, block, block * {BLOCK} + number AS n "
                f"FROM series CROSS JOIN slim_{table} b) AS numbered "
                f"WHERE n < {count} ORDER BY n"
            )
            if nth % _NOTED == 0:
                note(f"{table}: {nth * _BLOCKS_AT_ONCE * BLOCK} runs")


def _value(table: str, name: str) -> str:
    if name in _TIMES[table]:
        return f"{name} + block * {BLOCK * APART_US}"
    return _CHANGED[table].get(name, name)


def fill_postgres_slim(
    dsn: str, templates: Mapping[str, Template], count: int, now_us: int, states: States = state_of
) -> None:
    """Put slim runs into the tables that a daemon made in a schema; the DSN names the schema."""
    import psycopg  # noqa: PLC0415 - SQLite does without

    made = block(templates, count, now_us, states)
    with psycopg.connect(dsn, autocommit=True) as connection:

        def execute(statement: str) -> None:
            connection.execute(statement.encode())

        for setting in ("synchronous_commit = off", "work_mem = '256MB'", "maintenance_work_mem = '1GB'"):
            execute(f"SET {setting}")
        execute(_FUNCTIONS)
        again = []
        for table in TABLES:
            execute(f"CREATE TEMP TABLE slim_{table} AS SELECT * FROM {table} LIMIT 0")
            execute(f"ALTER TABLE slim_{table} ADD number bigint")
            if made[table]:
                copy_rows(connection, f"slim_{table}", made[table])
            for asked in (_CONSTRAINTS, _INDEXES):
                for makes, drops in connection.execute(asked.encode(), (table,)).fetchall():
                    execute(drops)
                    again.append(makes)
        for statement in _inserts(made, count):
            execute(statement)
        note(f"making {len(again)} indexes")
        for statement in again:
            execute(statement)
        for function in _FUNCTION_NAMES:
            execute(f"DROP FUNCTION {function}")
        execute("VACUUM (ANALYZE)")  # autovacuum would work beside the measurement
        execute("CHECKPOINT")


def fill_sqlite_slim(
    path: Path, templates: Mapping[str, Template], count: int, now_us: int, states: States = state_of
) -> None:
    """Put slim runs into a database that a daemon made, in the place of those that it holds."""
    made = block(templates, count, now_us, states)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.create_function("bench_key", 1, lambda n: f"bench-{n % 10}-{n:09d}", deterministic=True)
        connection.create_function("bench_id", 1, run_id_of, deterministic=True)
        connection.create_function("bench_record", 1, lambda n: f"bench/shardId-{n % 4:012d}/{n:020d}")
        connection.create_function("bench_hex", 2, lambda n, width: f"{n:0{width}x}", deterministic=True)
        for setting in ("synchronous = OFF", "cache_size = -1500000", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {setting}")
        found = connection.execute("SELECT tbl_name, sql, name FROM sqlite_master WHERE type = 'index' ORDER BY name")
        again = [(makes, name) for table, makes, name in found if table in TABLES and makes]
        connection.execute("BEGIN IMMEDIATE")
        for _, name in again:
            connection.execute(f"DROP INDEX {name}")
        for table in TABLES:
            connection.execute(f"DELETE FROM {table}")
            connection.execute(f"CREATE TEMP TABLE slim_{table} AS SELECT *, 0 AS number FROM {table} LIMIT 0")
            names = list(made[table][0]) if made[table] else []
            inserted = (
                f"INSERT INTO slim_{table} ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)})"
            )
            connection.executemany(inserted if names else "SELECT 1", made[table])
        for statement in _inserts(made, count):
            connection.execute(statement)
        note(f"making {len(again)} indexes")
        for makes, _ in again:
            connection.execute(makes)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
