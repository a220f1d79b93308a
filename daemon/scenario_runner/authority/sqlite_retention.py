"""Retention on the embedded authority. The page of a batch is read without the write lock, and removed under it."""

import sqlite3
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final, TypeVar

from typing_extensions import override

from scenario_runner.authority.queries import Queries
from scenario_runner.authority.retention import Expiry, Kind, Removal, removal_of

T = TypeVar("T")
#: The statement that finds a page, and those that remove it, in their order; the last one says how many rows.
_STATEMENTS: Final = {
    Kind.INTAKE_RECORDS: ("expired_intake_records", "remove_intake_records"),
    Kind.DEAD_LETTER_RAW: ("expired_dead_letter_raw", "empty_dead_letters", "note_emptied_records"),
    Kind.OUTBOX_SENT: ("expired_outbox_sent", "keep_emission_numbers", "remove_outbox_sent"),
    Kind.DIGEST_REUSE: ("expired_digest_reuse", "remove_digest_reuse"),
}


class SqliteRetention(Queries):
    """The part of the embedded authority that removes what has expired; the rest of it provides the abstract method."""

    _sql: dict[str, str]
    _clock: Callable[[], int]

    @abstractmethod
    def _write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run an operation in a transaction."""

    @override
    def remove_expired(self, expiry: Expiry, after: int, limit: int, action_key: str) -> Removal:
        parameters: dict[str, Any] = {**expiry.parameters(), "after": after, "limit": limit}
        finding, *removing = _STATEMENTS[expiry.kind]
        (page,) = self._query(finding, **parameters)
        if page["ids"] == "[]":
            return removal_of(page, limit, 0)
        parameters = {"ids": page["ids"], "now": self._clock()}

        def operation(connection: sqlite3.Connection) -> int:
            removed = 0
            for name in removing:
                removed = connection.execute(self._sql[name], parameters).rowcount
            if removed:
                connection.execute(self._sql["add_to_action"], {"action_key": action_key, "removed": removed})
            return removed

        return removal_of(page, limit, self._write(operation))
