"""Acts of an operator as the authority takes and keeps them, and the signals that they repeat."""

from dataclasses import dataclass
from typing import Final

from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import Disposition, ReemitKind


@dataclass(frozen=True, slots=True)
class ReemitLimit:
    """How often the signal of one run may be published again: at most ``most`` acts within ``window_us``."""

    most: int
    window_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReemitAct:
    """Somebody asks for a run's signal to be published again.

    Attributes:
        key: Identity of the act; the same act sent again has the same key, and is carried out once.
        actor: Who asks.
        via: ``cli`` or ``bus``.
        reason: Why, in the caller's words.
        dry_run: Say what would be done, and publish nothing.
        denied: Why the caller may not do this; empty when it may.
        predicted: Of a dry run: why the delivery of READY would be refused.
    """

    key: str
    run_id: str
    kind: ReemitKind
    actor: str
    via: str
    reason: str
    limit: ReemitLimit
    dry_run: bool = False
    denied: str = ""
    predicted: tuple[Reason, str] | None = None


@dataclass(frozen=True, slots=True)
class ReemitAnswer:
    """What an act came to.

    Attributes:
        outcome: ``ACCEPTED`` (the signal is owed), ``DRY_RUN``, or the reason code of a refusal. A repeated act may be
            ``PUBLISHED`` by now, or refused when it was to be delivered.
        detail: The same for a person.
        repeated: True when the act had been carried out before.
    """

    key: str
    run_id: str
    outcome: str
    detail: str
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class ActionRow:
    """An act of an operator: who did what to what, when, why, and what came of it.

    Attributes:
        at_us: When.
        actor: Who.
        via: ``cli`` or ``bus``.
        action: What was done.
        subject: What it was done to, such as a run id.
        reason: Why, in the actor's words.
        outcome: What came of it: one word, or a reason code.
        detail: The same for a person.
    """

    action_key: str
    at_us: int
    actor: str
    via: str
    action: str
    subject: str
    reason: str
    outcome: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeAct:
    """Somebody asks for a waiting run to be examined now.

    Attributes:
        key: Identity of the act; the same act sent again has the same key, and is carried out once.
    """

    key: str
    run_id: str
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """Somebody says that evidence has come; see :mod:`scenario_runner.authority.arrivals`.

    Attributes:
        engine_run_root: Where, in the normal form of ``intake/roots.py``.
        run_id: Only this run is told, if it waits for evidence there; empty for all that do.
    """

    engine_run_root: str
    run_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftAct:
    """A scrub found that the evidence of a READY run is not any more as it was published.

    Attributes:
        key: Identity of what was found: the same drift of a run is put on record once.
        actor: Who scrubs.
        reason: Why, in the actor's words.
        detail: The first check that did not hold.
        checks: All checks that did not hold.
        via: Always ``cli``.
        quiet_us: It is not put on record when another drift of the run was within this time.
    """

    key: str
    run_id: str
    actor: str
    reason: str
    detail: str
    checks: tuple[Json, ...]
    via: str = "cli"
    quiet_us: int = 0


@dataclass(frozen=True, slots=True)
class PublishedSignal:
    """A signal that was published first at some time.

    Attributes:
        cursor: (time of publication in microseconds, outbox id): its place in the order of publication.
    """

    run_id: str
    message_id: str
    kind: str
    cursor: tuple[int, int]


ACK_ACTION: Final = "quarantine_ack"
"""``operator_actions.action`` of an acknowledgement: a person has seen that a run is QUARANTINED."""


def ack_key(run_id: str) -> str:
    """Identity of the acknowledgement of a run: the first one stays. Statements of the views know it too."""
    return f"{ACK_ACTION}/{run_id}"


ADMITTED: Final = "ADMITTED"
"""Outcome of an act whose record was ACCEPTED. (An act that is ACCEPTED is owed to the control bus.)"""


def outcome_of(disposition: Disposition, reason_code: str) -> str:
    """The outcome of an act that asks for a record: why it was refused, or its disposition. PostgreSQL knows it too."""
    if reason_code:
        return reason_code
    return ADMITTED if disposition is Disposition.ACCEPTED else disposition.value
