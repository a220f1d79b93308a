"""Heartbeats: which loop is stuck, and which one only waits."""

import threading

import pytest

from scenario_runner.service.heartbeats import Heartbeats, LoopState

pytestmark = pytest.mark.unit


class Loops:
    """Heartbeats with a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.beats = Heartbeats(10.0, lambda: self.now)

    def stuck(self) -> list[str]:
        return [state.loop for state in self.beats.loops() if state.stuck]


def test_a_loop_is_stuck_when_it_makes_no_progress_for_longer_than_its_limit() -> None:
    loops = Loops()
    loops.beats.begin("relay", pause_seconds=2.0)
    loops.now += 12.0
    assert loops.stuck() == []
    loops.now += 0.1
    assert loops.stuck() == ["relay"]
    (state,) = loops.beats.loops()
    assert (state.seconds, state.limit_seconds) == (pytest.approx(12.1), 12.0)
    loops.beats.beat()
    assert loops.stuck() == []


def test_a_loop_that_waits_for_work_without_a_bound_is_not_stuck() -> None:
    loops = Loops()
    loops.beats.begin("engine")
    loops.beats.rest()
    loops.now += 1000.0
    assert loops.stuck() == []
    loops.beats.beat()
    loops.now += 11.0
    assert loops.stuck() == ["engine"]


def test_a_loop_that_has_ended_is_forgotten() -> None:
    loops = Loops()
    loops.beats.begin("intake")
    loops.beats.end()
    loops.now += 1000.0
    loops.beats.beat()
    assert loops.beats.loops() == []


def test_a_beat_is_that_of_the_loop_of_its_thread() -> None:
    loops = Loops()
    loops.beats.begin("runner")
    loops.now += 5.0

    def other() -> None:
        loops.beats.begin("relay")
        loops.beats.beat()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert {state.loop: state.seconds for state in loops.beats.loops()} == {"relay": 0.0, "runner": 5.0}


def test_threads_that_work_for_a_loop_report_its_progress_and_do_not_wake_it() -> None:
    loops = Loops()
    progress = loops.beats.begin("bulk:3", detail="run r")
    loops.now += 9.0
    thread = threading.Thread(target=progress)
    thread.start()
    thread.join()
    (state,) = loops.beats.loops()
    assert (state.loop, state.kind, state.seconds, state.detail) == ("bulk:3", "bulk", 0.0, "run r")
    loops.beats.rest()
    progress()  # a thread that is late
    loops.now += 1000.0
    assert loops.stuck() == []


def test_loops_of_other_processes_are_those_that_were_reported_last() -> None:
    loops = Loops()
    loops.beats.begin("intake")
    loops.beats.report_others([LoopState("shard:0", 11.0, 10.0)])
    assert loops.stuck() == ["shard:0"]
    loops.beats.report_others([])
    assert loops.stuck() == []


def test_a_beat_outside_of_every_loop_is_nothing() -> None:
    loops = Loops()
    loops.beats.beat()
    loops.beats.rest()
    loops.beats.end()
    assert loops.beats.loops() == []
