"""Retention on PostgreSQL: each batch is one statement. Rows that are locked are left to a later batch."""

from typing import Final

from typing_extensions import override

from scenario_runner.authority.queries import Queries
from scenario_runner.authority.retention import Expiry, Kind, Removal, removal_of

_STATEMENTS: Final = {
    Kind.INTAKE_RECORDS: "remove_intake_records",
    Kind.DEAD_LETTER_RAW: "remove_dead_letter_raw",
    Kind.OUTBOX_SENT: "remove_outbox_sent",
    Kind.DIGEST_REUSE: "remove_digest_reuse",
}


class PostgresRetention(Queries):
    """The part of the production authority that removes what has expired."""

    @override
    def remove_expired(self, expiry: Expiry, after: int, limit: int, action_key: str) -> Removal:
        (row,) = self._query(
            _STATEMENTS[expiry.kind], **expiry.parameters(), after=after, limit=limit, action_key=action_key
        )
        return removal_of(row, limit, row["removed"])
