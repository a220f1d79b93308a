"""Bringing a SQLite schema up to date: under the write lock, in one transaction, by any number of processes at once."""

import sqlite3
from collections.abc import Iterator

from scenario_runner.authority.statements import load_migrations
from scenario_runner.contracts.errors import ConfigurationError


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the schema up to date under the write lock; two processes may do so at once.

    Raises:
        ConfigurationError: the database was made by a newer version.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        version, migrations = _version(connection, path), load_migrations("sqlite")
        for number, _, text in migrations:
            if number > version:
                for statement in _split(text):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number:d}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def is_outdated(connection: sqlite3.Connection, path: str) -> bool:
    """Whether a database lacks migrations of this release.

    Raises:
        ConfigurationError: the database was made by a newer version.
    """
    return _version(connection, path) < load_migrations("sqlite")[-1][0]


def _version(connection: sqlite3.Connection, path: str) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    newest = load_migrations("sqlite")[-1][0]
    if version > newest:
        raise ConfigurationError(
            path, f"its schema is version {version}, this release knows {newest}", "install the newer release"
        )
    return version


def _split(text: str) -> Iterator[str]:
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
