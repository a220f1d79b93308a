"""The engine lane: follows the runs whose engine is launched, runs, or has just ended.

A lifecycle whose engine runs is parked: it keeps its lease and holds no thread. One thread asks the backend for the
ends of all engines; a few others launch, judge and commit, one run at a time.
"""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import structlog

from scenario_runner.authority.values import Claim, Transition
from scenario_runner.contracts.errors import LeaseLostError, SequenceError, Unavailable
from scenario_runner.counters import count
from scenario_runner.engine.invoker import Job, JobEnd
from scenario_runner.runs.batch import RunDriver
from scenario_runner.runs.effects import AwaitEnd, FindJob, LaunchEngine, ReadClock, RecordProgress
from scenario_runner.runs.engine_effects import EngineEffects
from scenario_runner.runs.leases import Leases
from scenario_runner.runs.member import Answer, Member
from scenario_runner.service.heartbeats import Heartbeats

#: Launches and judgements at a time. A launch takes 50 ms, so that 200 runs are launched in 2 s.
_WORKERS: Final = 8
#: How often a backend is asked again for a job that it could not find, or that may run elsewhere.
_FIND_AGAIN_SECONDS: Final = 1.0
#: How often it is logged that a job has not been found yet.
_REMIND_SECONDS: Final = 60.0
#: Effects of an execution that have nothing to do with its engine.
_OF_THE_DRIVER: Final = (ReadClock, RecordProgress)
_log = structlog.get_logger("engine")


@dataclass(slots=True, eq=False)
class _Execution:
    """A run in the lane.

    Attributes:
        member: Its lifecycle.
        since: When the lane took it, on a monotonic clock: nobody else has held its lease since.
        job: Its engine, which may run; None before it was launched, and after its end was seen.
        ended: The same engine after its end.
        parked: Whether it waits; else a thread works on it, or will.
        ask_at: When a parked run that waits to be found is asked for again.
        remind_at: When it is logged next that it was not found.
    """

    member: Member
    since: float
    job: Job | None = None
    ended: Job | None = None
    parked: bool = False
    ask_at: float = 0.0
    remind_at: float = field(default=0.0)

    @property
    def run_id(self) -> str:
        return self.member.claim.run_id

    @property
    def key(self) -> tuple[str, int]:
        """The lease: a run that was lost may be claimed again while its former execution is being ended."""
        return self.member.claim.run_id, self.member.claim.epoch


