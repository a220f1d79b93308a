"""More acts of operators on the embedded authority, each in one transaction with its row, under the write lock."""

import sqlite3
from abc import abstractmethod
from collections.abc import Sequence

from typing_extensions import override

from scenario_runner.authority.acts import ActionRow, DriftAct, WakeAct, outcome_of
from scenario_runner.authority.arrivals import told_first
from scenario_runner.authority.rows import action_columns, action_row, run_row
from scenario_runner.authority.scrubs import drift_action, drift_event, told_lately
from scenario_runner.authority.sqlite_reemits import SqliteReemits
from scenario_runner.authority.values import Admission, Admitted
from scenario_runner.authority.wakes import ACTION, DETAILS, WOKEN, wake_outcome
from scenario_runner.contracts.states import RunState


class SqliteActs(SqliteReemits):
    """The part of the embedded authority that carries out acts; the rest of it provides the abstract methods."""

    @abstractmethod
    def _admit_one(self, connection: sqlite3.Connection, record: Admission) -> Admitted:
        """Give a record its disposition."""

    @override
    def admit_for(self, action: ActionRow, record: Admission) -> Admitted | None:
        (told,) = told_first(self.tell, [record])

        def operation(connection: sqlite3.Connection) -> Admitted | None:
            if self._known_act(connection, action.action_key) is not None:
                return None
            admitted = self._admit_one(connection, told)
            if admitted.repeated:
                return None
            outcome = outcome_of(admitted.disposition, admitted.reason_code)
            columns = action_columns(action) | {"outcome": outcome, "detail": admitted.detail}
            connection.execute(self._sql["insert_action"], {**columns, "at": self._clock()})
            return admitted

        return self._work(operation)

    @override
    def _tell_runs(self, run_ids: Sequence[str]) -> None:
        parameters = {"run_ids": self._list(run_ids), "now": self._clock()}
        self._write(lambda connection: connection.execute(self._sql["tell_runs"], parameters).rowcount)

    @override
    def wake(self, acts: Sequence[WakeAct]) -> dict[str, str]:
        return self._write(lambda connection: dict(filter(None, (self._wake(connection, act) for act in acts))))

    def _wake(self, connection: sqlite3.Connection, act: WakeAct) -> tuple[str, str] | None:
        known = self._known_act(connection, act.key)
        if known is not None:
            return act.run_id, str(known["outcome"])
        now = self._clock()
        row = connection.execute(self._sql["get_run"], {"run_id": act.run_id}).fetchone()
        if row is None:
            return None
        outcome = wake_outcome(run_row(row), now)
        if outcome == WOKEN:
            connection.execute(self._sql["wake_run"], {"run_id": act.run_id, "now": now})
        action = ActionRow(act.key, now, act.actor, "cli", ACTION, act.run_id, act.reason, outcome, DETAILS[outcome])
        connection.execute(self._sql["insert_action"], {**action_columns(action), "at": now})
        return act.run_id, outcome

    @override
    def record_drift(self, act: DriftAct) -> bool:
        def operation(connection: sqlite3.Connection) -> bool:
            row = connection.execute(self._sql["get_run"], {"run_id": act.run_id}).fetchone()
            known = self._known_act(connection, act.key) is not None
            if known or row is None or run_row(row).state is not RunState.READY:
                return False
            now = self._clock()
            rows = connection.execute(self._sql["list_actions"], {"subject": act.run_id})
            if told_lately(act, [action_row(row) for row in rows], now):
                return False
            connection.execute(self._sql["insert_action"], {**action_columns(drift_action(act, now)), "at": now})
            self._grow_now(connection, act.run_id, now, [drift_event(act)])
            return True

        return self._work(operation)

    def _known_act(self, connection: sqlite3.Connection, key: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = connection.execute(
            self._sql["find_actions"], {"action_keys": self._list([key])}
        ).fetchone()
        return row
