"""Connections to PostgreSQL: pooled, checked once, replaced when they break.

Work that is handed in must be safe to run again: whatever a lost connection leaves unknown, also during a commit, is
answered by running it again on a new one. That goes on for a few seconds; then the caller is told ``Unavailable`` and
decides how long to wait. Of the driver's errors only those that lie in a value leave this module.
"""

import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

import psycopg
from psycopg import errors
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from scenario_runner.authority.postgres_dsn import PostgresDsn
from scenario_runner.authority.statements import load_statements
from scenario_runner.contracts.errors import ConfigurationError, Unavailable, in_short
from scenario_runner.counters import count
from scenario_runner.retry import policy

T = TypeVar("T")
Connection = psycopg.Connection[dict[str, Any]]
_MOST_CONNECTIONS: Final = 8
_WAIT_SECONDS: Final = 2.0
_BUDGET_SECONDS: Final = 3.0
_RECONNECT_SECONDS: Final = 1.0
"""The pool gives up a connection after this time and tries anew whenever somebody asks; its own pauses would grow."""

_OLDEST_SERVER: Final = 130_000
_DURABLE: Final = ("on", "remote_apply")
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

_LASTING_SIGNS: Final = ("authentication failed", "no pg_hba.conf entry", "does not exist")
"""Refusals of a connection have no code, only a text."""

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
    ("does not exist", "correct the DSN, or make what it names; tables that were dropped come back with a backup only"),
    ("Connection refused", "check that the server runs, and host and port of the DSN"),
    ("could not translate host name", "check the host of the DSN"),
)


def is_transient(error: BaseException) -> bool:
    """True for an error after which the same work may be tried again."""
    if not isinstance(error, _TRANSIENT) or isinstance(error, _LASTING):
        return False
    said = str(error)
    return not any(sign in said for sign in _LASTING_SIGNS)


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
        _quiet_driver()
        self._patiently(self._first, prepare)
        self._pool = ConnectionPool(
            connection_class=psycopg.Connection[dict[str, Any]],
            kwargs=self._arguments(),
            min_size=1,
            max_size=_MOST_CONNECTIONS,
            timeout=_WAIT_SECONDS,
            reconnect_timeout=_RECONNECT_SECONDS,
            num_workers=1,
            open=True,
        )

    def run(self, work: Callable[[Connection], T], raising: tuple[type[psycopg.Error], ...] = ()) -> T:
        """Run work on a connection, again when the connection or the server fails meanwhile.

        Args:
            work: Safe to run again, also when it has been committed already.
            raising: More errors that the caller has an answer to.

        Raises:
            psycopg.Error: a value cannot be stored, by anybody (one of ``UNSTORABLE``), or one of ``raising``.
            Unavailable: the database does not answer, or refuses for another reason.
        """
        return self._patiently(self._once, work, raising)

    def close(self) -> None:
        """Close all connections; what is asked for afterwards is ``Unavailable``."""
        self._pool.close()

    def _patiently(
        self,
        call: Callable[[Callable[[Connection], T]], T],
        work: Callable[[Connection], T],
        raising: tuple[type[psycopg.Error], ...] = (),
    ) -> T:
        try:
            try:
                return call(work)  # without the policy, which costs more than most statements
            except psycopg.Error as error:
                if not is_transient(error):
                    raise
            return policy(is_transient, budget_seconds=_BUDGET_SECONDS, most_seconds=0.5)(call, work)
        except psycopg.Error as error:
            if isinstance(error, UNSTORABLE + raising):
                raise
            raise self._told(error) from None

    def _once(self, work: Callable[[Connection], T]) -> T:
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
        connection = self._connect()
        try:
            self._check(connection)
            prepare(connection)
        finally:
            connection.close()

    def _check(self, connection: Connection) -> None:
        """Refuse a server on which a commit would be no promise, or whose texts are not ours."""
        version = connection.info.server_version
        if version < _OLDEST_SERVER:
            raise ConfigurationError(self._dsn.place, f"the server is version {version}", "use PostgreSQL 13 or newer")
        facts = connection.execute(load_statements("postgres")["session_facts"].encode()).fetchone()
        assert facts is not None
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

    # --- telling

    def _told(self, error: psycopg.Error) -> Unavailable:
        if isinstance(error, PoolClosed):
            return Unavailable("the authority is closed")
        if isinstance(error, PoolTimeout):
            error = self._why_none() or error
        said = in_short(self._dsn.redacted(error)) or type(error).__name__
        hint = _hint(said)
        return Unavailable(f"{self._dsn.name} does not answer: {said}" + (f"; {hint}" if hint else ""))

    def _why_none(self) -> psycopg.Error | None:
        """Why the pool has no connection to give: it does not say itself."""
        try:
            self._connect().close()
        except psycopg.Error as error:
            return error
        return None


def _hint(said: str) -> str:
    return next((hint for sign, hint in _HINTS if sign in said), "")


def _quiet_driver() -> None:
    """Keep the driver's own warnings off stderr, where only JSON lines go; whoever configures logging gets them."""
    logger = logging.getLogger("psycopg")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
