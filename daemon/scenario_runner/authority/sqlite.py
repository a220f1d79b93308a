"""The embedded authority: SQLite in WAL mode, ``synchronous=FULL``, so a commit is a promise.

One connection writes, one operation after the other, each in a transaction of its own; every thread reads on a
connection of its own. Several processes may share the file: every write transaction takes the lock at its start.
"""

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, Final, TypeVar

import orjson
from typing_extensions import override

from scenario_runner.authority.arrivals import told_first
from scenario_runner.authority.claims import share_of_new
from scenario_runner.authority.observed import Backlog, DaemonRow, Pending, backlog_of
from scenario_runner.authority.queries import attempts_by_run, runs_with_attempts
from scenario_runner.authority.refusals import request_rejected
from scenario_runner.authority.rows import (
    LEASE_HORIZON_US,
    RELAY_HORIZON_US,
    RUN_HORIZON_US,
    claim_of,
    first_events,
    lease_lost,
    searchable,
    shortened,
    storable_attempt,
    token_of,
)
from scenario_runner.authority.sqlite_acts import SqliteActs
from scenario_runner.authority.sqlite_corrections import obstacle
from scenario_runner.authority.sqlite_deliveries import SqliteDeliveries
from scenario_runner.authority.sqlite_files import DatabaseFiles
from scenario_runner.authority.sqlite_migrations import migrate
from scenario_runner.authority.sqlite_rebuilds import SqliteRebuilds
from scenario_runner.authority.sqlite_retention import SqliteRetention
from scenario_runner.authority.statements import load_statements
from scenario_runner.authority.values import (
    COLLISION_CODE,
    COLLISION_DETAIL,
    UNTIL_RESTART,
    Admission,
    Admitted,
    AttemptRow,
    Claim,
    Event,
    NewRun,
    SignalDraft,
    Superseding,
    Transition,
)
from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import LeaseLostError, Unavailable, in_short
from scenario_runner.contracts.states import REFUSED, Disposition, EventKind, RunState
from scenario_runner.counters import count
from scenario_runner.retry import RetryPolicy, with_retries
from scenario_runner.storage.modes import PRIVATE, Modes

T = TypeVar("T")
#: A transaction of ours takes milliseconds; whoever keeps the lock for longer may keep it for ever.
_BUSY_SECONDS: Final = 5.0
#: Codes of a database that another process has locked.
_LOCKED: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_STARTED: Final = Event(EventKind.VERIFICATION_STARTED, RunState.VERIFYING, {})


def wall_clock_us() -> int:
    """Microseconds since the epoch on this host, which is the database's host."""
    return time.time_ns() // 1000


@contextmanager
def translating_errors(path: str) -> Iterator[None]:
    """Raise ``Unavailable`` for an error of SQLite."""
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


