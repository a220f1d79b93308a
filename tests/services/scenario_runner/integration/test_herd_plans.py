"""What a daemon asks again and again reads no row of a herd: statements beside 20,000 runs that wait for roots."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from authority_support import START
from postgres_support import Schema, given_dsn
from test_authority_postgres_workers import read_of

from scenario_runner.authority.statements import load_migrations, load_statements

pytestmark = pytest.mark.integration

#: What is asked at least every 15 s, or once a look, by engine: indexes of the table of runs that may serve it.
SQLITE = {
    "absent_roots": {"COVERING INDEX runs_absent_root"},
    "wake_waiting_for_roots": {"INDEX runs_absent_root", "INDEX sqlite_autoindex_runs_1"},
    "any_ahead": {"INDEX runs_scheduled", "INDEX runs_leased", "INDEX runs_behind"},
    "pull_in_runs": {"INDEX runs_scheduled", "INDEX runs_leased", "INDEX runs_behind", "INDEX sqlite_autoindex_runs_1"},
    "live_owners": {"INDEX runs_leased", "INDEX runs_behind"},
    "expire_runs_of": {"INDEX runs_leased"},
    "waiting_runs": {"INDEX runs_by_deadline", "COVERING INDEX runs_by_state"},
    "any_due": {"COVERING INDEX runs_due"},
    "claim_due": {"INDEX runs_new", "INDEX runs_due", "COVERING INDEX sqlite_autoindex_runs_1"},
    "any_pending": {"COVERING INDEX runs_due", "INDEX runs_executing", "INDEX runs_behind", "INDEX runs_put_off"},
}
POSTGRES = {
    "absent_roots": {"runs_absent_root"},
    "wake_waiting_for_roots": {"runs_absent_root", "runs_pkey"},
    "pull_in_times": {"runs_scheduled", "runs_leased", "runs_behind", "runs_pkey"},
    "live_owners": {"runs_leased", "runs_behind"},
    "expire_owner": {"runs_leased", "runs_behind", "runs_pkey"},
    "claim_runs": {"runs_new", "runs_due", "runs_pkey"},
    "any_pending": {"runs_due", "runs_executing", "runs_busy", "runs_behind", "runs_put_off", "runs_pkey"},
}
NUMBERS = {"run_horizon_us": 10**9, "lease_horizon_us": 10**9, "relay_horizon_us": 10**9, "until_restart": 2**62,
           "lease_us": 10**7, "limit": 64, "most_new": 32}  # fmt: skip


@pytest.mark.parametrize("name", SQLITE)
def test_sqlite_reads_the_herd_from_the_index_of_its_roots_and_else_leaves_it_out(name: str) -> None:
    text = load_statements("sqlite")[name]
    with closing(sqlite3.connect(":memory:")) as connection:
        for _, _, migration in load_migrations("sqlite"):
            connection.executescript(migration)
        wanted: dict[str, Any] = dict.fromkeys(re.findall(r":([a-z_]+)", text), 0)
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", wanted | {"roots": "[]"})]
    of_runs = [step for step in plan if re.match(r"(SEARCH|SCAN) runs\b", step)]
    assert {re.sub(r".* USING ((COVERING )?INDEX \w+).*", r"\1", step) for step in of_runs} <= SQLITE[name], plan
    assert of_runs


@pytest.fixture(scope="module")
def herd() -> Iterator[Schema]:
    """A schema of 20,000 waiting runs with a root each, and 100 others on their way."""
    made = Schema(given_dsn())
    from scenario_runner.authority.postgres import PostgresAuthority

    PostgresAuthority(made.dsn, "test").close()
    made.query(
        f"""
        INSERT INTO runs (run_id, run_equivalence_key, fingerprint, intent, inputs, state, admitted_us, deadline_us,
                          updated_us, due_us, event_seq, projected_seq, absent_root)
        SELECT md5(n::text), 'key-' || n, '', '{{}}',
               ('{{"engine_run_root": "/runs/' || n || '", "pad": "' || repeat('x', 900) || '"}}')::bytea,
               'WAITING_EVIDENCE', {START}, 2 * {START}, {START}, 2 * {START}, 5, 5,
               CASE WHEN n <= 20000 THEN '/runs/' || md5('r' || n) ELSE '' END
        FROM generate_series(1, 20100) n"""
    )
    made.query("ANALYZE runs")
    yield made
    made.drop()


@pytest.mark.parity
@pytest.mark.parametrize("name", POSTGRES)
def test_postgres_reads_the_herd_from_the_index_of_its_roots_and_else_leaves_it_out(herd: Schema, name: str) -> None:
    import psycopg
    from psycopg import ClientCursor

    text = re.sub(r"%\(([a-z_]+)\)b", r"%(\1)s", load_statements("postgres")[name])
    given: dict[str, Any] = dict.fromkeys(re.findall(r"%\(([a-z_]+)\)s", text), "") | NUMBERS | {"roots": ["/runs/a"]}
    with psycopg.connect(herd.dsn, cursor_factory=ClientCursor) as connection:
        rows = connection.execute(f"EXPLAIN (FORMAT JSON) {text}", given).fetchall()  # type: ignore[arg-type]
    scans = [scan for scan in _scans(rows[0][0][0]["Plan"]) if scan.get("Relation Name", "runs") == "runs"]
    assert scans
    assert {scan.get("Index Name") for scan in scans if "Scan" in scan["Node Type"]} - {None} <= POSTGRES[name], scans
    assert not [scan for scan in scans if scan["Node Type"] == "Seq Scan"], scans


@pytest.fixture
def due_herd(herd: Schema) -> Iterator[Schema]:
    """All of them are due."""
    with herd.admin.transaction(force_rollback=True):
        herd.query("UPDATE runs SET due_us = 1000, absent_root = ''")
        _prepare(herd)
        yield herd
    herd.query("DEALLOCATE claim")


def _prepare(schema: Schema) -> None:
    """Prepare the claim; it is planned as a daemon's statements are."""
    text = load_statements("postgres")["claim_runs"]
    names = list(dict.fromkeys(re.findall(r"%\(([a-z_]+)\)b", text)))
    for position, name in enumerate(names, 1):
        text = text.replace(f"%({name})b", f"${position}")
    schema.query("SET plan_cache_mode = force_generic_plan")
    schema.query(f"PREPARE claim AS {text}")


