"""What every backend of the engine seam does alike: real processes, and tasks of an ECS that a test drives."""

from __future__ import annotations

import secrets
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from engine_support import SALT_VARIABLE, end_of, launch_of, processes_of, script_engine, until
from fake_ecs import FakeEcs, ServiceError, fake_ecs

from scenario_runner.contracts.errors import EngineRefusal, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.engine.command import parse_command
from scenario_runner.engine.ecs_calls import EcsCalls
from scenario_runner.engine.ecs_invoker import EcsInvoker, EcsSettings
from scenario_runner.engine.invoker import EngineInvoker, Job, LaunchFailed
from scenario_runner.engine.subprocess_invoker import SubprocessInvoker, SubprocessSettings
from scenario_runner.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _attempts_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SALT_VARIABLE, secrets.token_hex(8))


class Bench(Protocol):
    """A backend, and a test's hands on its engines."""

    invoker: EngineInvoker

    def another_daemon(self) -> EngineInvoker: ...

    def finish(self, job: Job, exit_code: int) -> None: ...

    def runs(self, job: Job) -> bool: ...

    def launches(self) -> int: ...

    def breaks(self) -> EngineInvoker: ...

    def odd_command(self) -> EngineInvoker: ...


ENGINE = """
import os, sys, time
folder = {folder!r}
open(os.path.join(folder, "launches"), "a").write("x")
path = os.path.join(folder, os.environ["SR_ATTEMPT_ID"])
while not os.path.exists(path):
    time.sleep(0.01)
sys.exit(int(open(path).read()))
"""


class Processes:
    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, list[EngineInvoker]()
        self.invoker = self.another_daemon()

    def another_daemon(self) -> EngineInvoker:
        invoker = script_engine(self.folder / "attempts", ENGINE.format(folder=str(self.folder)))
        self.made.append(invoker)
        return invoker

    def finish(self, job: Job, exit_code: int) -> None:
        new = self.folder / "new"
        new.write_text(str(exit_code))
        new.rename(self.folder / job.attempt_id)

    def runs(self, job: Job) -> bool:
        return bool(processes_of(job.attempt_id))

    def launches(self) -> int:
        path = self.folder / "launches"
        return len(path.read_text()) if path.exists() else 0

    def breaks(self) -> EngineInvoker:
        settings = SubprocessSettings(str(self.folder / "attempts"), parse_command(["/no/such/engine"], "test"))
        return SubprocessInvoker(settings)

    def odd_command(self) -> EngineInvoker:
        command = parse_command([sys.executable, "{scenario_id}"], "test")
        return SubprocessInvoker(SubprocessSettings(str(self.folder / "attempts"), command))


class Tasks:
    def __init__(self, fake: FakeEcs) -> None:
        self.fake = fake
        self.invoker = self.another_daemon()

    def another_daemon(self, argument: str = "{run_id}") -> EngineInvoker:
        calls = EcsCalls(self.fake.client(), "c", "engine", RetryPolicy(0.01, 0.01, deadline_seconds=0.1))
        command = parse_command(["run", argument], "test", by_path_only=True)
        return EcsInvoker(EcsSettings("c", "engine:3", "engine", command, poll_seconds=0.0), calls, wait=lambda _: None)

    def finish(self, job: Job, exit_code: int) -> None:
        self.fake.finish(job.handle, exit_code, "EssentialContainerExited")

    def runs(self, job: Job) -> bool:
        return any(task["lastStatus"] != "STOPPED" and task["startedBy"] == f"sr/{job.attempt_id}"
                   for task in self.fake.tasks.values())  # fmt: skip

    def launches(self) -> int:
        return len(self.fake.tasks)

    def breaks(self) -> EngineInvoker:
        self.fake.fail("RunTask", ServiceError("ClientException", message="no such task definition"))
        return self.invoker

    def odd_command(self) -> EngineInvoker:
        return self.another_daemon("{scenario_id}")


@contextmanager
def bench_of(kind: str, folder: Path) -> Iterator[Bench]:
    if kind == "subprocess":
        processes = Processes(folder)
        try:
            yield processes
        finally:
            for invoker in processes.made:
                invoker.close()
    else:
        with fake_ecs() as fake:
            yield Tasks(fake)


