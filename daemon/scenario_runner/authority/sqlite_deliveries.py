"""Deliveries of the embedded authority: documents and signals that are claimed, delivered, or postponed."""

import sqlite3
from collections.abc import Sequence

import orjson
from typing_extensions import override

from scenario_runner.authority.queries import projection_tasks
from scenario_runner.authority.rows import QUIET_PERIOD_US, outbox_row, shortened
from scenario_runner.authority.sqlite_reemits import SqliteReemits, claimed_columns
from scenario_runner.authority.values import OutboxRow, ProjectionFailure, ProjectionTask, Sent


class SqliteDeliveries(SqliteReemits):
    """The part of the embedded authority that the relay asks; the rest of it provides the abstract methods."""

    @override
    def claim_projections(self, owner: str, limit: int, lease_us: int, only: str = "") -> list[ProjectionTask]:
        statement = self._sql["claim_unprojected_only" if only else "claim_unprojected"]
        parameters = {"owner": owner, "limit": limit, "lease_us": lease_us, "quiet_us": QUIET_PERIOD_US, "only": only}

        def operation(connection: sqlite3.Connection) -> list[sqlite3.Row]:
            return connection.execute(statement, {**parameters, "now": self._clock()}).fetchall()

        owed = self._query("any_unprojected_only" if only else "any_unprojected", only=only)[0]["owed"]
        rows = self._work(operation) if owed else []
        if not rows:
            return []
        run_ids = orjson.dumps([row["run_id"] for row in rows]).decode()
        return projection_tasks(rows, self._query("events_of_runs", run_ids=run_ids))

    @override
    def mark_projected(self, owner: str, done: Sequence[tuple[str, int]]) -> None:
        rows = [{"run_id": run_id, "seq": seq, "owner": owner} for run_id, seq in done]
        self._write(lambda c: c.executemany(self._sql["mark_projected"], rows).rowcount)

    @override
    def postpone_projections(self, owner: str, failures: Sequence[ProjectionFailure]) -> None:
        now = self._clock()
        rows = [
            {
                "run_id": item.run_id, "until_us": item.until_us, "error": shortened(item.error), "now": now,
                "owner": owner,
            }
            for item in failures
        ]  # fmt: skip
        self._write(lambda c: c.executemany(self._sql["postpone_projection"], rows).rowcount)

    @override
    def resume_deliveries(self) -> int:
        parameters = {"now": self._clock()}
        return self._write(
            lambda c: sum(c.execute(self._sql[name], parameters).rowcount for name in ("resume_runs", "resume_signals"))
        )

    @override
    def claim_signals(self, owner: str, limit: int, lease_us: int, only: str = "") -> list[OutboxRow]:
        statement = self._sql["claim_signals_only" if only else "claim_signals"]
        parameters = {"owner": owner, "limit": limit, "lease_us": lease_us, "only": only}

        def operation(connection: sqlite3.Connection) -> list[sqlite3.Row]:
            return connection.execute(statement, {**parameters, "now": self._clock()}).fetchall()

        owed = self._query("any_unsent_only" if only else "any_unsent", now=self._clock(), only=only)[0]["owed"]
        rows = sorted(self._write(operation) if owed else [], key=lambda row: int(row["outbox_id"]))
        return [outbox_row(row) for row in rows]

    @override
    def mark_sent(self, sent: Sequence[Sent]) -> None:
        def operation(connection: sqlite3.Connection) -> None:
            for item in sent:
                self._mark_sent(connection, item, self._clock())

        self._write(operation)

    def _mark_sent(self, connection: sqlite3.Connection, item: Sent, now: int) -> None:
        parameters = {**claimed_columns(item.row), "receipt": item.receipt, "now": now}
        marked = connection.execute(self._sql["mark_sent"], parameters).fetchone()
        if marked is not None and item.event is not None:
            self._grow_now(connection, marked["run_id"], now, [item.event])

    @override
    def postpone_signals(self, rows: Sequence[OutboxRow], due_us: int) -> None:
        found = [{**claimed_columns(row), "due_us": due_us} for row in rows]
        self._write(lambda c: c.executemany(self._sql["postpone_signal"], found).rowcount)
