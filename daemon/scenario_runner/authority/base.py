"""The authority contract. One contract test runs over every backend.

Times are microseconds since the epoch on the database's clock. Every change of a run is a :class:`Transition`; its
statement names the lease, the state, the number of attempts and the time of the last change that it expects. Zero rows
mean that the lease was lost, never success, unless the row holds the token of this very transition.

Every operation may be called again when it is not known whether it was carried out (a connection lost during a commit).
A claim that was never answered is the exception: its runs are renewed by nobody, so their leases run out.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

from scenario_runner.authority.acts import (
    ActionRow,
    Arrival,
    DriftAct,
    PublishedSignal,
    ReemitAct,
    ReemitAnswer,
    WakeAct,
)
from scenario_runner.authority.observed import Backlog, DaemonRow, Pending, WaitingRuns
from scenario_runner.authority.rebuilds import RebuildEnd, RestoredRun, UnfinishedRebuild
from scenario_runner.authority.retention import Expiry, Removal
from scenario_runner.authority.values import (
    Admission,
    Admitted,
    AttemptRow,
    Claim,
    OutboxRow,
    ProjectionFailure,
    ProjectionTask,
    RecordRow,
    ReemitEnd,
    RunRow,
    Sent,
    Signals,
    StoredEvent,
    SupersessionRow,
    Transition,
)
from scenario_runner.contracts.errors import LeaseLostError


class RunReader(Protocol):
    """What is known of one run."""

    def run(self, run_id: str) -> RunRow | None:
        """One run."""
        ...

    def events(self, run_id: str) -> list[StoredEvent]:
        """A run's events in order."""
        ...

    def attempts(self, run_id: str) -> list[AttemptRow]:
        """Attempts of a run's engine in order."""
        ...

    def records(self, run_id: str) -> list[RecordRow]:
        """Dispositions of the records that named a run, oldest first."""
        ...

    def signals(self, run_id: str) -> Signals:
        """Signals of a run."""
        ...

    def supersessions(self, run_id: str) -> list[SupersessionRow]:
        """Corrections that a run takes part in: its own of another run, and those of it, oldest first."""
        ...

    def actions(self, subject: str) -> list[ActionRow]:
        """Acts on a subject, oldest first."""
        ...

    def awaited(self, arrival: Arrival) -> bool:
        """Whether a run waits for the evidence that has come; see :meth:`Authority.tell`."""
        ...


