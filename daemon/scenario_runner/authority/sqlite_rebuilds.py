"""Rebuilding the embedded authority from the ledger, batch by batch."""

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from typing_extensions import override

from scenario_runner.authority.observed import DaemonRow, daemon_row
from scenario_runner.authority.rebuilds import (
    SEEN_US,
    NotStorableError,
    RebuildEnd,
    RestoredRun,
    RestoredSignal,
    UnfinishedRebuild,
)
from scenario_runner.authority.rows import action_columns, searchable, storable, storable_attempt
from scenario_runner.authority.sqlite_reemits import SqliteReemits
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import SequenceError, in_short

#: Errors that lie in a value: of the driver, of a number and of a text. Another one is a defect, or a lack of memory.
_UNSTORABLE: Final = (
    sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, OverflowError, UnicodeError, SequenceError,
)  # fmt: skip


class SqliteRebuilds(SqliteReemits):
    """The part of the embedded authority that is rebuilt."""

    @override
    def begin_rebuild(self, actor: str, terms: str) -> UnfinishedRebuild | None:
        given = {"actor": storable(actor), "terms": storable(terms), "within_us": SEEN_US}
        parameters = {"now": self._clock(), **given}
        self._write(lambda connection: connection.execute(self._sql["begin_rebuild"], parameters).rowcount)
        return self.unfinished_rebuild()

    @override
    def daemons_seen(self, within_us: int) -> list[DaemonRow]:
        return [daemon_row(row) for row in self._query("daemons_seen", now=self._clock(), within_us=within_us)]

    @override
    def restore(self, runs: Sequence[RestoredRun], epoch: int, end: RebuildEnd | None = None) -> set[str]:
        def operation(connection: sqlite3.Connection) -> set[str]:
            run_ids = self._list([run.run_id for run in runs])
            known = {row[0] for row in connection.execute(self._sql["known_runs"], {"run_ids": run_ids})}
            mark = connection.execute(self._sql["get_rebuild"]).fetchone()
            if mark is not None and mark["epoch"] == epoch:  # else another process has ended the rebuild
                try:
                    self._restore_rows(connection, [run for run in runs if run.run_id not in known], epoch)
                except _UNSTORABLE as error:
                    raise NotStorableError(in_short(error)) from error
                if end is not None:
                    self._end_rebuild(connection, end)
            found = {"run_ids": run_ids, "epoch": epoch}
            return {row[0] for row in connection.execute(self._sql["restored_runs"], found)}

        return self._write(operation)

    def _restore_rows(self, connection: sqlite3.Connection, runs: Sequence[RestoredRun], epoch: int) -> None:
        rows: dict[str, list[Any]] = {
            "restore_run": [_run(run, epoch) for run in runs],
            "insert_event": [
                {"run_id": run.run_id, "seq": seq, "kind": kind, "ts_us": ts_us, "details": details}
                for run in runs for seq, kind, ts_us, details in run.events
            ],
            "put_attempt": [
                {"run_id": run.run_id, "epoch": epoch, **asdict(storable_attempt(attempt))}
                for run in runs for attempt in run.attempts
            ],
            "restore_signal": [_signal(run, signal) for run in runs for signal in run.signals],
            "insert_action": [
                {**action_columns(action), "at": action.at_us} for run in runs for action in run.actions
            ],
        }  # fmt: skip
        for name, parameters in rows.items():
            connection.executemany(self._sql[name], parameters)

    def _end_rebuild(self, connection: sqlite3.Connection, end: RebuildEnd) -> None:
        now = self._clock()
        connection.execute(self._sql["end_rebuild"])
        connection.execute(self._sql["insert_action"], {**action_columns(end.action), "at": now})
        identities = [{"name": name, "identity": identity, "now": now} for name, identity in end.identities]
        connection.executemany(self._sql["adopt_identity"], identities)


def _run(run: RestoredRun, epoch: int) -> dict[str, Any]:
    return {
        "run_id": run.run_id, "run_equivalence_key": run.run_equivalence_key, "fingerprint": run.fingerprint,
        "intent": run.intent, "inputs": run.inputs, "state": run.state.value,
        "reason_code": run.reason_code, "admitted_us": run.admitted_us, "deadline_us": run.deadline_us,
        "updated_us": run.updated_us, "due_us": run.due_us, "epoch": epoch, "report_digest": run.report_digest,
        "event_seq": len(run.events), "projected_seq": run.projected_seq, "facts_view_digest": run.facts_view_digest,
        "invoker": run.invoker, "attempts": len(run.attempts), "strategy": run.strategy,
        "missing": searchable(run.missing), "supersedes": run.supersedes, "supersession": run.supersession_text,
    }  # fmt: skip


def _signal(run: RestoredRun, signal: RestoredSignal) -> dict[str, Any]:
    draft = signal.draft
    return {
        "message_id": draft.message_id, "emission": signal.emission, "run_id": run.run_id, "kind": draft.kind.value,
        "partition_key": draft.partition_key, "attributes": canonical_bytes(draft.attributes),
        "payload": draft.payload, "created_us": signal.created_us, "needs_seq": signal.needs_seq,
        "sent_us": signal.sent_us, "receipt": signal.receipt, "action_key": signal.action_key,
        "removed_emission": signal.removed_emission,
    }  # fmt: skip
