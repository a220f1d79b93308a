"""Views on the PostgreSQL authority: one connection, and a read-only transaction of its own for each look.

Everything that is set holds for the transaction, so a look does no harm to other clients of a pooler that shares its
connections, and works through one. A standby answers too.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final

import psycopg
from psycopg import errors
from psycopg.rows import dict_row
from typing_extensions import override

from scenario_runner.authority.postgres_dsn import PostgresDsn
from scenario_runner.authority.postgres_migrations import is_outdated
from scenario_runner.authority.postgres_pool import patiently, quiet_driver, translated
from scenario_runner.authority.postgres_session import Connection
from scenario_runner.authority.views.base import Views
from scenario_runner.authority.views.statements import statement
from scenario_runner.contracts.errors import Unavailable

#: A look that takes longer is ended: it reads what no index serves, and holds up the server's cleaning meanwhile.
_MOST_SECONDS: Final = 5.0


class PostgresViews(Views):
    """Views on a server.

    Args:
        dsn: A PostgreSQL URI or ``key=value`` text.
        place: The profile, for messages.
        most_seconds: A look that takes longer is ended.

    Raises:
        ConfigurationError: the DSN is malformed, or a newer release made the database.
        Unavailable: the database cannot be reached.
    """

    def __init__(self, dsn: str, place: str, most_seconds: float = _MOST_SECONDS) -> None:
        self._dsn, self._timeout = PostgresDsn(dsn, place), f"{round(most_seconds * 1000)}ms"
        self._connection: Connection | None = None
        quiet_driver()
        try:
            self._outdated = is_outdated(self._rows, self._dsn)
        except BaseException:
            self.close()
            raise

    @property
    @override
    def outdated(self) -> bool:
        return self._outdated

    @override
    def _rows(self, name: str, terms: Collection[str] = (), /, **parameters: Any) -> list[dict[str, Any]]:
        text = statement("postgres", name, terms).encode()
        try:
            return patiently(lambda: self._look(text, parameters))
        except errors.QueryCanceled:
            raise Unavailable(
                f"the look took longer than {self._timeout}; ask for less: another state, a reason or a time"
            ) from None
        except psycopg.Error as error:
            raise translated(error, self._dsn) from None

    def _look(self, text: bytes, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        connection = self._connected()
        with connection.transaction():
            connection.execute(statement("postgres", "begin_look").encode(), {"timeout": self._timeout})
            return connection.execute(text, parameters, binary=True).fetchall()

    def _connected(self) -> Connection:
        connection = self._connection
        if connection is None or connection.closed:
            connection = psycopg.connect(
                **{**self._dsn.parameters, "application_name": "scenario-runner look"}, row_factory=dict_row,
                prepare_threshold=None,
            )  # fmt: skip
            connection.read_only = True
            self._connection = connection
        return connection

    @override
    def _many(self, texts: Sequence[str]) -> list[str]:
        return list(texts)

    @override
    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
