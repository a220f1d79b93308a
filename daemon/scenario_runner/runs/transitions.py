"""The four transitions of a claimed run: its gates are recorded, it waits, it is tried again, it ends. Pure."""

from scenario_runner.authority.values import Claim, Event, SignalDraft, Superseding, Transition
from scenario_runner.contracts.states import RunState


def gates_recorded(claim: Claim, at_us: int, events: tuple[Event, ...], report_digest: str) -> Transition:
    """Put the passed gates on record before the receipts they allow are written; the owner goes on with the run.

    Args:
        claim: The run under lease.
        at_us: Time of the events, later than ``claim.updated_us``.
        events: GATES_PASSED, after VERIFICATION_STARTED when the run waited.
        report_digest: Digest of what is put on record.

    Returns:
        The transition; ``claim_after`` is the claim to go on with.
    """
    return Transition(
        claim, RunState.VERIFYING, at_us, due_us=claim.now_us, keep_lease=True, wakes=claim.wakes,
        retries=claim.retries, last_error=claim.last_error, report_digest=report_digest, events=events,
    )  # fmt: skip


def waiting(
    claim: Claim, due_us: int, at_us: int, events: tuple[Event, ...], report_digest: str,
    missing: tuple[str, ...] | None = None, absent_root: str = "",
) -> Transition:  # fmt: skip
    """Wait for evidence until ``due_us``.

    Args:
        claim: The run under lease.
        due_us: When the evidence is examined again.
        at_us: Time of the events; ``claim.updated_us`` when there are none.
        events: What is missing; empty when that is on record already.
        report_digest: Digest of what was found.
        missing: Paths of what is missing; None when they are the same as before.
        absent_root: The root that is looked at in rounds until then; empty for a run whose evidence is examined at
            ``due_us`` only.
    """
    return Transition(
        claim, RunState.WAITING_EVIDENCE, at_us, due_us, keep_lease=False, wakes=claim.wakes + 1, retries=0,
        last_error="", report_digest=report_digest, events=events, missing=missing, absent_root=absent_root,
    )  # fmt: skip


def retry_later(claim: Claim, due_us: int, error: str) -> Transition:
    """Try the run again at ``due_us``, because infrastructure failed: nothing of it changes, and nothing is recorded.

    Args:
        claim: The run under lease.
        due_us: When it is tried again.
        error: What failed, for a person.
    """
    return Transition(
        claim, claim.state, claim.updated_us, due_us, keep_lease=False, wakes=claim.wakes, retries=claim.retries + 1,
        last_error=error, report_digest=claim.report_digest,
    )  # fmt: skip


def ended(
    claim: Claim, state: RunState, reason_code: str, at_us: int, events: tuple[Event, ...], signal: SignalDraft,
    facts_view_digest: str = "", superseding: Superseding | None = None,
) -> Transition:  # fmt: skip
    """End the run, in one transaction with its last events and its signal.

    Args:
        claim: The run under lease.
        state: READY, FAILED or QUARANTINED.
        reason_code: Why; empty for READY.
        at_us: Time of the events, later than ``claim.updated_us``.
        events: From the claim's state to the end.
        signal: Tells others of the end.
        facts_view_digest: Of READY.
        superseding: Of the READY of a correction.
    """
    return Transition(
        claim, state, at_us, due_us=None, keep_lease=False, wakes=claim.wakes, retries=claim.retries, last_error="",
        report_digest=claim.report_digest, events=events, reason_code=reason_code,
        facts_view_digest=facts_view_digest, signal=signal, superseding=superseding,
    )  # fmt: skip
