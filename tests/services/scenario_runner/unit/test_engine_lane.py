"""The engine lane with a backend that a test drives: no execution is lost, none is followed twice, nothing leaks."""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from test_execution import attempt_row, forced

from scenario_runner.authority.values import Claim, Event, Transition
from scenario_runner.contracts.errors import LeaseLostError, Unavailable
from scenario_runner.contracts.states import EventKind, RunState
from scenario_runner.engine.invoker import Job, JobEnd
from scenario_runner.runs.effects import AwaitEnd, Effect, EndEarlier, FindJob, ReadClock
from scenario_runner.runs.engine_effects import EngineEffects
from scenario_runner.runs.member import Member
from scenario_runner.runs.transitions import retry_later
from scenario_runner.service.engine_lane import EngineLane
from scenario_runner.service.heartbeats import Heartbeats

pytestmark = pytest.mark.unit

DONE = JobEnd(succeeded=True, reason_code=None, exit_code=0, stop_code="", detail="")


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


class Backend:
    """Engines that end when a test says so."""

    name, place, bound_to_lease = "fake", "here", True

    def __init__(self) -> None:
        self.ends: dict[str, JobEnd] = {}
        self.renewed: list[str] = []
        self.stopped: list[str] = []
        self.forgotten: list[str] = []
        self.closed = False
        self.fails: Unavailable | None = None
        self.does_not_end: Unavailable | None = None
        self.polls = 0

    def poll(self, jobs: Sequence[Job]) -> dict[str, JobEnd]:
        self.polls += 1
        if self.fails is not None:
            raise self.fails
        return {job.attempt_id: self.ends[job.attempt_id] for job in jobs if job.attempt_id in self.ends}

    def renew(self, jobs: Iterable[Job]) -> None:
        self.renewed += [job.attempt_id for job in jobs]

    def stop(self, job: Job, check: Callable[[], None] = lambda: None) -> None:
        check()
        self.stopped.append(job.attempt_id)
        if self.does_not_end is not None:
            raise self.does_not_end

    def forget(self, job: Job) -> None:
        self.forgotten.append(job.attempt_id)

    def close(self) -> None:
        self.closed = True


class Effects:
    """Performs FindJob, as a test says."""

    def __init__(self, invoker: Backend) -> None:
        self.invoker = invoker
        self.asked = 0
        self.real: EngineEffects | None = None
        self.answer: Callable[[FindJob], Any] = lambda effect: effect.job

    def perform(self, effect: Effect, claim: Claim, seconds: float, beat: Callable[[], None]) -> Any:
        if self.real is not None:
            return self.real.perform(effect, claim, seconds, beat)
        assert isinstance(effect, FindJob)
        self.asked += 1
        answer = self.answer(effect)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Driver:
    """Commits."""

    def __init__(self) -> None:
        self.committed: list[Transition] = []
        self.finished: list[tuple[str, int]] = []
        self.lane: Callable[[Member], None] = lambda _member: None
        self.loses = False

    def hand_over_to(self, lane: Callable[[Member], None]) -> None:
        self.lane = lane

    def advance(self, member: Member) -> None:
        assert isinstance(member.effect, ReadClock)
        member.resume(1)

    def finish(self, member: Member) -> bool:
        self.finished.append((member.claim.run_id, member.claim.epoch))
        if self.loses:
            return False
        if member.transition is not None:
            self.committed.append(member.transition)
        return member.transition is not None


class Leases:
    """Leases that are lost when a test says so."""

    def __init__(self) -> None:
        self.lost: set[tuple[str, int]] = set()
        self.released: list[str] = []

    def check(self, claim: Claim, **_: bool) -> None:
        if (claim.run_id, claim.epoch) in self.lost:
            raise LeaseLostError("lost")

    def release(self, claim: Claim) -> None:
        self.released.append(claim.run_id)


class Bench:
    """A lane that follows runs whose engine is found and ends."""

    def __init__(self) -> None:
        self.backend, self.driver, self.leases = Backend(), Driver(), Leases()
        self.effects, self.defects = Effects(self.backend), list[BaseException]()
        driver: Any = self.driver
        effects: Any = self.effects
        leases: Any = self.leases
        self.heartbeats, self.told = Heartbeats(0.05), list[str]()
        self.lane = EngineLane(
            driver, effects, leases, 0.005, lambda: None, self.defects.append, heartbeats=self.heartbeats,
            attempt_ended=lambda claim: self.told.append(claim.run_id),
        )  # fmt: skip
        self.lane.start()

    def add(self, number: int = 1, epoch: int = 1, end: Callable[[Claim], Transition] | None = None) -> None:
        claim = replace(
            forced(state=RunState.EXECUTING, attempts=(attempt_row(),)), run_id=f"{number:032x}", epoch=epoch
        )
        self.driver.lane(begun(claim, end or ended))

    def parked(self) -> int:
        return len(self.lane._parked())


