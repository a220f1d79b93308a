"""Poolers before PostgreSQL: those that keep sessions are used, others are refused before anything is written.

Needs ``SR_TEST_PG_DSN``. Tests of PgBouncer skip where its command is not installed.
"""

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import psycopg
import pytest
from authority_support import asking, claim_one, commit, hex32, ready
from pooler_support import Order, PgBouncer, TransactionPooler
from postgres_support import given_dsn, with_parameters
from support import World

from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.retry import RetryPolicy

pytestmark = pytest.mark.parity

ORDERS: tuple[Order, ...] = ("last in, first out", "first in, first out", "any")


@pytest.fixture
def database() -> Iterator[str]:
    """The DSN of a database of its own: a pooler does not pass a search_path on."""
    name = f"sr_test_{secrets.token_hex(6)}"
    with closing(psycopg.connect(given_dsn(), autocommit=True)) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
        yield with_parameters(given_dsn(), dbname=name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def closed() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def opened(closed: ExitStack) -> Callable[[str], Any]:
    """Opens authorities, and closes them at the end."""
    from scenario_runner.authority.postgres import PostgresAuthority

    def open_one(dsn: str) -> Any:
        return closed.enter_context(closing(PostgresAuthority(dsn, "profile p")))

    return open_one


def tables(dsn: str) -> int:
    with closing(psycopg.connect(dsn)) as connection:
        row = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert row is not None
    return int(row[0])


def assert_refused(dsn: str, database: str, open_one: Callable[[str], Any]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_one(dsn)
    assert "pool_mode = session" in refused.value.remedy
    assert "authority_store_dsn" in refused.value.place
    assert tables(database) == 0, "nothing was written"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_whichever_server_connection_a_pooler_gives_to_a_transaction_it_is_refused(
    database: str, closed: ExitStack, opened: Callable[[str], Any], size: int, order: Order
) -> None:
    pooler = closed.enter_context(closing(TransactionPooler(database, size, order, honest_keys=size % 2 == 1)))
    assert_refused(pooler.dsn, database, opened)


@pytest.mark.parametrize("order", ORDERS)
def test_a_pooler_is_refused_as_well_while_other_clients_use_it(
    database: str, closed: ExitStack, opened: Callable[[str], Any], order: Order
) -> None:
    pooler = closed.enter_context(closing(TransactionPooler(database, 4, order)))
    busy = threading.Event()

    def work() -> None:
        with closing(psycopg.connect(pooler.dsn, autocommit=True)) as other:
            while not busy.is_set():
                other.execute("SELECT pg_sleep(0.001)", prepare=False)

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(work) for _ in range(3)]
        try:
            for _ in range(3):
                assert_refused(pooler.dsn, database, opened)
        finally:
            busy.set()
        for other in running:
            other.result()


def test_a_pooler_that_begins_to_share_under_a_running_authority_is_refused_and_nothing_is_mixed_up(
    database: str, closed: ExitStack, opened: Callable[[str], Any]
) -> None:
    pooler = closed.enter_context(closing(TransactionPooler(database, 12, "any")))
    pooler.sharing = False
    authority, other = opened(pooler.dsn), opened(pooler.dsn)

    def both(times: int) -> None:
        for one in (authority, other) * times:
            assert one.now_us() > 0
            assert one.pending().nothing
            assert one.owners() == set()

    both(8)  # often enough for prepared statements
    pooler.sharing = True
    with pytest.raises(ConfigurationError, match="shares server connections"):
        both(200)


def test_a_connection_that_shares_a_server_process_with_another_of_the_pool_is_refused(
    database: str, opened: Callable[[str], Any]
) -> None:
    authority = opened(database)
    connections = authority._connections
    with pytest.raises(ConfigurationError, match="shares server connections"):
        connections.run(connections._configure)  # a connection of the pool, as if it were a new one
    with pytest.raises(ConfigurationError, match="shares server connections"):
        authority.now_us()


def test_two_sessions_never_give_one_name_to_two_statements(database: str, opened: Callable[[str], Any]) -> None:
    names: list[str] = []
    for authority in (opened(database), opened(database)):
        for _ in range(8):
            authority.now_us()

        def prepared(connection: Any) -> list[str]:
            rows = connection.execute("SELECT name FROM pg_prepared_statements WHERE name LIKE '\\_pg3\\_%'")
            return [row["name"] for row in rows]

        names += authority._connections.run(prepared)
    assert len(names) >= 2
    assert len(set(names)) == len(names)
    assert not [name for name in names if len(name) < len("_pg3_") + 6], "psycopg counts from 0"


# --- PgBouncer --------------------------------------------------------------------------------------------------------

BOUNCERS = [
    ("transaction", 4, ("ignore_startup_parameters = extra_float_digits,options",)),
    ("transaction", 4, ("server_round_robin = 1",)),
    ("transaction", 1, ()),
    ("transaction", 20, ("min_pool_size = 20",)),
    ("transaction", 4, ("server_reset_query_always = 1",)),
    ("statement", 4, ()),
]


@pytest.mark.parametrize(("mode", "size", "settings"), BOUNCERS)
def test_pgbouncer_is_refused_unless_it_pools_sessions(
    database: str, closed: ExitStack, opened: Callable[[str], Any], mode: str, size: int, settings: tuple[str, ...]
) -> None:
    pooler = closed.enter_context(closing(PgBouncer(database, mode, size, *settings)))
    assert_refused(pooler.dsn, database, opened)


@pytest.mark.parametrize("settings", [(), ("ignore_startup_parameters = options",)])
def test_pgbouncer_that_pools_sessions_is_used_with_all_settings(
    database: str, closed: ExitStack, opened: Callable[[str], Any], settings: tuple[str, ...]
) -> None:
    pooler = closed.enter_context(closing(PgBouncer(database, "session", 20, *settings)))
    authority = opened(pooler.dsn)
    shown = authority._connections.run(
        lambda connection: connection.execute("SELECT current_setting('statement_timeout') AS now").fetchone()["now"]
    )
    assert shown == "15s"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: authority.admit([asking(f"k{number}")]), range(40)))
    commit(authority, ready(claim_one(authority)))
    assert authority.run(hex32("k3")) is not None


