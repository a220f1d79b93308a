"""Which index serves each statement of what people ask, on both engines."""

from __future__ import annotations

import re
import sqlite3
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from authority_support import START
from postgres_support import Schema, given_dsn

from scenario_runner.authority.statements import load_migrations, load_statements
from scenario_runner.authority.views.statements import names, statement, terms_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

RUN_KEY, RUN_ID = ("sqlite_autoindex_runs_2", "runs_run_equivalence_key_key"), ("sqlite_autoindex_runs_1", "runs_pkey")
RECORD_KEY = ("sqlite_autoindex_intake_records_1", "intake_records_record_key_key")
LETTER_KEY = ("sqlite_autoindex_dead_letters_1", "dead_letters_pkey")
SERVED_BY: dict[str, tuple[str, str]] = {
    "runs_by_admission": ("runs_admitted", "runs_admitted"),
    "runs_by_state": ("runs_by_state", "runs_by_state"),
    "runs_by_reason": ("runs_by_reason", "runs_by_reason"),
    "runs_by_deadline": ("runs_by_deadline", "runs_by_deadline"),
    "runs_by_due": ("runs_due", "runs_due"),
    "runs_by_key": RUN_KEY,
    "run_summary": RUN_ID,
    "runs_by_id": RUN_ID,
    "run_summaries": RUN_ID,
    "supersessions_of": ("runs_superseding", "runs_superseding"),
    "run_ids": RUN_ID,
    "run_keys": RUN_KEY,
    "recorded_run_ids": ("intake_records_run", "intake_records_run"),
    "run_of_signal": ("sqlite_autoindex_outbox_1", "outbox_message_id_emission_key"),
    "run_of_message": ("SCAN intake_records", "intake_records_pkey"),
    "refused_reasons": ("intake_records_refused", "intake_records_refused"),
    "expired_of_intake_records": ("USING INTEGER PRIMARY KEY", "intake_records_pkey"),
    "expired_of_dead_letter_raw": ("intake_records_with_raw", "intake_records_with_raw"),
    "expired_of_outbox_sent": ("outbox_removable", "outbox_removable"),
    "expired_of_digest_reuse": ("digest_reuse_kept", "digest_reuse_kept"),
    "letters_by_reason": ("intake_records_refused", "intake_records_refused"),
    "letters_by_key": LETTER_KEY,
    "letter_with_key": RECORD_KEY,
    "letter_with_number": ("INTEGER PRIMARY KEY", "intake_records_pkey"),
    "receipts_of_others": ("runs_admitted", "runs_admitted"),
    "daemons": ("daemons_seen", "daemons_seen"),
}
#: These read newest rows up to a bound, in the order of the table.
BOUNDED = {"run_of_message", "expired_of_intake_records"}
TIMES = {"since": START, "until": START + 10**9, "after_us": START + 10**8, "from_us": START, "before": 5000}
GIVEN: dict[str, Any] = {
    **TIMES, "state": "FAILED", "reason": "GATE_FAIL", "key": "key-1", "key_end": "key-2", "missing": b'"missing":"a',
    "path": "\na", "after": "8" * 32, "limit": 100, "run_id": "8" * 32, "prefix": "8", "prefix_end": "9",
    "message_id": "m", "most": 1000, "acked": 1, "record_key": "r", "record_id": 7, "manifest": b"m",
    "before_us": 10_000, "stream": "kinesis/s/", "others_before_us": 100,
}  # fmt: skip


def combined(engine: str) -> list[tuple[str, tuple[str, ...]]]:
    """Every statement of the views with every choice of its terms."""
    found = []
    for name in names(engine):
        terms = sorted(terms_of(engine, name))
        found += [(name, chosen) for size in range(len(terms) + 1) for chosen in combinations(terms, size)]
    return found


def test_each_engine_has_the_same_statements_with_the_same_terms() -> None:
    assert set(names("sqlite")) == set(SERVED_BY) == set(names("postgres")) - {"begin_look"}
    for name in SERVED_BY:
        assert terms_of("sqlite", name) == terms_of("postgres", name)


@pytest.mark.parametrize(("name", "terms"), combined("sqlite"), ids=str)
def test_sqlite_serves_each_statement_by_its_index(name: str, terms: tuple[str, ...]) -> None:
    text = statement("sqlite", name, terms)
    assert "OFFSET" not in text
    assert "-- if" not in text
    with sqlite3.connect(":memory:") as connection:
        for _, _, migration in load_migrations("sqlite"):
            connection.executescript(migration)
        wanted = dict.fromkeys(re.findall(r":([a-z_]+)", text), 0)
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", wanted)]
    assert any(SERVED_BY[name][0] in step for step in plan), plan
    scans = [step for step in plan if step.startswith("SCAN ") and "INDEX" not in step]
    allowed = {"SCAN CONSTANT ROW", "SCAN reasons", "SCAN r", "SCAN first", "SCAN json_each"}
    assert name in BOUNDED or {re.sub(r" VIRTUAL.*", "", step) for step in scans} <= allowed, plan
    assert not [step for step in plan if "TEMP B-TREE FOR ORDER BY" in step], "a page is read in order"


