"""Spans of signals, recorded after the mark that they were published."""

from collections.abc import Iterator, Sequence

from scenario_runner.authority.values import OutboxRow
from scenario_runner.contracts.states import SignalKind
from scenario_runner.counters import observing
from scenario_runner.tracing import Span, SpanName, is_on, record


@observing
def trace_published(rows: Sequence[OutboxRow], began_ns: int, ended_ns: int) -> None:
    """Record READY signals, and signals that were repeated, of one batch.

    Args:
        rows: What was published and marked.
        began_ns: When the batch was given to the control bus.
        ended_ns: When it had answered.
    """
    if is_on():
        record(_spans(rows, began_ns, ended_ns))


def _spans(rows: Sequence[OutboxRow], began_ns: int, ended_ns: int) -> Iterator[Span]:
    for row in rows:
        named: dict[str, str | int] = {"sr.run_id": row.run_id, "sr.message_id": row.message_id}
        if row.emission:
            attributes = named | {"sr.kind": row.kind.value, "sr.emission": row.emission}
            which = f"{row.message_id}|{row.emission}"
            yield Span(row.run_id, SpanName.REEMIT, began_ns, ended_ns, attributes, which)
        elif row.kind is SignalKind.READY:
            yield Span(row.run_id, SpanName.PUBLISH_READY, began_ns, ended_ns, named)
