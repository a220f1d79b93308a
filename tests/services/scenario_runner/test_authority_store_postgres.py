"""What is particular to the PostgreSQL authority: schema, sessions, TLS and time.

What it shares with SQLite is in the authority contract's tests.

Needs ``SR_TEST_PG_DSN``; some tests start a server of their own, because they stop it, or fill it.
"""

import re
import secrets
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from authority_support import LEASE, SECOND, START, asking, claim_one, commit, hex32, launched, ready, waiting
from postgres_support import Schema, Server, TlsDoor, given_dsn, make_certificate, with_parameters
from processes_support import run_together

from scenario_runner.authority.base import Authority
from scenario_runner.authority.connect import connect_views
from scenario_runner.authority.observed import DaemonRow
from scenario_runner.authority.statements import load_migrations, load_statements, parse_statements
from scenario_runner.authority.values import Sent
from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.contracts.states import Disposition, RunState
from scenario_runner.runs.leases import Leases

pytest_plugins = ("postgres_fixtures",)
pytestmark = pytest.mark.parity


SCHEMA_FILE = Path(__file__).resolve().parents[3] / "daemon/scenario_runner/authority/schema/postgres.sql"
OWN = {
    "schema_migrations", "runs", "run_events", "intake_records", "dead_letters", "outbox", "digest_reuse",
    "engine_attempts", "store_identities", "operator_actions", "unfinished_rebuild",
    "daemons",
}  # fmt: skip
# --- the schema -------------------------------------------------------------------------------------------------------


