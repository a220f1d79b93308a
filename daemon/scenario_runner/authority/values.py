"""What goes into the authority and comes out of it: requests, claims, transitions, rows. Times are microseconds."""

from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from scenario_runner.authority.acts import Arrival, ReemitAct
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import LedgerDrift, SequenceError
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import (
    FINAL_STATES,
    Disposition,
    EventKind,
    RunState,
    SignalKind,
    require_path,
)
from scenario_runner.contracts.supersession import Supersession
from scenario_runner.tracing import RequestTimes

COLLISION_CODE: Final = Reason.EQUIV_KEY_COLLISION.value

#: Detail of a CONFLICT: only the authority finds it, and intake prepares the signal that quotes it.
COLLISION_DETAIL: Final = "the run equivalence key is bound to another intent; use a new key for a different request"


@dataclass(frozen=True, slots=True)
class SignalDraft:
    """A signal to put into the outbox; its envelope on the control bus is a pure function of the outbox row."""

    message_id: str
    kind: SignalKind
    partition_key: str
    attributes: dict[str, str]
    payload: bytes


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run that a request asks for.

    Attributes:
        traceparent: The trace context of the request; empty when its envelope has none.
    """

    run_id: str
    run_equivalence_key: str
    fingerprint: str
    intent: Json
    inputs: Json
    plan_hash: str
    plan_ref: str
    evidence_wait_us: int
    invoker: str = ""
    supersession: Supersession | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """One record of the control bus, validated as far as that is possible without the authority.

    Attributes:
        record_key: Stable identity of the record on its bus; the same record delivered again has the same key.
        raw_size: Bytes of the record as received; ``raw`` may be cut off.
        kind: Of the message; empty, like ``message_id`` and ``run_id``, where the record does not say it.
        run: The run it asks for; None when the disposition is final without the authority.
        disposition: The final disposition when ``run`` is None: REJECTED or IGNORED, or that of a re-emit which was
            carried out before.
        raw: The record's bytes, kept as a dead letter when the disposition is REJECTED or CONFLICT.
        refusal: Signal to send in these two cases; one for a re-emit is made where the act is decided.
        reemit: The re-emit that it asks for, instead of a run.
        arrival: The arrival of evidence that it says, instead of a run. Its disposition is IGNORED where no run waits.
        times: What is observed of it; the authority does not read it.
    """

    record_key: str
    raw: bytes
    raw_size: int
    kind: str = ""
    message_id: str = ""
    run_id: str = ""
    run: NewRun | None = None
    disposition: Disposition | None = None
    reason_code: str = ""
    detail: str = ""
    refusal: SignalDraft | None = None
    reemit: ReemitAct | None = None
    arrival: Arrival | None = None
    times: RequestTimes | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Admitted:
    """The disposition of a record.

    Attributes:
        repeated: True when the record had been disposed of before (it was delivered again).
    """

    record_key: str
    disposition: Disposition
    reason_code: str
    detail: str
    run_id: str
    repeated: bool


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """An attempt of an engine. Its row is inserted, and counted, in the commit before the launch.

    Attributes:
        attempt_no: From 1, without gaps.
        attempt_id: hex32.
        invoker: Name of the backend.
        handle: Text with which the backend finds the job; its ``place`` until the launch has answered.
        launched_us: When it was launched; until the launch has answered, when the row was inserted.
        timeout_us: How long the engine may run, in microseconds.
        ended_us: When its end was seen; None while it is open.
        outcome: ``SUCCEEDED`` or ``FAILED``; empty while it is open.
        reason_code: Why it failed; empty otherwise.
        exit_code: Exit status of the engine; negative for the number of the signal that ended it; None without one.
        stop_code: What ended it, in the backend's words; empty when it ended by itself.
        another_attempt: The engine was not at fault.
        duration_ms: How long it ran.
        detail: What happened, for a person.
        stderr_tail: The last lines of what it wrote to stderr.
    """

    attempt_no: int
    attempt_id: str
    invoker: str
    handle: str
    launched_us: int
    timeout_us: int
    ended_us: int | None = None
    outcome: str = ""
    reason_code: str = ""
    exit_code: int | None = None
    stop_code: str = ""
    another_attempt: bool = False
    duration_ms: int = 0
    detail: str = ""
    stderr_tail: str = ""

    @property
    def open(self) -> bool:
        """True until its end is on record: it may be running."""
        return self.ended_us is None


@dataclass(frozen=True, slots=True)
class Claim:
    """A run under lease.

    Attributes:
        epoch: Fencing epoch; grows with every claim, and every transition names it.
        owner: Who holds the lease.
        updated_us: When the run changed last.
        now_us: The database's clock when the run was claimed.
        attempts: Its attempts, in order.
        supersession: The run that it corrects, when it becomes READY.
        traceparent: The trace context of the request that it was admitted from; empty for none.
    """

    run_id: str
    run_equivalence_key: str
    epoch: int
    owner: str
    state: RunState
    intent: Json
    inputs: Json
    admitted_us: int
    deadline_us: int
    updated_us: int
    wakes: int
    retries: int
    report_digest: str
    now_us: int
    invoker: str = ""
    last_error: str = ""
    attempts: tuple[AttemptRow, ...] = ()
    supersession: Supersession | None = None
    traceparent: str = ""

    @property
    def has_open_attempt(self) -> bool:
        """True when the end of the last attempt is not on record: its engine may be running."""
        return bool(self.attempts) and self.attempts[-1].open


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a run's record; sequence numbers and ids are given on commit."""

    kind: EventKind
    state: RunState
    details: Json


