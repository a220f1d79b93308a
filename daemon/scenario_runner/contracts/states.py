"""Run states and their legal transitions, strategies, dispositions, signal kinds: all closed lists."""

from collections.abc import Iterable
from enum import StrEnum
from itertools import pairwise
from typing import Final

from scenario_runner.contracts.errors import SequenceError


class RunState(StrEnum):
    """Where a run stands."""

    OPEN = "OPEN"
    PLANNED = "PLANNED"
    EXECUTING = "EXECUTING"
    VERIFYING = "VERIFYING"
    WAITING_EVIDENCE = "WAITING_EVIDENCE"
    READY = "READY"
    FAILED = "FAILED"
    QUARANTINED = "QUARANTINED"


FINAL_STATES: Final = frozenset({RunState.READY, RunState.FAILED, RunState.QUARANTINED})

TRANSITIONS: Final[dict[RunState, frozenset[RunState]]] = {
    RunState.OPEN: frozenset({RunState.PLANNED}),
    RunState.PLANNED: frozenset({RunState.EXECUTING, RunState.VERIFYING}),
    RunState.EXECUTING: frozenset({RunState.VERIFYING, RunState.FAILED}),
    # To EXECUTING: evidence that could have been reused is missing, and the engine is to make it.
    RunState.VERIFYING: frozenset(
        {RunState.EXECUTING, RunState.WAITING_EVIDENCE, RunState.READY, RunState.FAILED, RunState.QUARANTINED}
    ),
    RunState.WAITING_EVIDENCE: frozenset({RunState.VERIFYING}),
    RunState.READY: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.QUARANTINED: frozenset(),
}


def require_path(states: Iterable[RunState]) -> None:
    """Require that a run may pass through some states, one after the other; to stay in one is no step.

    Raises:
        SequenceError: a step is not in :data:`TRANSITIONS`.
    """
    for before, after in pairwise(states):
        if after is not before and after not in TRANSITIONS[before]:
            raise SequenceError(f"a run never goes from {before} to {after}")


class Strategy(StrEnum):
    """How evidence may come to be."""

    AUTO = "AUTO"
    FORCE_INVOKE = "FORCE_INVOKE"
    FORCE_REUSE = "FORCE_REUSE"


class Disposition(StrEnum):
    """What became of a record on the control bus; every record has exactly one."""

    ACCEPTED = "ACCEPTED"
    DUPLICATE = "DUPLICATE"
    CONFLICT = "CONFLICT"
    REJECTED = "REJECTED"
    IGNORED = "IGNORED"


#: Dispositions of records that were meant to make a run and made none: they leave a dead letter and send a signal.
REFUSED: Final = (Disposition.REJECTED, Disposition.CONFLICT)


class SignalKind(StrEnum):
    """``attributes.kind`` of an envelope on the control bus."""

    RUN_REQUEST = "RUN_REQUEST"
    REEMIT_REQUEST = "REEMIT_REQUEST"
    EVIDENCE_ARRIVED = "EVIDENCE_ARRIVED"
    READY = "READY"
    TERMINAL = "TERMINAL"
    READY_REEMIT = "READY_REEMIT"
    TERMINAL_REEMIT = "TERMINAL_REEMIT"
    REQUEST_REJECTED = "REQUEST_REJECTED"
    RUN_SUPERSEDES = "RUN_SUPERSEDES"


OWN_SIGNALS: Final = frozenset(
    {
        SignalKind.READY,
        SignalKind.TERMINAL,
        SignalKind.READY_REEMIT,
        SignalKind.TERMINAL_REEMIT,
        SignalKind.REQUEST_REJECTED,
        SignalKind.RUN_SUPERSEDES,
    }
)


#: What repeats a signal, of each signal that can be repeated.
REPEATED_BY: Final = {SignalKind.READY: SignalKind.READY_REEMIT, SignalKind.TERMINAL: SignalKind.TERMINAL_REEMIT}


class ReemitKind(StrEnum):
    """Which signal of a run is to be published again. A run has one of the two, so BOTH means whichever it has."""

    READY_ONLY = "READY_ONLY"
    TERMINAL_ONLY = "TERMINAL_ONLY"
    BOTH = "BOTH"


class EventKind(StrEnum):
    """``event_kind`` of a run_record line."""

    RUN_ADMITTED = "RUN_ADMITTED"
    PLAN_COMMITTED = "PLAN_COMMITTED"
    GOV_POLICY_REV = "GOV_POLICY_REV"
    GOV_PLAN_HASH = "GOV_PLAN_HASH"
    VERIFICATION_STARTED = "VERIFICATION_STARTED"
    ENGINE_ATTEMPT_LAUNCH_REQUESTED = "ENGINE_ATTEMPT_LAUNCH_REQUESTED"
    ENGINE_JOB_SUBMITTED = "ENGINE_JOB_SUBMITTED"
    ENGINE_ATTEMPT_FINISHED = "ENGINE_ATTEMPT_FINISHED"
    EVIDENCE_MISSING = "EVIDENCE_MISSING"
    GATES_PASSED = "GATES_PASSED"
    RECEIPTS_COMMITTED = "RECEIPTS_COMMITTED"
    FACTS_VIEW_COMMITTED = "FACTS_VIEW_COMMITTED"
    GOV_BUNDLE_HASH = "GOV_BUNDLE_HASH"
    GOV_REEMIT_KEY = "GOV_REEMIT_KEY"
    RUN_READY = "RUN_READY"
    RUN_FAILED = "RUN_FAILED"
    RUN_QUARANTINED = "RUN_QUARANTINED"
    SUPERSEDES = "SUPERSEDES"
    SUPERSEDED_BY = "SUPERSEDED_BY"
    READY_PUBLISHED = "READY_PUBLISHED"
    REEMIT_REQUESTED = "REEMIT_REQUESTED"
    REEMIT_DRY_RUN = "REEMIT_DRY_RUN"
    REEMIT_PUBLISHED = "REEMIT_PUBLISHED"
    REEMIT_FAILED = "REEMIT_FAILED"
    EVIDENCE_DRIFTED = "EVIDENCE_DRIFTED"


#: The event that ends a run, of each final state. Others may follow it: they decide nothing of the run.
ENDINGS: Final = frozenset({EventKind.RUN_READY, EventKind.RUN_FAILED, EventKind.RUN_QUARANTINED})
#: Events that tell of signals that were published again. They decide nothing of the run.
REEMIT_EVENTS: Final = frozenset(
    {EventKind.REEMIT_REQUESTED, EventKind.REEMIT_DRY_RUN, EventKind.REEMIT_PUBLISHED, EventKind.REEMIT_FAILED}
)
