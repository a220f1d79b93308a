"""The production authority: PostgreSQL, any number of processes, the database's clock.

Every operation is one statement in autocommit, so a commit is one round trip and no session ever idles in a
transaction with rows locked. Every operation may be run again: that is how a connection lost at any moment, also while
it commits, is answered.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from psycopg import IntegrityError
from psycopg.errors import UniqueViolation
from typing_extensions import override

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.arrivals import told_first
from scenario_runner.authority.claims import share_of_new
from scenario_runner.authority.observed import Backlog, DaemonRow, Pending, backlog_of
from scenario_runner.authority.postgres_acts import PostgresActs, admitted_of
from scenario_runner.authority.postgres_batches import (
    Parameters,
    action_parameters,
    admission_parameters,
    claimed_columns,
    details_of,
    failure_parameters,
    transition_parameters,
)
from scenario_runner.authority.postgres_dsn import PostgresDsn
from scenario_runner.authority.postgres_migrations import migrate
from scenario_runner.authority.postgres_pool import UNSTORABLE, Connections
from scenario_runner.authority.postgres_rebuilds import PostgresRebuilds
from scenario_runner.authority.postgres_retention import PostgresRetention
from scenario_runner.authority.postgres_session import Connection
from scenario_runner.authority.queries import attempts_by_run, projection_tasks, runs_with_attempts
from scenario_runner.authority.rows import (
    LEASE_HORIZON_US,
    QUIET_PERIOD_US,
    RELAY_HORIZON_US,
    RUN_HORIZON_US,
    claim_of,
    lease_lost,
    outbox_row,
)
from scenario_runner.authority.statements import load_statements
from scenario_runner.authority.values import (
    COLLISION_CODE,
    COLLISION_DETAIL,
    UNTIL_RESTART,
    Admission,
    Admitted,
    Claim,
    OutboxRow,
    ProjectionFailure,
    ProjectionTask,
    Sent,
    Transition,
)
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import LeaseLostError, SequenceError, Unavailable, in_short
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import Disposition, RunState
from scenario_runner.rounds import rounds_without_repeats

#: Rounds of one admission. A round is lost to another intake of the same record, which has its disposition then, so
#: each record can lose one; the batch loses one for each of its records that is read twice at that moment.
_ROUNDS: Final = 10
#: Tables whose unique violation means a lost race.
_LOST_RACES: Final = ("intake_records", "operator_actions")
_STARTED: Final = canonical_bytes({"state": RunState.VERIFYING.value})
_CANNOT_STORE: Final = (*UNSTORABLE, UnicodeEncodeError, OverflowError)


class PostgresAuthority(PostgresActs, PostgresRetention, PostgresRebuilds):
    """An authority on a PostgreSQL server.

    Args:
        dsn: A PostgreSQL URI or ``key=value`` text.
        place: The profile, for messages.

    Raises:
        ConfigurationError: the DSN is malformed, or the database cannot be used as it is set up.
        Unavailable: the database cannot be reached.
    """

    def __init__(self, dsn: str, place: str) -> None:
        parsed = PostgresDsn(dsn, place)
        self._sql = {name: text.encode() for name, text in load_statements("postgres").items()}
        self._sql |= {f"{name}_by": text.encode() for name, text in load_statements("postgres", by=True).items()}
        self._connections = Connections(parsed, lambda connection: migrate(connection, parsed))

    @override
    def _query(self, name: str, /, **parameters: Any) -> list[dict[str, Any]]:
        try:
            return self._connections.run(_running(self._sql[name], parameters))
        except UNSTORABLE as error:
            raise Unavailable(f"the database refuses a value: {in_short(error)}") from None

    @override
    def _query_or_conflict(self, name: str, /, **parameters: Any) -> list[dict[str, Any]]:
        return self._connections.run(_running(self._sql[name], parameters), (UniqueViolation,))

    @override
    def _query_or_unstorable(self, name: str, /, **parameters: Any) -> list[dict[str, Any]]:
        return self._connections.run(_running(self._sql[name], parameters), (IntegrityError,))

    @override
    def _execute_together(self, statements: Sequence[tuple[str, Parameters]]) -> None:
        def work(connection: Connection) -> None:
            with connection.transaction():
                for name, parameters in statements:
                    connection.execute(self._sql[name], parameters)

        self._connections.run(work)

    @override
    def close(self) -> None:
        self._connections.close()

    @override
    def now_us(self) -> int:
        return int(self._query("now_us")[0]["now"])

    # --- intake

    @override
    def admit(self, records: Sequence[Admission]) -> list[Admitted]:
        first: dict[str, Admission] = {}
        for record in told_first(self.tell, records):
            first.setdefault(record.record_key, record)
        found = self._dispose([record for record in first.values() if record.reemit is None])
        found |= self._dispose([record for record in first.values() if record.reemit is not None])
        answers, seen = [], set()
        for record in records:
            key = record.record_key
            answers.append(replace(found[key], repeated=True) if key in seen else found[key])
            seen.add(key)
        return answers

    def _dispose(self, records: list[Admission]) -> dict[str, Admitted]:
        """Admit records with different keys; halve the batch to find one that cannot be stored, and refuse it."""
        if not records:
            return {}
        try:
            # Apart from each other: an act is decided on facts that are read first.
            return self._admit_together(records) if records[0].reemit is None else self._admit_reemits(records)
        except _CANNOT_STORE as error:
            if len(records) == 1:
                return self._refuse(records[0], error)
        half = len(records) // 2
        return self._dispose(records[:half]) | self._dispose(records[half:])

    @override
    def _admit_together(self, records: list[Admission]) -> dict[str, Admitted]:
        """Admit a batch, in more rounds while other intakes dispose of some of its records at the same time."""
        found: dict[str, Admitted] = {}
        left = records
        for _ in range(_ROUNDS):
            for row in self._admit_once(left):
                found[row["record_key"]] = admitted_of(row)
            left = [record for record in left if record.record_key not in found]
            if not left:
                return found
            self._require_rebuilt()
        raise Unavailable("other processes keep admitting the same records; they stay where they are")

    @override
    def _admit_once(self, records: list[Admission], by: ActionRow | None = None) -> list[dict[str, Any]]:
        """Send the batch once; no rows when another intake disposed of one of its records at the same moment.

        The statement explains the race. The unique violation has taken the whole batch back, so it is sent again.

        Args:
            records: The batch.
            by: The act that asks for the only record of the batch.
        """
        parameters = admission_parameters(records) | action_parameters(by)
        parameters |= {"collision_code": COLLISION_CODE, "collision_detail": COLLISION_DETAIL}
        name = "admit_records" if by is None else "admit_records_by"
        try:
            return self._query_or_conflict(name, **parameters)
        except UniqueViolation as error:
            if error.diag.table_name not in _LOST_RACES:
                raise Unavailable(f"the database holds what it should not: {error.diag.message_primary}") from None
            return []

    def _refuse(self, record: Admission, error: Exception) -> dict[str, Admitted]:
        """Refuse a record that no database can hold; without a disposition its bus would deliver it for ever."""
        safe = _storable_refusal(record, error)
        try:
            (answer,) = self._admit_together([safe]).values()
        except _CANNOT_STORE:
            kind = type(error).__name__
            raise SequenceError(f"the record {safe.record_key} can neither be stored nor refused ({kind})") from None
        return {record.record_key: replace(answer, record_key=record.record_key)}

    @override
    def admit_for(self, action: ActionRow, record: Admission) -> Admitted | None:
        (record,) = told_first(self.tell, [record])
        try:
            return self._dispose_for(action, record)
        except _CANNOT_STORE as error:
            return self._dispose_for(action, _storable_refusal(record, error))

    # --- leases

    @override
    def claim(self, owner: str, limit: int, lease_us: int, only: str = "") -> list[Claim]:
        name = "claim_runs_only" if only else "claim_runs"
        rows = self._query(
            name, owner=owner, limit=limit, most_new=share_of_new(limit), lease_us=lease_us, started=_STARTED, only=only
        )
        # Read after the claim: whoever else changes attempts of these runs must have claimed them since.
        tried = runs_with_attempts(rows)
        attempts = attempts_by_run(self._query("attempts_of_runs", run_ids=tried)) if tried else {}
        return [
            claim_of(row, owner, RunState(row["state"]), row["updated_us"], row["now"], attempts.get(row["run_id"], ()))
            for row in rows
        ]

    @override
    def renew(self, owner: str, held: Sequence[tuple[str, int]], lease_us: int) -> set[tuple[str, int]]:
        runs, epochs = [run_id for run_id, _ in held], [epoch for _, epoch in held]
        rows = self._query("renew_leases", owner=owner, run_id=runs, epoch=epochs, lease_us=lease_us)
        return {(row["run_id"], row["lease_epoch"]) for row in rows}

    @override
    def commit(self, transitions: Sequence[Transition]) -> list[LeaseLostError | None]:
        # The parameters of every round are made before the first is sent: a value that cannot be stored stops them all.
        rounds = [
            (indices, transition_parameters([transitions[index] for index in indices]))
            for indices in rounds_without_repeats([item.claim.run_id for item in transitions])
        ]
        answers: list[LeaseLostError | None] = [lease_lost(item.claim) for item in transitions]
        for indices, parameters in rounds:
            committed = {row["run_id"] for row in self._query("commit_runs", **parameters)}
            for index in indices:
                if transitions[index].claim.run_id in committed:
                    answers[index] = None
        return answers

    @override
    def make_waiting_due(self) -> int:
        return len(self._query("make_waiting_due"))

    @override
    def wake_waiting_for_roots(self, roots: Collection[str], limit: int, only: str = "") -> int:
        name = "wake_waiting_for_roots_only" if only else "wake_waiting_for_roots"
        return len(self._query(name, roots=list(roots), limit=limit, only=only))

    @override
    def pull_in_times(self) -> int:
        rows = self._query(
            "pull_in_times", run_horizon_us=RUN_HORIZON_US, lease_horizon_us=LEASE_HORIZON_US,
            relay_horizon_us=RELAY_HORIZON_US, until_restart=UNTIL_RESTART,
        )  # fmt: skip
        return int(rows[0]["corrected"])

    @override
    def owners(self) -> set[str]:
        return {row["owner"] for row in self._query("live_owners") if row["owner"]}

    @override
    def expire_owner(self, owner: str) -> None:
        self._query("expire_owner", owner=owner)

    # --- relay

    @override
    def claim_projections(self, owner: str, limit: int, lease_us: int, only: str = "") -> list[ProjectionTask]:
        name = "claim_unprojected_only" if only else "claim_unprojected"
        rows = self._query(name, owner=owner, limit=limit, lease_us=lease_us, quiet_us=QUIET_PERIOD_US, only=only)
        if not rows:
            return []
        return projection_tasks(rows, self._query("events_of_runs", run_ids=[row["run_id"] for row in rows]))

    @override
    def mark_projected(self, owner: str, done: Sequence[tuple[str, int]]) -> None:
        highest: dict[str, int] = {}
        for run_id, seq in done:
            highest[run_id] = max(seq, highest.get(run_id, 0))
        self._query("mark_projected", owner=owner, run_id=list(highest), seq=list(highest.values()))

    @override
    def postpone_projections(self, owner: str, failures: Sequence[ProjectionFailure]) -> None:
        self._query("postpone_projections", owner=owner, **failure_parameters(failures))

    @override
    def resume_deliveries(self) -> int:
        return len(self._query("resume_deliveries"))

    @override
    def claim_signals(self, owner: str, limit: int, lease_us: int, only: str = "") -> list[OutboxRow]:
        name = "claim_signals_only" if only else "claim_signals"
        rows = self._query(name, owner=owner, limit=limit, lease_us=lease_us, only=only)
        return [outbox_row(row) for row in rows]

    @override
    def mark_sent(self, sent: Sequence[Sent]) -> None:
        self._query(
            "mark_sent", **claimed_columns([item.row for item in sent]), receipt=[item.receipt for item in sent],
            details=[details_of(item.event) if item.event is not None else None for item in sent],
        )  # fmt: skip

    @override
    def postpone_signals(self, rows: Sequence[OutboxRow], due_us: int) -> None:
        self._query("postpone_signals", **claimed_columns(rows), due_us=due_us)

    @override
    def pending(self, only: str = "") -> Pending:
        return Pending(**self._query("any_pending_only" if only else "any_pending", only=only)[0])

    # --- digest reuse

    @override
    def keep_digests(self, key: str, digests: list[str]) -> None:
        self._query("keep_digests", digest_key=key, digests=canonical_bytes(digests))

    # --- stores

    @override
    def _propose_identity(self, name: str, identity: str) -> None:
        self._query("note_identity", name=name, identity=identity)

    @override
    def adopt_identity(self, name: str, identity: str) -> None:
        self._query("adopt_identity", name=name, identity=identity)

    # --- what is observed

    @override
    def report_daemon(self, daemon: DaemonRow, keep_us: int) -> None:
        reported = self._query(
            "report_daemon", owner=daemon.owner, role=daemon.role, version=daemon.version, host=daemon.host,
            keep_us=keep_us,
        )  # fmt: skip
        if not reported:
            self._require_rebuilt()

    @override
    def remove_daemon(self, owner: str) -> None:
        self._query("remove_daemon", owner=owner)

    @override
    def backlog(self, most: int) -> Backlog:
        return backlog_of(self._query("backlog", most=most)[0])


def _running(text: bytes, parameters: Parameters) -> Callable[[Connection], list[dict[str, Any]]]:
    def work(connection: Connection) -> list[dict[str, Any]]:
        cursor = connection.execute(text, parameters, binary=True)
        return cursor.fetchall() if cursor.description is not None else []

    return work


def _storable_refusal(record: Admission, error: Exception) -> Admission:
    """The refusal of a record that no database can hold."""
    return Admission(
        record_key=_plain(record.record_key), kind=_plain(record.kind), message_id=_plain(record.message_id),
        run_id=_plain(record.run_id), disposition=Disposition.REJECTED,
        reason_code=Reason.REQUEST_SCHEMA_INVALID.value,
        detail=f"the record holds a value that cannot be stored ({type(error).__name__})", raw=record.raw,
        raw_size=len(record.raw),
    )  # fmt: skip


def _plain(text: str) -> str:
    return ascii(text)[1:-1]