@dataclass(frozen=True, slots=True)
class Superseding:
    """What the READY of a correction does beyond its own run.

    Attributes:
        old_run_id: The run that it corrects, which has ended.
        event: Appended to the record of that run: nothing else of it changes.
        signal: RUN_SUPERSEDES, owed after the READY.
    """

    old_run_id: str
    event: Event
    signal: SignalDraft


@dataclass(frozen=True, slots=True)
class Transition:
    """What one commit changes of a claimed run: every column that it sets, and the events and the signal it adds.

    The factories of ``runs/transitions.py`` make the four that there are: gates recorded, waiting, retry, terminal.

    Attributes:
        claim: The lease it is made under, and the row as it was when it was claimed or last changed under that lease.
        to_state: The state afterwards.
        at_us: When the run changed last, afterwards; the time of the events. Equals ``claim.updated_us`` when there are
            no events, and is later when there are.
        due_us: When the run is due again; None when it has ended.
        keep_lease: True while the owner goes on with the run; False to give the lease back.
        wakes: Examinations that found evidence missing, afterwards.
        retries: Failures of infrastructure one after the other, afterwards.
        last_error: The last such failure, for a person; empty when there is none.
        report_digest: Digest of what was found of the evidence and put on record last.
        events: Appended to the run's record in one transaction with the row, in order.
        reason_code: Of a negative verdict.
        facts_view_digest: Of READY.
        signal: Put into the outbox with a terminal state.
        deadline_us: The evidence deadline afterwards; None leaves it as it is.
        missing: Paths that the run waits for from now on, for people who search them; None when they are the same as
            before.
        superseding: With READY, of a run that corrects another.
        absent_root: With WAITING_EVIDENCE, the root that is looked at in rounds until the run is due: see
            :mod:`scenario_runner.runs.absent_roots`. Empty for a run that is looked at when it is due only.
        attempt: An attempt as its row is to be afterwards: a new one, which is the next number, or the last one.

    Raises:
        SequenceError: the run never goes this way, or an end comes without a signal, or a signal without an end.
    """

    claim: Claim
    to_state: RunState
    at_us: int
    due_us: int | None
    keep_lease: bool
    wakes: int
    retries: int
    last_error: str
    report_digest: str
    events: tuple[Event, ...] = ()
    reason_code: str = ""
    facts_view_digest: str = ""
    signal: SignalDraft | None = None
    deadline_us: int | None = None
    attempt: AttemptRow | None = None
    missing: tuple[str, ...] | None = None
    superseding: Superseding | None = None
    absent_root: str = ""

    def __post_init__(self) -> None:
        """Refuse a change that no run may make: it is a defect of ours."""
        claim, ends = self.claim, self.to_state in FINAL_STATES
        last = self.events[-1].state if self.events else claim.state
        # The states of the events, not just the two ends: a run that waited passes VERIFYING before it ends, and its
        # record says so in the same transaction.
        require_path((claim.state, *(event.state for event in self.events)))
        if last is not self.to_state or claim.state in FINAL_STATES:
            raise SequenceError(f"run {claim.run_id}: nothing on record leads from {claim.state} to {self.to_state}")
        if len({ends, self.due_us is None, self.signal is not None}) > 1 or (ends and self.keep_lease):
            raise SequenceError(f"run {claim.run_id}: an end has a signal, no due time and no lease; {self.to_state}")
        # The row's updated_us is what fences one transition of a claim from the next: it moves with every event.
        if self.at_us < claim.updated_us or (self.at_us > claim.updated_us) is not bool(self.events):
            raise SequenceError(f"run {claim.run_id}: the time of a change moves on with events, and only with them")
        corrects = self.to_state is RunState.READY and claim.supersession is not None
        if corrects is not (self.superseding is not None):
            raise SequenceError(f"run {claim.run_id}: a correction supersedes with its READY, and nothing else does")
        if self.absent_root and self.to_state is not RunState.WAITING_EVIDENCE:
            raise SequenceError(f"run {claim.run_id}: only a waiting run waits for its root")
        self._check_attempt()

    def _check_attempt(self) -> None:
        """An attempt is added after the end of the one before it, and with an event; an end is on record once."""
        if self.attempt is None:
            return
        known, number = self.claim.attempts, self.attempt.attempt_no
        adds = number == len(known) + 1 and not (known and known[-1].open) and self.attempt.open
        changes = bool(known) and number == len(known) and known[-1].open
        if not (adds or changes) or not self.events:
            raise SequenceError(f"run {self.claim.run_id}: attempt {number} cannot be changed like this")

    @property
    def launches(self) -> int:
        """How many attempts it adds: 1 or 0."""
        return int(self.attempt is not None and self.attempt.attempt_no > len(self.claim.attempts))

    @property
    def claim_after(self) -> Claim:
        """The claim that the next transition under the same lease is made from.

        Raises:
            SequenceError: the lease was given back.
        """
        if not self.keep_lease:
            raise SequenceError(f"the lease of run {self.claim.run_id} was given back with its last transition")
        attempts, deadline_us = self.claim.attempts, self.claim.deadline_us
        if self.attempt is not None:
            attempts = (*attempts[: self.attempt.attempt_no - 1], self.attempt)
        if self.deadline_us is not None:
            deadline_us = self.deadline_us
        return replace(
            self.claim, state=self.to_state, updated_us=self.at_us, wakes=self.wakes, retries=self.retries,
            last_error=self.last_error, report_digest=self.report_digest, attempts=attempts, deadline_us=deadline_us,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as stored."""

    seq: int
    kind: str
    ts_us: int
    details: Json


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as the authority has it.

    Attributes:
        absent_root: Of a waiting run: see :class:`Transition`.
    """

    run_id: str
    run_equivalence_key: str
    state: RunState
    reason_code: str
    intent: Json
    inputs: Json
    admitted_us: int
    deadline_us: int
    updated_us: int
    due_us: int | None
    lease_owner: str
    lease_epoch: int
    lease_until_us: int
    wakes: int
    retries: int
    last_error: str
    event_seq: int
    projected_seq: int
    facts_view_digest: str
    relay_retries: int = 0
    relay_error: str = ""
    relay_since_us: int = 0
    relay_until_us: int = 0
    absent_root: str = ""


UNTIL_RESTART: Final = 1 << 62
"""A due time that no clock reaches (2^62 µs are 146,000 years): only :meth:`Authority.resume_deliveries` ends it."""


@dataclass(frozen=True, slots=True)
class ProjectionTask:
    """A run whose documents in the ledger are older than its rows, with all its events up to ``run.event_seq``."""

    run: RunRow
    events: tuple[StoredEvent, ...]


@dataclass(frozen=True, slots=True)
class ProjectionFailure:
    """Why a run's documents could not be written, and when they are tried again.

    Attributes:
        until_us: ``UNTIL_RESTART`` to leave them until a daemon starts.
    """

    run_id: str
    until_us: int
    error: str


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A signal to publish, exactly these bytes.

    Attributes:
        emission: 0 for the first publication of a message, from 1 for each that repeats it.
        action_key: The act that asked for it to be repeated; empty for a first publication.
        owner: Who claimed it.
    """

    outbox_id: int
    message_id: str
    run_id: str
    kind: SignalKind
    partition_key: str
    attributes: dict[str, str]
    payload: bytes
    created_us: int
    attempts: int
    emission: int = 0
    action_key: str = ""
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Sent:
    """A signal that is on the control bus.

    Attributes:
        row: Its outbox row, as it was claimed.
        receipt: What the bus answered, as JSON; empty where the message id says where the signal is.
        event: Appended to the record of the signal's run, which has ended; None for a signal that leaves no event.
    """

    row: OutboxRow
    receipt: str = ""
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class ReemitEnd:
    """A re-emit that is owed no more.

    Attributes:
        row: Its outbox row, as it was claimed.
        receipt: See :class:`Sent`.
        failure: Why it was not published; None when it was.
    """

    row: OutboxRow
    receipt: str = ""
    failure: LedgerDrift | None = None


@dataclass(frozen=True, slots=True)
class RecordRow:
    """A record's disposition."""

    record_key: str
    message_id: str
    kind: str
    disposition: Disposition
    reason_code: str
    detail: str
    received_us: int
    raw_sha256: str
    raw_size: int


@dataclass(frozen=True, slots=True)
class SupersessionRow:
    """A run that corrects another, in whatever state it is: it supersedes that run once it is READY."""

    new_run_id: str
    state: RunState
    supersession: Supersession


class SignalRow(NamedTuple):
    """A signal of a run.

    Attributes:
        sent_us: When it was sent; None before that.
        emission: 0 for the first publication of its message.
        receipt: What the control bus answered, as JSON; empty before that, and on a spool.
        action_key: The act that asked for it to be repeated.
    """

    message_id: str
    kind: str
    sent_us: int | None
    emission: int = 0
    receipt: str = ""
    action_key: str = ""


@dataclass(frozen=True, slots=True)
class Signals:
    """Signals of one run, in the order in which they were put into the outbox."""

    rows: tuple[SignalRow, ...] = field(default=())
