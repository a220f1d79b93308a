"""The result of a run: READY, a negative verdict, a retry. Pure: findings in, transitions out.

How long a run waits for evidence that is missing is decided in :mod:`~scenario_runner.runs.waits`.
"""

from collections.abc import Mapping
from typing import Final

from scenario_runner.authority.values import Claim, Event, SignalDraft, Superseding, Transition
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import Json, canonical_bytes
from scenario_runner.contracts.errors import LedgerDrift, Refusal
from scenario_runner.contracts.ids import supersedes_message_id
from scenario_runner.contracts.intent import Intent
from scenario_runner.contracts.plan import PlanInputs
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import TRANSITIONS, EventKind, RunState, SignalKind, Strategy
from scenario_runner.contracts.supersession import Supersession
from scenario_runner.evidence.findings import Finding
from scenario_runner.gates.receipts import FactsView
from scenario_runner.ledger.documents import terminal_signal
from scenario_runner.retry import RetryPolicy
from scenario_runner.runs.effects import Attested, Examined
from scenario_runner.runs.transitions import ended, gates_recorded, retry_later

#: An outage that ends is noticed half a minute later at most.
_WAIT_FOR_INFRASTRUCTURE: Final = RetryPolicy(first_seconds=1, most_seconds=30)
#: A detail longer than this helps nobody and makes every event larger.
_MAX_DETAIL: Final = 2000


def later_than(claim: Claim, now_us: int) -> int:
    """Now, but later than anything that is on record for the run: the database's clock may have been set back."""
    return max(now_us, claim.updated_us + 1)


def root_missing(intent: Intent, inputs: PlanInputs) -> Refusal | None:
    """The refusal of a run without an engine run root, as only releases admitted it that had no engine; else None."""
    if inputs.root_of(intent):
        return None
    return Refusal("the request names no engine_run_root, and none was pinned for it", Reason.ENGINE_ROOT_MISSING)


def engine_is_first(claim: Claim, inputs: PlanInputs) -> bool:
    """Whether the engine comes before the evidence: its attempts go on, or the strategy allows no reuse.

    Evidence that lies there already must not make a run READY whose policy does not allow reuse.
    """
    if claim.state is RunState.EXECUTING:
        return True
    return inputs.strategy is Strategy.FORCE_INVOKE and not _has_succeeded(claim)


def engine_is_next(claim: Claim, inputs: PlanInputs, examined: Examined) -> bool:
    """Whether the engine is to make evidence that is missing: once, at the deadline or at once as was pinned."""
    if inputs.strategy is not Strategy.AUTO or _has_succeeded(claim):
        return False
    if inputs.auto_invoke == "at_deadline":
        return examined.began_us >= claim.deadline_us
    return inputs.auto_invoke == "at_once"


def _has_succeeded(claim: Claim) -> bool:
    return any(attempt.outcome == "SUCCEEDED" for attempt in claim.attempts)


def gates_recorded_now(claim: Claim, now_us: int, attested: Attested) -> Transition:
    """The passes of the gates are on record, and with them the receipts that may follow."""
    events = (*resumed(claim), _gates_passed(attested))
    return gates_recorded(claim, later_than(claim, now_us), events, attested.gates_passed_digest)


def ready(
    claim: Claim, now_us: int, attested: Attested, view: FactsView, old_state: RunState | None,
    more: Mapping[str, str],
) -> Transition:  # fmt: skip
    """READY: only from the attestation of a finished verified set, whose facts view is in the ledger.

    Args:
        claim: The run.
        now_us: The database's clock.
        attested: Its attestation.
        view: Its facts view.
        old_state: Of a correction: the state in which the run ended that it supersedes.
        more: Attributes that the signal carries beside its own.
    """
    signal = SignalDraft(
        view.message_id,
        SignalKind.READY,
        claim.run_id,
        {"facts_view_digest": view.digest, "run_id": claim.run_id, **more},
        canonical_bytes(view.ready),
    )
    recorded = claim.report_digest == attested.gates_passed_digest
    events = (
        *(() if recorded else (*resumed(claim), _gates_passed(attested))),
        Event(EventKind.RECEIPTS_COMMITTED, RunState.VERIFYING, attested.receipts_committed),
        Event(
            EventKind.FACTS_VIEW_COMMITTED,
            RunState.VERIFYING,
            {"ref": refs.facts_view_ref(claim.run_id), "digest": view.digest, "bundle_hash": view.bundle_hash},
        ),
        Event(EventKind.GOV_BUNDLE_HASH, RunState.VERIFYING, {"bundle_hash": view.bundle_hash}),
        _reemit_key(signal, RunState.VERIFYING),
        Event(EventKind.RUN_READY, RunState.READY, {"ready": view.ready, "message_id": view.message_id}),
    )
    at_us = later_than(claim, now_us)
    if claim.supersession is None:
        return ended(claim, RunState.READY, "", at_us, events, signal, view.digest)
    assert old_state is not None  # the lifecycle asks for it before the READY of a correction
    own, superseding = _superseding(claim.run_id, claim.supersession, old_state)
    return ended(claim, RunState.READY, "", at_us, (*events, own), signal, view.digest, superseding)


