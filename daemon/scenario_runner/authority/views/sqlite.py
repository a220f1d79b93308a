"""Views on the embedded authority: the file is opened for reading only, and must be the one that is at its path."""

import sqlite3
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
from typing_extensions import override

from scenario_runner.authority.sqlite import translating_errors
from scenario_runner.authority.sqlite_files import DatabaseFiles
from scenario_runner.authority.sqlite_migrations import is_outdated
from scenario_runner.authority.views.base import Views
from scenario_runner.authority.views.statements import statement
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.storage.modes import PRIVATE

#: A writer holds the lock that a reader waits for only while a log is begun anew or recovered.
_BUSY_SECONDS: Final = 5.0
#: A look that takes longer is ended: it reads what no index serves.
_MOST_SECONDS: Final = 10.0
#: Steps of SQLite's machine between two looks at the clock: about a millisecond.
_STEPS: Final = 20_000


class SqliteViews(Views):
    """Views on a file of this host.

    Args:
        path: The database; it is not created.
        most_seconds: A look that takes longer is ended.

    Raises:
        ConfigurationError: a newer release made it.
        Unavailable: it cannot be opened.
    """

    def __init__(self, path: str, most_seconds: float = _MOST_SECONDS) -> None:
        self._path, self._most_seconds = path, most_seconds
        self._files = DatabaseFiles(path, PRIVATE)
        self._files.remember()
        self._began = 0.0
        with translating_errors(path):
            self._connection = sqlite3.connect(
                f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
            )
            try:
                self._outdated = self._set_up()
            except BaseException:
                self._connection.close()
                raise

    def _set_up(self) -> bool:
        connection = self._connection
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA query_only = ON")
        self._files.check_database()  # it may have been replaced just before it was opened
        connection.set_progress_handler(self._took_too_long, _STEPS)
        return is_outdated(connection, self._path)

    def _took_too_long(self) -> bool:
        return self._began > 0 and time.monotonic() - self._began > self._most_seconds

    @property
    @override
    def outdated(self) -> bool:
        return self._outdated

    @override
    def _rows(self, name: str, terms: Collection[str] = (), /, **parameters: Any) -> list[sqlite3.Row]:
        self._files.check_database()
        self._began = time.monotonic()
        try:
            with translating_errors(self._path):
                return self._connection.execute(statement("sqlite", name, terms), parameters).fetchall()
        except Unavailable as error:
            if self._took_too_long():
                raise Unavailable(
                    f"the look took longer than {self._most_seconds:g} s; ask for less: another state, a reason or time"
                ) from error
            raise
        finally:
            self._began = 0.0

    @override
    def _many(self, texts: Sequence[str]) -> str:
        return orjson.dumps(list(texts)).decode()

    @override
    def close(self) -> None:
        self._connection.close()
