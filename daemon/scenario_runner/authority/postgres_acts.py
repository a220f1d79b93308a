"""More acts of operators on PostgreSQL: each is one statement, so its row and its effect are one transaction."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from scenario_runner.authority.acts import ActionRow, WakeAct
from scenario_runner.authority.postgres_batches import columns
from scenario_runner.authority.postgres_reemits import PostgresReemits, disposed
from scenario_runner.authority.reemits import disposition_of
from scenario_runner.authority.rows import Row, storable
from scenario_runner.authority.values import Admission, Admitted
from scenario_runner.authority.wakes import ACTION, DETAILS
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.states import Disposition


class PostgresActs(PostgresReemits):
    """The part of the production authority that carries out acts; the rest of it provides the abstract method."""

    @abstractmethod
    def _admit_once(self, records: list[Admission], by: ActionRow | None = None) -> list[dict[str, Any]]:
        """Give records their dispositions, in one try."""

    def _dispose_for(self, action: ActionRow, record: Admission) -> Admitted | None:
        """Give a record its disposition for an act; None when one of the two is known, or another one is faster."""
        if record.reemit is None:
            rows = self._admit_once([record], action)
            if not rows:
                self._require_rebuilt()
            return admitted_of(rows[0]) if rows and not rows[0]["repeated"] else None
        if self.acts([action.action_key]) or self._known_record(record.record_key) is not None:
            return None  # else it would be decided again and again: the act of the re-emit itself may be unknown
        answer = self._carry_out([(record.reemit, record)], action)[record.reemit.key]
        if answer.repeated and self._known_record(record.record_key) is not None:
            return None
        if answer.repeated:
            rows = self._admit_once([disposed(record, answer)], action)
            return admitted_of(rows[0]) if rows and not rows[0]["repeated"] else None
        disposition, reason = disposition_of(answer.outcome)
        return Admitted(record.record_key, disposition, reason, answer.detail, answer.run_id, repeated=False)

    @override
    def _tell_runs(self, run_ids: Sequence[str]) -> None:
        self._query("tell_runs", run_ids=list(run_ids))

    @override
    def wake(self, acts: Sequence[WakeAct]) -> dict[str, str]:
        if not acts:
            return {}
        given = columns(
            "action_key run_id actor reason",
            [(act.key, act.run_id, storable(act.actor), storable(act.reason)) for act in acts],
        )
        rows = self._query("wake_runs", **given, action=ACTION, details=canonical_bytes(DETAILS).decode())
        return {row["run_id"]: row["outcome"] for row in rows}


def admitted_of(row: Row) -> Admitted:
    """A disposition as ``admit_records`` answers it."""
    return Admitted(
        row["record_key"], Disposition(row["disposition"]), row["reason_code"], row["detail"], row["run_id"],
        repeated=row["repeated"],
    )  # fmt: skip