def _superseding(run_id: str, supersession: Supersession, old_state: RunState) -> tuple[Event, Superseding]:
    """The event in the record of a correction, and what its READY does to the run that it supersedes."""
    old_run_id = supersession.old_run_id
    payload = supersession.payload(run_id, old_state)
    message_id = supersedes_message_id(old_run_id, run_id, supersession.purpose)
    details = {"supersedes": payload, "message_id": message_id}
    signal = SignalDraft(message_id, SignalKind.RUN_SUPERSEDES, run_id, {"run_id": run_id}, canonical_bytes(payload))
    by = Event(EventKind.SUPERSEDED_BY, old_state, {"superseded_by": payload, "message_id": message_id})
    return Event(EventKind.SUPERSEDES, RunState.READY, details), Superseding(old_run_id, by, signal)


def failed(claim: Claim, now_us: int, finding: Finding) -> Transition:
    """FAILED: the evidence says no."""
    return negative(claim, now_us, RunState.FAILED, finding.reason, finding.detail, finding.report)


def quarantined(claim: Claim, now_us: int, finding: Finding) -> Transition:
    """QUARANTINED: the evidence contradicts itself."""
    return negative(claim, now_us, RunState.QUARANTINED, finding.reason, finding.detail, finding.report)


def quarantined_by_drift(claim: Claim, now_us: int, failure: LedgerDrift | Refusal, report: Json) -> Transition:
    """QUARANTINED: an object of our own is not what it should be, or what was found cannot be written as one.

    Args:
        claim: The run.
        now_us: The database's clock.
        failure: What is wrong with which object.
        report: What was found of the evidence so far; may be empty.
    """
    drift = failure.facts() if isinstance(failure, LedgerDrift) else {}
    found = {**report, "drift": drift} if drift else report
    return negative(claim, now_us, RunState.QUARANTINED, failure.reason, failure.detail, found)


def retried(claim: Claim, now_us: int, detail: str) -> Transition:
    """Infrastructure failed: the state stays, and the run is due again after a pause that grows."""
    return retry_later(claim, now_us + _WAIT_FOR_INFRASTRUCTURE.pause_us(claim.retries + 1), detail)


def negative(
    claim: Claim, now_us: int, state: RunState, reason: Reason | None, detail: str, report: Json,
    before: tuple[Event, ...] = (),
) -> Transition:  # fmt: skip
    """FAILED or QUARANTINED, with its TERMINAL signal. A finding without a reason is a defect, and no pass.

    Args:
        claim: The run.
        now_us: The database's clock.
        state: FAILED or QUARANTINED.
        reason: Why.
        detail: Why, for a person.
        report: What was found of the evidence; may be empty.
        before: Events on the way there, in the claim's state.
    """
    at_us, code = later_than(claim, now_us), (reason or Reason.INTERNAL_ERROR).value
    message_id, payload = terminal_signal(claim.run_id, state, code, at_us)
    kind = EventKind.RUN_FAILED if state is RunState.FAILED else EventKind.RUN_QUARANTINED
    event = Event(kind, state, {"reason_code": code, "detail": detail[:_MAX_DETAIL], "report": report})
    attributes = {"run_id": claim.run_id, "state": state.value}
    signal = SignalDraft(message_id, SignalKind.TERMINAL, claim.run_id, attributes, canonical_bytes(payload))
    # A run whose engine failed has failed without being verified.
    way = () if state in TRANSITIONS[claim.state] else resumed(claim)
    last = way[-1].state if way else claim.state
    return ended(claim, state, code, at_us, (*before, *way, _reemit_key(signal, last), event), signal)


def _reemit_key(signal: SignalDraft, state: RunState) -> Event:
    """The message id under which the end of the run may be published again: fixed in the commit that ends the run."""
    return Event(EventKind.GOV_REEMIT_KEY, state, {"kind": signal.kind.value, "reemit_key": signal.message_id})


def resumed(claim: Claim) -> tuple[Event, ...]:
    """VERIFICATION_STARTED, the first event of a run that is being verified again; nothing where it is already."""
    if claim.state is RunState.VERIFYING:
        return ()
    return (Event(EventKind.VERIFICATION_STARTED, RunState.VERIFYING, {}),)


def _gates_passed(attested: Attested) -> Event:
    return Event(EventKind.GATES_PASSED, RunState.VERIFYING, attested.gates_passed)
