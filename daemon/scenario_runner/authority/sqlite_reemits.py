"""Acts of operators on the embedded authority: each decided and written in one transaction, under the write lock."""

import sqlite3
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import orjson
from typing_extensions import override

from scenario_runner.authority.acts import ActionRow, ReemitAct, ReemitAnswer
from scenario_runner.authority.queries import Queries
from scenario_runner.authority.rebuilds import UnfinishedRebuild
from scenario_runner.authority.reemits import (
    ACTION,
    UNCOUNTED,
    decide,
    delivery_event,
    delivery_outcome,
    disposition_of,
    run_facts,
)
from scenario_runner.authority.refusals import request_rejected
from scenario_runner.authority.rows import action_columns, action_row, shortened
from scenario_runner.authority.values import Admission, Event, OutboxRow, ReemitEnd, SignalDraft
from scenario_runner.contracts.states import Disposition

T = TypeVar("T")
_UNCOUNTED: Final = orjson.dumps(UNCOUNTED).decode()


def claimed_columns(row: OutboxRow) -> dict[str, Any]:
    """By what a claimed signal is found: its row, its message, and whose it is."""
    return {
        "outbox_id": row.outbox_id, "message_id": row.message_id, "emission": row.emission, "owner": row.owner,
    }  # fmt: skip


class SqliteReemits(Queries):
    """The part of the embedded authority that repeats signals; the rest of it provides the abstract methods."""

    _sql: dict[str, str]
    _clock: Callable[[], int]

    @abstractmethod
    def _write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run an operation in a transaction."""

    @abstractmethod
    def _append(
        self, connection: sqlite3.Connection, run_id: str, after: int, ts_us: int, events: Sequence[Event]
    ) -> None:
        """Append events to a run's record."""

    @abstractmethod
    def _add_signal(
        self, connection: sqlite3.Connection, signal: SignalDraft, run_id: str, now: int, needs_seq: int,
        emission: int = 0, action_key: str = "",
    ) -> None:  # fmt: skip
        """Put a signal into the outbox."""

    @override
    def record_action(self, action: ActionRow) -> bool:
        def operation(connection: sqlite3.Connection) -> bool:
            parameters: dict[str, Any] = {**action_columns(action), "at": self._clock()}
            return connection.execute(self._sql["insert_action"], parameters).rowcount > 0

        return self._write(operation)

    @override
    def end_action(self, key: str, outcome: str, detail: str) -> None:
        parameters = {"action_key": key, "outcome": outcome, "detail": shortened(detail)}
        self._write(lambda connection: connection.execute(self._sql["end_action"], parameters).rowcount)

    @override
    def replace_detail(self, key: str, before: str, detail: str) -> bool:
        parameters = {"action_key": key, "before": before, "detail": detail}
        return self._write(lambda connection: connection.execute(self._sql["replace_detail"], parameters).rowcount) > 0

    @override
    def _list(self, values: Sequence[str]) -> str:
        return orjson.dumps(values).decode()

    def _work(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run an operation in a transaction, unless the authority is being rebuilt.

        Raises:
            Unavailable: also when it is.
        """

        def fenced(connection: sqlite3.Connection) -> T:
            row = connection.execute(self._sql["get_rebuild"]).fetchone()
            if row is not None:
                raise UnfinishedRebuild(*row).refusal()
            return operation(connection)

        return self._write(fenced)

    @override
    def reemit(self, acts: Sequence[ReemitAct]) -> list[ReemitAnswer]:
        return self._work(lambda connection: [self._reemit(connection, act, self._clock()) for act in acts])

    def _admit_reemit(
        self, connection: sqlite3.Connection, record: Admission, act: ReemitAct, now: int
    ) -> tuple[Disposition, str, str, SignalDraft | None]:
        """Carry out the act that a record asks for; returns its disposition, and the signal of a refusal."""
        answer = self._reemit(connection, act, now)
        disposition, reason = disposition_of(answer.outcome)
        if not reason:
            return disposition, reason, answer.detail, None
        refusal = request_rejected(record.record_key, record.message_id, act.run_id, disposition, reason, answer.detail)
        return disposition, reason, answer.detail, refusal

    def _reemit(self, connection: sqlite3.Connection, act: ReemitAct, now: int) -> ReemitAnswer:
        known = connection.execute(self._sql["find_actions"], {"action_keys": self._list([act.key])}).fetchone()
        if known is not None:
            found = action_row(known)
            return ReemitAnswer(act.key, act.run_id, found.outcome, found.detail, repeated=True)
        parameters = {
            "run_id": act.run_id, "since_us": now - act.limit.window_us, "action": ACTION, "uncounted": _UNCOUNTED,
        }  # fmt: skip
        decision = decide(act, run_facts(connection.execute(self._sql["reemit_facts"], parameters).fetchone()), now)
        action = ActionRow(
            act.key, now, act.actor, act.via, ACTION, act.run_id, act.reason, decision.outcome, decision.detail
        )
        connection.execute(self._sql["insert_action"], {**action_columns(action), "at": decision.at_us})
        if decision.events:
            self._grow(connection, act.run_id, decision.at_us, decision.events)
        if decision.signal is not None:
            self._add_signal(
                connection, decision.signal, act.run_id, decision.at_us, decision.needs_seq, decision.emission, act.key
            )
        return ReemitAnswer(act.key, act.run_id, decision.outcome, decision.detail)

    def _grow(self, connection: sqlite3.Connection, run_id: str, at_us: int, events: Sequence[Event]) -> None:
        parameters = {"run_id": run_id, "count": len(events)}
        (last_seq,) = connection.execute(self._sql["grow_record"], parameters).fetchone()
        self._append(connection, run_id, last_seq - len(events), at_us, events)

    def _grow_now(self, connection: sqlite3.Connection, run_id: str, now: int, events: Sequence[Event]) -> None:
        """Append events at the present time; the times in a record do not go back, whatever the clock does."""
        last_us = connection.execute(self._sql["last_event_us"], {"run_id": run_id}).fetchone()[0]
        self._grow(connection, run_id, max(now, last_us), events)

    @override
    def end_reemits(self, ends: Sequence[ReemitEnd]) -> None:
        def operation(connection: sqlite3.Connection) -> None:
            for end in ends:
                self._end_reemit(connection, end)

        self._write(operation)

    def _end_reemit(self, connection: sqlite3.Connection, end: ReemitEnd) -> None:
        row, now = end.row, self._clock()
        parameters = {**claimed_columns(row), "now": now, "receipt": end.receipt}
        statement = self._sql["mark_sent"] if end.failure is None else self._sql["drop_reemit"]
        if connection.execute(statement, parameters).fetchone() is None:
            return  # another relay was faster
        self._grow_now(connection, row.run_id, now, [delivery_event(end)])
        outcome, detail = delivery_outcome(end)
        parameters = {"action_key": row.action_key, "outcome": outcome, "detail": shortened(detail)}
        connection.execute(self._sql["end_action"], parameters)