def job_of(claim: Claim) -> Job:
    return Job(claim.run_id, "here", 0, 60.0)


def begun(claim: Claim, end: Callable[[Claim], Transition]) -> Member:
    def steps() -> Generator[Effect, Any, Transition]:
        job = yield FindJob(job_of(claim), "fake")
        yield AwaitEnd(job)
        return end(claim)

    member = Member(claim, steps())
    member.resume(None)
    return member


def ended(claim: Claim) -> Transition:
    at_us = claim.updated_us + 1
    finished = Event(EventKind.ENGINE_ATTEMPT_FINISHED, RunState.EXECUTING, {})
    row = replace(claim.attempts[-1], ended_us=at_us, outcome="FAILED")
    return replace(put_off(claim), attempt=row, events=(finished,), at_us=at_us)


def put_off(claim: Claim) -> Transition:
    return retry_later(claim, claim.now_us + 1, "away")


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.lane.stop(1.0)
    assert bench.backend.closed
    assert bench.defects == []


def test_a_thread_that_hangs_over_an_engine_is_named_with_its_run_and_others_are_followed(bench: Bench) -> None:
    released = threading.Event()

    def hang(effect: FindJob) -> Any:
        if effect.job.attempt_id == f"{1:032x}":
            released.wait()
        return effect.job

    bench.effects.answer = hang
    bench.add(1)

    def stuck() -> list[tuple[str, str]]:
        states = [state for state in bench.heartbeats.loops() if state.stuck]
        return [(state.loop.partition(":")[0], state.detail) for state in states if ":" in state.loop]

    try:
        until(lambda: stuck() == [("engine", f"run {1:032x}")], "its thread is named")
        bench.add(2)
        until(lambda: bench.parked() == 1, "the other run waits for its engine")
    finally:
        released.set()
    until(lambda: bench.parked() == 2, "both wait")
    until(lambda: stuck() == [], "no thread is named any more")


def test_a_thread_that_waits_for_an_earlier_engine_to_end_makes_progress_with_each_check(bench: Bench) -> None:
    clock, stuck = [0.0], list[bool]()
    unused: Any = None
    leases: Any = bench.leases
    backend: Any = bench.backend
    bench.effects.real = EngineEffects(backend, unused, unused, unused, leases, 60.0)
    bench.heartbeats._monotonic = lambda: clock[0]

    def stop(_job: Job, check: Callable[[], None]) -> None:
        for _ in range(3):
            clock[0] += 1.0  # more than the limit of one step
            check()
            stuck.extend(state.stuck for state in bench.heartbeats.loops() if state.kind == "engine" and state.detail)

    def steps() -> Generator[Effect, Any, Transition]:
        yield EndEarlier(f"{2:032x}")
        return put_off(claim)

    backend.stop = stop
    claim = forced(state=RunState.EXECUTING)
    member = Member(claim, steps())
    member.resume(None)
    bench.driver.lane(member)
    until(lambda: bench.driver.committed, "it goes on")
    assert stuck == [False] * 3


def test_many_engines_are_followed_by_a_few_threads_and_none_is_lost(bench: Bench) -> None:
    for number in range(400):
        bench.add(number)
    until(lambda: bench.parked() == 400, "all wait for their engines")
    assert sum(thread.name.startswith("engine") for thread in threading.enumerate()) <= 9
    bench.backend.ends = {f"{number:032x}": DONE for number in range(400)}
    until(lambda: len(bench.driver.committed) == 400, "all are committed")
    until(lambda: bench.lane._executions == {}, "nothing is kept of them")
    assert len(set(bench.driver.finished)) == 400
    assert sorted(bench.backend.forgotten) == sorted(bench.backend.ends)


def test_a_run_under_a_second_lease_and_its_former_execution_both_come_to_their_end(bench: Bench) -> None:
    """A clock that jumped ends leases that this process believes in, so that it claims the same run once more."""
    bench.add(epoch=1)
    until(lambda: bench.parked() == 1, "it waits")
    bench.add(epoch=2)
    until(lambda: bench.parked() == 2, "both wait")
    bench.leases.lost.add((f"{1:032x}", 1))
    until(lambda: bench.driver.finished == [(f"{1:032x}", 1)], "the former one is over")
    assert bench.backend.stopped == [f"{1:032x}"]
    bench.backend.ends[f"{1:032x}"] = DONE
    until(lambda: bench.driver.finished[1:] == [(f"{1:032x}", 2)], "the other one is followed to its end")
    assert [transition.claim.epoch for transition in bench.driver.committed] == [2]