class SqliteAuthority(SqliteActs, SqliteDeliveries, SqliteRetention, SqliteRebuilds):
    """An authority in one file of this host.

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
        self._closed = False
        self._write_lock = threading.Lock()
        with translating_errors(path):
            self._writer = self._open_migrated()

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
            self._files.remember_companions()
        except BaseException:
            connection.close()
            raise
        return connection

    @override
    def _write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run an operation in a transaction; returns once it is durable.

        Raises:
            Unavailable: nothing of it is durable, or nobody knows whether it is.
        """
        with translating_errors(self._path), self._transaction() as connection:
            return operation(connection)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # Bounded: while another process keeps the file locked, each thread would wait for all those before it.
        if not self._write_lock.acquire(timeout=_BUSY_SECONDS):
            raise Unavailable(
                f"the authority {self._path} does not answer: another thread writes for {_BUSY_SECONDS:g} s"
            )
        try:
            if self._closed:
                raise Unavailable("the authority is closed")
            self._files.check()
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                _commit(self._writer)
            except BaseException:
                self._undo()
                raise
            self._files.check()  # the files must still be where every other process finds them
        finally:
            self._write_lock.release()

    def _undo(self) -> None:
        """Roll back. If that fails too, the connection refuses the next BEGIN, and its caller gets that error."""
        with suppress(sqlite3.Error):
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._open()
            self._local.connection = connection
            with self._readers_lock:
                self._readers.append(connection)
        return connection

    @override
    def _query(self, name: str, /, **parameters: Any) -> list[sqlite3.Row]:
        self._files.check_database()
        with translating_errors(self._path):
            return self._reader().execute(self._sql[name], parameters).fetchall()

    @override
    def close(self) -> None:
        with self._write_lock:
            self._closed = True
            self._writer.close()
        with self._readers_lock:
            for connection in self._readers:
                connection.close()
            self._readers.clear()

    @override
    def now_us(self) -> int:
        return self._clock()

    # --- intake

    @override
    def admit(self, records: Sequence[Admission]) -> list[Admitted]:
        told = told_first(self.tell, records)
        return self._work(lambda connection: [self._admit_one(connection, record) for record in told])

    @override
    def _admit_one(self, connection: sqlite3.Connection, record: Admission) -> Admitted:
        known = connection.execute(self._sql["find_record"], {"record_key": record.record_key}).fetchone()
        if known is not None:
            return Admitted(record.record_key, Disposition(known[0]), known[1], known[2], known[3], repeated=True)
        now = self._clock()
        disposition, reason, detail = record.disposition, record.reason_code, record.detail
        refusal = record.refusal
        if record.run is not None:
            disposition, reason, detail = self._admit_run(connection, record.run, now)
            if refusal is not None and disposition is Disposition.REJECTED:
                refusal = request_rejected(
                    record.record_key, record.message_id, record.run_id, disposition, reason, detail
                )
        elif record.reemit is not None:
            disposition, reason, detail, refusal = self._admit_reemit(connection, record, record.reemit, now)
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
            if refusal is not None:
                self._add_signal(connection, refusal, record.run_id, now, 0)
        return Admitted(record.record_key, disposition, reason, detail, record.run_id, repeated=False)

    def _admit_run(self, connection: sqlite3.Connection, run: NewRun, now: int) -> tuple[Disposition, str, str]:
        refused, supersession = obstacle(connection, self._sql, run), run.supersession
        if refused is not None:
            return Disposition.REJECTED, refused[0].value, refused[1]
        inserted = connection.execute(
            self._sql["insert_run"],
            {
                "run_id": run.run_id, "run_equivalence_key": run.run_equivalence_key, "fingerprint": run.fingerprint,
                "intent": canonical_bytes(run.intent), "inputs": canonical_bytes(run.inputs), "now": now,
                "evidence_wait_us": run.evidence_wait_us, "invoker": run.invoker,
                "strategy": run.inputs.get("strategy", ""),
                "supersedes": supersession.old_run_id if supersession is not None else "",
                "supersession": supersession.text() if supersession is not None else "",
            },
        ).rowcount  # fmt: skip
        if inserted:
            self._append(connection, run.run_id, 0, now, first_events(run))
            return Disposition.ACCEPTED, "", ""
        row = connection.execute(
            self._sql["fingerprint_of"],
            {"run_id": run.run_id, "run_equivalence_key": run.run_equivalence_key},
        ).fetchone()
        if row is not None and tuple(row) == (run.fingerprint, supersession.text() if supersession is not None else ""):
            return Disposition.DUPLICATE, "", ""
        return Disposition.CONFLICT, COLLISION_CODE, COLLISION_DETAIL

    @override
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

    @override
    def _add_signal(
        self, connection: sqlite3.Connection, signal: SignalDraft, run_id: str, now: int, needs_seq: int,
        emission: int = 0, action_key: str = "",
    ) -> None:  # fmt: skip
        connection.execute(
            self._sql["insert_signal"],
            {
                "message_id": signal.message_id, "run_id": run_id, "kind": signal.kind.value,
                "partition_key": signal.partition_key, "attributes": canonical_bytes(signal.attributes),
                "payload": signal.payload, "created_us": now, "needs_seq": needs_seq, "emission": emission,
                "action_key": action_key,
            },
        )  # fmt: skip

    # --- leases

    @override
    def claim(self, owner: str, limit: int, lease_us: int, only: str = "") -> list[Claim]:
        statement = self._sql["claim_due_only" if only else "claim_due"]

        def operation(connection: sqlite3.Connection) -> list[Claim]:
            now = self._clock()
            parameters = {"owner": owner, "now": now, "lease_us": lease_us, "limit": limit, "only": only}
            parameters["most_new"] = share_of_new(limit)
            rows = connection.execute(statement, parameters).fetchall()
            rows.sort(key=lambda row: int(row["admitted_us"]))
            attempts = self._attempts_of(connection, runs_with_attempts(rows))
            return [self._claimed(connection, row, owner, now, attempts.get(row["run_id"], ())) for row in rows]

        due = self._query("any_due_only" if only else "any_due", now=self._clock(), only=only)[0][0]
        return self._work(operation) if due else []

    def _attempts_of(self, connection: sqlite3.Connection, run_ids: list[str]) -> dict[str, tuple[AttemptRow, ...]]:
        if not run_ids:
            return {}
        parameters = {"run_ids": orjson.dumps(run_ids).decode()}
        return attempts_by_run(connection.execute(self._sql["attempts_of_runs"], parameters))

    def _claimed(
        self, connection: sqlite3.Connection, row: sqlite3.Row, owner: str, now: int, attempts: tuple[AttemptRow, ...]
    ) -> Claim:
        parameters = {"run_id": row["run_id"], "now": now}
        started = connection.execute(self._sql["start_verifying"], parameters).fetchone()
        if started is None:
            return claim_of(row, owner, RunState(row["state"]), row["updated_us"], now, attempts)
        seq, updated = started
        self._append(connection, row["run_id"], seq - 1, updated, [_STARTED])
        return claim_of(row, owner, RunState.VERIFYING, updated, now, attempts)

    @override
    def renew(self, owner: str, held: Sequence[tuple[str, int]], lease_us: int) -> set[tuple[str, int]]:
        pairs = orjson.dumps(held).decode()
        parameters = {"owner": owner, "held": pairs, "now": self._clock(), "lease_us": lease_us}
        rows = self._write(lambda c: c.execute(self._sql["renew_leases"], parameters).fetchall())
        return {(row[0], row[1]) for row in rows}

    @override
    def commit(self, transitions: Sequence[Transition]) -> list[LeaseLostError | None]:
        return self._write(lambda connection: [self._apply(connection, item) for item in transitions])

    def _apply(self, connection: sqlite3.Connection, transition: Transition) -> LeaseLostError | None:
        claim, token = transition.claim, token_of(transition)
        row = connection.execute(
            self._sql["commit_run"],
            {
                "run_id": claim.run_id, "owner": claim.owner, "epoch": claim.epoch, "from_state": claim.state.value,
                "from_us": claim.updated_us, "to_state": transition.to_state.value, "at_us": transition.at_us,
                "due_us": transition.due_us, "claimed_us": claim.now_us, "keep_lease": transition.keep_lease,
                "wakes": transition.wakes,
                "retries": transition.retries, "last_error": shortened(transition.last_error),
                "report_digest": transition.report_digest, "reason_code": transition.reason_code,
                "facts_view_digest": transition.facts_view_digest, "count": len(transition.events), "token": token,
                "deadline_us": transition.deadline_us, "attempts": len(claim.attempts),
                "launches": transition.launches, "missing": searchable(transition.missing),
                "absent_root": transition.absent_root,
            },
        ).fetchone()  # fmt: skip
        if row is None:
            parameters = {"run_id": claim.run_id, "epoch": claim.epoch, "token": token}
            known = connection.execute(self._sql["find_committed"], parameters).fetchone()
            return lease_lost(claim) if known is None else None
        last_seq = row[0]
        if transition.events:
            before = last_seq - len(transition.events)
            self._append(connection, claim.run_id, before, transition.at_us, transition.events)
        if transition.attempt is not None:
            attempt = asdict(storable_attempt(transition.attempt))
            connection.execute(self._sql["put_attempt"], {"run_id": claim.run_id, "epoch": claim.epoch, **attempt})
        if transition.signal is not None:
            self._add_signal(connection, transition.signal, claim.run_id, transition.at_us, last_seq)
        superseding = transition.superseding
        if superseding is not None:
            self._tell_superseded(connection, superseding, claim.run_id)
            self._add_signal(connection, superseding.signal, claim.run_id, transition.at_us, last_seq)
        return None

    def _tell_superseded(self, connection: sqlite3.Connection, superseding: Superseding, run_id: str) -> None:
        """Append SUPERSEDED_BY to the record of the superseded run, unless it is there already."""
        parameters = {"old_run_id": superseding.old_run_id, "run_id": run_id}
        if connection.execute(self._sql["find_superseded_by"], parameters).fetchone() is None:
            self._grow_now(connection, superseding.old_run_id, self._clock(), [superseding.event])

    @override
    def make_waiting_due(self) -> int:
        now = self._clock()
        return self._write(lambda c: c.execute(self._sql["make_waiting_due"], {"now": now}).rowcount)

    @override
    def wake_waiting_for_roots(self, roots: Collection[str], limit: int, only: str = "") -> int:
        name = "wake_waiting_for_roots_only" if only else "wake_waiting_for_roots"
        parameters = {"roots": orjson.dumps(list(roots)).decode(), "now": self._clock(), "limit": limit, "only": only}
        return self._write(lambda c: c.execute(self._sql[name], parameters).rowcount)

    @override
    def pull_in_times(self) -> int:
        now = self._clock()
        bounds = {"now": now, "run_bound": now + RUN_HORIZON_US, "lease_bound": now + LEASE_HORIZON_US}
        bounds |= {"relay_bound": now + RELAY_HORIZON_US, "until_restart": UNTIL_RESTART}
        if not self._query("any_ahead", **bounds)[0][0]:
            return 0
        names = ("pull_in_runs", "pull_in_signals")
        return self._write(lambda c: sum(c.execute(self._sql[name], bounds).rowcount for name in names))

    @override
    def owners(self) -> set[str]:
        return {row[0] for row in self._query("live_owners", now=self._clock()) if row[0]}

    @override
    def expire_owner(self, owner: str) -> None:

        def operation(connection: sqlite3.Connection) -> None:
            for name in ("expire_runs_of", "expire_relays_of", "expire_signals_of"):
                connection.execute(self._sql[name], {"owner": owner})

        self._write(operation)

    @override
    def pending(self, only: str = "") -> Pending:
        row = self._query("any_pending_only" if only else "any_pending", now=self._clock(), only=only)[0]
        return Pending(*map(bool, row))

    # --- digest reuse

    @override
    def keep_digests(self, key: str, digests: list[str]) -> None:
        parameters = {"digest_key": key, "digests": canonical_bytes(digests), "now": self._clock()}
        self._write(lambda c: c.execute(self._sql["keep_digests"], parameters).rowcount)

    # --- stores

    @override
    def _propose_identity(self, name: str, identity: str) -> None:
        parameters = {"name": name, "identity": identity, "now": self._clock()}
        self._write(lambda c: c.execute(self._sql["note_identity"], parameters).rowcount)

    @override
    def adopt_identity(self, name: str, identity: str) -> None:
        parameters = {"name": name, "identity": identity, "now": self._clock()}
        self._write(lambda c: c.execute(self._sql["adopt_identity"], parameters).rowcount)

    # --- what is observed

    @override
    def report_daemon(self, daemon: DaemonRow, keep_us: int) -> None:
        parameters = {**asdict(daemon), "now": self._clock(), "keep_us": keep_us}

        def operation(connection: sqlite3.Connection) -> None:
            for name in ("report_daemon", "forget_daemons"):
                connection.execute(self._sql[name], parameters)

        self._work(operation)

    @override
    def remove_daemon(self, owner: str) -> None:
        self._write(lambda c: c.execute(self._sql["remove_daemon"], {"owner": owner}).rowcount)

    @override
    def backlog(self, most: int) -> Backlog:
        return backlog_of(self._query("backlog", now=self._clock(), most=most)[0])


def _enter_wal(connection: sqlite3.Connection) -> None:
    """Switch a database to WAL; unlike other statements this one does not wait for a lock by itself."""
    policy = RetryPolicy(first_seconds=0.01, most_seconds=0.1, jitter=True, deadline_seconds=_BUSY_SECONDS)
    with_retries(
        lambda: connection.execute("PRAGMA journal_mode = WAL"),
        policy,
        lambda error: isinstance(error, sqlite3.OperationalError),
    )


def _commit(connection: sqlite3.Connection) -> None:
    """Make a transaction durable; the place where tests kill the process between rows and objects."""
    connection.execute("COMMIT")
