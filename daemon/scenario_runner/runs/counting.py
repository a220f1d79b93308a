"""What is counted of runs, after the commit that makes it true. Nothing is counted of a transition that was not."""

from scenario_runner.authority.values import AttemptRow, Transition
from scenario_runner.contracts.states import FINAL_STATES, RunState
from scenario_runner.contracts.times import MICROS
from scenario_runner.counters import count, observe, observing


@observing
def count_transition(transition: Transition) -> None:
    """Count a transition that was committed."""
    claim = transition.claim
    if transition.attempt is not None and not transition.attempt.open:
        _count_attempt(transition.attempt)
    if transition.to_state in FINAL_STATES:
        _count_end(transition)
    elif transition.retries > claim.retries:
        count("runs.postponed")


@observing
def count_lost_lease() -> None:
    """Count a run that was given up because its lease had run out, or was another worker's."""
    count("sr_lease_lost_total")


def _count_attempt(attempt: AttemptRow) -> None:
    count("sr_engine_attempts_total", attempt.outcome)
    observe("sr_engine_attempt_duration_seconds", attempt.duration_ms / 1000)


def _count_end(transition: Transition) -> None:
    claim = transition.claim
    seconds = (transition.at_us - claim.admitted_us) / MICROS
    if claim.wakes:  # an examination found evidence missing
        observe("sr_evidence_wait_duration_seconds", seconds)
    if transition.to_state is RunState.READY:
        count("sr_runs_ready_total")
        observe("sr_ready_commit_latency_seconds", seconds)
    elif transition.to_state is RunState.FAILED:
        count("sr_runs_failed_total", transition.reason_code)
    else:
        count("sr_runs_quarantined_total")
