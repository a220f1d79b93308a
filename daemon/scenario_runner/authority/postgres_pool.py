"""Connections to PostgreSQL: pooled, checked once, replaced when they break.

Work must be safe to run again: when a connection is lost, also during a commit, the work runs again on a new one, for
a few seconds. After that ``Unavailable`` is raised, and the caller decides how long to wait. Of the driver's errors
only those that lie in a value leave this module.
"""

import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

import psycopg
from psycopg import errors
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from scenario_runner.authority.postgres_dsn import PostgresDsn
from scenario_runner.authority.postgres_session import (
    POOLER_REFUSALS,
    SESSION_LOST,
    Connection,
    Session,
    not_a_session,
    open_session,
    proven_session,
)
from scenario_runner.contracts.errors import ConfigurationError, ScenarioRunnerError, Unavailable, in_short
from scenario_runner.counters import count
from scenario_runner.retry import RetryPolicy, with_retries

T = TypeVar("T")
#: Connections of one process. It has some ten threads, few of which wait for the database at the same moment; a server
#: allows 100 connections by default, enough for twelve processes.
_MOST_CONNECTIONS: Final = 8
#: How long a thread waits for a connection of the pool. Statements take milliseconds: a longer wait means an outage.
_WAIT_SECONDS: Final = 2.0
#: The deadline is about the time of a server's restart, or of a failover that succeeds at once. Loops of the daemon try
#: again after longer outages; commands should not seem to hang. The longest pause lets several tries fit into it.
_RETRY: Final = RetryPolicy(first_seconds=0.05, most_seconds=0.5, jitter=True, deadline_seconds=3.0)
_RECONNECT_SECONDS: Final = 1.0
"""The pool gives up a connection after this time and tries anew whenever somebody asks; its own pauses would grow."""

#: PostgreSQL 13, the oldest release that is tested.
_OLDEST_SERVER: Final = 130_000
#: Values of ``synchronous_commit`` under which an answered commit survives a crash of the server.
_DURABLE: Final = ("on", "remote_apply")
#: Errors after which the same work may succeed; ``_LASTING`` are those of their subclasses, or of others, that stay.
_TRANSIENT: Final = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    errors.ReadOnlySqlTransaction,
    errors.IdleInTransactionSessionTimeout,
)
_LASTING: Final = (
    PoolClosed,
    errors.ProgramLimitExceeded,
    errors.InsufficientPrivilege,
    errors.InvalidAuthorizationSpecification,
    errors.QueryCanceled,
)
UNSTORABLE: Final = (psycopg.DataError, errors.ProgramLimitExceeded)
"""Errors that lie in a value and come again with it, whoever stores it."""

_LASTING_SIGNS: Final = (
    "authentication failed",
    "no pg_hba.conf entry",
    "does not exist",
    *(sign for sign, _ in POOLER_REFUSALS),
)
"""Texts of refusals that stay: a refused connection has no error code."""

#: What to do, by a part of the server's text.
_HINTS: Final = (
    ("authentication failed", "check user and password of the DSN, and pg_hba.conf"),
    ("no pg_hba.conf entry", "check pg_hba.conf, and whether the server wants TLS (sslmode)"),
    ("too many", "raise max_connections, or run fewer processes: each takes up to 8 connections"),
    ("remaining connection slots", "raise max_connections, or run fewer processes: each takes up to 8 connections"),
    ("read-only transaction", "it is a standby or set read-only: connect to the primary"),
    ("permission denied", "grant the user the right to use, and at first to create, the tables of its schema"),
    ("statement timeout", "the server is overloaded, or the statement_timeout of the DSN is too short"),
    ("lock timeout", "another session holds locks for long; look for it in pg_stat_activity"),
    ("starting up", "wait until the server has started"),
    ("shutting down", "wait until the server has restarted"),
    ("does not support SSL", "check sslmode of the DSN, and whether the server has TLS switched on"),
    ("certificate", "check sslmode and sslrootcert of the DSN"),
    ("query_wait_timeout", "the pooler has no server connection left: allow at least 8 for each process of SR"),
    ("max_client_conn", "the pooler takes no more clients: raise max_client_conn, each process takes up to 8"),
    ("does not exist", "correct the DSN, or make what it names; tables that were dropped come back with a backup only"),
    ("Connection refused", "check that the server runs, and host and port of the DSN"),
    ("could not translate host name", "check the host of the DSN"),
)


def is_transient(error: BaseException) -> bool:
    """True for an error after which the same work may be tried again."""
    if not isinstance(error, _TRANSIENT) or isinstance(error, _LASTING):
        return False
    text = str(error)
    return not any(sign in text for sign in _LASTING_SIGNS)


def patiently(call: Callable[[], T]) -> T:
    """Call something again while the connection or the server fails, for a few seconds.

    Raises:
        psycopg.Error: it goes on failing, or for another reason.
    """
    return with_retries(call, _RETRY, is_transient)


def translated(error: psycopg.Error, dsn: PostgresDsn) -> ScenarioRunnerError:
    """The error of ours for one of the driver's."""
    text = in_short(dsn.redacted(error)) or type(error).__name__
    remedy = next((remedy for sign, remedy in POOLER_REFUSALS if sign in text), "")
    if remedy:
        return ConfigurationError(dsn.place, f"a pooler refuses what SR needs: {text}", remedy)
    hint = _hint(text)
    return Unavailable(f"{dsn.name} does not answer: {text}" + (f"; {hint}" if hint else ""))


