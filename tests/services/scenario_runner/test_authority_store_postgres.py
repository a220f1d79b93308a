"""What is particular to the PostgreSQL authority; what it shares with SQLite is in the authority contract's test.

Needs ``SR_TEST_PG_DSN``; some tests start a server of their own, because they stop it, or fill it.
"""

import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from authority_support import (
    LEASE,
    SECOND,
    START,
    WAIT,
    asking,
    claim_one,
    commit,
    disposed,
    draft,
    event,
    failed,
    gates_recorded,
    hex32,
    hex64,
    launched,
    new_run,
    ready,
    retried,
    waiting,
)
from postgres_support import Proxy, Schema, Server, TlsDoor, given_dsn, make_certificate, with_parameters
from support import World

from scenario_runner.authority.acts import ReemitAct, ReemitLimit
from scenario_runner.authority.base import Authority
from scenario_runner.authority.connect import connect_views
from scenario_runner.authority.observed import DaemonRow
from scenario_runner.authority.statements import load_migrations, load_statements, parse_statements
from scenario_runner.authority.values import Claim, ProjectionFailure, ReemitEnd, Sent, SignalRow
from scenario_runner.contracts.errors import ConfigurationError, SequenceError, Unavailable
from scenario_runner.contracts.states import Disposition, ReemitKind, RunState
from scenario_runner.retry import RetryPolicy
from scenario_runner.runs.leases import Leases

pytestmark = pytest.mark.parity

SCHEMA_FILE = Path(__file__).resolve().parents[3] / "daemon/scenario_runner/authority/schema/postgres.sql"
OWN = {
    "schema_migrations", "runs", "run_events", "intake_records", "dead_letters", "outbox", "digest_reuse",
    "engine_attempts", "store_identities", "operator_actions", "unfinished_rebuild",
    "daemons",
}  # fmt: skip


@pytest.fixture
def schema() -> Iterator[Schema]:
    made = Schema(given_dsn())
    yield made
    made.drop()


@pytest.fixture
def opened() -> Iterator[Callable[[str], Authority]]:
    """Opens authorities, and closes them at the end."""
    given_dsn()
    from scenario_runner.authority.postgres import PostgresAuthority

    made: list[Authority] = []

    def open_one(dsn: str) -> Authority:
        made.append(PostgresAuthority(dsn, "profile p"))
        return made[-1]

    yield open_one
    for authority in made:
        authority.close()


