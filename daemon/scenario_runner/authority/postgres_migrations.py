"""Bringing a PostgreSQL schema up to date: under a lock, in one transaction, by any number of processes at once."""

from collections.abc import Callable, Sequence
from typing import Final

from psycopg import errors

from scenario_runner.authority.postgres_dsn import PostgresDsn
from scenario_runner.authority.postgres_session import Connection
from scenario_runner.authority.rows import Row
from scenario_runner.authority.statements import load_migrations, load_statements
from scenario_runner.contracts.errors import ConfigurationError

_FOREIGN: Final = (errors.UndefinedColumn, errors.DuplicateTable, errors.DuplicateFunction, errors.DuplicateObject)


def migrate(connection: Connection, dsn: PostgresDsn) -> None:
    """Apply the migrations that a database does not have yet.

    Args:
        connection: In autocommit.
        dsn: Where it leads, for messages.

    Raises:
        ConfigurationError: the database was made by a newer release, or holds another application's tables.
        psycopg.errors.LockNotAvailable: a statement of another process keeps a table; nothing was changed.
    """
    sql = {name: text.encode() for name, text in load_statements("postgres").items()}
    try:
        if _version(connection, sql) == load_migrations("postgres")[-1][0]:
            return
        with connection.transaction():
            connection.execute(sql["unbound_migrations"])  # a migration takes the time that it takes
            connection.execute(sql["lock_migrations"])  # for as long as another process migrates
            connection.execute(sql["bound_locks_of_migrations"])
            _apply(connection, sql, dsn)
    except _FOREIGN:
        raise ConfigurationError(
            dsn.place,
            "the schema holds tables of another application, or a part of ours",
            "use a database of its own, or a schema of its own (options=-csearch_path=...)",
        ) from None


def is_outdated(query: Callable[[str], Sequence[Row]], dsn: PostgresDsn) -> bool:
    """Whether a database lacks migrations of this release.

    Args:
        query: Rows of a named statement.
        dsn: Where it leads, for messages.

    Raises:
        ConfigurationError: the database was made by a newer release.
    """
    version = int(query("schema_version")[0]["number"]) if query("any_migrations")[0]["found"] else 0
    newest = load_migrations("postgres")[-1][0]
    if version > newest:
        raise _too_new(version, newest, dsn)
    return version < newest


def _too_new(version: int, newest: int, dsn: PostgresDsn) -> ConfigurationError:
    return ConfigurationError(
        dsn.place, f"its schema is version {version}, this release knows {newest}", "install the newer release"
    )


def _version(connection: Connection, sql: dict[str, bytes]) -> int:
    row = connection.execute(sql["any_migrations"]).fetchone()
    if row is None or not row["found"]:
        return 0
    row = connection.execute(sql["schema_version"]).fetchone()
    return int(row["number"]) if row is not None else 0


def _apply(connection: Connection, sql: dict[str, bytes], dsn: PostgresDsn) -> None:
    version, migrations = _version(connection, sql), load_migrations("postgres")
    if version > migrations[-1][0]:
        raise _too_new(version, migrations[-1][0], dsn)
    for number, name, text in migrations:
        if number > version:
            connection.execute(text.encode())
            connection.execute(sql["insert_migration"], {"number": number, "name": name})
