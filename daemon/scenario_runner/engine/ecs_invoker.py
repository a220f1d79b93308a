"""Engines as tasks of Amazon ECS.

A task outlives the daemon that launched it: the next daemon follows it by its ARN, or finds it by ``startedBy``. ECS
keeps what the daemon needs to know, so this backend keeps nothing that a restart would lose: the attempt id is the
``clientToken``, and why SR stopped a task stands in the task's ``stoppedReason``.

An ARN is a hint only: the row that holds it may have been restored from a ledger that others can write. A task is the
attempt's when it was ``startedBy`` the attempt. Another one is neither stopped, nor taken for an end.

ECS is eventually consistent. A task that was just launched may be unknown for a while; it is then neither gone nor
failed. And ECS forgets a task about an hour after it stopped.

What a task writes goes to where its definition sends it. SR does not read it.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from typing_extensions import override

from scenario_runner.contracts.errors import ConfigurationError, EngineRefusal, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.times import MICROS
from scenario_runner.engine.command import INVOCATION_VARIABLE, EngineCommand, own_variables, placeholder_values
from scenario_runner.engine.ecs_calls import EcsCalls, Task
from scenario_runner.engine.invoker import EngineInvoker, Job, JobEnd, Launch

#: Limit of the service for the overrides of one task.
MOST_OVERRIDE_CHARACTERS: Final = 8192
#: The service's documentation asks callers to wait up to five minutes for what they have just made.
CONSISTENCY_SECONDS: Final = 300.0
#: An engine runs for minutes; 200 of them then cost two calls of DescribeTasks in this time.
POLL_SECONDS: Final = 5.0
#: A container has at most 120 s between SIGTERM and SIGKILL, and the agent needs some to say that it has stopped.
STOP_SECONDS: Final = 180.0
#: Between looks for a task that is being stopped.
_STOP_PAUSE_SECONDS: Final = 2.0
_PINNED: Final = re.compile(r"[^:]+:[1-9][0-9]*|arn:[\w-]+:ecs:[^/]+:task-definition/[^:]+:[1-9][0-9]*")
#: Begin ``stoppedReason`` of a task that SR stopped.
_TIMEOUT, _STOPPED = "scenario-runner: timeout", "scenario-runner: stopped"
#: Stop codes that are no doing of the engine.
_INFRASTRUCTURE: Final = frozenset(
    {"SpotInterruption", "TerminationNotice", "InfrastructureHealth", "ServiceSchedulerInitiated"}
)
_MISSING: Final = "MISSING"


@dataclass(frozen=True)
class EcsSettings:
    """How engines are run as tasks.

    Attributes:
        cluster: Name or ARN.
        task_definition: ``family:revision`` or an ARN with a revision.
        container: Name of the engine's container in it.
        command: Replaces the container's command.
        arguments: Further arguments of RunTask: ``launchType``, ``networkConfiguration`` and the like.
        consistency_seconds: For how long a task that was just launched may be unknown.
        poll_seconds: How often ECS is asked for the states of tasks.
        stop_seconds: How long a stop may take.

    Raises:
        ConfigurationError: The task definition is not pinned to a revision.
    """

    cluster: str
    task_definition: str
    container: str
    command: EngineCommand
    arguments: Mapping[str, Any] = field(default_factory=dict)
    consistency_seconds: float = CONSISTENCY_SECONDS
    poll_seconds: float = POLL_SECONDS
    stop_seconds: float = STOP_SECONDS

    def __post_init__(self) -> None:
        if _PINNED.fullmatch(self.task_definition) is None:
            raise ConfigurationError(
                "key 'engine_ecs_task_definition'",
                f"{self.task_definition!r} names no revision, so that two attempts may differ",
                "write family:revision, or the ARN of a revision",
            )


class EcsInvoker(EngineInvoker):
    """Runs engines as tasks of one cluster.

    Args:
        settings: How they are run.
        calls: The calls of that cluster.
        now_us: Microseconds since the epoch.
        monotonic: Seconds, never going back.
        wait: Waits some seconds.
    """

    def __init__(
        self,
        settings: EcsSettings,
        calls: EcsCalls,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._settings, self._calls = settings, calls
        self._now_us, self._monotonic, self._wait = now_us, monotonic, wait
        self._lock = threading.Lock()
        self._next_poll = 0.0
        self._ends: dict[str, JobEnd] = {}

    @property
    @override
    def name(self) -> str:
        return "ecs"

    @property
    @override
    def bound_to_lease(self) -> bool:
        return False

    @property
    @override
    def place(self) -> str:
        return f"ecs|{self._settings.cluster}|{self._calls.region}"

    # --- launch and find

    @override
    def require_room(self) -> None:
        """Only ECS knows how much room it has, and says so in the answer to the launch."""

    @override
    def launch(self, launch: Launch) -> Job:
        overrides = overrides_of(self._settings, launch)
        launched_us = self._now_us()
        arn = self._calls.run_task(
            {
                **self._settings.arguments,
                "taskDefinition": self._settings.task_definition,
                "count": 1,
                "clientToken": launch.attempt_id,
                "startedBy": _started_by(launch.attempt_id),
                "overrides": overrides,
            },
            # ECS refuses a request whose signature is five minutes old, so that none is late which is sent in time.
            may_start=lambda: self._monotonic() < launch.start_by,
        )
        return Job(launch.attempt_id, arn, launched_us, launch.timeout_seconds)

    @override
    def find(self, job: Job, unrenewed_seconds: float = 0.0) -> Job | None:
        # Of a task of another cluster this one would say that it does not know it, as of one that ended long ago.
        named = job.handle.startswith("arn:") and self._calls.may_know(job.handle)
        if not named and job.handle != self.place:
            raise Unavailable(f"attempt {job.attempt_id} was launched at {job.handle!r}, and this is {self.place!r}")
        if named and self._tasks_of([job])[job.attempt_id] is not None:
            return job
        if arns := self._calls.list(_started_by(job.attempt_id)):
            return replace(job, handle=arns[0])
        if self._is_young(job):
            raise Unavailable(f"the task of attempt {job.attempt_id} may not be listed yet")
        return None

    def _tasks_of(self, jobs: Sequence[Job]) -> dict[str, Task | None]:
        """What ECS says of the tasks of jobs, by attempt id; None for a job that names no task of its own attempt."""
        tasks = self._calls.describe([job.handle for job in jobs])
        own: dict[str, Task | None] = dict.fromkeys(job.attempt_id for job in jobs)
        for job in jobs:
            task = tasks[job.handle]
            if task is not None and task.started_by == _started_by(job.attempt_id):
                own[job.attempt_id] = task
        return own

    def _is_young(self, job: Job) -> bool:
        """Whether ECS may not know the task yet."""
        return self._now_us() - job.launched_us < self._settings.consistency_seconds * MICROS

    # --- poll

    @override
    def poll(self, jobs: Sequence[Job]) -> dict[str, JobEnd]:
        with self._lock:
            now = self._monotonic()
            due = now >= self._next_poll
            if due:
                self._next_poll = now + self._settings.poll_seconds
            unknown = [job for job in jobs if job.attempt_id not in self._ends]
        if due and unknown:
            self._look(unknown)
        with self._lock:
            return {job.attempt_id: self._ends[job.attempt_id] for job in jobs if job.attempt_id in self._ends}

    def _look(self, jobs: Sequence[Job]) -> None:
        """Ask ECS for the states of jobs; note the ends, and stop what has run for too long."""
        tasks = self._tasks_of(jobs)
        for job in jobs:
            task = tasks[job.attempt_id]
            end = self._end_of(job, task)
            if end is not None:
                with self._lock:
                    self._ends[job.attempt_id] = end
            elif task is not None and not task.stopping and self._is_overdue(job):
                with suppress(Unavailable):  # the next poll tries again
                    self._calls.stop(job.handle, f"{_TIMEOUT} of {job.timeout_seconds:g} s")

    def _is_overdue(self, job: Job) -> bool:
        return self._now_us() - job.launched_us >= job.timeout_seconds * MICROS

    def _end_of(self, job: Job, task: Task | None) -> JobEnd | None:
        """The end of a job; None while it runs, or may be unknown because it is young."""
        if task is not None:
            return _judge(task, job) if task.status == "STOPPED" else None
        if self._is_young(job):
            return None
        return JobEnd(
            succeeded=False, reason_code=Reason.ENGINE_EXIT_NONZERO, exit_code=None, stop_code=_MISSING,
            detail="ECS does not know the task: it stopped more than an hour ago", another_attempt=True,
        )  # fmt: skip

    @override
    def renew(self, jobs: Iterable[Job]) -> None:
        """A task does not depend on its daemon; the daemon that has the lease follows it."""

    # --- stop

    @override
    def stop(self, job: Job, check: Callable[[], None] = lambda: None) -> None:
        found = self.find(job)
        if found is None:
            return
        deadline = self._monotonic() + self._settings.stop_seconds
        while not self._has_stopped(found):
            if self._monotonic() > deadline:
                raise Unavailable(f"task {found.handle} did not stop in {self._settings.stop_seconds:g} s")
            self._wait(_STOP_PAUSE_SECONDS)
            check()

    def _has_stopped(self, job: Job) -> bool:
        """Whether a task has stopped, and will not appear later; asks for its stop when nobody has yet."""
        task = self._tasks_of([job])[job.attempt_id]
        if task is not None and task.status == "STOPPED":
            return True
        if task is None or not task.stopping:
            known = self._calls.stop(job.handle, _STOPPED)
            return task is None and not known and not self._is_young(job)
        return False

    @override
    def forget(self, job: Job) -> None:
        with self._lock:
            self._ends.pop(job.attempt_id, None)

    @override
    def close(self) -> None:
        """Tasks run on, and the next daemon follows them."""


def overrides_of(settings: EcsSettings, launch: Launch) -> dict[str, Any]:
    """What a task is given beyond its definition: the command and SR's own variables.

    Raises:
        EngineRefusal: The command cannot be rendered, or the overrides are longer than ECS takes.
    """
    variables = own_variables(launch)
    del variables[INVOCATION_VARIABLE]  # it may be longer than all overrides together; the engine reads the path
    overrides = {
        "containerOverrides": [
            {
                "name": settings.container,
                "command": settings.command.render(placeholder_values(launch)),
                "environment": [{"name": name, "value": value} for name, value in variables.items()],
            }
        ]
    }
    if (length := len(json.dumps(overrides))) > MOST_OVERRIDE_CHARACTERS:
        raise EngineRefusal(f"the overrides hold {length} characters, ECS takes {MOST_OVERRIDE_CHARACTERS}")
    return overrides


def _started_by(attempt_id: str) -> str:
    return f"sr/{attempt_id}"


def _judge(task: Task, job: Job) -> JobEnd:
    """How a stopped task ended."""
    reason, another_attempt = _reason_of(task)
    said = f": {task.reason}" if task.reason else ""
    status = "without an exit status" if task.exit_code is None else f"with exit status {task.exit_code}"
    detail = (
        f"the engine did not end within {job.timeout_seconds:g} s and was stopped"
        if reason is Reason.ENGINE_TIMEOUT
        else f"the task stopped {status}{said}"
    )
    return JobEnd(
        succeeded=reason is None, reason_code=reason, exit_code=task.exit_code, stop_code=task.stop_code, detail=detail,
        another_attempt=another_attempt, duration_ms=task.duration_ms,
    )  # fmt: skip


def _reason_of(task: Task) -> tuple[Reason | None, bool]:
    """Why a stopped task failed (None when it succeeded), and whether another attempt may succeed."""
    # What SR did comes first: an engine that is stopped may well exit with 0.
    if task.reason.startswith(_TIMEOUT):
        return Reason.ENGINE_TIMEOUT, False
    if task.reason.startswith(_STOPPED):
        return Reason.ENGINE_EXIT_NONZERO, True
    if task.exit_code == 0:
        return None, False
    if task.exit_code is None and task.stop_code == "TaskFailedToStart":
        return Reason.ENGINE_LAUNCH_FAILED, False
    # A host that is lost leaves neither an exit status nor a stop code.
    lost = task.stop_code in _INFRASTRUCTURE or (task.exit_code is None and not task.stop_code)
    return Reason.ENGINE_EXIT_NONZERO, lost
