"""Spans without OpenTelemetry: ids, contexts that somebody sent, and the queue in front of a collector."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from scenario_runner import counters, tracing
from scenario_runner.counters import counted
from scenario_runner.service import span_export
from scenario_runner.service.span_export import SpanQueue
from scenario_runner.tracing import Context, Span, SpanName, caller_of, span_id_of, traceparent_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.unit

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
RUN = "c980277977eb878cf9c677bbee926c2d"


@pytest.fixture(autouse=True)
def none_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(counters, "_counts", {})
    yield
    tracing.install(None)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (f"00-{TRACE}-{PARENT}-00", 0),
        (f"00-{TRACE}-{PARENT}-03", 3),
        (f"cc-{TRACE}-{PARENT}-01", 1),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like", 1),
    ],
)
def test_a_context_that_w3c_allows_is_taken(text: str, flags: int) -> None:
    assert caller_of({"traceparent": text}) == Context(TRACE, PARENT, flags)


@pytest.mark.parametrize(
    "value",
    [
        None, 7, ["00"], {}, "", "00-0123-4567-01", f"ff-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01\n", f"00-{TRACE}-{PARENT}-01 ", f" 00-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{PARENT}-1",
        f"cc-{TRACE}-{PARENT}-01.x",
        f"00-{TRACE}-{PARENT}-0x", f"cc-{TRACE}-{PARENT}-01-{'x' * 300}", f"00-{TRACE}-{PARENT}-\u0660\u0661",
        f"cc-{TRACE}-{PARENT}-01-\n",
    ],
)  # fmt: skip
def test_any_other_context_is_none(value: Any) -> None:
    assert caller_of({"traceparent": value}) is None


def test_ids_of_spans_are_derived_and_differ_by_run_name_and_what_tells_them_apart() -> None:
    ids = {
        span_id_of(run, name, which) for run in (RUN, TRACE) for name in SpanName for which in ("", "1", "2")
    }  # fmt: skip
    assert len(ids) == 2 * len(SpanName) * 3
    assert span_id_of(RUN, SpanName.RUN) == "f6bc67a945767860", "other processes and releases derive the same"


class Sink:
    """Takes or refuses batches, when it is let."""

    def __init__(self, answer: int | None = 0, *, let: bool = True) -> None:
        self.answer, self.let, self.begun = answer, threading.Event(), threading.Event()
        self.batches: list[list[Span]] = []
        self.given_up, self.status = False, 0
        if let:
            self.let.set()

    def sampled(self, run_id: str) -> bool:
        return run_id == RUN

    def send(self, spans: Sequence[Span]) -> int | None:
        self.begun.set()
        self.let.wait(60)
        self.batches.append(list(spans))
        return None if self.answer is None else len(spans)

    def give_up(self) -> None:
        self.given_up = True
        self.let.set()


def span(number: int) -> Span:
    return Span(RUN, SpanName.RUN, 1, 2, {}, str(number))


def test_without_a_recorder_nothing_is_observed() -> None:
    assert (tracing.is_on(), tracing.now_ns(), tracing.request_times()) == (False, 0, None)
    assert traceparent_of(RUN, SpanName.RUN) == ""
    tracing.record([span(1)])


def test_a_context_says_whether_its_trace_is_sampled() -> None:
    tracing.install(SpanQueue(Sink()))
    assert traceparent_of(RUN, SpanName.RUN) == f"00-{RUN}-f6bc67a945767860-01"
    assert traceparent_of(TRACE, SpanName.RUN).endswith("-00")


def test_a_sampler_that_breaks_samples_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaking(_: str) -> bool:
        raise RuntimeError

    sink = Sink()
    monkeypatch.setattr(sink, "sampled", breaking)
    tracing.install(SpanQueue(sink))
    assert traceparent_of(RUN, SpanName.RUN).endswith("-00")


def test_the_end_of_a_process_sends_what_is_queued() -> None:
    sink = Sink()
    queue = SpanQueue(sink)
    queue.start()
    queue.record(span(number) for number in range(1000))
    queue.stop()
    assert [item.which for batch in sink.batches for item in batch] == [str(number) for number in range(1000)]
    assert counted() == {"spans.exported": 1000}


def test_what_finds_the_queue_full_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_export, "_MOST_QUEUED", 10)
    sink = Sink()
    queue = SpanQueue(sink)
    queue.record(span(number) for number in range(25))
    queue.start()
    queue.stop()
    assert counted() == {"spans.dropped": 15, "spans.exported": 10}


def test_what_a_collector_does_not_take_is_dropped_and_counted() -> None:
    queue = SpanQueue(Sink(None))
    queue.start()
    queue.record(span(number) for number in range(1000))
    queue.stop()
    assert counted() == {"spans.dropped": 1000}


def test_an_export_that_raises_drops_its_spans_and_the_next_ones_are_exported() -> None:
    sink = Sink()
    send, raised = sink.send, []

    def breaking(spans: Sequence[Span]) -> int | None:
        if not raised:
            raised.append(1)
            raise RuntimeError
        return send(spans)

    sink.send = breaking  # type: ignore[method-assign]
    queue = SpanQueue(sink)
    queue.record(span(number) for number in range(600))
    queue.start()
    sink.begun.wait(60)
    queue.stop()
    assert counted() == {"spans.dropped": 512, "spans.exported": 88}


def test_the_end_of_a_process_does_not_wait_for_a_collector_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_export, "_FLUSH_SECONDS", 0.01)
    sink = Sink(None, let=False)
    queue = SpanQueue(sink)
    queue.record(span(number) for number in range(600))
    queue.start()
    sink.begun.wait(60)
    queue.stop()
    queue._thread.join(60)
    assert sink.given_up
    assert counted() == {"spans.dropped": 600}, "each is counted once"
