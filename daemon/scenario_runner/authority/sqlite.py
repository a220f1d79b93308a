"""The embedded authority: SQLite in WAL mode, ``synchronous=FULL``, so a commit is a promise.

One connection writes, through group commit; every thread reads on a connection of its own. Several processes may
share the file: every write transaction takes the lock at its start.
"""

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import orjson

from scenario_runner.authority.base import (
    UNTIL_RESTART,
    Admission,
    Admitted,
    Claim,
    Event,
    NewRun,
    Noted,
    OutboxRow,
    Outcome,
    Owed,
    Parked,
    Pending,
    Postponed,
    ProjectionFailure,
    RecordRow,
    RunRow,
    SignalDraft,
    Signals,
    StoredEvent,
    Verdict,
)
from scenario_runner.authority.group_commit import GroupCommitter
from scenario_runner.authority.rows import (
    COLLISION_CODE,
    COLLISION_DETAIL,
    LEASE_HORIZON_US,
    REFUSED,
    RELAY_HORIZON_US,
    RUN_HORIZON_US,
    SETTLE_US,
    claim_of,
    first_events,
    lease_lost,
    outbox_row,
    record_row,
    run_row,
    settled_as,
    shortened,
    stored_event,
)
from scenario_runner.authority.sqlite_files import DatabaseFiles
from scenario_runner.authority.sqlite_migrations import migrate
from scenario_runner.authority.statements import load_statements
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import LeaseLostError, Unavailable, in_short
from scenario_runner.contracts.states import Disposition, EventKind, RunState
from scenario_runner.counters import count
from scenario_runner.retry import RetryPolicy, with_retries
from scenario_runner.storage.modes import PRIVATE, Modes

T = TypeVar("T")
#: A transaction of ours takes milliseconds; whoever keeps the lock for longer may keep it for ever.
_BUSY_SECONDS: Final = 5.0
_LOCKED: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def wall_clock_us() -> int:
    """Microseconds since the epoch on this host, which is the database's host."""
    return time.time_ns() // 1000


