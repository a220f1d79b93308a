"""Sessions of PostgreSQL: what makes a connection one, and the proof that a session is nobody else's.

SR relies on its sessions: on their settings, and on statements that are prepared once and executed by name. A pooler in
transaction or statement mode sends every transaction to any of its server connections, where other settings hold and
other clients' statements have the same names. So every new connection is marked, set up, and read back in a transaction
of its own, and at start-up a few connections take turns, which shows whether they share sessions
(:func:`proven_session`).

Names of prepared statements are unique. If a session is lost later, the server answers that it has no statement of this
name (``SESSION_LOST``), instead of executing another client's.
"""

import secrets
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import errors

from scenario_runner.authority.postgres_dsn import PostgresDsn
from scenario_runner.authority.statements import load_statements
from scenario_runner.contracts.errors import ConfigurationError

Connection = psycopg.Connection[dict[str, Any]]

SESSION_LOST: Final = (errors.InvalidSqlStatementName, errors.DuplicatePreparedStatement)
"""Errors that show that a session is not, or not only, ours."""

_NO_OPTIONS: Final = (
    "leave 'options' out of the DSN and unset PGOPTIONS (a search_path can be set with ALTER ROLE ... SET), or "
    "connect to PostgreSQL itself"
)
POOLER_REFUSALS: Final = (
    ("unsupported startup parameter", _NO_OPTIONS),
    ("statement pooling mode", "use pool_mode = session, or connect to PostgreSQL itself"),
)
"""Texts of a pooler that cannot give a session, each with the remedy; poolers have no error codes of their own."""

_REMEDY: Final = (
    "let the pooler use pool_mode = session for this database, with at least 8 server connections for each process, or "
    "connect to PostgreSQL itself"
)
_PROVING: Final = 3
"""Sessions that take turns at start-up: with fewer, a pooler with two server connections would look like sessions."""

_ANSWER_SECONDS: Final = 2.0
"""After this time without an answer, a session is assumed to wait for another connection of ours, or of the pooler.
The statements that are asked take a millisecond."""

#: Random names of prepared statements start below this, so that two sessions practically never share one.
_NAMES: Final = 1 << 60


@dataclass(frozen=True)
class Session:
    """A connection that was set up and marked.

    Attributes:
        backend: Its server process, by id and start time: an id alone may come again.
    """

    connection: Connection
    dsn: PostgresDsn
    marker: str
    backend: str

    def check(self, others: Collection[Connection] = ()) -> dict[str, Any]:
        """Read the session back, in a transaction of its own unless one is open.

        Args:
            others: Connections that are closed when no answer comes: then it waits for one of them.

        Returns:
            What the session says about its server.

        Raises:
            ConfigurationError: another session answers.
            psycopg.Error: no session answers.
        """
        facts = _ask(self.connection, "session_facts", _settings(self.dsn), others)
        if facts["marker"] != self.marker or facts["backend"] != self.backend or facts["lost"]:
            raise not_a_session(self.dsn)
        return facts


def not_a_session(dsn: PostgresDsn) -> ConfigurationError:
    """The refusal of a DSN that leads to sessions that are not only ours."""
    return ConfigurationError(
        dsn.place,
        "it leads to a pooler that shares server connections between its clients (transaction or statement pooling) or "
        "has too few of them: settings and statements of a session would be another client's",
        _REMEDY,
    )


def open_session(connection: Connection, dsn: PostgresDsn, others: Collection[Connection] = ()) -> Session:
    """Set a new connection up, and make sure that it stays so from one transaction to the next.

    Raises:
        ConfigurationError: settings do not reach the server, or do not stay.
        psycopg.Error: the server does not answer.
    """
    connection._prepared._prepared_idx = secrets.randbelow(_NAMES)  # noqa: SLF001 - names that nobody else has
    marker = secrets.token_hex(16)
    begun = _ask(connection, "begin_session", {"marker": marker, **_settings(dsn)}, others)
    session = Session(connection, dsn, marker, begun["backend"])
    session.check(others)
    if dsn.option_names:
        _check_options(session, others)
    return session


def _check_options(session: Session, others: Collection[Connection]) -> None:
    dsn = session.dsn
    dropped = _ask(session.connection, "dropped_options", {"names": dsn.option_names}, others)["dropped"]
    if dropped:
        raise ConfigurationError(
            dsn.place,
            f"its options do not reach the server: a pooler drops {', '.join(dropped)} (ignore_startup_parameters)",
            _NO_OPTIONS,
        )


@contextmanager
def proven_session(connect: Callable[[], Connection], dsn: PostgresDsn) -> Iterator[Session]:
    """A session, after it was proven that connections are sessions.

    The proof: several clients take turns, one of them in an open transaction. A pooler that shares server connections
    cannot hide it, in whatever order it assigns them. Two clients get the same server process (last in, first out; or
    there is only one); or a client changes its process (first in, first out; or other clients take part); or a client
    waits until another's transaction ends (there are fewer processes than clients). Each of the three is detected.

    Raises:
        ConfigurationError: connections are not sessions.
        psycopg.Error: the server does not answer, or too slowly to tell.
    """
    with ExitStack() as stack:
        sessions: list[Session] = []
        for _ in range(_PROVING):
            connection = stack.enter_context(closing(connect()))
            session = open_session(connection, dsn, [earlier.connection for earlier in sessions])
            if any(earlier.backend == session.backend for earlier in sessions):
                raise not_a_session(dsn)
            sessions.append(session)
        for holder in sessions:
            _take_turns(holder, *(session for session in sessions if session is not holder))
        for session in sessions[1:]:
            session.connection.close()
        yield sessions[0]


def _take_turns(holder: Session, one: Session, other: Session) -> None:
    with holder.connection.transaction():
        holder.check()
        for session in (one, other, other, one):
            session.check([holder.connection])
    holder.check()


def _settings(dsn: PostgresDsn) -> dict[str, Any]:
    return {"names": list(dsn.settings), "values": list(dsn.settings.values())}


def _ask(
    connection: Connection, name: str, parameters: dict[str, Any], others: Collection[Connection]
) -> dict[str, Any]:
    with _with_deadline(connection, others):
        row = connection.execute(load_statements("postgres")[name].encode(), parameters, prepare=False).fetchone()
    assert row is not None
    return row


@contextmanager
def _with_deadline(connection: Connection, others: Collection[Connection]) -> Iterator[None]:
    """When the block takes too long, close the other connections, and then the connection itself.

    A pooler that has no server connection to give does not answer, and no timeout of the server applies.
    """
    done = threading.Event()

    def watch() -> None:
        if done.wait(_ANSWER_SECONDS):
            return
        for other in others:
            with suppress(psycopg.Error):
                other.close()
        if not done.wait(_ANSWER_SECONDS if others else 0.0):
            _cut(connection)

    thread = threading.Thread(target=watch, name="session-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _cut(connection: Connection) -> None:
    """End a connection; the thread that waits for its answer gets an error."""
    with suppress(OSError, psycopg.Error):
        descriptor = socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        with descriptor:
            descriptor.shutdown(socket.SHUT_RDWR)