def test_pgbouncer_with_too_few_server_connections_is_refused(
    database: str, closed: ExitStack, opened: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenario_runner.authority.postgres_session._ANSWER_SECONDS", 0.3)
    pooler = closed.enter_context(closing(PgBouncer(database, "session", 2)))
    assert_refused(pooler.dsn, database, opened)


def test_a_pooler_that_has_no_server_connection_at_all_is_unavailable_soon(
    database: str, closed: ExitStack, opened: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenario_runner.authority.postgres_session._ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(
        "scenario_runner.authority.postgres_pool._RETRY", RetryPolicy(0.01, 0.02, deadline_seconds=0.05)
    )
    pooler = closed.enter_context(closing(PgBouncer(database, "session", 1)))
    with closing(psycopg.connect(pooler.dsn, autocommit=True)) as other:
        other.execute("SELECT 1")
        with pytest.raises(Unavailable):
            opened(pooler.dsn)


@pytest.mark.parametrize("settings", [(), ("ignore_startup_parameters = options",)])
def test_options_that_a_pooler_refuses_or_drops_are_told_with_the_remedy(
    database: str, closed: ExitStack, opened: Callable[[str], Any], settings: tuple[str, ...]
) -> None:
    pooler = closed.enter_context(closing(PgBouncer(database, "session", 20, *settings)))
    with pytest.raises(ConfigurationError, match="options") as refused:
        opened(with_parameters(pooler.dsn, options="-csearch_path=mine"))
    assert "leave 'options' out of the DSN" in refused.value.remedy
    assert tables(database) == 0


@pytest.mark.parametrize(("mode", "code"), [("transaction", 2), ("session", 0)])
def test_serve_and_doctor_refuse_a_pooler_by_their_exit_code(
    database: str, closed: ExitStack, world: World, mode: str, code: int
) -> None:
    pooler = closed.enter_context(closing(PgBouncer(database, mode, 20, "ignore_startup_parameters = options")))
    world.write_profiles(authority_store_dsn=pooler.dsn)
    assert world.command("doctor", "--wiring", str(world.wiring), "--policy", str(world.policy)).returncode == code
    drained = world.serve()
    assert drained.returncode == code, drained.stderr
    assert (b"pool_mode = session" in drained.stderr) is (code == 2)