@pytest.fixture
def authority(schema: Schema, opened: Callable[[str], Authority]) -> Authority:
    return opened(schema.dsn)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of the test's own; commits are not flushed to the disk, since only processes die here."""
    given_dsn()
    made = Server("fsync = off", "max_connections = 40")
    yield made
    made.remove()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls give up after the first failure."""
    given_dsn()
    monkeypatch.setattr(
        "scenario_runner.authority.postgres_pool._RETRY", RetryPolicy(0.01, 0.02, deadline_seconds=0.05)
    )
    monkeypatch.setattr("scenario_runner.authority.postgres_pool._WAIT_SECONDS", 0.3)


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
    schema: Schema, opened: Callable[[str], Authority], impatient: None
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
    source = (
        "import sys\nfrom scenario_runner.authority.postgres import PostgresAuthority\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        f"authority = PostgresAuthority({schema.dsn!r}, 'p')\nprint(authority.pending().nothing)\nauthority.close()\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]  # fmt: skip
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in running]
    assert [out for out, _ in answers] == ["True\n"] * 4, answers
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


@pytest.mark.usefixtures("impatient")
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


@pytest.mark.usefixtures("impatient")
def test_a_user_without_rights_is_unavailable_and_says_what_to_do(
    schema: Schema, role: str, opened: Callable[[str], Authority]
) -> None:
    schema.query(f"REVOKE ALL ON SCHEMA {schema.name} FROM {role}")
    with pytest.raises(Unavailable):
        opened(with_parameters(schema.dsn, user=role))


@pytest.mark.usefixtures("impatient")
def test_a_database_that_does_not_exist_is_unavailable(opened: Callable[[str], Authority]) -> None:
    with pytest.raises(Unavailable, match=r"does not exist.*correct the DSN"):
        opened(with_parameters(given_dsn(), dbname="sr_test_no_such_database"))


@pytest.mark.usefixtures("impatient")
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


@pytest.mark.usefixtures("impatient")
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


@pytest.mark.usefixtures("impatient")
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


# --- many workers -----------------------------------------------------------------------------------------------------


def test_eight_processes_on_one_run_never_share_an_epoch(schema: Schema, authority: Authority) -> None:
    """Leases run out at once, so that every claim is a theft."""
    authority.admit([asking("k")])
    source = (
        "import sys\nfrom scenario_runner.authority.postgres import PostgresAuthority\n"
        f"authority = PostgresAuthority({schema.dsn!r}, 'p')\nclaimed = 0\n"
        "while claimed < 25:\n    claims = authority.claim('w' + sys.argv[1], 1, 0)\n"
        "    claimed += len(claims)\n    print(*[claim.epoch for claim in claims])\nauthority.close()\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", source, str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(8)
    ]
    epochs = [[int(text) for text in process.communicate(timeout=120)[0].split()] for process in running]
    assert sorted(epoch for found in epochs for epoch in found) == list(range(1, 201))
    assert all(found == sorted(found) for found in epochs)


def test_a_worker_that_holds_a_row_does_not_keep_others_from_claiming(schema: Schema, authority: Authority) -> None:
    authority.admit([asking("a"), asking("b")])
    with schema.admin.transaction():
        schema.query("SELECT 1 FROM runs WHERE run_id = %s FOR UPDATE", hex32("a"))
        assert [claim.run_id for claim in authority.claim("w1", 10, LEASE)] == [hex32("b")]
    assert [claim.run_id for claim in authority.claim("w1", 10, LEASE)] == [hex32("a")]


def test_batches_that_meet_in_any_order_wait_for_each_other_and_do_not_die(
    schema: Schema, opened: Callable[[str], Authority]
) -> None:
    first, second = opened(schema.dsn), opened(schema.dsn)
    keys = [f"k{number}" for number in range(40)]

    def admit(authority: Authority, order: list[str], name: str) -> list[str]:
        return [item.disposition.value for turn in range(5) for item in authority.admit(
            [asking(f"{key} {turn}", f"{name} {key} {turn}") for key in order])]  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(admit, first, keys, "one"), pool.submit(admit, second, keys[::-1], "two")]
        answers = [future.result(60) for future in futures]
    assert sorted(answers[0] + answers[1]) == ["ACCEPTED"] * 200 + ["DUPLICATE"] * 200


REFUSE = """
    INSERT INTO intake_records (record_key, message_id, kind, run_id, disposition, reason_code, detail, received_us,
                                raw_sha256, raw_size)
    VALUES (%s, '', 'RUN_REQUEST', '', 'REJECTED', 'UNKNOWN_OUTPUT_ID', 'by other rules', 1, '', 1)"""


OTHERS_RUN = """
    INSERT INTO runs
    SELECT (jsonb_populate_record(r, jsonb_build_object('run_id', %s::text, 'run_equivalence_key', %s::text))).*
    FROM runs r WHERE r.run_id = %s"""


def admitted_behind(schema: Schema, authority: Authority, batch: list[Any], end: str) -> list[Any]:
    """Admit a batch that has to wait for the open transaction of another intake, and end that."""
    with psycopg.connect(schema.dsn, autocommit=True) as looking, ThreadPoolExecutor(1) as pool:
        admitting = pool.submit(authority.admit, batch)
        deadline = time.monotonic() + 10
        while not looking.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
            assert time.monotonic() < deadline, "nobody waits for the other intake"
            time.sleep(0.02)
        schema.query(end)
        return admitting.result(30)


@pytest.mark.parametrize("fingerprint", ["one", "two"])
def test_a_request_whose_run_another_intake_is_inserting_is_judged_when_that_run_is_seen(
    schema: Schema, authority: Authority, fingerprint: str
) -> None:
    authority.admit([asking("unrelated")])
    schema.query("BEGIN")
    schema.query(OTHERS_RUN, hex32("k"), "k", hex32("unrelated"))
    (answer,) = admitted_behind(schema, authority, [asking("k", fingerprint=fingerprint)], "COMMIT")
    assert answer.disposition.value == ("DUPLICATE" if fingerprint == "one" else "CONFLICT")


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_no_run_stays_beside_a_record_that_an_intake_with_other_rules_refuses_at_the_same_time(
    schema: Schema, authority: Authority, end: str
) -> None:
    """A rolling deploy: both read the same record, and one of them knows an output that the other does not."""
    batch = [asking("before"), asking("k"), asking("k", "again"), asking("after")]
    schema.query("BEGIN")
    schema.query(REFUSE, batch[1].record_key)
    answers = admitted_behind(schema, authority, batch, end)
    found = [(item.disposition.value, item.repeated) for item in answers]
    if end == "ROLLBACK":
        assert found == [("ACCEPTED", False)] * 2 + [("DUPLICATE", False), ("ACCEPTED", False)]
    else:  # the other record that asks for the run is judged by itself
        assert found == [("ACCEPTED", False), ("REJECTED", True), ("ACCEPTED", False), ("ACCEPTED", False)]
        assert answers[1].detail == "by other rules"
    stray = """SELECT run_id FROM runs r WHERE NOT EXISTS
               (SELECT 1 FROM intake_records i WHERE i.run_id = r.run_id AND i.disposition = 'ACCEPTED')"""
    assert schema.query(stray) == []
    assert schema.query("SELECT count(*) FROM run_events") == [(12,)]


# --- what cannot be stored --------------------------------------------------------------------------------------------


def poisoned(**changes: Any) -> Any:
    return lambda: replace(asking("bad", "bad"), run=replace(new_run("bad"), **changes))


POISON: dict[str, Callable[[], Any]] = {
    "a NUL in the key": poisoned(run_equivalence_key="bad\x00key"),
    "half of a surrogate pair in the key": poisoned(run_equivalence_key="bad\ud800key"),
    "a NUL in the run id": lambda: replace(asking("bad", "bad"), run_id="bad\x00"),
    "a key that no index can hold": poisoned(run_equivalence_key="".join(secrets.token_hex(4000))),
    "a deadline after the end of time": poisoned(evidence_wait_us=2**63 - 1),
    "a wait that is no number of microseconds": poisoned(evidence_wait_us=2**70),
    "a size that no column can hold": lambda: replace(disposed("bad", Disposition.REJECTED), raw_size=2**64),
}


@pytest.mark.parametrize("kind", POISON)
def test_a_record_that_cannot_be_stored_is_refused_and_takes_no_other_along(
    schema: Schema, authority: Authority, kind: str
) -> None:
    batch = [asking("a"), asking("b"), POISON[kind](), asking("c"), disposed("d", Disposition.IGNORED)]
    answers = authority.admit(batch)
    assert [item.disposition.value for item in answers] == ["ACCEPTED", "ACCEPTED", "REJECTED", "ACCEPTED", "IGNORED"]
    assert [item.record_key for item in answers] == [record.record_key for record in batch]
    assert answers[2].detail.isprintable()
    assert answers[2].reason_code == "REQUEST_SCHEMA_INVALID"
    assert schema.query("SELECT raw FROM dead_letters") == [(batch[2].raw,)]
    assert [item.repeated for item in authority.admit(batch)] == [True] * 5, "it does not come back for ever"
    assert authority.run(hex32("bad")) is None


def test_texts_for_people_may_hold_anything(authority: Authority) -> None:
    hostile = "NUL \x00 half \udc80 pair \U0001f600 ünï"
    record = replace(disposed("r", Disposition.REJECTED, hex32("k")), detail=hostile, message_id=hostile, kind=hostile)
    assert authority.admit([record, asking("k")])[0].disposition is Disposition.REJECTED
    claim = claim_one(authority)
    commit(authority, retried(claim, 0, hostile))
    run = authority.run(hex32("k"))
    assert run is not None
    assert run.last_error == "NUL \\x00 half \\udc80 pair \U0001f600 ünï"
    claim = claim_one(authority)
    commit(authority, waiting(claim, START, [event(detail="NUL \x00", key="\x01")]))
    assert authority.events(hex32("k"))[-1].details["detail"] == "NUL \x00"


def test_a_batch_with_something_of_our_own_that_has_no_canonical_form_is_a_defect(authority: Authority) -> None:
    with pytest.raises(SequenceError):
        authority.admit([asking("a"), poisoned(intent={"a float": 0.5})()])
    assert authority.run(hex32("a")) is None


# --- the work of one run ----------------------------------------------------------------------------------------------


def read_of(node: dict[str, Any]) -> int:
    """Rows that the scans of a plan read of tables: those they returned, and those they looked at in vain."""
    here = 0
    if "Relation Name" in node and node["Node Type"] != "ModifyTable":
        counts = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
        here = sum(int(node.get(name, 0)) for name in counts) * node["Actual Loops"]
    elif node["Node Type"] == "Bitmap Index Scan":
        here = int(node["Actual Rows"]) * node["Actual Loops"]
    return here + sum(map(read_of, node.get("Plans", ())))


@pytest.fixture(scope="module", params=["with statistics", "without statistics"])
def crowded(request: pytest.FixtureRequest) -> Iterator[Schema]:
    """3000 runs are due, half of them new; 3000 have ended and their signals are unsent. Each has an attempt."""
    made = Schema(given_dsn())
    from scenario_runner.authority.postgres import PostgresAuthority

    PostgresAuthority(made.dsn, "profile p").close()
    made.query("""
        INSERT INTO runs (run_id, run_equivalence_key, fingerprint, intent, inputs, state, admitted_us, deadline_us,
                          updated_us, due_us, event_seq, projected_seq)
        SELECT md5(n::text), n, 'f', '{}', '{}',
               CASE n % 4 WHEN 1 THEN 'WAITING_EVIDENCE' WHEN 3 THEN 'PLANNED' ELSE 'READY' END, n, n, n,
               CASE n % 2 WHEN 0 THEN NULL ELSE n END, 5, CASE n % 4 WHEN 0 THEN 5 ELSE 0 END
        FROM generate_series(1, 6000) n""")
    made.query("""
        INSERT INTO outbox (message_id, run_id, kind, partition_key, attributes, payload, created_us, needs_seq)
        SELECT n, md5(n::text), 'READY', '', '{}', '{}', n, 5 FROM generate_series(2, 6000, 2) n""")
    made.query("""
        INSERT INTO engine_attempts
        SELECT md5(n::text), 1, n, 1, '', '', 0, 0, NULL, '', '', NULL, '', FALSE, 0, '', ''
        FROM generate_series(1, 6000) n""")
    if request.param == "with statistics":
        made.query("ANALYZE runs, outbox, engine_attempts")
    for setting in ("enable_seqscan = off", "plan_cache_mode = force_generic_plan", "jit = off"):
        made.query(f"SET {setting}")
    yield made
    made.drop()


ONE_RUN = sorted(name for name in load_statements("postgres") if name.endswith("_only"))


@pytest.mark.parametrize("number", [5999, 6000])
@pytest.mark.parametrize("name", [*ONE_RUN, "list_attempts", "attempts_of_runs"])
def test_the_work_of_one_run_is_found_among_thousands_without_reading_those(
    crowded: Schema, name: str, number: int
) -> None:
    run_id = crowded.query("SELECT md5(%s)", str(number))[0][0]
    values = {"only": run_id, "run_id": run_id, "run_ids": f"{{{run_id}}}", "owner": "w", "limit": 64, "most_new": 32,
              "lease_us": 9, "quiet_us": 9, "started": "{}", "root": "", "roots": "{/none}", "after": ""}  # fmt: skip
    text = load_statements("postgres")[name]
    names = dict.fromkeys(re.findall(r"%\(([a-z_]+)\)b", text))
    for position, parameter in enumerate(names, 1):
        text = text.replace(f"%({parameter})b", f"${position}")
    given = ", ".join(f"'{values[parameter]}'" for parameter in names)
    with crowded.admin.transaction(force_rollback=True):
        crowded.query(f"PREPARE one_run AS {text}")
        plan = crowded.query(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE one_run ({given})")[0][0][0]["Plan"]
    crowded.query("DEALLOCATE one_run")
    assert "Seq Scan" not in str(plan)
    assert read_of(plan) <= 20


@pytest.mark.parametrize(
    ("name", "given"),
    [("awaited_roots", {"roots": ["/none", "/others"]}), ("waiting_at", {"root": "/none", "after": "", "limit": 500})],
)
def test_a_root_where_no_run_waits_is_looked_up_without_reading_those_that_wait(
    crowded: Schema, name: str, given: dict[str, Any]
) -> None:
    text = load_statements("postgres")[name].replace(")b", ")s")
    with crowded.admin.cursor() as cursor:
        (plan,) = cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", given).fetchall()[0][0]  # type: ignore[call-overload]
    assert "Seq Scan" not in str(plan)
    assert read_of(plan["Plan"]) <= 2


# --- outcome unknown --------------------------------------------------------------------------------------------------


def prepare(authority: Authority) -> Claim:
    authority.admit([asking("k")])
    return claim_one(authority)


def state_of(authority: Authority) -> tuple[Any, ...]:
    run = authority.run(hex32("k"))
    events, attempts = authority.events(hex32("k")), authority.attempts(hex32("k"))
    return (run, events, authority.signals(hex32("k")), authority.records(hex32("k")), attempts)


SETTLED: dict[str, Callable[[Claim], Any]] = {
    "READY": ready,
    "FAILED": failed,
    "waiting": lambda claim: waiting(claim, START + WAIT, [event()]),
    "retry": lambda claim: retried(claim, START + WAIT, "the store is away"),
    "gates recorded": gates_recorded,
    "a launch": launched,
}


@pytest.fixture
def proxy(schema: Schema) -> Iterator[Proxy]:
    made = Proxy(schema.dsn)
    yield made
    made.close()


@pytest.fixture
def lossy(schema: Schema, proxy: Proxy, opened: Callable[[str], Authority]) -> Authority:
    """An authority behind the proxy, in a schema whose clock stands still."""
    authority = opened(with_parameters(proxy.dsn, application_name=schema.name))
    schema.use_clock(START)
    return authority


LOSSES: dict[str, Callable[[Proxy], None]] = {
    "the answer was lost": Proxy.lose_answer,
    "cut before the answer": Proxy.cut_after_request,
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", SETTLED)
def test_an_outcome_whose_commit_is_unknown_is_found_applied_once(
    schema: Schema, proxy: Proxy, lossy: Authority, kind: str, loss: str
) -> None:
    claim = prepare(lossy)
    before = state_of(lossy)
    LOSSES[loss](proxy)
    commit(lossy, SETTLED[kind](claim))
    assert proxy.lost == 1
    applied = state_of(lossy)
    assert applied != before
    schema.query("DELETE FROM run_events; DELETE FROM outbox; DELETE FROM runs; DELETE FROM intake_records")
    schema.query("DELETE FROM engine_attempts")
    twin = prepare(lossy)
    commit(lossy, SETTLED[kind](twin))
    assert state_of(lossy) == applied, "as if nothing had been lost"


def test_an_outcome_that_the_server_still_works_on_is_waited_for_and_not_taken_for_a_lost_lease(
    schema: Schema, proxy: Proxy, lossy: Authority
) -> None:
    """The first try waits for a row when its connection is cut, and commits after the second has begun."""
    claim = prepare(lossy)
    tries = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = %s"

    def waiting() -> int:
        schema.query("SELECT pg_stat_clear_snapshot()")
        return int(schema.query(tries, schema.name)[0][0])

    with ThreadPoolExecutor(1) as pool, schema.admin.transaction():
        schema.query("SELECT 1 FROM runs FOR UPDATE")
        proxy.cut_after_request(b"INSERT INTO outbox")
        answer = pool.submit(lossy.commit, [ready(claim)])
        until(lambda: waiting() == 2, 10)
    assert answer.result(30) == [None]
    assert len(lossy.signals(hex32("k")).rows) == 1
    assert len(lossy.events(hex32("k"))) == 7


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_of_records_whose_commit_is_unknown_is_admitted_once(proxy: Proxy, lossy: Authority, loss: str) -> None:
    refused = disposed("x", Disposition.REJECTED, hex32("k"), draft("no"))
    batch = [asking("k"), asking("k", "again"), asking("k", "other", fingerprint="two"), refused]
    LOSSES[loss](proxy)
    answers = lossy.admit(batch)
    assert proxy.lost == 1
    assert [item.disposition.value for item in answers] == ["ACCEPTED", "DUPLICATE", "CONFLICT", "REJECTED"]
    _, events, signals, records, _ = state_of(lossy)
    assert (len(events), len(signals.rows), len(records)) == (4, 2, 4)


@pytest.mark.parametrize("loss", LOSSES)
def test_runs_whose_claim_was_never_answered_come_back_when_their_lease_has_run_out(
    schema: Schema, proxy: Proxy, lossy: Authority, loss: str
) -> None:
    lossy.admit([asking(f"k{number}") for number in range(4)])
    leases = Leases(lossy, "w1", 30, time.monotonic)
    LOSSES[loss](proxy)
    first = leases.claim(2)
    assert proxy.lost == 1
    schema.set_clock(START + 20 * SECOND)
    leases.renew()
    schema.set_clock(START + 40 * SECOND)
    second = lossy.claim("w2", 10, LEASE)
    assert {claim.run_id for claim in first} | {claim.run_id for claim in second} == {hex32(f"k{n}") for n in range(4)}
    assert not {claim.run_id for claim in first} & {claim.run_id for claim in second}
    commit(lossy, *[ready(claim, f"ready {claim.run_id}") for claim in (*first, *second)])


@pytest.mark.parametrize("loss", LOSSES)
def test_every_other_operation_may_be_cut_as_well(schema: Schema, proxy: Proxy, lossy: Authority, loss: str) -> None:
    def cut(operation: Callable[[], Any]) -> Any:
        LOSSES[loss](proxy)
        before = proxy.lost
        answer = operation()
        assert proxy.lost == before + 1
        until(lambda: proxy.ended == proxy.lost, 30)  # what comes next is not about two at once
        return answer

    claim = prepare(lossy)
    assert cut(lambda: lossy.renew("w1", [(claim.run_id, claim.epoch)], LEASE)) == {(claim.run_id, claim.epoch)}
    assert cut(lossy.now_us) == START
    commit(lossy, waiting(claim, START + WAIT))
    cut(lossy.make_waiting_due)
    commit(lossy, ready(claim_one(lossy)))
    cut(lambda: lossy.claim_projections("relay", 10, LEASE))
    assert cut(lossy.owners) == {"relay"}
    cut(lambda: lossy.expire_owner("relay"))
    (owed,) = lossy.claim_projections("relay", 10, LEASE)
    cut(lambda: lossy.postpone_projections("relay", [ProjectionFailure(owed.run.run_id, START, "why")]))
    (owed,) = lossy.claim_projections("relay", 10, LEASE)
    cut(lambda: lossy.mark_projected("relay", [(owed.run.run_id, owed.run.event_seq)]))
    assert cut(lossy.pending).signals
    cut(lambda: lossy.claim_signals("p", 10, LEASE))
    schema.set_clock(START + LEASE)
    (row,) = lossy.claim_signals("p", 10, LEASE)
    cut(lambda: lossy.postpone_signals([row], START))
    (row,) = lossy.claim_signals("p", 10, LEASE)
    cut(lambda: lossy.mark_sent([Sent(row)]))
    cut(lambda: lossy.keep_digests("key", ["a"]))
    assert cut(lambda: lossy.find_digests("key")) == ["a"]
    assert cut(lambda: lossy.signals(hex32("k"))).rows == (SignalRow(hex64("ready"), "READY", START + LEASE),)
    assert lossy.pending().undelivered is False


def test_an_act_whose_commit_is_unknown_is_carried_out_once(schema: Schema, proxy: Proxy, lossy: Authority) -> None:
    commit(lossy, ready(prepare(lossy)))
    (owed,) = lossy.claim_projections("relay", 10, LEASE)
    lossy.mark_projected("relay", [(owed.run.run_id, owed.run.event_seq)])
    lossy.mark_sent([Sent(row) for row in lossy.claim_signals("p", 10, LEASE)])
    asked = ReemitAct(
        key="one", run_id=hex32("k"), kind=ReemitKind.BOTH, actor="ops", via="cli", reason="why",
        limit=ReemitLimit(1, 60 * SECOND),
    )  # fmt: skip
    proxy.cut_after_request(b"INSERT INTO operator_actions")
    (answer,) = lossy.reemit([asked])
    assert proxy.lost == 1
    assert answer.outcome == "ACCEPTED"
    assert [row.emission for row in lossy.signals(hex32("k")).rows] == [0, 1]
    (row,) = lossy.claim_signals("p", 10, LEASE)
    until(lambda: proxy.ended == proxy.lost, 30)
    proxy.cut_after_request(b"DELETE FROM outbox")
    lossy.end_reemits([ReemitEnd(row)])
    assert proxy.lost == 2
    kinds = [event.kind for event in lossy.events(hex32("k"))]
    assert kinds[-2:] == ["REEMIT_REQUESTED", "REEMIT_PUBLISHED"]
    assert [action.outcome for action in lossy.actions(hex32("k"))] == ["PUBLISHED"]


def test_a_signal_keeps_the_time_of_its_first_mark(schema: Schema, lossy: Authority) -> None:
    commit(lossy, ready(prepare(lossy)))
    (owed,) = lossy.claim_projections("relay", 10, LEASE)
    lossy.mark_projected("relay", [(owed.run.run_id, owed.run.event_seq)])
    (row,) = lossy.claim_signals("p", 10, LEASE)
    lossy.mark_sent([Sent(row)])
    schema.set_clock(START + SECOND)
    lossy.mark_sent([Sent(row)])
    assert lossy.signals(hex32("k")).rows == (SignalRow(hex64("ready"), "READY", START),)


# --- a server that does not answer ------------------------------------------------------------------------------------


def test_connections_that_were_killed_are_replaced(schema: Schema, opened: Callable[[str], Authority]) -> None:
    authority = opened(with_parameters(schema.dsn, application_name=schema.name))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: authority.admit([asking(f"k{number}")]), range(40)))
        killed = schema.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", schema.name
        )
        found = list(pool.map(lambda number: authority.run(hex32(f"k{number}")), range(40)))
    assert len(killed) > 1
    assert None not in found


def test_a_statement_that_takes_too_long_is_given_up_and_told(
    schema: Schema, opened: Callable[[str], Authority]
) -> None:
    options = f"-csearch_path={schema.name} -cstatement_timeout=200 -clock_timeout=0"
    authority = opened(with_parameters(schema.dsn, options=options))
    with schema.admin.transaction():
        schema.query("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Unavailable, match="statement_timeout"):
            authority.admit([asking("k")])
    assert authority.admit([asking("k")])[0].disposition is Disposition.ACCEPTED


@pytest.mark.usefixtures("impatient")
def test_a_lock_that_is_held_for_too_long_is_given_up_and_told(
    schema: Schema, opened: Callable[[str], Authority]
) -> None:
    options = f"-csearch_path={schema.name} -clock_timeout=200"
    authority = opened(with_parameters(schema.dsn, options=options))
    claim = prepare(authority)
    with schema.admin.transaction():
        schema.query("SELECT 1 FROM runs FOR UPDATE")
        with pytest.raises(Unavailable, match="pg_stat_activity"):
            authority.commit([ready(claim)])
    commit(authority, ready(claim))


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_away_is_unavailable_and_serves_again_when_it_is_back(
    server: Server, opened: Callable[[str], Authority]
) -> None:
    authority = opened(server.dsn)
    claim = prepare(authority)
    server.stop()
    calls: list[Callable[[], Any]] = [
        lambda: authority.admit([asking("x")]),
        lambda: authority.commit([ready(claim)]),
        lambda: authority.claim("w1", 1, LEASE),
        authority.now_us,
    ]
    for call in calls:
        with pytest.raises(Unavailable, match="check that the server runs"):
            call()
    with pytest.raises(Unavailable):
        opened(server.dsn)
    server.start()
    commit(authority, ready(claim))


class Load:
    """Intake and two workers that go on through everything, and remember what they were promised."""

    def __init__(self, authority: Authority) -> None:
        self._authority, self._stop, self._all_in = authority, threading.Event(), threading.Event()
        self.promised: dict[str, Disposition] = {}
        self.decided: dict[str, list[str]] = {}
        self.last_success = 0.0

    def run(self, meanwhile: Callable[[], None]) -> None:
        """Work while something happens, then finish what was begun."""
        with ThreadPoolExecutor(3) as pool:
            work = [pool.submit(self._take_in), pool.submit(self._decide, "w1"), pool.submit(self._decide, "w2")]
            try:
                meanwhile()
            finally:
                self._stop.set()
            for future in work:
                future.result(60)

    def _patiently(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                answer = call()
            except Unavailable:
                time.sleep(1)  # as the loops of the daemon do
            else:
                self.last_success = time.monotonic()
                return answer

    def _take_in(self) -> None:
        number = 0
        while not self._stop.is_set():
            batch = [asking(f"k{number + offset}") for offset in range(8)]
            number += len(batch)
            for item in self._patiently(partial(self._authority.admit, batch)):
                self.promised[item.run_id] = item.disposition
        self._all_in.set()

    def _decide(self, owner: str) -> None:
        while not (self._all_in.is_set() and len(self.decided) == len(self.promised)):
            claims = self._patiently(partial(self._authority.claim, owner, 8, 2 * SECOND))
            outcomes = [ready(claim, f"ready {claim.run_id}") for claim in claims]
            answers = self._patiently(partial(self._authority.commit, outcomes))
            for claim, lost in zip(claims, answers, strict=True):
                if lost is None:
                    self.decided.setdefault(claim.run_id, []).append(owner)


def test_a_server_that_crashes_under_load_loses_nothing_and_is_used_again_after_its_return(
    server: Server, opened: Callable[[str], Authority]
) -> None:
    """A crash in the middle of all, twice; what was promised is there, and only once."""
    load = Load(opened(server.dsn))

    def crash() -> None:
        for down in (0, 3):
            time.sleep(1)
            server.stop("immediate")
            time.sleep(down)
            server.start()
            back = time.monotonic()
            until(lambda back=back: load.last_success > back, 30)
        time.sleep(1)

    load.run(crash)
    assert len(load.promised) > 50
    assert set(load.promised.values()) == {Disposition.ACCEPTED}
    assert set(load.decided) == set(load.promised), "zero lost"
    assert all(len(owners) == 1 for owners in load.decided.values()), "each decided once"
    authority = opened(server.dsn)
    for run_id in load.promised:
        run = authority.run(run_id)
        assert run is not None
        assert run.state is RunState.READY
        assert [item.seq for item in authority.events(run_id)] == list(range(1, run.event_seq + 1))
        assert authority.signals(run_id).rows == (SignalRow(hex64(f"ready {run_id}"), "READY", None),)


# --- the whole daemon -------------------------------------------------------------------------------------------------


def test_the_daemon_brings_a_run_to_ready_on_postgres(schema: Schema, tmp_path: Path) -> None:
    world = World(tmp_path / "world", {"authority_store_dsn": schema.dsn})
    made = world.make_run()
    world.drop(made["request"])
    done = world.serve()
    assert done.returncode == 0, done.stderr.decode()
    (signal_sent,) = world.signals("READY")
    run_id = signal_sent["payload"]["run_id"]
    assert world.query("status", run_id)[1]["state"] == "READY"
    assert world.query("explain", run_id)[0] == 0
    assert world.query("verify", run_id)[0] == 0
    for line in done.stderr.decode().splitlines():
        assert line.startswith("{"), "stderr holds JSON lines only"


def test_requests_that_arrive_while_the_server_is_down_are_served_after_its_return(
    server: Server, tmp_path: Path
) -> None:
    world = World(tmp_path / "world", {"authority_store_dsn": server.dsn})
    requests = [world.make_run(f"key-{number}")["request"] for number in range(3)]
    with world.start() as daemon:
        assert daemon.stderr is not None
        reader = threading.Thread(target=daemon.stderr.read, daemon=True)
        reader.start()
        try:
            world.drop(requests[0], "0.json")
            until(lambda: len(world.signals("READY")) == 1, 60)
            server.stop("immediate")
            for number in (1, 2):
                world.drop(requests[number], f"{number}.json")
            time.sleep(6)
            assert daemon.poll() is None
            server.start()
            until(lambda: len(world.signals("READY")) == 3, 30)
        finally:
            daemon.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            if daemon.poll() is None:
                os.kill(daemon.pid, signal.SIGKILL)


def until(happened: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)
