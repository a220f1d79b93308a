"""What is recorded as spans: only what was committed, and without a consequence for any run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from authority_support import START, WAIT, Clock, asking, claim_one, commit, failed, ready, waiting
from support import ForkedWorld
from test_counting import driver, member_with
from test_relay import Flaky, Sink, relay_of

from scenario_runner import tracing
from scenario_runner.authority.sqlite import SqliteAuthority
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.runs import transitions
from scenario_runner.runs.spans import trace_transition
from scenario_runner.tracing import Span, SpanName

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


class Kept:
    """A recorder that keeps spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def sampled(self, run_id: str) -> bool:
        return True

    def record(self, spans: Iterable[Span]) -> None:
        self.spans += spans

    def names(self) -> list[str]:
        return [span.name.value for span in self.spans]


class Broken(Kept):
    """A recorder that fails."""

    def record(self, spans: Iterable[Span]) -> None:
        raise RuntimeError("no span is taken")


@pytest.fixture
def kept() -> Iterator[Kept]:
    found = Kept()
    tracing.install(found)
    yield found
    tracing.install(None)


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Any]:
    made = SqliteAuthority(str(tmp_path / "a.db"), Clock())
    yield made
    made.close()


def test_the_end_of_a_run_is_a_span_with_the_times_of_its_row(authority: Any, kept: Kept) -> None:
    authority.admit([asking("a"), asking("b")])
    first, second = authority.claim("w1", 2, WAIT)
    ends = ready(first), failed(second)
    assert driver(authority)._commit([member_with(ends[0])]) == 1
    trace_transition(member_with(ends[1]))
    assert kept.names() == ["SR.Run", "SR.Run"]
    for span, end in zip(kept.spans, ends, strict=True):
        assert span.run_id == end.claim.run_id
        assert (span.start_ns, span.end_ns) == (end.claim.admitted_us * 1000, end.at_us * 1000)
        assert span.root
    assert [span.failed for span in kept.spans] == [False, True]
    assert kept.spans[1].attributes["sr.reason_code"] == "GATE_FAIL"


def test_nothing_is_recorded_of_a_transition_that_was_not_committed(
    authority: Any, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.admit([asking("a")])
    claim = claim_one(authority)
    stale = member_with(ready(claim))
    stale.examined_ns, stale.attesting_ns = (1, 2), 2
    commit(authority, waiting(claim, START + WAIT))
    assert driver(authority)._commit([stale]) == 0

    def away(_transitions: Any) -> Any:
        raise Unavailable("the database is away")

    monkeypatch.setattr(authority, "commit", away)
    assert driver(authority)._commit([stale]) == 0
    assert kept.spans == []


def test_an_examination_that_finds_what_is_on_record_is_no_span(authority: Any, kept: Kept) -> None:
    authority.admit([asking("a")])
    first = member_with(waiting(claim_one(authority), START))
    first.examined_ns = (1, 2)
    assert driver(authority)._commit([first]) == 1
    assert kept.names() == ["SR.EvidenceVerify"]
    claim = claim_one(authority)
    second = member_with(transitions.waiting(claim, START, claim.updated_us, (), claim.report_digest))
    second.examined_ns = (3, 4)
    assert driver(authority)._commit([second]) == 1
    assert kept.names() == ["SR.EvidenceVerify"]


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_signal_is_a_span_once_it_is_marked_as_published(authority: Any, kept: Kept, how: str) -> None:
    authority.admit([asking("a")])
    commit(authority, ready(claim_one(authority), "ready a"))
    flaky, sink = Flaky(authority), Sink()
    flaky.fault = ("mark_sent", how)
    relay = relay_of(flaky, sink)
    with pytest.raises(Unavailable):
        relay.step()
    assert kept.spans == [], "whether the mark is there is not known"
    for _ in range(3):
        relay.step()
    assert kept.names() == (["SR.PublishReady"] if how == "before" else [])
    assert len(sink.sent) == 2 if how == "before" else 1


def test_a_recorder_that_fails_fails_no_run(tmp_path: Path) -> None:
    tracing.install(Broken())
    try:
        world = ForkedWorld(tmp_path / "world")
        made = world.make_run("one", outputs=["outlet_catalogue"], members=3, member_bytes=64)
        world.drop(made["request"])
        assert world.serve().returncode == 0
        assert world.query("status", made["run_id"])[1]["state"] == "READY"
        assert world.signals("READY")[0]["attributes"]["traceparent"].startswith(f"00-{made['run_id']}-")
    finally:
        tracing.install(None)


def test_names_of_spans_are_those_that_dashboards_know() -> None:
    assert sorted(SpanName) == [
        "SR.Admission", "SR.CommitFacts", "SR.EngineAttempt", "SR.EvidenceVerify", "SR.Ingress", "SR.PlanCompile",
        "SR.PublishReady", "SR.Reemit", "SR.Run",
    ]  # fmt: skip