@contextmanager
def _reported(path: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        hint = ""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _LOCKED:
            hint = (
                f" for {_BUSY_SECONDS:g} s by another process; end that process (lslocks or fuser shows it), and let "
                "nobody but the daemon's user open the file"
            )
            count("sqlite.locked_by_others")
        raise Unavailable(f"the authority {path} does not answer: {in_short(error)}{hint}") from error


class SqliteAuthority:
    """See :class:`~scenario_runner.authority.base.Authority`.

    Args:
        path: The database file; its directory is created.
        clock: Microseconds since the epoch.
        modes: Of files that are created.
    """

    def __init__(self, path: str, clock: Callable[[], int] = wall_clock_us, modes: Modes = PRIVATE) -> None:
        self._path = path
        self._clock = clock
        self._sql = load_statements("sqlite")
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._readers_lock = threading.Lock()
        self._files = DatabaseFiles(path, modes)
        self._files.create()
        with _reported(path):
            self._writer: GroupCommitter[sqlite3.Connection] = GroupCommitter(
                self._open_migrated, self._begin, self._commit, _rollback, _close
            )

    # --- connections

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.row_factory = sqlite3.Row
            _enter_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")
            self._files.check_database()  # it may have been replaced just before it was opened
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_migrated(self) -> sqlite3.Connection:
        connection = self._open()
        try:
            migrate(connection, self._path)
            self._files.remember_beside()
        except BaseException:
            connection.close()
            raise
        return connection

    def _begin(self, connection: sqlite3.Connection) -> None:
        self._files.check()
        _begin(connection)

    def _commit(self, connection: sqlite3.Connection) -> None:
        """Commit; nobody is told so unless the files are still where everybody else finds them."""
        _commit(connection)
        self._files.check()

    def _write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        with _reported(self._path):
            return self._writer.run(operation)

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._open()
            self._local.connection = connection
            with self._readers_lock:
                self._readers.append(connection)
        return connection

    def _query(self, name: str, /, **parameters: Any) -> list[sqlite3.Row]:  # noqa: ANN401
        self._files.check_database()
        with _reported(self._path):
            return self._reader().execute(self._sql[name], parameters).fetchall()

    def close(self) -> None:
        """See the contract."""
        self._writer.close()
        with self._readers_lock:
            for connection in self._readers:
                connection.close()
            self._readers.clear()

    def now_us(self) -> int:
        """See the contract."""
        return self._clock()

    # --- intake

    def admit(self, records: Sequence[Admission]) -> list[Admitted]:
        """See the contract."""
        return self._write(lambda connection: [self._admit_one(connection, record) for record in records])

    def _admit_one(self, connection: sqlite3.Connection, record: Admission) -> Admitted:
        known = connection.execute(self._sql["find_record"], {"record_key": record.record_key}).fetchone()
        if known is not None:
            return Admitted(record.record_key, Disposition(known[0]), known[1], known[2], known[3], repeated=True)
        now = self._clock()
        disposition, reason, detail = record.disposition, record.reason_code, record.detail
        if record.run is not None:
            disposition, reason, detail = self._admit_run(connection, record.run, now)
        assert disposition is not None
        connection.execute(
            self._sql["insert_record"],
            {
                "record_key": record.record_key, "message_id": record.message_id, "kind": record.kind,
                "run_id": record.run_id, "disposition": disposition.value, "reason_code": reason, "detail": detail,
                "received_us": now, "raw_sha256": hashlib.sha256(record.raw).hexdigest(), "raw_size": record.raw_size,
            },
        )  # fmt: skip
        if disposition in REFUSED:
            connection.execute(self._sql["insert_dead_letter"], {"record_key": record.record_key, "raw": record.raw})
            if record.refusal is not None:
                self._owe(connection, record.refusal, record.run_id, now, 0)
        return Admitted(record.record_key, disposition, reason, detail, record.run_id, repeated=False)

    def _admit_run(self, connection: sqlite3.Connection, run: NewRun, now: int) -> tuple[Disposition, str, str]:
        inserted = connection.execute(
            self._sql["insert_run"],
            {
                "run_id": run.run_id, "run_equivalence_key": run.run_equivalence_key, "fingerprint": run.fingerprint,
                "intent": canonical_bytes(run.intent), "inputs": canonical_bytes(run.inputs), "now": now,
                "evidence_wait_us": run.evidence_wait_us, "invoker": run.invoker,
            },
        ).rowcount  # fmt: skip
        if inserted:
            self._append(connection, run.run_id, 0, now, first_events(run))
            return Disposition.ACCEPTED, "", ""
        row = connection.execute(
            self._sql["fingerprint_of"],
            {"run_id": run.run_id, "run_equivalence_key": run.run_equivalence_key},
        ).fetchone()
        if row is not None and row[0] == run.fingerprint:
            return Disposition.DUPLICATE, "", ""
        return Disposition.CONFLICT, COLLISION_CODE, COLLISION_DETAIL

    def _append(
        self, connection: sqlite3.Connection, run_id: str, after: int, ts_us: int, events: Sequence[Event]
    ) -> None:
        connection.executemany(
            self._sql["insert_event"],
            [
                {
                    "run_id": run_id, "seq": seq, "kind": event.kind.value, "ts_us": ts_us,
                    "details": canonical_bytes({**event.details, "seq": seq, "state": event.state.value}),
                }
                for seq, event in enumerate(events, after + 1)
            ],
        )  # fmt: skip

    def _owe(self, connection: sqlite3.Connection, signal: SignalDraft, run_id: str, now: int, needs_seq: int) -> None:
        connection.execute(
            self._sql["insert_signal"],
            {
                "message_id": signal.message_id, "run_id": run_id, "kind": signal.kind.value,
                "partition_key": signal.partition_key, "attributes": canonical_bytes(signal.attributes),
                "payload": signal.payload, "created_us": now, "needs_seq": needs_seq,
            },
        )  # fmt: skip

    # --- leases

    def claim(self, owner: str, limit: int, lease_us: int) -> list[Claim]:
        """See the contract."""

        def operation(connection: sqlite3.Connection) -> list[Claim]:
            now = self._clock()
            rows = connection.execute(
                self._sql["claim_due"], {"owner": owner, "now": now, "lease_us": lease_us, "limit": limit}
            ).fetchall()
            return [self._claimed(connection, row, owner, now) for row in sorted(rows, key=lambda r: r["admitted_us"])]

        return self._write(operation) if self._query("any_due", now=self._clock())[0][0] else []

    def _claimed(self, connection: sqlite3.Connection, row: sqlite3.Row, owner: str, now: int) -> Claim:
        state, updated = RunState(row["state"]), row["updated_us"]
        if state is RunState.PLANNED:
            seq, updated = connection.execute(
                self._sql["start_verifying"],
                {"run_id": row["run_id"], "epoch": row["lease_epoch"], "now": now},
            ).fetchone()
            state = RunState.VERIFYING
            self._append(
                connection,
                row["run_id"],
                seq - 1,
                updated,
                (Event(EventKind.VERIFICATION_STARTED, state, {}),),
            )
        return claim_of(row, owner, state, updated, now)

    def renew(self, owner: str, held: Sequence[tuple[str, int]], lease_us: int) -> set[tuple[str, int]]:
        """See the contract."""
        pairs = orjson.dumps(held).decode()
        parameters = {"owner": owner, "held": pairs, "now": self._clock(), "lease_us": lease_us}
        rows = self._write(lambda c: c.execute(self._sql["renew_leases"], parameters).fetchall())
        return {(row[0], row[1]) for row in rows}

    def settle(self, outcomes: Sequence[Outcome]) -> list[LeaseLostError | None]:
        """See the contract."""
        return self._write(lambda connection: [self._settle_one(connection, outcome) for outcome in outcomes])

    def _settle_one(self, connection: sqlite3.Connection, outcome: Outcome) -> LeaseLostError | None:
        claim = outcome.claim
        held = {"run_id": claim.run_id, "owner": claim.owner, "epoch": claim.epoch, "settled": settled_as(outcome)}
        if isinstance(outcome, Postponed):
            name, change = "retry_run", {"due_us": outcome.due_us, "error": shortened(outcome.error)}
        elif isinstance(outcome, Parked):
            name = "park_run"
            change = {
                "due_us": outcome.due_us, "at_us": outcome.at_us, "count": len(outcome.events),
                "report_digest": outcome.report_digest,
            }  # fmt: skip
        elif isinstance(outcome, Noted):
            name = "note_run"
            change = {"at_us": outcome.at_us, "count": len(outcome.events), "report_digest": outcome.report_digest}
        else:
            name = "decide_run"
            change = {
                "state": outcome.state.value, "reason_code": outcome.reason_code, "at_us": outcome.at_us,
                "count": len(outcome.events), "facts_view_digest": outcome.facts_view_digest,
            }  # fmt: skip
        row = connection.execute(self._sql[name], {**held, **change}).fetchone()
        if row is None:
            known = connection.execute(self._sql["find_settled"], held).fetchone()
            return lease_lost(claim) if known is None else None
        if not isinstance(outcome, Postponed):
            self._append(connection, claim.run_id, row[0] - len(outcome.events), outcome.at_us, outcome.events)
        if isinstance(outcome, Verdict):
            self._owe(connection, outcome.signal, claim.run_id, outcome.at_us, row[0])
        return None

    def wake_waiting(self) -> int:
        """See the contract."""
        now = self._clock()
        return self._write(lambda c: c.execute(self._sql["wake_waiting"], {"now": now}).rowcount)

    def pull_in_times(self) -> int:
        """See the contract."""
        now = self._clock()
        bounds = {"now": now, "run_bound": now + RUN_HORIZON_US, "lease_bound": now + LEASE_HORIZON_US}
        bounds |= {"relay_bound": now + RELAY_HORIZON_US, "until_restart": UNTIL_RESTART}
        if not self._query("any_ahead", **bounds)[0][0]:
            return 0
        names = ("pull_in_runs", "pull_in_signals")
        return self._write(lambda c: sum(c.execute(self._sql[name], bounds).rowcount for name in names))

    def owners(self) -> set[str]:
        """See the contract."""
        return {row[0] for row in self._query("live_owners", now=self._clock()) if row[0]}

    def expire_owner(self, owner: str) -> None:
        """See the contract."""

        def operation(connection: sqlite3.Connection) -> None:
            for name in ("expire_runs_of", "expire_relays_of", "expire_signals_of"):
                connection.execute(self._sql[name], {"owner": owner})

        self._write(operation)

    # --- relay

    def claim_projections(self, owner: str, limit: int, lease_us: int) -> list[Owed]:
        """See the contract."""
        parameters = {"owner": owner, "limit": limit, "lease_us": lease_us, "settle_us": SETTLE_US}

        def operation(connection: sqlite3.Connection) -> list[sqlite3.Row]:
            return connection.execute(self._sql["claim_behind"], {**parameters, "now": self._clock()}).fetchall()

        rows = self._write(operation) if self._query("any_behind")[0][0] else []
        runs = [run_row(row) for row in rows]
        events: dict[str, list[StoredEvent]] = {run.run_id: [] for run in runs}
        for row in self._query("events_of_runs", run_ids=orjson.dumps(list(events)).decode()) if runs else ():
            events[row["run_id"]].append(stored_event(row))
        return [Owed(run, tuple(item for item in events[run.run_id] if item.seq <= run.event_seq)) for run in runs]

    def mark_projected(self, done: Sequence[tuple[str, int]]) -> None:
        """See the contract."""
        rows = [{"run_id": run_id, "seq": seq} for run_id, seq in done]
        self._write(lambda c: c.executemany(self._sql["mark_projected"], rows).rowcount)

    def postpone_projections(self, failures: Sequence[ProjectionFailure]) -> None:
        """See the contract."""
        now = self._clock()
        rows = [
            {"run_id": item.run_id, "until_us": item.until_us, "error": shortened(item.error), "now": now}
            for item in failures
        ]
        self._write(lambda c: c.executemany(self._sql["postpone_projection"], rows).rowcount)

    def resume_deliveries(self) -> int:
        """See the contract."""
        parameters = {"now": self._clock()}
        return self._write(
            lambda c: sum(c.execute(self._sql[name], parameters).rowcount for name in ("resume_runs", "resume_signals"))
        )

    def claim_signals(self, owner: str, limit: int, lease_us: int) -> list[OutboxRow]:
        """See the contract."""
        parameters = {"owner": owner, "limit": limit, "lease_us": lease_us}

        def operation(connection: sqlite3.Connection) -> list[sqlite3.Row]:
            return connection.execute(self._sql["claim_signals"], {**parameters, "now": self._clock()}).fetchall()

        found = self._write(operation) if self._query("any_unsent", now=self._clock())[0][0] else []
        rows = sorted(found, key=lambda row: int(row["outbox_id"]))
        return [outbox_row(row) for row in rows]

    def mark_sent(self, outbox_ids: Sequence[int]) -> None:
        """See the contract."""
        now = self._clock()
        rows = [{"outbox_id": outbox_id, "now": now} for outbox_id in outbox_ids]
        self._write(lambda c: c.executemany(self._sql["mark_sent"], rows).rowcount)

    def postpone_signals(self, outbox_ids: Sequence[int], due_us: int) -> None:
        """See the contract."""
        rows = [{"outbox_id": outbox_id, "due_us": due_us} for outbox_id in outbox_ids]
        self._write(lambda c: c.executemany(self._sql["postpone_signal"], rows).rowcount)

    def pending(self) -> Pending:
        """See the contract."""
        row = self._query("any_pending", now=self._clock())[0]
        return Pending(*map(bool, row))

    # --- reading

    def run(self, run_id: str) -> RunRow | None:
        """See the contract."""
        rows = self._query("get_run", run_id=run_id)
        return run_row(rows[0]) if rows else None

    def runs(self, state: str | None, limit: int) -> list[RunRow]:
        """See the contract."""
        return [run_row(row) for row in self._query("list_runs", state=state, limit=limit)]

    def events(self, run_id: str) -> list[StoredEvent]:
        """See the contract."""
        return [stored_event(row) for row in self._query("list_events", run_id=run_id)]

    def records(self, run_id: str) -> list[RecordRow]:
        """See the contract."""
        return [record_row(row) for row in self._query("list_records", run_id=run_id)]

    def signals(self, run_id: str) -> Signals:
        """See the contract."""
        return Signals(tuple((row[0], row[1], row[2]) for row in self._query("list_signals", run_id=run_id)))

    # --- digest reuse

    def find_digests(self, key: str) -> list[str] | None:
        """See the contract."""
        rows = self._query("find_digests", digest_key=key)
        return list(orjson.loads(rows[0][0])) if rows else None

    def keep_digests(self, key: str, digests: list[str]) -> None:
        """See the contract."""
        parameters = {"digest_key": key, "digests": canonical_bytes(digests), "now": self._clock()}
        self._write(lambda c: c.execute(self._sql["keep_digests"], parameters).rowcount)

    # --- stores

    def identity(self, name: str, proposed: str) -> str:
        """See the contract."""
        if proposed:
            parameters = {"name": name, "identity": proposed, "now": self._clock()}
            self._write(lambda c: c.execute(self._sql["note_identity"], parameters).rowcount)
        rows = self._query("get_identity", name=name)
        return str(rows[0][0]) if rows else ""

    def adopt_identity(self, name: str, identity: str) -> None:
        """See the contract."""
        parameters = {"name": name, "identity": identity, "now": self._clock()}
        self._write(lambda c: c.execute(self._sql["adopt_identity"], parameters).rowcount)


def _enter_wal(connection: sqlite3.Connection) -> None:
    """Switch a database to WAL; unlike other statements this one does not wait for a lock by itself."""
    policy = RetryPolicy(first_seconds=0.01, most_seconds=0.1, jitter=True, deadline_seconds=_BUSY_SECONDS)
    with_retries(
        lambda: connection.execute("PRAGMA journal_mode = WAL"),
        policy,
        lambda error: isinstance(error, sqlite3.OperationalError),
    )


def _begin(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")


def _commit(connection: sqlite3.Connection) -> None:
    connection.execute("COMMIT")


def _rollback(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _close(connection: sqlite3.Connection) -> None:
    connection.close()
