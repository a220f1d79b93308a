"""Slim runs of a bench are those of a full fill: the same keys, states, times and indexes; a bench is taken on them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from postgres_support import given_dsn
from support import REPO, s3_place

from scenario_runner.authority.sqlite import SqliteAuthority
from sr_tools.bench.many_runs import Template, fill_postgres, fill_sqlite, real_runs, state_of, waiting_state_of
from sr_tools.bench.on_parity.explained import summary
from sr_tools.bench.on_parity.postgres import Schema
from sr_tools.bench.slim_runs import BLOCK, fill_postgres_slim, fill_sqlite_slim
from sr_tools.bench.subject import find_command, this_checkout
from sr_tools.bench.world import World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.integration

#: More than two blocks, the last of them not whole.
COUNT = 2 * BLOCK + 51
#: What both fills have to give alike. Documents and events are what slim runs have less of.
ALIKE = {
    "runs": "SELECT run_id, run_equivalence_key, fingerprint, state, reason_code, admitted_us, deadline_us, "
            "updated_us, due_us, event_seq, projected_seq, missing, settled, report_digest FROM runs ORDER BY run_id",
    "events": "SELECT run_id, min(ts_us), min(seq) FROM run_events GROUP BY run_id ORDER BY run_id",
    "whole records": "SELECT e.run_id, e.seq, e.kind, e.ts_us FROM run_events e JOIN runs r ON r.run_id = e.run_id "
                     "WHERE r.state NOT IN ('READY', 'PLANNED') ORDER BY e.run_id, e.seq",
    "records": "SELECT record_id, record_key, message_id, run_id, disposition, reason_code, received_us, raw_sha256 "
               "FROM intake_records ORDER BY record_id",
    "letters": "SELECT record_key, raw FROM dead_letters ORDER BY record_key",
    "signals": "SELECT outbox_id, message_id, run_id, kind, partition_key, created_us, sent_us, needs_seq, emission "
               "FROM outbox ORDER BY outbox_id",
}  # fmt: skip
SIZES = "SELECT sum(length(intent) + length(inputs)) FROM runs WHERE state IN ('READY', 'PLANNED')"


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    folder = tmp_path_factory.mktemp("templates")
    world = World(folder, folder / "runs", this_checkout(find_command()), 60)
    world.prepare()
    return real_runs(world)


def compare(query: Callable[[int, str], list[Any]], indexes: str, before: list[Any]) -> None:
    """Both fills; the second one is the slim one."""
    for name, asked in ALIKE.items():
        full, slim = query(0, asked), query(1, asked)
        assert full, name
        assert full == slim, name
    assert query(1, SIZES) == [(4 * sum(state_of(number) in ("READY", "PLANNED") for number in range(COUNT)),)]
    assert query(1, "SELECT count(*) FROM run_events")[0][0] < query(0, "SELECT count(*) FROM run_events")[0][0]
    assert query(1, indexes) == before


def test_sqlite_makes_the_runs_of_a_full_fill(tmp_path: Path, templates: dict[str, Template]) -> None:
    indexes = "SELECT name, sql FROM sqlite_master WHERE type = 'index' ORDER BY name"
    paths, now_us = [tmp_path / "full.db", tmp_path / "slim.db"], time.time_ns() // 1000

    def query(number: int, asked: str) -> list[Any]:
        with closing(sqlite3.connect(paths[number])) as connection:
            return connection.execute(asked).fetchall()

    for path in paths:
        SqliteAuthority(str(path)).close()
    before = query(1, indexes)
    for fill, path in zip((fill_sqlite, fill_sqlite_slim), paths, strict=True):
        fill(path, templates, COUNT, now_us)
    compare(query, indexes, before)


@pytest.mark.parity
def test_postgres_makes_the_runs_of_a_full_fill(templates: dict[str, Template]) -> None:
    from scenario_runner.authority.postgres import PostgresAuthority

    indexes = (
        "SELECT replace(indexdef, schemaname || '.', ''), NULL FROM pg_indexes WHERE schemaname = current_schema() "
        "UNION ALL SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = current_schema()::regnamespace UNION ALL SELECT proname, NULL FROM pg_proc "
        "WHERE pronamespace = current_schema()::regnamespace ORDER BY 1, 2"
    )
    schemas, now_us = [Schema(given_dsn()), Schema(given_dsn())], time.time_ns() // 1000

    def query(number: int, asked: str) -> list[Any]:
        return schemas[number].query(asked)

    try:
        for schema in schemas:
            PostgresAuthority(schema.dsn, "test").close()
        before = query(1, indexes)
        for fill, schema in zip((fill_postgres, fill_postgres_slim), schemas, strict=True):
            fill(schema.dsn, templates, COUNT, now_us)
        compare(query, indexes, before)
    finally:
        for schema in schemas:
            schema.drop()


def test_runs_wait_in_a_measurement_that_asks_for_it_and_none_is_planned() -> None:
    states = [waiting_state_of(number) for number in range(100)]
    assert states.count("WAITING_EVIDENCE") == 2
    assert "PLANNED" not in states


def growth(script: str, folder: Path, *more: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, REPO / "scripts" / script, "--dir", folder, "--only", "growth", "--growth-requests", "6",
         "--growth-runs", "700", "--slim", "--growth-waiting", *more],
        capture_output=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    (found,) = json.loads(done.stdout)["results"]
    assert found["value"] > 0
    assert "700 slim runs, of which 2 of 100 wait," in found["how"]
    assert found["full"]["runs"] == 6
    return dict(found)


def test_growth_is_measured_beside_slim_runs_that_wait_on_sqlite(tmp_path: Path) -> None:
    growth("bench.py", tmp_path)


@pytest.mark.parity
def test_growth_on_postgres_tells_pages_by_table_and_by_statement_and_keeps_the_plans(tmp_path: Path) -> None:
    s3_place()
    given_dsn()
    plans = tmp_path / "plans.json"
    found = growth("bench_parity.py", tmp_path / "worlds", "--growth-plans", str(plans))
    assert found["full"]["reads_per_run"]["runs pages"] > 1
    for world in ("empty", "full"):
        told = found[world]["statements"]
        assert {"admit_records", "claim_runs", "commit_runs", "claim_unprojected", "claim_signals"} <= set(told)
        assert told["claim_runs"]["most_pages"] >= told["claim_runs"]["mean_pages"] > 1
        assert json.loads(plans.read_text("utf-8"))[world]["claim_runs"]["plan"]["Node Type"]


def plan(pages: int, *below: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"Node Type": "Index Scan", "Shared Hit Blocks": pages - 1, "Shared Read Blocks": 1, "Plans": below, **more}


def test_pages_are_summed_by_statement_and_told_by_table(tmp_path: Path) -> None:
    leaf = plan(4, **{"Index Name": "runs_due"})
    lines = [{"statement": "a", "ms": 2.0, "plan": plan(10, leaf, **{"Relation Name": "runs"})},
             {"statement": "a", "ms": 3.0, "plan": plan(4, **{"Relation Name": "runs"})}]  # fmt: skip
    (tmp_path / "plans").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    found = summary(tmp_path / "plans")["a"]
    assert (found["calls"], found["mean_pages"], found["most_pages"], found["most_ms"]) == (2, 7.0, 10, 3.0)
    assert found["of"] == {"Index Scan runs": 6, "Index Scan runs_due": 4}


def test_a_statement_that_cannot_be_explained_is_no_measurement(tmp_path: Path) -> None:
    (tmp_path / "plans").write_text(json.dumps({"statement": "a", "error": "no such table"}) + "\n", "utf-8")
    with pytest.raises(ValueError, match="a: no such table"):
        summary(tmp_path / "plans")