def _add_new_runs(herd: Schema, count: int) -> None:
    herd.query(
        f"""
        INSERT INTO runs (run_id, run_equivalence_key, fingerprint, intent, inputs, state, admitted_us, deadline_us,
                          updated_us, due_us, event_seq)
        SELECT md5('new' || n), 'new-' || n, '', '{{}}', '{{}}', 'PLANNED', {START}, {START}, {START}, 2000 + n, 5
        FROM generate_series(1, {count}) n"""
    )


def _claim() -> str:
    """The call of what was prepared."""
    names = dict.fromkeys(re.findall(r"%\(([a-z_]+)\)b", load_statements("postgres")["claim_runs"]))
    return f"EXECUTE claim ({', '.join(repr(({'owner': 'w', 'started': '{}'} | NUMBERS)[name]) for name in names)})"


@pytest.mark.parity
@pytest.mark.parametrize("new", [0, 1, 1000])
def test_a_claim_reads_no_more_rows_than_it_takes(due_herd: Schema, new: int) -> None:
    _add_new_runs(due_herd, new)
    plan = due_herd.query(f"EXPLAIN (ANALYZE, FORMAT JSON) {_claim()}")[0][0][0]["Plan"]
    scans = {scan["Index Name"]: scan["Actual Rows"] for scan in _scans(plan) if "Index Name" in scan}
    taken = min(new, NUMBERS["most_new"])
    assert (scans["runs_new"], scans["runs_due"]) == (taken, NUMBERS["limit"] - taken)
    assert read_of(plan) <= 3 * NUMBERS["limit"] + 1, "found, then changed; and their first events"


