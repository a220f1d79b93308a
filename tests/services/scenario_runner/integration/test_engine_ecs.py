"""Engines as tasks of ECS: what is asked for, every answer that the service may give, and every one it may not."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from engine_support import launch_of
from fake_ecs import LOST, FakeEcs, ServiceError, fake_ecs

from scenario_runner.contracts.errors import ConfigurationError, EngineRefusal, StoppingError, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.engine.command import parse_command
from scenario_runner.engine.ecs_calls import EcsCalls
from scenario_runner.engine.ecs_invoker import EcsInvoker, EcsSettings
from scenario_runner.engine.invoker import Job, JobEnd, LaunchFailed
from scenario_runner.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

THROTTLED = ServiceError("ThrottlingException", message="Rate exceeded")
BROKEN = ServiceError("ServerException", 500)
COMMAND = parse_command(["run", "--invocation={invocation_path}"], "test", by_path_only=True)
SETTINGS = EcsSettings("c", "engine:3", "engine", COMMAND, arguments={"launchType": "FARGATE"}, poll_seconds=5.0)


@dataclass
class Bench:
    """An invoker whose clock and pauses are a test's."""

    fake: FakeEcs
    seconds: float = 1_000_000.0
    waits: list[float] = field(default_factory=list)
    on_wait: Any = None

    def __post_init__(self) -> None:
        self.invoker = self.daemon()

    def daemon(self, settings: EcsSettings = SETTINGS) -> EcsInvoker:
        retry = RetryPolicy(1.0, 1.0, most_tries=3)
        calls = EcsCalls(self.fake.client(), "c", "engine", retry, self.wait)
        return EcsInvoker(settings, calls, lambda: int(self.seconds * 1_000_000), lambda: self.seconds, self.wait)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.seconds += seconds
        if self.on_wait is not None:
            self.on_wait()

    def poll(self, job: Job, pass_seconds: float = 5.0) -> JobEnd | None:
        self.seconds += pass_seconds
        return self.invoker.poll([job]).get(job.attempt_id)

    def row(self, job: Job | None = None) -> Job:
        return Job(launch_of().attempt_id, self.invoker.place, int(self.seconds * 1_000_000), 60.0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with fake_ecs() as fake:
        yield Bench(fake)


# --- launch


def test_a_task_is_asked_for_under_the_attempts_id_with_the_invocation_by_its_path(bench: Bench) -> None:
    launch = launch_of()
    job = bench.invoker.launch(launch)
    ((operation, request),) = bench.fake.requests
    assert operation == "RunTask"
    assert request == {
        "cluster": "c", "taskDefinition": "engine:3", "count": 1, "clientToken": launch.attempt_id,
        "startedBy": f"sr/{launch.attempt_id}", "launchType": "FARGATE",
        "overrides": {"containerOverrides": [{
            "name": "engine", "command": ["run", f"--invocation={launch.invocation_path}"],
            "environment": [
                {"name": "SR_ENGINE_INVOCATION_PATH", "value": launch.invocation_path},
                {"name": "SR_ENGINE_RUN_ROOT", "value": launch.engine_run_root},
                {"name": "SR_ATTEMPT_ID", "value": launch.attempt_id},
                {"name": "TRACEPARENT", "value": launch.traceparent},
            ],
        }]},
    }  # fmt: skip
    assert len(request["startedBy"]) <= 36
    assert job.handle in bench.fake.tasks


@pytest.mark.parametrize(
    "name", ["engine", "engine:", "engine:0", "engine:latest", "arn:aws:ecs:r:1:task-definition/e"]
)
def test_a_task_definition_without_a_revision_is_refused(bench: Bench, name: str) -> None:
    with pytest.raises(ConfigurationError, match="revision"):
        bench.daemon(replace(SETTINGS, task_definition=name))


@pytest.mark.parametrize("name", ["engine:3", "arn:aws:ecs:eu-west-1:123456789012:task-definition/engine:12"])
def test_a_task_definition_with_a_revision_is_taken(bench: Bench, name: str) -> None:
    assert bench.daemon(replace(SETTINGS, task_definition=name))


def test_overrides_that_are_longer_than_ecs_takes_are_refused_before_the_call(bench: Bench) -> None:
    long = launch_of(invocation_path="s3://b/" + "k" * 8000)
    with pytest.raises(EngineRefusal, match="8192") as refused:
        bench.invoker.launch(long)
    assert refused.value.reason is Reason.ENGINE_INVOCATION_INVALID
    assert bench.fake.requests == []
    bench.invoker.launch(launch_of(invocation=json.dumps({"notes": "n" * 9000}).encode()))


def test_a_throttled_launch_is_tried_again_with_the_same_token(bench: Bench) -> None:
    bench.fake.fail("RunTask", THROTTLED, THROTTLED)
    bench.invoker.launch(launch_of())
    assert bench.fake.count("RunTask") == 3
    assert len({request["clientToken"] for _, request in bench.fake.requests}) == 1
    assert bench.waits == [1.0, 1.0]


def test_a_launch_that_stays_throttled_was_certainly_not_made(bench: Bench) -> None:
    bench.fake.fail("RunTask", *[THROTTLED] * 3)
    with pytest.raises(LaunchFailed, match="Rate exceeded") as failed:
        bench.invoker.launch(launch_of())
    assert failed.value.another_attempt


def test_a_launch_whose_answer_is_lost_is_one_launch(bench: Bench) -> None:
    bench.fake.fail("RunTask", LOST)
    job = bench.invoker.launch(launch_of())
    assert list(bench.fake.tasks) == [job.handle]


@pytest.mark.parametrize(
    "then",
    [
        ServiceError("AccessDeniedException"),
        ServiceError("ClientException"),
        {"tasks": [], "failures": [{"reason": "RESOURCE:MEMORY"}]},
    ],
)
@pytest.mark.parametrize("first", [LOST, BROKEN])
def test_a_refusal_after_a_lost_answer_does_not_mean_that_nothing_was_launched(
    bench: Bench, first: object, then: object
) -> None:
    bench.fake.fail("RunTask", first, then)
    with pytest.raises(Unavailable):
        bench.invoker.launch(launch_of())
    # The caller asks `find`, which finds what the lost answer was about.
    if first is LOST:
        found = bench.invoker.find(bench.row())
        assert found is not None
        assert found.handle in bench.fake.tasks


@pytest.mark.parametrize(
    ("reason", "another"),
    [("RESOURCE:MEMORY", True), ("RESOURCE:ENI", True), ("AGENT", True), ("MISSING", False),
     ("Capacity is unavailable at this time.", True), ("ATTRIBUTE", False)],
)  # fmt: skip
def test_failures_without_tasks_mean_not_launched(bench: Bench, reason: str, another: bool) -> None:
    bench.fake.fail("RunTask", {"tasks": [], "failures": [{"arn": "x", "reason": reason}]})
    with pytest.raises(LaunchFailed, match=re.escape(reason)) as failed:
        bench.invoker.launch(launch_of())
    assert failed.value.another_attempt is another


@pytest.mark.parametrize("code", ["ClusterNotFoundException", "ClientException", "AccessDeniedException",
                                  "InvalidParameterException", "BlockedException"])  # fmt: skip
def test_a_refused_launch_is_not_tried_again(bench: Bench, code: str) -> None:
    bench.fake.fail("RunTask", ServiceError(code))
    with pytest.raises(LaunchFailed, match=code) as failed:
        bench.invoker.launch(launch_of())
    assert not failed.value.another_attempt
    assert bench.fake.count("RunTask") == 1


def test_a_conflict_names_the_task_of_the_first_call(bench: Bench) -> None:
    first = bench.invoker.launch(launch_of())
    changed = bench.daemon(replace(SETTINGS, task_definition="engine:4"))
    assert changed.launch(launch_of()).handle == first.handle
    assert len(bench.fake.tasks) == 1


def test_a_conflict_that_names_no_task_is_not_known(bench: Bench) -> None:
    bench.fake.fail("RunTask", ServiceError("ConflictException"))
    with pytest.raises(Unavailable, match="ConflictException"):
        bench.invoker.launch(launch_of())


def test_a_service_that_does_not_answer_leaves_it_unknown(bench: Bench) -> None:
    bench.fake.fail("RunTask", *[BROKEN] * 3)
    with pytest.raises(Unavailable):
        bench.invoker.launch(launch_of())


# --- find


def test_a_task_that_may_not_be_listed_yet_is_not_nothing(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of())
    bench.fake.hidden.add(job.handle)
    row = bench.row()
    with pytest.raises(Unavailable, match="may not be listed yet"):
        bench.invoker.find(row)
    bench.seconds += 299
    with pytest.raises(Unavailable):
        bench.invoker.find(row)
    bench.fake.hidden.clear()
    assert bench.invoker.find(row) == replace(row, handle=job.handle)
    assert bench.invoker.find(replace(row, attempt_id="e" * 32, launched_us=0)) is None


@pytest.mark.parametrize(
    "arn", ["arn:aws:ecs:eu-west-1:123456789012:task/other/1", "arn:aws:ecs:us-east-1:123456789012:task/c/1"],
    ids=["another cluster", "another region"],
)  # fmt: skip
def test_a_task_of_another_cluster_is_not_one_that_ended_long_ago(bench: Bench, arn: str) -> None:
    """The profile was changed while it runs: to call it lost would launch a second engine beside it."""
    with pytest.raises(Unavailable, match="was launched at"):
        bench.invoker.find(replace(bench.row(), handle=arn, launched_us=0))
    with pytest.raises(Unavailable, match="was launched at"):
        bench.invoker.find(replace(bench.row(), handle="ecs|c|us-east-1", launched_us=0))


def test_a_task_is_known_whatever_form_the_name_of_its_cluster_has(bench: Bench) -> None:
    calls = EcsCalls(bench.fake.client(), "arn:aws:ecs:eu-west-1:123456789012:cluster/c", "engine")
    assert calls.may_know("arn:aws:ecs:eu-west-1:123456789012:task/c/1")
    assert calls.may_know("arn:aws:ecs:eu-west-1:123456789012:task/1"), "the older format names no cluster"
    assert not calls.may_know("arn:aws:ecs:eu-west-1:123456789012:task/d/1")


def test_a_listing_that_fails_is_not_nothing(bench: Bench) -> None:
    bench.fake.fail("ListTasks", *[BROKEN] * 3)
    with pytest.raises(Unavailable):
        bench.invoker.find(replace(bench.row(), launched_us=0))


def foreign_task(bench: Bench) -> str:
    """The ARN of a task that another service runs in the same cluster."""
    arn = bench.fake.RunTask({"clientToken": "another", "startedBy": "another"})["tasks"][0]["taskArn"]
    return str(arn)


def test_a_task_of_another_is_never_the_attempts_whatever_its_row_says(bench: Bench) -> None:
    """The row may have been restored from a ledger that others can write."""
    foreign = foreign_task(bench)
    own = bench.invoker.launch(launch_of())
    row = replace(bench.row(), handle=foreign, launched_us=0, timeout_seconds=1.0)
    assert bench.invoker.find(row) == replace(row, handle=own.handle), "found by its own id"
    bench.invoker.stop(row)
    assert (bench.fake.tasks[own.handle]["lastStatus"], bench.fake.tasks[foreign]["lastStatus"]) == (
        "STOPPED", "RUNNING"
    )  # fmt: skip
    nothing = replace(row, attempt_id="e" * 32)
    assert bench.invoker.find(nothing) is None
    bench.invoker.stop(nothing)
    bench.poll(row)
    bench.poll(nothing)
    assert bench.fake.tasks[foreign]["desiredStatus"] == "RUNNING", "neither a stop nor a timeout reaches it"


def test_the_end_of_a_task_of_another_is_no_end_of_the_attempt(bench: Bench) -> None:
    foreign = foreign_task(bench)
    bench.fake.finish(foreign, 0)
    own = bench.invoker.launch(launch_of())
    row = replace(bench.row(), handle=foreign)
    assert bench.poll(row) is None
    found = bench.invoker.find(row)
    assert found is not None
    assert (found.handle, bench.poll(found)) == (own.handle, None)


def test_a_task_that_nobody_knows_does_not_hide_the_one_that_runs(bench: Bench) -> None:
    own = bench.invoker.launch(launch_of())
    made_up = "arn:aws:ecs:eu-west-1:123456789012:task/c/" + "f" * 32
    assert bench.invoker.find(replace(bench.row(), handle=made_up, launched_us=0)) == replace(
        bench.row(), handle=own.handle, launched_us=0
    )


# --- poll


def test_a_task_that_is_unknown_just_after_its_start_is_waited_for(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of(timeout_seconds=10_000))
    bench.fake.hidden.add(job.handle)
    assert bench.poll(job) is None
    bench.fake.hidden.clear()
    bench.fake.finish(job.handle, 0)
    end = bench.poll(job)
    assert end is not None
    assert end.succeeded


def test_a_task_that_ecs_has_forgotten_has_ended_without_a_verdict(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of())
    bench.fake.hidden.add(job.handle)
    end = bench.poll(job, 301)
    assert end is not None
    assert (end.succeeded, end.reason_code, end.exit_code) == (False, Reason.ENGINE_EXIT_NONZERO, None)
    assert (end.stop_code, end.another_attempt) == ("MISSING", True)


ENDS: list[tuple[dict[str, Any], tuple[bool, Reason | None, int | None, bool]]] = [
    ({"exit_code": 0, "stop_code": "EssentialContainerExited"}, (True, None, 0, False)),
    ({"exit_code": 7, "stop_code": "EssentialContainerExited"}, (False, Reason.ENGINE_EXIT_NONZERO, 7, False)),
    ({"stop_code": "TaskFailedToStart", "reason": "CannotPullContainerError"},
     (False, Reason.ENGINE_LAUNCH_FAILED, None, False)),
    ({"stop_code": "SpotInterruption"}, (False, Reason.ENGINE_EXIT_NONZERO, None, True)),
    ({"exit_code": 143, "stop_code": "SpotInterruption"}, (False, Reason.ENGINE_EXIT_NONZERO, 143, True)),
    ({"stop_code": "TerminationNotice"}, (False, Reason.ENGINE_EXIT_NONZERO, None, True)),
    ({"stop_code": "InfrastructureHealth"}, (False, Reason.ENGINE_EXIT_NONZERO, None, True)),
    ({"reason": "Host EC2 (instance i-1) terminated."}, (False, Reason.ENGINE_EXIT_NONZERO, None, True)),
    ({"stop_code": "UserInitiated", "reason": "by hand"}, (False, Reason.ENGINE_EXIT_NONZERO, None, False)),
    ({"exit_code": 0, "stop_code": "UserInitiated", "reason": "scenario-runner: timeout of 60 s"},
     (False, Reason.ENGINE_TIMEOUT, 0, False)),
    ({"exit_code": 0, "stop_code": "UserInitiated", "reason": "scenario-runner: stopped"},
     (False, Reason.ENGINE_EXIT_NONZERO, 0, True)),
]  # fmt: skip


@pytest.mark.parametrize(("stopped", "expected"), ENDS)
def test_the_exit_status_of_the_engines_container_decides_and_without_one_the_stop_code(
    bench: Bench, stopped: dict[str, Any], expected: tuple[object, ...]
) -> None:
    job = bench.invoker.launch(launch_of())
    bench.fake.finish(job.handle, **stopped)
    end = bench.poll(job)
    assert end is not None
    assert (end.succeeded, end.reason_code, end.exit_code, end.another_attempt) == expected
    assert end.stop_code == stopped.get("stop_code", "")
    assert end.reason_code is Reason.ENGINE_TIMEOUT or stopped.get("reason", "") in end.detail


@pytest.mark.parametrize("status", ["PROVISIONING", "PENDING", "ACTIVATING", "DEACTIVATING", "STOPPING",
                                    "DEPROVISIONING"])  # fmt: skip
def test_a_task_that_has_not_stopped_has_not_ended_whatever_its_container_says(bench: Bench, status: str) -> None:
    job = bench.invoker.launch(launch_of())
    bench.fake.finish(job.handle, 0)
    bench.fake.tasks[job.handle]["lastStatus"] = status
    assert bench.poll(job) is None


def test_a_task_that_takes_too_long_is_stopped_once_and_ends_with_a_timeout(bench: Bench) -> None:
    bench.fake.stops_at_once = False
    job = bench.invoker.launch(launch_of(timeout_seconds=60))
    assert bench.poll(job, 59) is None
    assert bench.fake.count("StopTask") == 0
    assert [bench.poll(job), bench.poll(job), bench.poll(job)] == [None] * 3
    assert bench.fake.count("StopTask") == 1
    task = bench.fake.tasks[job.handle]
    bench.fake.finish(job.handle, 0, task["stopCode"], task["stoppedReason"])
    # Also for a daemon that did not stop it itself.
    bench.invoker = bench.daemon()
    end = bench.poll(job)
    assert end is not None
    assert (end.succeeded, end.reason_code) == (False, Reason.ENGINE_TIMEOUT)


def test_a_stop_of_an_overdue_task_that_fails_is_tried_again(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of(timeout_seconds=60))
    bench.fake.fail("StopTask", *[BROKEN] * 3)
    assert bench.poll(job, 61) is None
    assert bench.poll(job) is None
    end = bench.poll(job)
    assert end is not None
    assert end.reason_code is Reason.ENGINE_TIMEOUT


def test_two_hundred_tasks_cost_two_calls_in_five_seconds(bench: Bench) -> None:
    jobs = [bench.invoker.launch(launch_of(number, timeout_seconds=9e9)) for number in range(200)]
    for _ in range(40):
        assert bench.invoker.poll(jobs) == {}
        bench.seconds += 0.125
    assert bench.fake.count("DescribeTasks") == 2
    bench.fake.finish(jobs[-1].handle, 0)
    assert set(bench.invoker.poll(jobs)) == {jobs[-1].attempt_id}
    assert bench.fake.count("DescribeTasks") == 4
    bench.invoker.poll(jobs[-1:])
    assert bench.fake.count("DescribeTasks") == 4


def test_a_service_that_describes_nothing_ends_nothing(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of())
    bench.fake.fail("DescribeTasks", *[THROTTLED] * 3)
    with pytest.raises(Unavailable, match="Rate exceeded"):
        bench.poll(job, 1000)
    bench.fake.finish(job.handle, 0)
    end = bench.poll(job)
    assert end is not None
    assert end.succeeded


# --- stop


def test_stop_waits_until_the_task_has_stopped(bench: Bench) -> None:
    bench.fake.stops_at_once = False
    job = bench.invoker.launch(launch_of())

    def stops_late() -> None:
        if len(bench.waits) == 3:
            task = bench.fake.tasks[job.handle]
            bench.fake.finish(job.handle, 143, "UserInitiated", task["stoppedReason"])

    bench.on_wait = stops_late
    bench.invoker.stop(job)
    assert len(bench.waits) == 3
    assert bench.fake.count("StopTask") == 1
    end = bench.poll(job)
    assert end is not None
    assert end.another_attempt


def test_a_task_that_does_not_stop_may_still_run(bench: Bench) -> None:
    bench.fake.stops_at_once = False
    job = bench.invoker.launch(launch_of())
    with pytest.raises(Unavailable, match="did not stop in 180 s"):
        bench.invoker.stop(job)
    assert 180 <= sum(bench.waits) <= 190


def test_a_wait_for_the_end_of_a_task_ends_when_the_caller_must_not_go_on(bench: Bench) -> None:
    bench.fake.stops_at_once = False
    job = bench.invoker.launch(launch_of())

    def check() -> None:
        if len(bench.waits) == 3:
            raise StoppingError("the process stops")

    with pytest.raises(StoppingError):
        bench.invoker.stop(job, check)
    assert len(bench.waits) == 3
    assert bench.fake.tasks[job.handle]["desiredStatus"] == "STOPPED", "it was asked for, whoever waits for it"


def test_a_task_that_is_not_known_yet_may_run_and_is_stopped_when_it_appears(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of())
    bench.fake.hidden.add(job.handle)
    with pytest.raises(Unavailable, match="may not be listed yet"):
        bench.invoker.stop(job)
    bench.fake.hidden.clear()
    bench.invoker.stop(job)
    assert bench.fake.tasks[job.handle]["lastStatus"] == "STOPPED"


def test_closing_leaves_tasks_to_the_next_daemon(bench: Bench) -> None:
    job = bench.invoker.launch(launch_of())
    bench.invoker.close()
    assert bench.fake.tasks[job.handle]["desiredStatus"] == "RUNNING"