@pytest.fixture(params=["subprocess", "ecs"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with bench_of(request.param, tmp_path) as found:
        yield found


def row(bench: Bench, job: Job, age_seconds: float = 0.0) -> Job:
    """An attempt as its row holds it before ``launch`` has answered."""
    launched_us = time.time_ns() // 1000 - int(age_seconds * 1_000_000)
    return Job(job.attempt_id, bench.invoker.place, launched_us, job.timeout_seconds)


def test_a_job_runs_until_its_engine_ends_and_its_end_may_be_asked_for_again(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of())
    assert bench.runs(job)
    assert bench.invoker.poll([job]) == {}
    bench.finish(job, 0)
    end = end_of(bench.invoker, job)
    assert (end.succeeded, end.reason_code, end.exit_code, end.another_attempt) == (True, None, 0, False)
    assert not bench.runs(job)
    assert bench.invoker.poll([job]) == {job.attempt_id: end}
    assert bench.invoker.poll([]) == {}


def test_an_engine_that_ends_with_another_status_has_failed(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of())
    bench.finish(job, 3)
    end = end_of(bench.invoker, job)
    assert (end.succeeded, end.reason_code, end.exit_code) == (False, Reason.ENGINE_EXIT_NONZERO, 3)
    assert not end.another_attempt
    assert "3" in end.detail


def test_an_attempt_is_launched_once(bench: Bench) -> None:
    first = bench.invoker.launch(launch_of())
    assert bench.invoker.launch(launch_of()).handle == first.handle
    assert bench.another_daemon().launch(launch_of()).handle == first.handle
    bench.finish(first, 0)
    end_of(bench.invoker, first)
    bench.invoker.forget(first)
    assert end_of(bench.invoker, bench.invoker.launch(launch_of())).succeeded
    assert bench.launches() == 1


def test_another_daemon_finds_an_attempt_of_which_only_the_row_is_known(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of())
    other = bench.another_daemon()
    found = other.find(row(bench, job))
    assert found is not None
    assert found.handle == job.handle
    assert other.poll([found]) == {}
    bench.finish(job, 0)
    assert end_of(other, found).succeeded
    late = bench.another_daemon()
    assert (again := late.find(row(bench, job))) is not None
    assert end_of(late, again).succeeded


def test_an_attempt_that_was_never_launched_is_found_to_be_nothing(bench: Bench) -> None:
    assert bench.invoker.find(row(bench, Job("f" * 32, "", 0, 60.0), age_seconds=600.0)) is None
    bench.invoker.stop(row(bench, Job("f" * 32, "", 0, 60.0), age_seconds=600.0))


def test_an_attempt_of_another_place_is_not_judged(bench: Bench) -> None:
    job = Job("f" * 32, "elsewhere", 0, 60.0)
    with pytest.raises(Unavailable, match="elsewhere"):
        bench.invoker.find(job)
    with pytest.raises(Unavailable, match="elsewhere"):
        bench.invoker.stop(job)


def test_stop_returns_when_nothing_runs_and_may_be_repeated(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of())
    bench.invoker.stop(job)
    assert not bench.runs(job)
    bench.invoker.stop(job)
    end = end_of(bench.invoker, job)
    assert (end.succeeded, end.reason_code, end.another_attempt) == (False, Reason.ENGINE_EXIT_NONZERO, True)


def test_another_daemon_stops_an_attempt_by_its_row(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of())
    bench.another_daemon().stop(row(bench, job))
    assert not bench.runs(job)
    assert not end_of(bench.invoker, job).succeeded


def test_an_attempt_is_stopped_by_its_id_alone(bench: Bench) -> None:
    """Before the next attempt of its run, whatever its row says of its handle and its end."""
    job = bench.invoker.launch(launch_of())
    bystander = bench.invoker.launch(launch_of(2))
    other = bench.another_daemon()
    by_id = Job(job.attempt_id, other.place, 0, 0.0)
    other.stop(by_id)
    assert (bench.runs(job), bench.runs(bystander)) == (False, True)
    other.stop(by_id)
    other.stop(Job("f" * 32, other.place, 0, 0.0))
    assert bench.invoker.poll([bystander]) == {}


def test_a_stop_after_the_end_changes_nothing(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of())
    bench.finish(job, 0)
    end = end_of(bench.invoker, job)
    bench.invoker.stop(job)
    assert end_of(bench.another_daemon(), job).succeeded
    assert bench.invoker.poll([job]) == {job.attempt_id: end}


def test_an_engine_that_takes_too_long_is_ended(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of(timeout_seconds=0.2))
    end = end_of(bench.invoker, job)
    assert (end.succeeded, end.reason_code, end.another_attempt) == (False, Reason.ENGINE_TIMEOUT, False)
    assert not bench.runs(job)
    assert "0.2 s" in end.detail


def test_a_launch_that_certainly_failed_leaves_nothing(bench: Bench) -> None:
    with pytest.raises(LaunchFailed) as failed:
        bench.breaks().launch(launch_of())
    assert failed.value.reason is Reason.ENGINE_LAUNCH_FAILED
    assert (bench.launches(), bench.runs(row(bench, Job(launch_of().attempt_id, "", 0, 1)))) == (0, False)


def test_nothing_is_launched_after_the_end_of_the_lease_that_it_is_launched_under(bench: Bench) -> None:
    with pytest.raises(LaunchFailed, match="lease") as failed:
        bench.invoker.launch(launch_of(start_by=0.0))
    assert failed.value.another_attempt
    assert (bench.launches(), bench.runs(row(bench, Job(launch_of().attempt_id, "", 0, 1)))) == (0, False)


def test_a_value_that_would_be_an_option_is_refused_before_the_launch(bench: Bench) -> None:
    tokens = {**launch_of().tokens, "scenario_id": "--privileged"}
    with pytest.raises(EngineRefusal):
        bench.odd_command().launch(launch_of(tokens=tokens))
    assert bench.launches() == 0


def test_renewals_are_taken_for_jobs_in_every_state(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of())
    bench.invoker.renew([job, row(bench, Job("f" * 32, "", 0, 1))])
    bench.finish(job, 0)
    end_of(bench.invoker, job)
    bench.invoker.renew([job])


def test_many_jobs_are_followed_together(bench: Bench) -> None:
    jobs = [bench.invoker.launch(launch_of(number)) for number in range(1, 21)]
    assert bench.invoker.poll(jobs) == {}
    for job in jobs[::2]:
        bench.finish(job, 0)
    until(lambda: len(bench.invoker.poll(jobs)) == 10, "half of them end")
    ends = bench.invoker.poll(jobs)
    assert set(ends) == {job.attempt_id for job in jobs[::2]}
    assert all(end.succeeded for end in ends.values())


def test_the_backend_has_the_name_of_its_profile_key(bench: Bench, request: pytest.FixtureRequest) -> None:
    kind: Any = request.node.callspec.params["bench"]
    assert bench.invoker.name == kind
    assert bench.invoker.place == bench.another_daemon().place
