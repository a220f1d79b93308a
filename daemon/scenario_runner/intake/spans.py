"""Spans of requests, recorded after the commit of their dispositions; a record that is delivered again has none."""

from collections.abc import Iterator, Sequence

from scenario_runner.authority.values import Admission, Admitted
from scenario_runner.contracts.states import REFUSED, Disposition, SignalKind
from scenario_runner.counters import observing
from scenario_runner.tracing import Span, SpanName, is_on, now_ns, record


@observing
def trace_admitted(admissions: Sequence[Admission], admitted: Sequence[Admitted]) -> None:
    """Record requests that were disposed of.

    Args:
        admissions: The records, as they were given to the authority.
        admitted: Their dispositions, in the same order.
    """
    if not is_on():
        return
    committed_ns = now_ns()
    for admission, answer in zip(admissions, admitted, strict=True):
        if admission.kind == SignalKind.RUN_REQUEST and admission.run_id and not answer.repeated:
            record(_spans(admission, answer, committed_ns))


def _spans(admission: Admission, answer: Admitted, committed_ns: int) -> Iterator[Span]:
    times = admission.times
    if times is None:
        return
    run_id, which, refused = admission.run_id, admission.record_key, answer.disposition in REFUSED
    # Of a rejected request there may be no run, so there may be no span that could be the parent.
    root = answer.disposition is Disposition.REJECTED
    named: dict[str, str | int] = {"sr.run_id": run_id}
    disposed = named | {"sr.disposition": answer.disposition.value}
    if answer.reason_code:
        disposed |= {"sr.reason_code": answer.reason_code}
    yield Span(run_id, SpanName.INGRESS, times.began_ns, times.validated_ns, named, which, link=times.caller, root=root)
    if times.planned_ns:
        yield Span(run_id, SpanName.PLAN_COMPILE, times.planning_ns, times.planned_ns, named, which, root=root)
    yield Span(run_id, SpanName.ADMISSION, times.validated_ns, committed_ns, disposed, which, refused, root=root)