@pytest.fixture(scope="module")
def crowded() -> Iterator[Schema]:
    """A schema of 20,000 runs in the proportions of a busy house."""
    made = Schema(given_dsn())
    from scenario_runner.authority.postgres import PostgresAuthority

    PostgresAuthority(made.dsn, "test").close()
    made.query(
        f"""
        INSERT INTO runs (run_id, run_equivalence_key, fingerprint, intent, inputs, state, reason_code, admitted_us,
                          deadline_us, updated_us, due_us, event_seq)
        SELECT md5(n::text), 'key-' || n, '', '{{}}', '{{}}', s, CASE WHEN s = 'FAILED' THEN 'GATE_FAIL' ELSE '' END,
               {START} + n * 1000, {START} + n * 2000, {START} + n, CASE WHEN s IN ('READY', 'FAILED') THEN NULL
               ELSE {START} + n END, 3
        FROM (SELECT n, CASE n %% 50 WHEN 1 THEN 'FAILED' WHEN 2 THEN 'WAITING_EVIDENCE' WHEN 3 THEN 'PLANNED'
              ELSE 'READY' END AS s FROM generate_series(1, 20000) n) g""".replace("%%", "%")
    )
    made.query("""
        INSERT INTO intake_records (record_key, message_id, kind, run_id, disposition, reason_code, detail, received_us,
                                    raw_sha256, raw_size)
        SELECT 'r' || n, 'm' || n, '', md5(n::text), CASE WHEN n % 100 = 0 THEN 'REJECTED' ELSE 'ACCEPTED' END,
               CASE WHEN n % 100 = 0 THEN 'GATE_FAIL' ELSE '' END, '', n, '', 1 FROM generate_series(1, 20000) n""")
    made.query("INSERT INTO dead_letters SELECT record_key, '' FROM intake_records WHERE disposition = 'REJECTED'")
    made.query("""
        INSERT INTO outbox (message_id, run_id, kind, partition_key, attributes, payload, created_us, needs_seq)
        SELECT 'm' || n, md5(n::text), 'READY', '', '{}', '{}', n, 5 FROM generate_series(1, 20000) n""")
    made.query("""
        INSERT INTO outbox (message_id, run_id, kind, partition_key, attributes, payload, created_us, needs_seq,
                            emission, sent_us)
        SELECT message_id, run_id, 'READY_REEMIT', '', '{}', '{}', created_us, 5, 1, created_us FROM outbox""")
    made.query("INSERT INTO digest_reuse SELECT md5(n::text), '[]', n FROM generate_series(1, 20000) n")
    made.query("""
        INSERT INTO operator_actions (action_key, at, actor, via, action, subject, reason, outcome, detail)
        SELECT 'quarantine_ack/' || md5(n::text), n, 'ops', 'cli', 'quarantine_ack', md5(n::text), '', 'ACKED', ''
        FROM generate_series(1, 20000) n""")
    made.query("ANALYZE")
    yield made
    made.drop()


def planned(crowded: Schema, text: str, given: dict[str, Any]) -> dict[str, Any]:
    """How the server would execute a statement of a look."""
    import psycopg
    from psycopg import ClientCursor

    with psycopg.connect(crowded.dsn, cursor_factory=ClientCursor) as connection:
        connection.execute(statement("postgres", "begin_look").replace(")b", ")s"), {"timeout": "5s"})  # type: ignore[arg-type]
        written = re.sub(r"%\(([a-z_]+)\)b", r"%(\1)s", text)
        rows = connection.execute(f"EXPLAIN (FORMAT JSON) {written}", given).fetchall()  # type: ignore[arg-type]
    plan: dict[str, Any] = rows[0][0][0]["Plan"]
    return plan


@pytest.mark.parity
@pytest.mark.parametrize(("name", "terms"), combined("postgres"), ids=str)
def test_postgres_serves_each_statement_by_its_index(crowded: Schema, name: str, terms: tuple[str, ...]) -> None:
    if name == "begin_look":
        return
    text = statement("postgres", name, terms)
    assert "OFFSET" not in text
    busy = "busy" in terms
    states = {"runs_by_due": "VERIFYING" if busy else "PLANNED", "runs_by_admission": "READY"}
    plan = str(planned(crowded, text, {**GIVEN, "state": states.get(name, "FAILED"), "run_ids": ["8" * 32]}))
    assert f"'Index Name': '{'runs_busy' if busy else SERVED_BY[name][1]}'" in plan, plan
    assert "Seq Scan" not in plan
    assert "'Node Type': 'Sort'" not in plan or name == "recorded_run_ids", "a page is read in order"


#: What a look reads of one run with statements of the authority, and by which index.
OF_ONE_RUN = {
    "get_run": "runs_pkey",
    "list_events": "run_events_pkey",
    "list_attempts": "engine_attempts_pkey",
    "list_records": "intake_records_run",
    "list_signals": "outbox_run",
    "list_actions": "operator_actions_subject",
    "find_actions": "operator_actions_action_key_key",
}


@pytest.mark.parity
@pytest.mark.parametrize("name", OF_ONE_RUN)
def test_postgres_serves_each_look_at_one_run_by_its_index(crowded: Schema, name: str) -> None:
    plan = planned(
        crowded,
        statement("postgres", name),
        {**GIVEN, "run_ids": ["8" * 32], "subject": "8" * 32, "action_keys": ["k"]},
    )
    assert {scan.get("Index Name") for scan in _scans(plan)} == {OF_ONE_RUN[name]}, plan


@pytest.mark.parity
def test_postgres_reads_the_backlog_from_partial_indexes(crowded: Schema) -> None:
    import psycopg
    from psycopg import ClientCursor

    written = re.sub(r"%\(([a-z_]+)\)b", r"%(\1)s", load_statements("postgres")["backlog"])
    with psycopg.connect(crowded.dsn, cursor_factory=ClientCursor) as connection:
        rows = connection.execute(f"EXPLAIN (FORMAT JSON) {written}", {"most": 10_000}).fetchall()  # type: ignore[arg-type]
    read = {plan["Relation Name"]: plan["Node Type"] for plan in _scans(rows[0][0][0]["Plan"])}
    assert {name for name, kind in read.items() if kind == "Seq Scan"} <= {"daemons"}, read


def _scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "Relation Name" in plan:
        yield plan
    for below in plan.get("Plans", ()):
        yield from _scans(below)