def test_the_outputs_of_an_engine_are_kept_until_its_end_is_on_record(bench: Bench) -> None:
    """A store that is away puts the run off; what the engine wrote is asked for again."""
    bench.add(1, end=put_off)
    bench.add(2, end=ended)
    bench.backend.ends = {f"{number:032x}": DONE for number in (1, 2)}
    until(lambda: len(bench.driver.committed) == 2, "both are committed")
    until(lambda: bench.lane._executions == {}, "both are over")
    assert bench.backend.forgotten == [f"{2:032x}"]
    assert bench.told == [f"{2:032x}"], "others hear of an end that is on record"


def test_only_engines_whose_leases_were_renewed_are_renewed(bench: Bench) -> None:
    for number in (1, 2):
        bench.add(number, epoch=number)
    until(lambda: bench.parked() == 2, "both wait")
    bench.lane.renew({(f"{1:032x}", 1), (f"{2:032x}", 1)})
    assert bench.backend.renewed == [f"{1:032x}"]
    bench.backend.ends = {f"{number:032x}": DONE for number in (1, 2)}


def test_a_backend_that_does_not_answer_keeps_runs_waiting_and_their_leases_watched(bench: Bench) -> None:
    bench.backend.fails = Unavailable("away")
    bench.add(1)
    bench.add(2)
    until(lambda: bench.parked() == 2, "both wait")
    bench.leases.lost.add((f"{1:032x}", 1))
    until(lambda: bench.driver.finished == [(f"{1:032x}", 1)], "a lost lease is seen")
    bench.backend.fails, bench.backend.ends = None, {f"{2:032x}": DONE}
    until(lambda: len(bench.driver.committed) == 1, "the other goes on")


def test_a_stop_waits_for_what_is_being_done_also_after_a_run_was_parked_and_went_on(bench: Bench) -> None:
    working, may_end = threading.Event(), threading.Event()

    def slow(claim: Claim) -> Transition:
        working.set()
        assert may_end.wait(5)
        return ended(claim)

    bench.backend.ends = {f"{1:032x}": DONE}  # at once, while the thread that parks the run may not have returned
    bench.add(1, end=slow)
    assert working.wait(5)
    stopping = threading.Thread(target=bench.lane.stop, args=(5.0,))
    stopping.start()
    time.sleep(0.1)
    assert not bench.backend.closed
    may_end.set()
    stopping.join(5)
    assert len(bench.driver.committed) == 1


def test_a_job_that_is_not_found_is_asked_for_again_and_holds_no_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenario_runner.service.engine_lane._FIND_AGAIN_SECONDS", 0.01)
    bench.effects.answer = lambda _effect: Unavailable("it may run elsewhere")
    for number in range(50):
        bench.add(number)
    until(lambda: bench.effects.asked > 200, "each is asked for again")
    bench.effects.answer = lambda effect: effect.job
    bench.backend.ends = {f"{number:032x}": DONE for number in range(50)}
    until(lambda: len(bench.driver.committed) == 50, "all are found and followed")


def test_renewals_reach_an_engine_whose_launch_is_still_being_put_on_record() -> None:
    """A database that is slow must not let an engine run out while its lease is renewed."""
    bench = Bench()
    item_working = threading.Event()
    may_go_on = threading.Event()

    def slow(_effect: FindJob) -> Any:
        item_working.set()
        may_go_on.wait(5)
        return job_of(replace(forced(), run_id=f"{1:032x}"))

    bench.effects.answer = slow
    bench.add(1)
    assert item_working.wait(5)
    next(iter(bench.lane._executions.values())).job = Job(f"{1:032x}", "here", 0, 60.0)
    bench.lane.renew({(f"{1:032x}", 1)})
    assert bench.backend.renewed == [f"{1:032x}"]
    may_go_on.set()
    bench.backend.ends = {f"{1:032x}": DONE}
    until(lambda: len(bench.driver.committed) == 1, "it goes on")
    bench.lane.stop(1.0)


RUN = f"{1:032x}"


def test_an_engine_that_does_not_end_keeps_its_lease_until_it_runs_out(bench: Bench) -> None:
    """Whoever claims the run next finds the engine; a commit would say that nothing runs any more."""
    bench.backend.does_not_end = Unavailable("it hangs")
    bench.add()
    until(lambda: bench.parked() == 1, "it waits")
    bench.leases.lost.add((RUN, 1))
    until(lambda: bench.lane._executions == {}, "the lane is done with it")
    assert (bench.backend.stopped, bench.leases.released, bench.driver.finished) == ([RUN], [RUN], [])