class EngineLane:
    """Drives lifecycles from their first effect of the engine to their transition.

    Args:
        driver: Hands runs over, and performs the effects that have nothing to do with an engine.
        effects: Performs the others.
        leases: Leases of this process.
        poll_seconds: How often the backend is asked for ends.
        changed: Called after a commit.
        attempt_ended: Called with the claim of a run once the end of its attempt is on record.
        fail: Called with a defect: the daemon stops.
        monotonic: Seconds, never going back.
        heartbeats: Where the lane reports its progress.
    """

    def __init__(
        self,
        driver: RunDriver,
        effects: EngineEffects,
        leases: Leases,
        poll_seconds: float,
        changed: Callable[[], None],
        fail: Callable[[BaseException], None],
        monotonic: Callable[[], float] = time.monotonic,
        heartbeats: Heartbeats | None = None,
        attempt_ended: Callable[[Claim], None] = lambda _claim: None,
    ) -> None:
        self._heartbeats = heartbeats or Heartbeats(math.inf)
        self._driver, self._effects, self._leases = driver, effects, leases
        self._poll_seconds, self._changed, self._fail = poll_seconds, changed, fail
        self._monotonic, self._attempt_ended = monotonic, attempt_ended
        self._invoker = effects.invoker
        self._lock = threading.Lock()
        self._executions: dict[tuple[str, int], _Execution] = {}
        self._working = 0
        self._remind_at = 0.0
        self._wanted, self._stopping = threading.Event(), threading.Event()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="engine")
        self._thread = threading.Thread(target=self._follow, name="engine", daemon=True)

    def start(self) -> None:
        """Take runs over from the driver, and begin to follow engines."""
        self._driver.hand_over_to(self.add)
        self._thread.start()

    def add(self, member: Member) -> None:
        """Take over a run under lease that waits for its first effect of the engine."""
        item = _Execution(member, self._monotonic())
        with self._lock:
            self._executions[item.key] = item
        self._submit(item, None)

    def renew(self, kept: set[tuple[str, int]]) -> None:
        """The leases of these runs (run id, epoch) were renewed: their engines may run on."""
        with self._lock:
            jobs = [item.job for key, item in self._executions.items() if item.job is not None and key in kept]
        if jobs:
            self._invoker.renew(jobs)

    def stop(self, seconds: float) -> None:
        """Begin nothing more, wait some seconds for what is being done, and end the engines of this process.

        What is left of their runs goes on with whoever claims them next: a parked run has no transition yet.
        """
        self._stopping.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        deadline = self._monotonic() + seconds
        while self._working and self._monotonic() < deadline:
            time.sleep(0.02)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._invoker.close()

    # --- following

    def _follow(self) -> None:
        """Look for the ends of engines and of leases."""
        self._heartbeats.begin("engine", self._poll_seconds)
        try:
            while not self._stopping.is_set():
                if not self._parked():
                    self._heartbeats.rest()
                    self._wanted.wait()
                self._heartbeats.beat()
                self._wanted.clear()
                self._follow_once()
                self._stopping.wait(self._poll_seconds)
        except BaseException as error:  # noqa: BLE001 - a lane that nobody follows must not look alive
            self._fail(error)
        finally:
            self._heartbeats.end()

    def _parked(self) -> list[_Execution]:
        with self._lock:
            return [item for item in self._executions.values() if item.parked]

    def _follow_once(self) -> None:
        parked = self._parked()
        ends = self._ends([item.job for item in parked if item.job is not None])
        now = self._monotonic()
        for item in parked:
            if (lost := self._lost(item)) is not None:
                self._unpark(item, lost)
            elif item.job is not None:
                if (end := ends.get(item.job.attempt_id)) is not None:
                    item.job, item.ended = None, item.job
                    self._unpark(item, end)
            elif now >= item.ask_at:
                self._unpark(item, None)

    def _ends(self, jobs: list[Job]) -> dict[str, JobEnd]:
        try:
            return self._invoker.poll(jobs) if jobs else {}
        except Unavailable as error:
            if self._monotonic() >= self._remind_at:
                self._remind_at = self._monotonic() + _REMIND_SECONDS
                _log.warning("waiting for the engines' backend", detail=error.detail)
            return {}

    def _lost(self, item: _Execution) -> LeaseLostError | None:
        try:
            self._leases.check(item.member.claim)
        except LeaseLostError as lost:
            return lost
        return None

    def _park(self, item: _Execution) -> None:
        item.parked = True  # the last that this thread does to it
        self._wanted.set()

    def _unpark(self, item: _Execution, answer: Answer) -> None:
        """Go on with a parked run in a thread of the pool."""
        item.parked = False
        self._submit(item, answer)

    # --- working

    def _submit(self, item: _Execution, answer: Answer) -> None:
        with self._lock:
            self._working += 1
        try:
            self._pool.submit(self._work, item, answer)
        except RuntimeError:  # the pool was shut down: the run goes on with its next owner
            with self._lock:
                self._working -= 1

    def _work(self, item: _Execution, answer: Answer) -> None:
        number = threading.current_thread().name.rpartition("_")[2]
        self._heartbeats.begin(f"engine:{number}", detail=f"run {item.run_id}")
        try:
            self._go_on(item, answer)
        except BaseException as error:  # noqa: BLE001 - a defect: stop; the lease runs out and nothing is decided
            self._fail(error)
        finally:
            self._heartbeats.end()
            with self._lock:
                self._working -= 1

    def _go_on(self, item: _Execution, answer: Answer) -> None:
        """Resume a lifecycle, and perform its effects until it is parked or has its transition.

        Args:
            item: The run.
            answer: The answer to the effect that it was parked with; None performs that effect.
        """
        member = item.member
        if answer is not None:
            member.resume(answer)
        while member.effect is not None:
            if isinstance(member.effect, AwaitEnd):
                item.job = member.effect.job
                self._park(item)
                return
            if not self._perform(item):
                self._park(item)
                return
        self._finish(item)

    def _perform(self, item: _Execution) -> bool:
        """Perform the effect of a run; False when it is to be asked for again."""
        member, effect = item.member, item.member.effect
        assert effect is not None
        if isinstance(effect, _OF_THE_DRIVER):
            self._driver.advance(member)
            return True
        try:
            since_claim = self._monotonic() - item.since
            found = self._effects.perform(effect, member.claim, since_claim, self._heartbeats.beat)
        except SequenceError:
            raise
        except Unavailable as error:
            if isinstance(effect, FindJob):
                self._ask_again(item, error)
                return False
            found = error
        except Exception as failure:  # noqa: BLE001 - the lifecycle handles it
            found = failure
        if isinstance(found, Job):
            item.job = found
            count("engine.launched" if isinstance(effect, LaunchEngine) else "engine.found")
        member.resume(found)
        return True

    def _ask_again(self, item: _Execution, error: Unavailable) -> None:
        now = self._monotonic()
        item.ask_at = now + _FIND_AGAIN_SECONDS
        if now >= item.remind_at:
            item.remind_at = now + _REMIND_SECONDS
            _log.warning("an engine is not found yet; its run waits", run_id=item.run_id, detail=error.detail)

    def _finish(self, item: _Execution) -> None:
        """Commit the transition of a run; an engine that may still run is ended before its lease is given back."""
        try:
            self._give_back(item)
        finally:
            with self._lock:
                del self._executions[item.key]

    def _give_back(self, item: _Execution) -> None:
        if item.job is not None and self._invoker.bound_to_lease and not self._stop_engine(item):
            self._leases.release(item.member.claim)  # it runs out, and the next owner finds the engine
            return
        if self._driver.finish(item.member) and item.ended is not None and _ends_attempt(item.member.transition):
            self._invoker.forget(item.ended)
            self._attempt_ended(item.member.claim)
        self._changed()

    def _stop_engine(self, item: _Execution) -> bool:
        assert item.job is not None
        _log.warning("ending an engine whose run goes on without it", run_id=item.run_id, handle=item.job.handle)
        try:
            self._invoker.stop(item.job, self._heartbeats.beat)
        except Unavailable as error:
            _log.error("an engine does not end", run_id=item.run_id, detail=error.detail)
            return False
        return True


def _ends_attempt(transition: Transition | None) -> bool:
    """Whether a transition puts the end of an attempt on record; a run that is put off asks for that end again."""
    return transition is not None and transition.attempt is not None and not transition.attempt.open