@pytest.mark.parity
def test_a_plan_that_is_made_while_all_due_runs_are_new_finds_them_in_their_own_index() -> None:
    """A daemon keeps its plan. One with the index of all that are due would read a herd that is woken afterwards."""
    schema = Schema(given_dsn())
    from scenario_runner.authority.postgres import PostgresAuthority

    PostgresAuthority(schema.dsn, "test").close()
    _add_new_runs(schema, 2000)
    for retries in (1, 0, 1, 0):  # so the index of new runs grows, as it does with use
        schema.query(f"UPDATE runs SET retries = {retries}")
        schema.query("VACUUM runs")
    schema.query("REINDEX INDEX runs_due")
    schema.query("VACUUM ANALYZE runs")
    _prepare(schema)
    plan = schema.query(f"EXPLAIN (FORMAT JSON) {_claim()}")[0][0][0]["Plan"]
    schema.drop()
    (found,) = [part for part in plan["Plans"] if part.get("Subplan Name") == "CTE new_runs"]
    assert [scan["Index Name"] for scan in _scans(found) if "Index Name" in scan] == ["runs_new"]


@pytest.mark.parity
@pytest.mark.parametrize("merged", [False, True])
def test_a_claim_is_full_however_its_rows_are_joined(due_herd: Schema, merged: bool) -> None:
    """A nested loop changes the new runs before the others are looked for; a merge finds all of them before."""
    due_herd.query("UPDATE runs SET due_us = 9000")
    _add_new_runs(due_herd, 1000)
    if merged:
        due_herd.query("SET LOCAL enable_nestloop = off; SET LOCAL enable_hashjoin = off")
    assert len({row[0] for row in due_herd.query(_claim())}) == NUMBERS["limit"]


#: Rows that a daemon may read every few seconds beside runs that are examined again and again: the one under lease,
#: found and changed, and counted once more wherever a bitmap finds it.
_MOST_ROWS = 5


@pytest.mark.parity
@pytest.mark.parametrize("name", ["pull_in_times", "live_owners", "expire_owner", "any_pending"])
def test_a_daemon_asks_for_leases_and_work_without_reading_runs_that_wait_for_their_next_examination(
    due_herd: Schema, name: str
) -> None:
    due_herd.query("UPDATE runs SET lease_owner = 'w', lease_until_us = sr_now_us() + 9000000 WHERE run_id = md5('7')")
    text = load_statements("postgres")[name]
    names = list(dict.fromkeys(re.findall(r"%\(([a-z_]+)\)b", text)))
    for position, parameter in enumerate(names, 1):
        text = text.replace(f"%({parameter})b", f"${position}")
    due_herd.query(f"PREPARE kept AS {text}")
    given = ", ".join(repr(({"owner": "w"} | NUMBERS)[parameter]) for parameter in names)
    plan = due_herd.query(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE kept{given and f' ({given})'}")[0][0][0]["Plan"]
    due_herd.query("DEALLOCATE kept")
    assert read_of(plan) <= _MOST_ROWS


@pytest.mark.parity
def test_what_a_daemon_says_of_waiting_runs_once_a_minute_comes_from_their_indexes(herd: Schema) -> None:
    with herd.admin.transaction(force_rollback=True):
        herd.query("SET LOCAL enable_seqscan = off")  # here all runs wait
        herd.query("SET LOCAL enable_bitmapscan = off")  # while other tests are at work, the server counts on the rows
        plan = herd.query(f"EXPLAIN (FORMAT JSON) {load_statements('postgres')['waiting_runs']}")[0][0][0]["Plan"]
    kinds = {(scan["Node Type"], scan["Index Name"]) for scan in _scans(plan) if "Index Name" in scan}
    assert kinds == {("Index Only Scan", "runs_by_state"), ("Index Only Scan", "runs_by_deadline")}


def _scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "Relation Name" in plan or "Index Name" in plan:
        yield plan
    for below in plan.get("Plans", ()):
        yield from _scans(below)