def test_an_engine_that_outlives_leases_runs_on_when_its_run_is_lost(bench: Bench) -> None:
    bench.backend.bound_to_lease = False
    bench.add()
    until(lambda: bench.parked() == 1, "it waits")
    bench.leases.lost.add((RUN, 1))
    until(lambda: bench.lane._executions == {}, "the lane is done with it")
    assert (bench.backend.stopped, bench.driver.finished) == ([], [(RUN, 1)])


def test_an_attempt_whose_end_was_not_put_on_record_is_not_forgotten(bench: Bench) -> None:
    bench.driver.loses = True
    bench.add()
    bench.backend.ends = {RUN: DONE}
    until(lambda: bench.driver.finished, "its end was to be committed")
    until(lambda: bench.lane._executions == {}, "the lane is done with it")
    assert bench.backend.forgotten == []


def test_an_attempt_that_is_still_open_on_record_is_not_forgotten(bench: Bench) -> None:
    bench.add(end=lambda claim: replace(ended(claim), attempt=attempt_row()))
    bench.backend.ends = {RUN: DONE}
    until(lambda: bench.driver.committed, "it is put off")
    until(lambda: bench.lane._executions == {}, "the lane is done with it")
    assert bench.backend.forgotten == []


def test_an_attempt_whose_engine_is_nowhere_ends_without_one_to_forget(bench: Bench) -> None:
    claim = replace(forced(state=RunState.EXECUTING, attempts=(attempt_row(),)), run_id=RUN, epoch=1)

    def steps() -> Generator[Effect, Any, Transition]:
        assert (yield FindJob(job_of(claim), "fake")) is None
        return ended(claim)

    bench.effects.answer = lambda _effect: None
    member = Member(claim, steps())
    member.resume(None)
    bench.driver.lane(member)
    until(lambda: bench.driver.committed, "its end is on record")
    until(lambda: bench.lane._executions == {}, "the lane is done with it")
    assert (bench.backend.stopped, bench.backend.forgotten) == ([], [])


def test_what_has_nothing_to_do_with_an_engine_is_performed_by_the_driver(bench: Bench) -> None:
    claim = replace(forced(state=RunState.EXECUTING, attempts=(attempt_row(),)), run_id=RUN, epoch=1)

    def steps() -> Generator[Effect, Any, Transition]:
        yield FindJob(job_of(claim), "fake")
        assert (yield ReadClock()) == 1
        return ended(claim)

    member = Member(claim, steps())
    member.resume(None)
    bench.driver.lane(member)
    until(lambda: bench.driver.committed, "its end is on record")


def test_a_run_without_an_engine_is_no_job_whose_lease_was_renewed(bench: Bench) -> None:
    bench.effects.answer = lambda _effect: Unavailable("it may run elsewhere")
    bench.add()
    until(lambda: bench.parked() == 1, "it waits to be found")
    bench.lane.renew({(RUN, 1)})
    assert bench.backend.renewed == []


def test_a_run_that_a_thread_works_on_is_not_followed(bench: Bench) -> None:
    working, may_go_on = threading.Event(), threading.Event()

    def slow(effect: FindJob) -> Any:
        if effect.job.attempt_id == RUN:
            working.set()
            assert may_go_on.wait(5)
        return effect.job

    bench.effects.answer = slow
    bench.add(1)
    bench.add(2)
    assert working.wait(5)
    until(lambda: bench.parked() == 1, "the other waits")
    bench.leases.lost.add((RUN, 1))
    before = bench.backend.polls
    until(lambda: bench.backend.polls > before + 2, "engines are followed")
    assert bench.driver.finished == []
    may_go_on.set()
    until(lambda: bench.driver.finished == [(RUN, 1)], "its lost lease is seen once it waits")


def test_a_lane_at_rest_stops_without_waiting() -> None:
    asked: list[float] = []
    given: Any = Driver(), Effects(Backend()), Leases()
    lane = EngineLane(*given, 0.005, lambda: None, lambda _error: None, lambda: asked.append(0.0) or float(len(asked)))
    lane.stop(5.0)
    assert len(asked) == 1, "the clock is asked for the deadline, and never whether it is over"


def test_a_stop_waits_no_longer_than_it_may_for_what_is_being_done(bench: Bench) -> None:
    working, may_end = threading.Event(), threading.Event()

    def slow(effect: FindJob) -> Any:
        working.set()
        may_end.wait(10)
        return effect.job

    bench.effects.answer = slow
    bench.add()
    assert working.wait(5)
    stopping = threading.Thread(target=bench.lane.stop, args=(0.05,))
    stopping.start()
    stopping.join(5)
    assert not stopping.is_alive()
    assert bench.backend.closed
    may_end.set()