class Connections:
    """A pool that work is run in.

    Args:
        dsn: Where to connect to.
        prepare: Called once with a first connection, e.g. to bring the schema up to date.

    Raises:
        ConfigurationError: the database cannot be used as it is set up.
        Unavailable: it cannot be reached.
    """

    def __init__(self, dsn: PostgresDsn, prepare: Callable[[Connection], None]) -> None:
        self._dsn = dsn
        self._refused: ConfigurationError | None = None
        self._sessions: list[Session] = []
        quiet_driver()
        self._with_retries(self._first, prepare)
        self._pool = ConnectionPool(
            connection_class=psycopg.Connection[dict[str, Any]],
            kwargs=self._arguments(),
            min_size=1,
            max_size=_MOST_CONNECTIONS,
            timeout=_WAIT_SECONDS,
            reconnect_timeout=_RECONNECT_SECONDS,
            num_workers=1,
            configure=self._configure,
            open=True,
        )

    def run(self, work: Callable[[Connection], T], raising: tuple[type[psycopg.Error], ...] = ()) -> T:
        """Run work on a connection, again when the connection or the server fails meanwhile.

        Args:
            work: Safe to run again, also when it has been committed already.
            raising: More errors that the caller has an answer to.

        Raises:
            psycopg.Error: a value cannot be stored, by anybody (one of ``UNSTORABLE``), or one of ``raising``.
            ConfigurationError: sessions are not ours any more: a pooler was put in the way, or set up otherwise.
            Unavailable: the database does not answer, or refuses for another reason.
        """
        return self._with_retries(self._once, work, raising)

    def close(self) -> None:
        """Close all connections; work that is run afterwards raises ``Unavailable``."""
        self._pool.close()

    def _with_retries(
        self,
        call: Callable[[Callable[[Connection], T]], T],
        work: Callable[[Connection], T],
        raising: tuple[type[psycopg.Error], ...] = (),
    ) -> T:
        try:
            return patiently(lambda: call(work))
        except psycopg.Error as error:
            if isinstance(error, UNSTORABLE + raising):
                raise
            if isinstance(error, SESSION_LOST):
                self._refused = not_a_session(self._dsn)
            raise self._refused or self._translated(error) from None

    def _once(self, work: Callable[[Connection], T]) -> T:
        if self._refused is not None:
            raise self._refused
        connection = self._pool.getconn()
        count("postgres.statements")
        try:
            return work(connection)
        except psycopg.Error as error:
            if isinstance(error, errors.ReadOnlySqlTransaction):
                connection.close()  # the primary has become a standby: look for the new one
            if connection.closed:
                self._pool.drain()  # the others have most likely lost the same server
            raise
        finally:
            self._pool.putconn(connection)

    # --- connecting

    def _arguments(self) -> dict[str, Any]:
        return {**self._dsn.parameters, "autocommit": True, "row_factory": dict_row}

    def _connect(self) -> Connection:
        return psycopg.connect(**self._arguments())

    def _first(self, prepare: Callable[[Connection], None]) -> None:
        with proven_session(self._connect, self._dsn) as session:
            self._check(session)
            prepare(session.connection)

    def _configure(self, connection: Connection) -> None:
        """Open a session on a new connection of the pool; raises when it is one of the other sessions."""
        self._sessions = [session for session in self._sessions if not session.connection.closed]
        try:
            session = open_session(connection, self._dsn)
            if any(other.backend == session.backend for other in self._sessions):
                raise not_a_session(self._dsn)
        except ConfigurationError as error:
            self._refused = error
            raise
        self._sessions.append(session)

    def _check(self, session: Session) -> None:
        """Refuse a server on which a commit would be no promise, or whose texts are not ours."""
        connection, facts = session.connection, session.check()
        version = connection.info.server_version
        if version < _OLDEST_SERVER:
            raise ConfigurationError(self._dsn.place, f"the server is version {version}", "use PostgreSQL 13 or newer")
        if facts["synchronous_commit"] not in _DURABLE:
            raise ConfigurationError(
                self._dsn.place,
                f"synchronous_commit is {facts['synchronous_commit']!r}: a commit would be no promise",
                "leave synchronous_commit out of the DSN's options, or set it to on or remote_apply",
            )
        if facts["server_encoding"] != "UTF8":
            raise ConfigurationError(
                self._dsn.place,
                f"the database's encoding is {facts['server_encoding']}",
                "create the database with ENCODING 'UTF8'",
            )
        if facts["read_only"]:
            raise Unavailable(f"{self._dsn.name} is read-only: {_hint('read-only transaction')}")

    # --- errors

    def _translated(self, error: psycopg.Error) -> ScenarioRunnerError:
        """The error of ours for one of the driver's."""
        if isinstance(error, PoolClosed):
            return Unavailable("the authority is closed")
        if isinstance(error, PoolTimeout):
            error = self._connection_error() or error
        return translated(error, self._dsn)

    def _connection_error(self) -> psycopg.Error | None:
        """The error that a new connection gives; a pool that has none to give does not say why."""
        try:
            self._connect().close()
        except psycopg.Error as error:
            return error
        return None


def _hint(text: str) -> str:
    return next((hint for sign, hint in _HINTS if sign in text), "")


def quiet_driver() -> None:
    """Keep the driver's own warnings off stderr, where only JSON lines go, unless logging is configured."""
    logger = logging.getLogger("psycopg")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