class Authority(RunReader, Protocol):
    """The operations, on either engine. Each raises ``Unavailable`` when the database does not answer."""

    def now_us(self) -> int:
        """The database's clock."""
        ...

    def admit(self, records: Sequence[Admission]) -> list[Admitted]:
        """Give every record its disposition, durably; a record delivered again keeps the one it has.

        Everything about a record is one transaction. A batch is one too, except that an engine may split off records
        that another process was admitting at the same moment, or that it cannot store and therefore refuses.
        """
        ...

    def admit_for(self, action: ActionRow, record: Admission) -> Admitted | None:
        """Give a record its disposition because an operator asks for it, in one transaction with the row of the act.

        Args:
            action: The act. The database's clock gives its time; its outcome and detail are those of the disposition.
            record: The record, which is judged and written as by ``admit``.

        Returns:
            The disposition; None when the key of the record or of the act is known: then nothing is written.
        """
        ...

    def wake(self, acts: Sequence[WakeAct]) -> dict[str, str]:
        """Make waiting runs due now, each in a transaction with the row of its act; one of a known key only once.

        Neither the deadline nor anything else of a run changes. A run under lease is left to its lease holder.

        Returns:
            Outcomes by run id, see :mod:`scenario_runner.authority.wakes`; a run that is not there has none.
        """
        ...

    def tell(self, arrivals: Sequence[Arrival]) -> list[int]:
        """Have runs examined soon that wait for evidence where it has come.

        See :mod:`scenario_runner.authority.arrivals` for what that comes to. Many runs are told in more than one
        transaction. Nothing is written where no run waits.

        Returns:
            For each arrival, how many runs wait there; also those that were due already.
        """
        ...

    def waiting_roots(self, most: int) -> list[str]:
        """Engine run roots where runs wait for evidence: of so many runs, those that wait longest from now."""
        ...

    def claim(self, owner: str, limit: int, lease_us: int, only: str = "") -> list[Claim]:
        """Lease runs that are due, with their attempts; which first, see :mod:`scenario_runner.authority.claims`.

        A planned run becomes VERIFYING, with its event, unless it invokes its engine first (FORCE_INVOKE).

        Args:
            owner: Who asks.
            limit: At most so many runs.
            lease_us: Length of the lease from now.
            only: Id of the one run that is asked for; empty for every run. Likewise below.
        """
        ...

    def renew(self, owner: str, held: Sequence[tuple[str, int]], lease_us: int) -> set[tuple[str, int]]:
        """Extend the leases that an owner knows to hold, no others.

        Args:
            owner: Who holds them.
            held: (run id, epoch) pairs as claimed.
            lease_us: Length of the lease from now.

        Returns:
            The pairs that it still holds.
        """
        ...

    def commit(self, transitions: Sequence[Transition]) -> list[LeaseLostError | None]:
        """Commit transitions of claimed runs, each for itself and those of one run in order.

        A transition that finds no row under its guards, while the row's last token under this epoch is its own, has
        been committed before: None, and nothing is written twice.

        Its attempt is written with the row: a new one is inserted under the lease's epoch and counted, the last one is
        changed while its end is not on record.

        Returns:
            For each transition None, or why nothing of it was written: another worker has claimed the run, or another
            transition of the same claim was committed.
        """
        ...

    def make_waiting_due(self) -> int:
        """Make every waiting run due now; returns how many were not."""
        ...

    def absent_roots(self, after: str, limit: int, only: str = "") -> list[str]:
        """Roots of the runs that wait for nothing less, each once, in byte order.

        Args:
            after: The last root of the page before; empty for the first.
            limit: At most so many.
            only: Id of the one run that is asked for; empty for every run.
        """
        ...

    def wake_waiting_for_roots(self, roots: Collection[str], limit: int, only: str = "") -> int:
        """Make runs due now that wait for roots, see :meth:`absent_roots`, which then lists them no more.

        Neither the deadline nor anything else of a run changes. A run under lease is none of them.

        Args:
            roots: The roots.
            limit: At most so many runs.
            only: Id of the one run that may be made due; empty for every run.

        Returns:
            How many runs.
        """
        ...

    def claim_projections(self, owner: str, limit: int, lease_us: int, only: str = "") -> list[ProjectionTask]:
        """Lease runs whose ledger documents are older than their rows, those that changed first first."""
        ...

    def mark_projected(self, owner: str, done: Sequence[tuple[str, int]]) -> None:
        """Record that documents are in the ledger; clears earlier failures.

        Only of runs that this owner has claimed, and nobody since: likewise :meth:`postpone_projections`. A lease that
        has run out still counts until another owner claims the run; afterwards nothing of it is changed. So a repeated
        call changes nothing, and neither does a relay that stood still while its database was replaced.

        Args:
            owner: Who claimed them.
            done: (run id, last sequence number) pairs. A number above the run's last event counts as that event's.
        """
        ...

    def postpone_projections(self, owner: str, failures: Sequence[ProjectionFailure]) -> None:
        """Record that documents could not be written: how often, since when, why, and when to try again.

        Args:
            owner: Who claimed the runs, see :meth:`mark_projected`.
            failures: Why each could not be written.
        """
        ...

    def resume_deliveries(self) -> int:
        """Make postponed documents and signals due now and reset their counts of failures; returns how many."""
        ...

    def claim_signals(self, owner: str, limit: int, lease_us: int, only: str = "") -> list[OutboxRow]:
        """Lease signals whose run's documents are in the ledger, oldest first."""
        ...

    def mark_sent(self, sent: Sequence[Sent]) -> None:
        """Record that signals are on the control bus; the time and receipt of the first such record stay.

        This and what else becomes of a claimed signal, :meth:`end_reemits` and :meth:`postpone_signals`, is written
        only while the row is the one that was claimed: the same message, not sent yet. What was not published needs
        the lease of that owner too; one that has run out counts until another owner claims the row. So a repeated call
        changes nothing, and neither does a relay that stood still while its database was replaced.
        """
        ...

    def reemit(self, acts: Sequence[ReemitAct]) -> list[ReemitAnswer]:
        """Carry out acts, each in a transaction with its row of ``operator_actions``; one of a known key only once.

        See :mod:`scenario_runner.authority.reemits` for what an act comes to.
        """
        ...

    def end_reemits(self, ends: Sequence[ReemitEnd]) -> None:
        """Record what became of re-emits that were owed: event, act and outbox row in one transaction.

        A re-emit that was published is marked as sent. One that was refused leaves the outbox. One that is owed no more
        is left as it is, and so is one that failed and that another owner has claimed since, see :meth:`mark_sent`.
        """
        ...

    def acts(self, keys: Sequence[str]) -> dict[str, ActionRow]:
        """Acts by their keys; one that is not known is left out."""
        ...

    def record_action(self, action: ActionRow) -> bool:
        """Record an act that has no other effect; ``at_us`` is the database's clock. False when its key is known."""
        ...

    def end_action(self, key: str, outcome: str, detail: str) -> None:
        """Record what came of an act that took longer."""
        ...

    def replace_detail(self, key: str, before: str, detail: str) -> bool:
        """Change the detail of an act, if it is still what it was; False when it is not."""
        ...

    def record_drift(self, act: DriftAct) -> bool:
        """Put on record that the evidence of a READY run has drifted: its act and its event, in one transaction.

        Nothing else of the run changes.

        Returns:
            False when the same drift is on record already, or another one of the run that is not older than the act
            allows, or the run is not READY: then nothing is written.
        """
        ...

    def remove_expired(self, expiry: Expiry, after: int, limit: int, action_key: str) -> Removal:
        """Remove a batch of what has expired, and add its count to an act, in one transaction.

        Args:
            expiry: What; not of the spool.
            after: Where the batch before ended; 0 for the first.
            limit: At most so many rows.
            action_key: The act.
        """
        ...

    def published(self, state: str, after: tuple[int, int], until_us: int, limit: int) -> list[PublishedSignal]:
        """Signals of runs of one state, in the order in which they were published first.

        Args:
            state: READY, FAILED or QUARANTINED.
            after: Cursor of the last signal of the page before; ``(time, -1)`` begins at a time.
            until_us: Published before this time.
            limit: At most so many.
        """
        ...

    def postpone_signals(self, rows: Sequence[OutboxRow], due_us: int) -> None:
        """Give claimed signals back, to be published at ``due_us``, because it failed; see :meth:`mark_sent`."""
        ...

    def pull_in_times(self) -> int:
        """Correct times that lie further ahead than any pause or lease: the clock was set back.

        Such runs, documents and signals become due now; such leases run out now, unless their owner renews them.

        Returns:
            How many rows were corrected.
        """
        ...

    def owners(self) -> set[str]:
        """Owners of leases that have not run out."""
        ...

    def expire_owner(self, owner: str) -> None:
        """End all leases of an owner that is dead, or that gives them back."""
        ...

    def pending(self, only: str = "") -> Pending:
        """Whether work is due now."""
        ...

    def waiting_runs(self) -> WaitingRuns:
        """How many runs wait for evidence, since when, and until when."""
        ...

    def runs(self, state: str | None, limit: int) -> list[RunRow]:
        """Runs, newest first, of one state or all."""
        ...

    def find_digests(self, key: str) -> list[str] | None:
        """Digests kept under a key (hex64), or None; makes this a ``DigestStore`` of ``artifacts/reuse.py``."""
        ...

    def keep_digests(self, key: str, digests: list[str]) -> None:
        """Keep digests under a key; the first ones stay."""
        ...

    def identity(self, name: str, proposed: str) -> str:
        """The identity of a store as this authority knows it.

        Args:
            name: Which store: ``object_store/PLACE`` or ``spool/PLACE``.
            proposed: Kept, and returned, when the authority knows none under this name; empty to keep nothing.

        Returns:
            The identity that is known now; empty when there is none.
        """
        ...

    def adopt_identity(self, name: str, identity: str) -> None:
        """Replace the identity of a store, on an operator's order."""
        ...

    def begin_rebuild(self, actor: str, terms: str) -> UnfinishedRebuild | None:
        """Begin to rebuild an empty authority, or go on with a rebuild that was interrupted.

        Args:
            actor: Who asks.
            terms: By what runs are restored, for a rebuild that begins. One that was interrupted keeps its own.

        From then on ``admit``, ``admit_for``, ``reemit`` and ``report_daemon`` raise ``Unavailable``, and nothing is
        claimed, until the rebuild has ended.

        Returns:
            None, and nothing is changed, when the authority knows of a run, a record or a signal, or when a daemon was
            seen within :data:`~scenario_runner.authority.rebuilds.SEEN_US`.
        """
        ...

    def daemons_seen(self, within_us: int) -> list[DaemonRow]:
        """Daemons that reported themselves within a time, by owner."""
        ...

    def restore(self, runs: Sequence[RestoredRun], epoch: int, end: RebuildEnd | None = None) -> set[str]:
        """Insert runs with all their rows, in one transaction.

        Args:
            runs: Different runs. One that is there stays as it is, with all its rows.
            epoch: That of the unfinished rebuild.
            end: Given with the last batch: ends the rebuild in the same transaction.

        Returns:
            Those of the runs that a rebuild has restored, this call or an earlier one.

        Raises:
            NotStorableError: the database cannot hold one of the runs; nothing is written.
        """
        ...

    def unfinished_rebuild(self) -> UnfinishedRebuild | None:
        """The rebuild that has begun and not ended."""
        ...

    def report_daemon(self, daemon: DaemonRow, keep_us: int) -> None:
        """Record that a daemon runs now; its first report is its start.

        Args:
            daemon: The daemon; its times are those of the database's clock.
            keep_us: Rows of daemons that were not seen for so long are removed.
        """
        ...

    def remove_daemon(self, owner: str) -> None:
        """Remove the row of a daemon that stops in order."""
        ...

    def backlog(self, most: int) -> Backlog:
        """How much waits; at most so many rows of each kind are counted."""
        ...

    def close(self) -> None:
        """Finish the operations that have begun, and disconnect."""
        ...