CATALOGUE = {
    "columns": """
        SELECT table_name, ordinal_position, column_name, data_type, is_nullable, column_default, collation_name,
               is_identity, identity_generation
        FROM information_schema.columns WHERE table_schema = current_schema()""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = current_schema()::regnamespace""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema()",
    "functions": """
        SELECT proname, pg_get_function_identity_arguments(oid), pg_get_function_result(oid), prosrc, provolatile,
               prolang FROM pg_proc WHERE pronamespace = current_schema()::regnamespace""",
    "others": """
        SELECT relname, relkind, relpersistence, reloptions FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind <> 't'""",
    "triggers": """
        SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger
        WHERE tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = current_schema()::regnamespace)""",
}


def catalogue(schema: Schema) -> dict[str, list[str]]:
    return {
        name: sorted(str(row).replace(f"{schema.name}.", "") for row in schema.query(text))
        for name, text in CATALOGUE.items()
    }


def test_the_schema_is_the_sum_of_its_migrations(schema: Schema, authority: Authority) -> None:
    whole = Schema(given_dsn())
    try:
        whole.admin.execute(SCHEMA_FILE.read_text("utf-8"))  # type: ignore[arg-type]
        made, read = catalogue(schema), catalogue(whole)
        assert {row.split("'")[1] for row in made["columns"]} == OWN
        assert [row for kind in CATALOGUE for row in set(made[kind]) ^ set(read[kind])] == []
        read["indexes"].remove(next(row for row in read["indexes"] if "runs_due" in row))
        assert made != read, "the comparison would notice an index"
    finally:
        whole.drop()


def test_every_migration_is_on_record(schema: Schema, authority: Authority, opened: Callable[[str], Authority]) -> None:
    wanted = [(number, name) for number, name, _ in load_migrations("postgres")]
    assert schema.query("SELECT number, name FROM schema_migrations ORDER BY number") == wanted
    opened(schema.dsn)
    assert schema.query("SELECT number, name FROM schema_migrations ORDER BY number") == wanted


@pytest.mark.parametrize("name", sorted(load_statements("postgres").keys() - {"lock_admissions"}))  # no LOCK can be
def test_every_statement_can_be_prepared_on_the_migrated_schema(name: str, prepared: Schema) -> None:
    prepare_statement(prepared, name, load_statements("postgres")[name])


def prepare_statement(prepared: Schema, name: str, text: str) -> None:
    names = dict.fromkeys(re.findall(r"%\([a-z0-9_]+\)[bs]", text))
    for number, parameter in enumerate(names, 1):
        text = text.replace(parameter, f"${number}")
    assert "%" not in text
    prepared.admin.execute(f"PREPARE {name} AS {text}")  # type: ignore[call-overload]


FORMER = parse_statements((Path(__file__).parent / "former/postgres.sql").read_text("utf-8"))


@pytest.mark.parametrize("name", sorted(FORMER))
def test_a_statement_of_the_release_before_can_be_prepared_on_the_schema_of_today(name: str, prepared: Schema) -> None:
    prepare_statement(prepared, f"former_{name}", FORMER[name])


def test_a_migration_waits_for_a_table_for_a_moment_only_and_keeps_nobody_waiting_for_long(
    schema: Schema, opened: Callable[[str], Authority], impatient_sessions: None
) -> None:
    for number, name, text in load_migrations("postgres")[:1]:
        schema.admin.execute(text)  # type: ignore[call-overload]
        schema.query("INSERT INTO schema_migrations VALUES (%s, %s, 0)", number, name)
    with psycopg.connect(schema.dsn) as reader:  # in a transaction, as somebody's report
        reader.execute("SELECT count(*) FROM runs")
        with pytest.raises(Unavailable, match="lock timeout"):
            opened(schema.dsn)
        schema.query("SET statement_timeout = '1s'")
        assert schema.query("SELECT count(*) FROM runs") == [(0,)], "nobody waits behind it any more"
        assert schema.query("SELECT max(number) FROM schema_migrations") == [(1,)]
    assert opened(schema.dsn).pending().nothing


def test_columns_and_tables_that_are_added_beneath_a_daemon_disturb_no_statement_of_it(
    schema: Schema, authority: Authority
) -> None:
    """What a newer release does at its first start. Statements are prepared once they were asked a few times."""
    for number in range(12):
        if number == 8:
            for table in OWN - {"schema_migrations"}:
                schema.query(f"ALTER TABLE {table} ADD COLUMN of_the_future text NOT NULL DEFAULT ''")
            schema.query("CREATE TABLE of_the_future (id bigint)")
            schema.query("INSERT INTO schema_migrations VALUES (9999, 'of the future', 0)")
        assert [item.disposition for item in authority.admit([asking(f"k{number}")])] == [Disposition.ACCEPTED]
        claims = authority.claim("w1", 10, LEASE)
        assert len(claims) == 1
        commit(authority, ready(claims[0], f"k{number}"))
        tasks = authority.claim_projections("relay", 10, LEASE)
        authority.mark_projected("relay", [(task.run.run_id, task.run.event_seq) for task in tasks])
        signals = authority.claim_signals("relay", 10, LEASE)
        assert len(signals) == 1
        authority.mark_sent([Sent(signals[0])])
        assert authority.pending().nothing


@pytest.fixture(scope="module")
def prepared() -> Iterator[Schema]:
    made = Schema(given_dsn())
    from scenario_runner.authority.postgres import PostgresAuthority

    PostgresAuthority(made.dsn, "profile p").close()
    yield made
    made.drop()


def test_processes_that_migrate_at_once_all_find_the_schema_made(schema: Schema) -> None:
    answers = run_together(
        "from scenario_runner.authority.postgres import PostgresAuthority",
        f"authority = PostgresAuthority({schema.dsn!r}, 'p')\nprint(authority.pending().nothing)\nauthority.close()\n",
        count=4,
    )
    assert answers == [["True"]] * 4
    assert schema.query("SELECT count(*) FROM schema_migrations") == [(len(load_migrations("postgres")),)]


@pytest.mark.parametrize("version", range(1, len(load_migrations("postgres"))))
def test_a_database_of_an_older_release_is_brought_up_to_date_with_all_it_holds(
    schema: Schema, opened: Callable[[str], Authority], version: int
) -> None:
    for number, name, text in load_migrations("postgres")[:version]:
        schema.admin.execute(text)  # type: ignore[call-overload]
        schema.query("INSERT INTO schema_migrations VALUES (%s, %s, 0)", number, name)
    insert = """
        INSERT INTO runs (run_id, run_equivalence_key, fingerprint, intent, inputs, state, admitted_us, deadline_us,
                          updated_us, due_us, event_seq)
        VALUES (%s, %s, 'f', '{}', '{"strategy":"FORCE_INVOKE"}', %s, 1, 2, 3, 4, 2)"""
    for key, state in (("planned", "PLANNED"), ("verifying", "VERIFYING")):
        schema.query(insert, hex32(key), key, state)
    authority = opened(schema.dsn)
    claims = {claim.run_id: claim for claim in authority.claim("w1", 10, LEASE)}
    assert [(claim.state, claim.attempts) for claim in claims.values()] == [(RunState.VERIFYING, ())] * 2
    commit(authority, ready(claims[hex32("verifying")]), launched(claims[hex32("planned")]))
    assert [item.open for item in authority.attempts(hex32("planned"))] == [True]
    run = authority.run(hex32("verifying"))
    assert run is not None
    assert run.state is RunState.READY


def test_a_database_of_a_newer_release_is_refused(
    schema: Schema, authority: Authority, opened: Callable[[str], Authority]
) -> None:
    schema.query("INSERT INTO schema_migrations VALUES (9999, 'of the future', 0)")
    with pytest.raises(ConfigurationError) as refused:
        opened(schema.dsn)
    assert "9999" in refused.value.problem
    assert authority.pending().nothing, "whoever has it open goes on"


def test_tables_of_other_schemas_are_not_taken_for_ones_own(
    schema: Schema, authority: Authority, opened: Callable[[str], Authority]
) -> None:
    authority.admit([asking("k")])
    beside = Schema(given_dsn())
    try:
        assert opened(beside.dsn).run(hex32("k")) is None
    finally:
        beside.drop()


@pytest.mark.parametrize(
    "made",
    [
        "TABLE runs (id integer)",
        "TABLE schema_migrations (version text)",
        "VIEW schema_migrations AS SELECT 1 AS number",
    ],
)
def test_a_schema_with_tables_of_somebody_else_is_refused_and_left_alone(
    schema: Schema, opened: Callable[[str], Authority], made: str
) -> None:
    schema.query(f"CREATE {made}")
    with pytest.raises(ConfigurationError) as refused:
        opened(schema.dsn)
    assert "another application" in refused.value.problem
    assert len(catalogue(schema)["columns"]) == 1


# --- sessions ---------------------------------------------------------------------------------------------------------


def shown(authority: Any, name: str) -> str:
    return str(authority._connections.run(lambda connection: connection.execute(f"SHOW {name}").fetchone()[name]))


def test_sessions_are_bounded_and_named(authority: Authority) -> None:
    assert shown(authority, "synchronous_commit") == "on"
    assert shown(authority, "application_name") == "scenario-runner"
    assert shown(authority, "default_transaction_isolation") == "read committed"
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        assert shown(authority, name) not in ("0", ""), name


def test_what_the_dsn_sets_wins(schema: Schema, opened: Callable[[str], Authority]) -> None:
    options = f"-csearch_path={schema.name} -c statement_timeout=7s"
    authority = opened(with_parameters(schema.dsn, options=options, application_name="mine"))
    assert (shown(authority, "statement_timeout"), shown(authority, "application_name")) == ("7s", "mine")


def test_a_commit_that_would_be_no_promise_is_refused(schema: Schema, opened: Callable[[str], Authority]) -> None:
    for value in ("off", "local"):
        options = f"-csearch_path={schema.name} -csynchronous_commit={value}"
        with pytest.raises(ConfigurationError, match="synchronous_commit"):
            opened(with_parameters(schema.dsn, options=options))


def test_a_database_that_is_not_utf8_is_refused(schema: Schema, opened: Callable[[str], Authority]) -> None:
    name = f"sr_test_{secrets.token_hex(6)}"
    schema.query(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    try:
        with pytest.raises(ConfigurationError, match="SQL_ASCII"):
            opened(with_parameters(given_dsn(), dbname=name))
    finally:
        schema.query(f"DROP DATABASE {name}")


def test_a_read_only_database_is_unavailable_and_says_what_to_do(
    schema: Schema, opened: Callable[[str], Authority]
) -> None:
    options = f"-csearch_path={schema.name} -cdefault_transaction_read_only=on"
    with pytest.raises(Unavailable, match="connect to the primary"):
        opened(with_parameters(schema.dsn, options=options))


def test_a_primary_that_became_a_standby_is_left_for_the_new_one(authority: Any) -> None:
    authority._connections.run(lambda connection: connection.execute("SET default_transaction_read_only = on"))
    assert authority.admit([asking("k")])[0].disposition is Disposition.ACCEPTED


@pytest.fixture
def role(schema: Schema) -> Iterator[str]:
    """A user that may use the schema over three connections at a time, which is what a start takes."""
    name = f"{schema.name}_user"
    schema.query(f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 3 PASSWORD 'p@ss:w0rd/%'")
    schema.query(f"GRANT ALL ON SCHEMA {schema.name} TO {name}")
    yield name
    schema.query(f"DROP OWNED BY {name}")
    schema.query(f"DROP ROLE {name}")


@pytest.mark.usefixtures("impatient_sessions")
def test_too_many_connections_are_unavailable_and_say_what_to_do(
    schema: Schema, role: str, opened: Callable[[str], Authority]
) -> None:
    dsn = with_parameters(schema.dsn, user=role, password="p@ss:w0rd/%")
    first = opened(dsn)
    first.now_us()
    with pytest.raises(Unavailable, match="max_connections") as refused:
        opened(dsn)
    assert "p@ss" not in refused.value.detail
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: first.now_us(), range(40)))) == 40, "few connections serve them all"


@pytest.mark.usefixtures("impatient_sessions")
def test_a_user_without_rights_is_unavailable_and_says_what_to_do(
    schema: Schema, role: str, opened: Callable[[str], Authority]
) -> None:
    schema.query(f"REVOKE ALL ON SCHEMA {schema.name} FROM {role}")
    with pytest.raises(Unavailable):
        opened(with_parameters(schema.dsn, user=role))


@pytest.mark.usefixtures("impatient_sessions")
def test_a_database_that_does_not_exist_is_unavailable(opened: Callable[[str], Authority]) -> None:
    with pytest.raises(Unavailable, match=r"does not exist.*correct the DSN"):
        opened(with_parameters(given_dsn(), dbname="sr_test_no_such_database"))


@pytest.mark.usefixtures("impatient_sessions")
@pytest.mark.parametrize("form", ["uri", "key=value"])
def test_a_wrong_password_is_unavailable_and_told_to_nobody(
    server: Server, opened: Callable[[str], Authority], caplog: pytest.LogCaptureFixture, form: str
) -> None:
    caplog.set_level("DEBUG")
    access = server.folder / "data" / "pg_hba.conf"
    access.write_text("host all all 127.0.0.1/32 scram-sha-256\n", "utf-8")
    server.stop("fast")
    server.start()
    if form == "uri":
        dsn = f"postgresql://sr:wr%40ng%3Asecret%2F%25%20x@127.0.0.1:{server.port}/postgres"
    else:
        dsn = with_parameters(server.dsn, password="wr@ng:secret/% x")
    with pytest.raises(Unavailable, match="check user and password") as refused:
        opened(dsn)
    told = "".join(traceback.format_exception(refused.value)) + caplog.text
    assert "secret" not in told


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def door(schema: Schema, tmp_path: Path) -> Iterator[TlsDoor]:
    made = TlsDoor(schema.dsn, tmp_path / "door")
    yield made
    made.close()


def test_a_dsn_that_asks_for_tls_gets_it_for_every_connection(
    door: TlsDoor, opened: Callable[[str], Authority]
) -> None:
    authority = opened(with_parameters(door.dsn, sslmode="verify-full", sslrootcert=str(door.certificate)))
    authority.admit([asking("k")])
    assert [claim.run_id for claim in authority.claim("w", 1, LEASE)] == [hex32("k")]
    assert door.encrypted >= 2
    assert door.plain == 0


@pytest.mark.usefixtures("impatient_sessions")
@pytest.mark.parametrize("wrong", ["certificate", "name"])
def test_a_server_that_is_not_the_one_that_the_dsn_trusts_is_unavailable_and_gets_nothing(
    schema: Schema, door: TlsDoor, opened: Callable[[str], Authority], tmp_path: Path, wrong: str
) -> None:
    if wrong == "name":
        other = TlsDoor(schema.dsn, tmp_path / "other", "db.example.org")
        dsn, trusted = other.dsn, other.certificate
    else:
        dsn, trusted = door.dsn, make_certificate(tmp_path / "other", "127.0.0.1")
    with pytest.raises(Unavailable, match=r"certificate.*check sslmode and sslrootcert of the DSN"):
        opened(with_parameters(dsn, sslmode="verify-full", sslrootcert=str(trusted)))
    assert schema.query("SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema()") == [
        (0,)
    ]


@pytest.mark.usefixtures("impatient_sessions")
def test_a_server_without_tls_is_refused_when_the_dsn_asks_for_it(
    schema: Schema, opened: Callable[[str], Authority]
) -> None:
    with pytest.raises(Unavailable, match=r"does not support SSL.*check sslmode"):
        opened(with_parameters(schema.dsn, sslmode="require"))


# --- time -------------------------------------------------------------------------------------------------------------


def test_the_clock_is_the_servers(authority: Authority) -> None:
    before = time.time_ns() // 1000
    assert before - 2 * SECOND < authority.now_us() < time.time_ns() // 1000 + 2 * SECOND


def test_daemons_are_as_old_as_the_servers_clock_says(schema: Schema, authority: Authority) -> None:
    schema.use_clock(START)
    authority.report_daemon(DaemonRow("one", "all", "1.2.3", "host"), 24 * 3600 * SECOND)
    schema.set_clock(START + 7 * SECOND)
    with closing(connect_views(schema.dsn, "profile p")) as views:
        (row,) = views.daemons(10)
    assert (row.seen_us, row.now_us) == (START, START + 7 * SECOND)


@pytest.mark.parametrize("hours", [1, -1])
def test_a_database_whose_clock_is_an_hour_off_grants_and_takes_leases_all_the_same(
    schema: Schema, authority: Authority, opened: Callable[[str], Authority], hours: int
) -> None:
    schema.query(
        "CREATE OR REPLACE FUNCTION sr_now_us() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT "
        f"(extract(epoch FROM clock_timestamp()) * 1000000)::bigint + {hours * 3600 * SECOND}::bigint $$"
    )
    authority.admit([asking("k")])
    leases = Leases(authority, "w1", 30, time.monotonic)
    (claim,) = leases.claim(10)
    assert abs(claim.now_us - time.time_ns() // 1000 - hours * 3600 * SECOND) < 60 * SECOND
    assert opened(schema.dsn).claim("w2", 10, LEASE) == []
    leases.renew()
    leases.check(claim)
    run = authority.run(claim.run_id)
    assert run is not None
    assert 0 <= run.lease_until_us - claim.now_us - 30 * SECOND < 20 * SECOND
    commit(authority, waiting(claim, claim.now_us + 3600 * SECOND))
    assert authority.claim("w1", 10, LEASE) == []
    assert authority.make_waiting_due() == 1
    assert claim_one(authority).epoch == 2
