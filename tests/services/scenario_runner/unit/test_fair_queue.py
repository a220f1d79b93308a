"""The order of turns in the bulk pool."""

from typing import Any

import pytest

from scenario_runner.authority.values import Claim
from scenario_runner.contracts.states import RunState
from scenario_runner.evidence.examiner import BulkKeys
from scenario_runner.runs.batch import Deferred
from scenario_runner.service.fair_queue import TURN_SECONDS, FairQueue, Group

pytestmark = pytest.mark.unit


def claim(name: str, invoker: str = "", admitted_us: int = 0) -> Claim:
    empty: dict[str, Any] = {}
    return Claim(
        name, name, 1, "owner", RunState.VERIFYING, empty, empty, admitted_us, 0, 0, 0, 0, "", 0, invoker=invoker
    )


def queue_of(*runs: tuple[str, str, int], together: int = 64) -> FairQueue:
    """A queue with runs, each (name, invoker, time of admission), with evidence of their own."""
    queue = FairQueue(together)
    for name, invoker, admitted_us in runs:
        queue.add(Deferred(claim(name, invoker, admitted_us), f"evidence of {name}"))
    return queue


def take(queue: FairQueue) -> Group:
    group = queue.take()
    assert group is not None
    return group


def names(group: Group) -> list[str]:
    return [item.run_id for item in group.claims]


def test_the_oldest_run_of_the_invoker_with_the_fewest_in_progress_is_next() -> None:
    queue = queue_of(("a1", "a", 1), ("a2", "a", 2), ("a3", "a", 3), ("b1", "b", 4))
    assert [names(take(queue)) for _ in range(3)] == [["a1"], ["b1"], ["a2"]]


def test_an_invoker_whose_examination_ended_is_next_again() -> None:
    queue = queue_of(("a1", "a", 1), ("a2", "a", 2), ("b1", "b", 3), ("b2", "b", 4))
    first = take(queue)
    take(queue)
    queue.done(first, [], 1.0)
    assert names(take(queue)) == ["a2"]


def test_runs_without_an_invoker_are_those_of_one_invoker() -> None:
    queue = queue_of(("x1", "", 1), ("x2", "", 2), ("b1", "b", 3))
    assert [names(take(queue)) for _ in range(2)] == [["x1"], ["b1"]]


def test_runs_with_the_same_evidence_are_driven_together_and_never_twice_at_a_time() -> None:
    queue = FairQueue()
    for name in ("a1", "a2"):
        queue.add(Deferred(claim(name, "a"), "same"))
    queue.add(Deferred(claim("b1", "b"), "same"))
    first = take(queue)
    assert names(first) == ["a1", "a2"]
    assert queue.take() is None, "its evidence is being examined"
    queue.add(Deferred(claim("a3", "a"), "same"))
    assert queue.take() is None
    queue.done(first, [], 1.0)
    second = take(queue)
    queue.done(second, [], 1.0)
    assert {*names(second), *names(take(queue))} == {"a3", "b1"}


def test_a_group_is_no_larger_than_a_batch() -> None:
    queue = FairQueue(together=2)
    for number in range(5):
        queue.add(Deferred(claim(str(number), admitted_us=number), "same"))
    sizes = []
    while (group := queue.take()) is not None:
        sizes.append(names(group))
        queue.done(group, [], 1.0)
    assert sizes == [["0", "1"], ["2", "3"], ["4"]]


def test_who_had_fewer_turns_is_next_however_old_the_others_are() -> None:
    queue = queue_of(("old", "a", 1), ("new", "a", 2))
    old = take(queue)
    queue.done(old, old.claims, 6.0)
    assert names(take(queue)) == ["new"]


def test_a_stream_of_newcomers_does_not_keep_the_oldest_run_from_its_turns() -> None:
    queue = queue_of(("old", "a", 0))
    old = take(queue)
    queue.done(old, old.claims, 6.0)
    taken = []
    for number in range(1, 9):
        queue.add(Deferred(claim(f"new {number}", "a", number), number))
        group = take(queue)
        taken.append(names(group))
        queue.done(group, group.claims if names(group) == ["old"] else [], 6.0)
    assert taken.count(["old"]) == 2


def test_a_turn_is_over_when_somebody_waits_who_had_no_more_turns() -> None:
    queue = queue_of(("first", "a", 1))
    first = take(queue)
    assert not queue.is_over(first, 1000.0), "nobody waits"
    queue.add(Deferred(claim("second", "a", 2), "other"))
    assert not queue.is_over(first, TURN_SECONDS / 2)
    assert queue.is_over(first, TURN_SECONDS + 1)


def test_further_turns_are_longer_but_not_at_the_cost_of_newcomers() -> None:
    queue = queue_of(("first", "a", 1), ("second", "a", 2))
    for _ in range(2):
        group = take(queue)
        queue.done(group, group.claims, 6.0)
    again = take(queue)
    assert again.turns == 1
    assert again.spent_seconds == 6.0
    assert not queue.is_over(again, TURN_SECONDS + 1), "who waits had a turn too"
    assert queue.is_over(again, 2 * TURN_SECONDS + 1)
    queue.add(Deferred(claim("new", "a", 3), "new"))
    assert queue.is_over(again, TURN_SECONDS + 1)


def test_who_waits_for_the_same_evidence_does_not_end_a_turn() -> None:
    queue = FairQueue()
    queue.add(Deferred(claim("a", "a"), "same"))
    group = take(queue)
    queue.add(Deferred(claim("b", "b"), "same"))
    assert not queue.is_over(group, 1000.0)


def test_expensive_evidence_is_remembered_within_bounds() -> None:
    large: Any = BulkKeys(most=2)
    for evidence in ("a", "b", "c"):
        large.add(evidence)
    assert [evidence in large for evidence in ("a", "b", "c")] == [False, True, True]
    large.discard("b")
    large.discard("never added")
    assert "b" not in large


def test_turns_grow_also_when_more_runs_of_the_same_evidence_wait_than_one_turn_takes() -> None:
    queue = FairQueue(together=2)
    for name in ("a", "b", "c"):
        queue.add(Deferred(claim(name, "me"), "large"))
    lengths = []
    for _ in range(4):
        group = take(queue)
        lengths.append(group.turn_seconds)
        spent = group.spent_seconds
        queue.done(group, group.claims, group.turn_seconds)
        queue.add(Deferred(claim(f"new {len(lengths)}", "me"), "large"))
    assert lengths == [5.0, 10.0, 20.0, 40.0]
    assert spent == 35.0, "it counts for the policy's bound"
