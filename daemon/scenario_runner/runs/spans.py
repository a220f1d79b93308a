"""Spans of runs, recorded after the commit that makes them true. Nothing is recorded of a transition that was not."""

from collections.abc import Iterator

from scenario_runner.authority.values import AttemptRow, Transition
from scenario_runner.contracts.states import FINAL_STATES, RunState
from scenario_runner.counters import observing
from scenario_runner.runs.member import Member
from scenario_runner.tracing import Span, SpanName, is_on, now_ns, record

#: Nanoseconds in a microsecond: times of spans are in nanoseconds, those of the authority in microseconds.
_NS_OF_US = 1000


@observing
def trace_transition(member: Member) -> None:
    """Record what a committed transition ended: an attempt, an examination, the facts, the run."""
    if is_on() and member.transition is not None:
        record(_spans(member, member.transition, now_ns()))


def _spans(member: Member, transition: Transition, committed_ns: int) -> Iterator[Span]:
    claim, state = transition.claim, transition.to_state
    run_id, ended = claim.run_id, state in FINAL_STATES
    failed = ended and state is not RunState.READY
    reached: dict[str, str | int] = {"sr.run_id": run_id, "sr.state": state.value}
    if transition.reason_code:
        reached |= {"sr.reason_code": transition.reason_code}
    if transition.attempt is not None and not transition.attempt.open:
        yield _attempt(run_id, transition.attempt)
    if member.examined_ns and transition.events:  # without an event it found what is on record already
        examined, which = member.examined_ns, str(claim.epoch)
        yield Span(run_id, SpanName.EVIDENCE_VERIFY, *examined, reached, which, failed)
    if member.attesting_ns and state is RunState.READY:
        yield Span(run_id, SpanName.COMMIT_FACTS, member.attesting_ns, committed_ns, reached)
    if ended:
        began_ns, ended_ns = claim.admitted_us * _NS_OF_US, transition.at_us * _NS_OF_US
        yield Span(run_id, SpanName.RUN, began_ns, ended_ns, reached, failed=failed, root=True)


def _attempt(run_id: str, row: AttemptRow) -> Span:
    attributes: dict[str, str | int] = {
        "sr.run_id": run_id, "sr.attempt_no": row.attempt_no, "sr.outcome": row.outcome,
    }  # fmt: skip
    if row.reason_code:
        attributes |= {"sr.reason_code": row.reason_code}
    began_ns, ended_ns = row.launched_us * _NS_OF_US, (row.ended_us or row.launched_us) * _NS_OF_US
    failed = bool(row.reason_code)
    return Span(run_id, SpanName.ENGINE_ATTEMPT, began_ns, ended_ns, attributes, str(row.attempt_no), failed)
