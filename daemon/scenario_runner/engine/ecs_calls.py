"""The four calls of Amazon ECS that the invoker needs, with their errors turned into errors of this project.

A call is tried again by the retry policy after an error that may go away. RunTask is safe to repeat: the service
answers a repeated ``clientToken`` with the task of the first call. What is *not known* is kept apart from what
certainly did not happen: a request that was refused did nothing, one whose answer was lost may have done everything.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from scenario_runner.contracts.errors import Unavailable, in_short
from scenario_runner.engine.invoker import LaunchFailed
from scenario_runner.retry import RetryPolicy, with_retries
from scenario_runner.storage.boto import failure_of

T = TypeVar("T")
#: A throttled caller is let through within seconds; for longer outages the attempt is asked for again at the next poll.
RETRY: Final = RetryPolicy(first_seconds=0.2, most_seconds=4.0, jitter=True, deadline_seconds=10.0)
#: Limit of the service for one DescribeTasks.
DESCRIBED_TASKS: Final = 100
#: From this HTTP status on the service failed, and may have done what it was asked for.
_SERVER_ERROR: Final = 500
_TASK_ARN: Final = re.compile(r"arn:[\w-]+:ecs:[\w-]*:\d*:task/[\w./-]+")
_TOO_LATE: Final = "LeaseEnded"
#: Reasons in ``failures`` that say that there was no room; a later attempt may find some.
_NO_ROOM: Final = ("RESOURCE", "AGENT", "Capacity")


@dataclass(frozen=True, slots=True)
class Task:
    """What ECS says of a task.

    Attributes:
        arn: The task.
        started_by: ``startedBy``; empty when there is none.
        status: ``lastStatus``.
        stopping: Whether somebody wants it stopped.
        exit_code: Of the engine's container; None when it has none.
        stop_code: ``stopCode``; empty when there is none.
        reason: ``stoppedReason``, and what the container says beside it.
        duration_ms: From its start, or its creation, to its end.
    """

    arn: str
    started_by: str
    status: str
    stopping: bool
    exit_code: int | None
    stop_code: str
    reason: str
    duration_ms: int


class _CallError(Exception):
    """A call that failed; ``args[0]`` is its text."""

    def __init__(self, code: str, sentence: str, *, transient: bool, refused: bool) -> None:
        super().__init__(in_short(sentence))
        self.code, self.transient, self.refused = code, transient, refused


def _transient(error: BaseException) -> bool:
    return isinstance(error, _CallError) and error.transient


class EcsCalls:
    """Calls of one cluster.

    Args:
        client: A boto3 client of ECS whose own retries are off.
        cluster: Name or ARN.
        container: Name of the engine's container.
        retry: How a call is tried again.
        wait: Waits some seconds.
    """

    def __init__(
        self, client: Any, cluster: str, container: str, retry: RetryPolicy = RETRY,  # noqa: ANN401 - untyped
        wait: Callable[[float], object] = time.sleep,
    ) -> None:  # fmt: skip
        self._client, self._cluster, self._container = client, cluster, container
        self._retry, self._wait = retry, wait

    @property
    def region(self) -> str:
        """The region of the cluster."""
        return str(self._client.meta.region_name)

    def may_know(self, arn: str) -> bool:
        """Whether a task is one of this cluster; ARNs of the older format do not name their cluster."""
        parts = arn.split(":", 5)
        if len(parts) != 6 or "/" not in parts[-1]:  # noqa: PLR2004 - arn, partition, service, region, account, resource
            return False
        region, resource = parts[3], parts[5]
        _, *cluster, _ = resource.split("/")
        return region == self.region and cluster in ([], [self._cluster.rpartition("/")[2]])

    def run_task(self, request: Mapping[str, Any], may_start: Callable[[], bool] = lambda: True) -> str:
        """Run a task; returns its ARN.

        Args:
            request: Arguments of RunTask but the cluster.
            may_start: Asked before every try.

        Raises:
            LaunchFailed: No task was made.
            Unavailable: It is not known whether one was.
        """
        maybe = False

        def attempt() -> Any:  # noqa: ANN401 - boto3 has no types
            nonlocal maybe
            if not may_start():
                raise _CallError(_TOO_LATE, "its lease has ended", transient=False, refused=True)
            try:
                return self._once("run_task", cluster=self._cluster, **request)
            except _CallError as error:
                # An answer that was lost once keeps every later refusal from meaning that nothing was launched.
                maybe = maybe or not error.refused
                raise

        try:
            answer = with_retries(attempt, self._retry, _transient, wait=self._wait)
        except _CallError as error:
            if error.code == "ConflictException" and (arns := _TASK_ARN.findall(str(error))):
                return str(arns[0])
            if maybe or error.code == "ConflictException":
                raise Unavailable(f"RunTask: {error}") from error
            another_attempt = error.transient or error.code == _TOO_LATE
            raise LaunchFailed(f"RunTask: {error}", another_attempt=another_attempt) from error
        return _launched(answer, maybe=maybe)

    def describe(self, arns: Sequence[str]) -> dict[str, Task | None]:
        """What ECS says of tasks, by ARN; None for one that it does not know.

        Raises:
            Unavailable: It does not answer.
        """
        found: dict[str, Task | None] = dict.fromkeys(arns)
        for first in range(0, len(arns), DESCRIBED_TASKS):
            answer = self._call("describe_tasks", tasks=list(arns[first : first + DESCRIBED_TASKS]))
            found.update((task["taskArn"], _task(task, self._container)) for task in answer.get("tasks", ()))
        return found

    def list(self, started_by: str) -> list[str]:
        """ARNs of the tasks that were started by somebody, running and recently stopped ones, sorted.

        Raises:
            Unavailable: It does not answer.
        """
        arns: set[str] = set()
        for status in ("RUNNING", "STOPPED"):
            arns.update(self._call("list_tasks", startedBy=started_by, desiredStatus=status)["taskArns"])
        return sorted(arns)

    def stop(self, arn: str, reason: str) -> bool:
        """Stop a task; False when ECS does not know it.

        Raises:
            Unavailable: It does not answer.
        """
        try:
            self._call("stop_task", task=arn, reason=reason)
        except Unavailable as error:
            if isinstance(error.__cause__, _CallError) and error.__cause__.code == "InvalidParameterException":
                return False
            raise
        return True

    def _call(self, operation: str, **arguments: Any) -> Any:  # noqa: ANN401
        def attempt() -> Any:  # noqa: ANN401
            return self._once(operation, cluster=self._cluster, **arguments)

        try:
            return with_retries(attempt, self._retry, _transient, wait=self._wait)
        except _CallError as error:
            raise Unavailable(f"ECS, {operation}: {error}") from error

    def _once(self, operation: str, **arguments: Any) -> Any:  # noqa: ANN401
        try:
            return getattr(self._client, operation)(**arguments)
        except Exception as error:
            code, sentence, transient = failure_of(error)
            response = getattr(error, "response", None) or {}
            status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
            arns = " ".join(response.get("resourceIds", ()))  # of a ConflictException: the tasks of the first call
            # Without an answer, an error that is not transient was found before anything was sent.
            refused = 0 < status < _SERVER_ERROR or (not status and not transient)
            raise _CallError(code, f"{sentence} {arns}".strip(), transient=transient, refused=refused) from error


def _launched(answer: Mapping[str, Any], *, maybe: bool) -> str:
    """The ARN in an answer to RunTask.

    Args:
        answer: The answer.
        maybe: Whether an earlier call may have made a task.

    Raises:
        LaunchFailed: No task was made.
        Unavailable: It is not known whether one was.
    """
    if tasks := answer.get("tasks"):
        return str(tasks[0]["taskArn"])
    reasons = [str(failure.get("reason", "")) for failure in answer.get("failures") or ()]
    sentence = f"RunTask: no task was made: {in_short('; '.join(reasons)) or 'no reason is given'}"
    if maybe:
        raise Unavailable(sentence)
    raise LaunchFailed(sentence, another_attempt=any(reason.startswith(_NO_ROOM) for reason in reasons))


def _task(task: Mapping[str, Any], container_name: str) -> Task:
    containers = [item for item in task.get("containers") or () if item.get("name") == container_name]
    container: Mapping[str, Any] = containers[0] if containers else {}
    code = container.get("exitCode")
    reasons = (task.get("stoppedReason"), container.get("reason"))
    began, ended = task.get("startedAt") or task.get("createdAt"), task.get("stoppedAt")
    lasted = (ended - began).total_seconds() if began and ended else 0.0
    return Task(
        arn=str(task["taskArn"]), started_by=str(task.get("startedBy") or ""), status=str(task.get("lastStatus", "")),
        stopping=task.get("desiredStatus") == "STOPPED", exit_code=None if code is None else int(code),
        stop_code=str(task.get("stopCode") or ""), reason=in_short("; ".join(str(text) for text in reasons if text)),
        duration_ms=max(0, round(lasted * 1000)),
    )  # fmt: skip
