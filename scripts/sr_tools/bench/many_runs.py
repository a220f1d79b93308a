"""A database of very many runs, made from a few real ones: their rows are copied under other keys and times.

Of 100 runs 2 are planned, 2 wait, 3 FAILED, 1 is QUARANTINED, and the others are READY; of 101 records one was refused.
Every other run that waits misses paths of its own. All columns are those of real runs. The record (events) of a READY
run holds its first two events, except for one in twenty, whose record is whole.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sr_tools.bench.report import MICROS, note
from sr_tools.bench.world import RACY_SECONDS, World, run_id_of

Row = dict[str, Any]
States = Callable[[int], str]
"""Gives the state of the n-th run."""
Rows = Callable[[Mapping[str, "Template"], int, int, States], Iterator[tuple[str, Row]]]
"""Makes (table, row) of templates, the number of runs, the time now in microseconds, and states."""

#: Admissions are a tenth of a second apart, so a million runs are 28 hours.
APART_US: Final = MICROS // 10
#: Of a hundred runs this one waits for paths of its own.
_OWN_PATHS: Final = 13
#: Events of an admission: a run that was admitted and not claimed yet has no more.
_ADMISSION_EVENTS: Final = 4
TABLES: Final = ("runs", "run_events", "intake_records", "outbox", "dead_letters")
_KINDS: Final = (
    "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
)
#: Rows that go to the database at once.
_CHUNK: Final = 5_000


@dataclass(frozen=True)
class Template:
    """The rows of one real run, by table."""

    rows: Mapping[str, Sequence[Row]]

    @classmethod
    def of(cls, connection: sqlite3.Connection, run_id: str) -> "Template":
        """Read the rows of a run; of a record that names none, those of the refused record."""
        connection.row_factory = sqlite3.Row
        found: dict[str, list[Row]] = {}
        for table in TABLES:
            column = "record_key" if table == "dead_letters" else "run_id"
            value = "spool/%" if table == "dead_letters" else run_id
            compared = "LIKE" if table == "dead_letters" else "="
            rows = connection.execute(f"SELECT * FROM {table} WHERE {column} {compared} ?", (value,))
            found[table] = [dict(row) for row in rows]
        return cls(found)

    def state(self) -> str:
        """State of the run."""
        return str(self.rows["runs"][0]["state"])


def real_runs(world: World) -> dict[str, Template]:
    """Drive one run into each state, and refuse one record.

    Returns:
        Templates by state; ``REJECTED`` is the refused record.
    """
    good, waits, doubtful = (
        world.make_engine_run(name, number) for number, name in enumerate(("good", "waits", "bad"))
    )
    _flag_of(waits).unlink()
    flag = _flag_of(doubtful)
    flag.write_text(flag.read_text().replace("=", "= 0", 1)[:-1])
    for name, request in (("good", good), ("waits", waits), ("bad", doubtful)):
        world.drop(request, name)
    world.drop({**good, "seed": "seven"}, "refused")
    time.sleep(RACY_SECONDS)
    world.serve("--until-idle").finish()
    with closing(sqlite3.connect(world.root / "authority.db")) as connection:
        found = {name: Template.of(connection, run_id_of(name)) for name in ("good", "waits", "bad", "refused")}
    templates = {found[name].state(): found[name] for name in ("good", "waits", "bad")}
    return {**templates, "REJECTED": found["refused"]}


def _flag_of(request: Mapping[str, Any]) -> Path:
    return min(Path(request["engine_run_root"]).rglob("_passed.flag"))


def state_of(number: int) -> str:
    """The state of the n-th run."""
    place = number % 100
    states = {7: "PLANNED", 57: "PLANNED", 13: "WAITING_EVIDENCE", 63: "WAITING_EVIDENCE", 21: "FAILED", 47: "FAILED",
              71: "FAILED", 33: "QUARANTINED"}  # fmt: skip
    return states.get(place, "READY")


def ended_state_of(number: int) -> str:
    """The same where no run is on its way: READY in the place of those."""
    state = state_of(number)
    return "READY" if state in ("PLANNED", "WAITING_EVIDENCE") else state


def waiting_state_of(number: int) -> str:
    """The same where no run is planned, and 2 of 100 wait."""
    state = state_of(number)
    return "READY" if state == "PLANNED" else state


def rows(templates: Mapping[str, Template], count: int, now_us: int, states: States) -> Iterator[tuple[str, Row]]:
    """(table, row) of so many runs, the oldest first."""
    for number in range(count):
        yield from rows_of(templates, number, now_us - (count - number) * APART_US, states(number))


def rows_of(templates: Mapping[str, Template], number: int, at_us: int, state: str) -> Iterator[tuple[str, Row]]:
    """(table, row) of the n-th run, and of the record that was refused after it."""
    yield from _run(templates, number, at_us, state)
    if number % 100 == 50:
        yield from _refused(templates["REJECTED"], number, at_us)


def _run(templates: Mapping[str, Template], number: int, at_us: int, state: str) -> Iterator[tuple[str, Row]]:
    key = f"bench-{number % 10}-{number:09d}"
    run_id = run_id_of(key)
    source = {"FAILED": "WAITING_EVIDENCE", "PLANNED": "READY"}.get(state, state)
    template = templates[source].rows
    run = template["runs"][0]
    moved = at_us - int(run["admitted_us"])
    changes: Row = {"run_id": run_id, "run_equivalence_key": key, "state": state, "event_seq": run["event_seq"],
                    "projected_seq": run["event_seq"], "admitted_us": at_us, "updated_us": at_us + MICROS,
                    "deadline_us": int(run["deadline_us"]) + moved}  # fmt: skip
    if state == "FAILED":
        changes |= {"due_us": None, "reason_code": "EVIDENCE_MISSING_DEADLINE", "missing": ""}
    elif state in ("PLANNED", "WAITING_EVIDENCE"):
        changes |= {"due_us": at_us + 60 * MICROS, "lease_owner": "", "lease_until_us": 0}
    if state == "PLANNED":
        changes |= {"event_seq": _ADMISSION_EVENTS, "projected_seq": _ADMISSION_EVENTS}
    whole = state not in ("READY", "PLANNED") or number % 20 == 0
    if source == "WAITING_EVIDENCE" and state == source and number % 100 == _OWN_PATHS:
        changes["missing"] = run["missing"].replace("\n", f"\nelsewhere/{number}/")
    yield "runs", {**run, **changes}
    for event in template["run_events"] if whole else template["run_events"][:_ADMISSION_EVENTS]:
        details = event["details"]
        if source == "WAITING_EVIDENCE" and number % 10 == 3:
            details = details.replace(b'"missing":"', b'"missing":"elsewhere/%d/' % number)
        kind = "RUN_FAILED" if state == "FAILED" and event["seq"] == run["event_seq"] else event["kind"]
        ts_us = int(event["ts_us"]) + moved
        yield "run_events", {**event, "run_id": run_id, "details": details, "kind": kind, "ts_us": ts_us}
    record = template["intake_records"][0]
    yield "intake_records", _numbered(record, {
        "record_key": f"bench/shardId-{number % 4:012d}/{number:020d}", "message_id": f"{number:064x}",
        "run_id": run_id, "received_us": at_us,
    })  # fmt: skip
    if state in ("READY", "QUARANTINED"):
        for signal in template["outbox"]:
            changes = {"message_id": f"{run_id}{number:032x}", "run_id": run_id, "partition_key": run_id,
                       "created_us": at_us, "sent_us": at_us}  # fmt: skip
            yield "outbox", _numbered(signal, changes)


def _refused(template: Template, number: int, at_us: int) -> Iterator[tuple[str, Row]]:
    key = f"bench/shardId-{number % 4:012d}/{number:020d}r"
    reason = ("REQUEST_SCHEMA_INVALID", "RECORD_NOT_JSON", "AUTH_DENIED")[number // 100 % 3]
    record = template.rows["intake_records"][0]
    changes = {"record_key": key, "received_us": at_us, "reason_code": reason, "run_id": run_id_of(key)}
    yield "intake_records", _numbered(record, changes)
    yield "dead_letters", {"record_key": key, "raw": template.rows["dead_letters"][0]["raw"]}


def _numbered(row: Row, changes: Row) -> Row:
    """A changed row whose number the database gives."""
    return {name: value for name, value in {**row, **changes}.items() if name not in ("record_id", "outbox_id")}


def apart(fill: Callable[..., None], *arguments: object) -> None:
    """Fill a database in a process of its own: what is measured later begins with the memory of its parent."""
    with ProcessPoolExecutor(1) as pool:
        pool.submit(fill, *arguments).result()


def fill_sqlite(
    path: Path, templates: Mapping[str, Template], count: int, now_us: int, states: States = state_of, make: Rows = rows
) -> None:
    """Put the runs into a database that a daemon made, in the place of those that it holds."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -400000")
        connection.execute("BEGIN IMMEDIATE")
        for table in TABLES:
            connection.execute(f"DELETE FROM {table}")
        for table, chunk in _chunks(make(templates, count, now_us, states)):
            names = list(chunk[0])
            marks = ", ".join(f":{name}" for name in names)
            connection.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", chunk)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _chunks(given: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, list[Row]]]:
    """Rows by table, many at a time."""
    kept: dict[str, list[Row]] = {table: [] for table in TABLES}
    done = 0
    for table, row in given:
        kept[table].append(row)
        if len(kept[table]) >= _CHUNK:
            yield table, kept[table]
            done += _CHUNK if table == "runs" else 0
            if table == "runs" and done % 100_000 == 0:
                note(f"{done} runs")
            kept[table] = []
    yield from ((table, chunk) for table, chunk in kept.items() if chunk)


def fill_postgres(
    dsn: str, templates: Mapping[str, Template], count: int, now_us: int, states: States = state_of, make: Rows = rows
) -> None:
    """Put the runs into the tables that a daemon made in a schema; the DSN names the schema."""
    import psycopg  # noqa: PLC0415 - SQLite does without

    with psycopg.connect(dsn, autocommit=True) as connection:
        for table, chunk in _chunks(make(templates, count, now_us, states)):
            copy_rows(connection, table, chunk)
        connection.execute("VACUUM (ANALYZE)")  # autovacuum would work beside the measurement
        connection.execute("CHECKPOINT")


def copy_rows(connection: Any, table: str, chunk: Sequence[Row]) -> None:  # noqa: ANN401 - SQLite does without psycopg
    """Copy rows, which have the same columns, into a table of PostgreSQL."""
    names = list(chunk[0])
    kinds = dict(connection.execute(_KINDS, (table,)).fetchall())
    copied = f"COPY {table} ({', '.join(names)}) FROM STDIN (FORMAT BINARY)"
    with connection.cursor() as cursor, cursor.copy(copied) as copy:
        copy.set_types([kinds[name] for name in names])
        for row in chunk:
            copy.write_row([row[name] for name in names])
