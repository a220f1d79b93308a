"""A small ECS over HTTP, whose tasks a test drives by hand and whose answers it can spoil.

No emulator at hand honours ``clientToken``, lets a test end a task with an exit status of its choice, or forgets a
task: this one does what the documentation of the service says about just these. The client is the real boto3.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

LOST = "LOST"
"""A fault: the operation is performed, and its answer never arrives."""


class ServiceError(Exception):
    def __init__(self, code: str, status: int = 400, message: str = "no", **members: Any) -> None:
        super().__init__(code)
        self.status = status
        self.body = {"__type": code, "message": message, **members}


@dataclass
class FakeEcs:
    """One cluster.

    Attributes:
        requests: Operation and request body of everything that was asked for.
        faults: For each operation, what the next calls answer instead: a :class:`ServiceError`, a body, :data:`LOST`.
        hidden: Tasks that are unknown, as those that were just made may be.
        definitions: Task definitions, by family and revision; a task may be run without one.
    """

    url: str = ""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: dict[str, tuple[str, str]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    faults: dict[str, list[Any]] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    stops_at_once: bool = True
    definitions: dict[str, dict[str, Any]] = field(default_factory=dict)

    def client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "ecs", region_name="eu-west-1", endpoint_url=self.url, aws_access_key_id="a", aws_secret_access_key="b",
            config=Config(retries={"total_max_attempts": 1}, read_timeout=5),
        )  # fmt: skip

    # --- a test's hands

    def fail(self, operation: str, *faults: Any) -> None:
        self.faults.setdefault(operation, []).extend(faults)

    def finish(self, arn: str, exit_code: int | None = None, stop_code: str = "", reason: str = "") -> None:
        """The task stops."""
        task = self.tasks[arn]
        task |= {"lastStatus": "STOPPED", "desiredStatus": "STOPPED", "stoppedAt": time.time(), "stoppedReason": reason}
        if stop_code:
            task["stopCode"] = stop_code
        if exit_code is not None:
            task["containers"][0] |= {"exitCode": exit_code, "lastStatus": "STOPPED"}

    def count(self, operation: str) -> int:
        return sum(name == operation for name, _ in self.requests)

    # --- the service

    def answer(self, operation: str, request: dict[str, Any]) -> Any:
        self.requests.append((operation, request))
        fault = self.faults.get(operation, [])[:1]
        del self.faults.get(operation, [])[:1]
        if fault and isinstance(fault[0], ServiceError):
            raise fault[0]
        if fault and fault[0] is not LOST:
            return fault[0]
        answer = getattr(self, operation)(request)
        return LOST if fault else answer

    def RunTask(self, request: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        token, body = request["clientToken"], json.dumps(request, sort_keys=True)
        if token in self.tokens:
            arn, first = self.tokens[token]
            if body != first:
                raise ServiceError("ConflictException", resourceIds=[arn])
            return {"tasks": [self.tasks[arn]], "failures": []}
        arn = f"arn:aws:ecs:eu-west-1:123456789012:task/c/{len(self.tasks):032x}"
        self.tokens[token] = (arn, body)
        self.tasks[arn] = {
            "taskArn": arn, "lastStatus": "RUNNING", "desiredStatus": "RUNNING", "startedBy": request["startedBy"],
            "createdAt": time.time(), "containers": [{"name": "sidecar", "exitCode": 0}, {"name": "engine"}][::-1],
        }  # fmt: skip
        return {"tasks": [self.tasks[arn]], "failures": []}

    def DescribeTasks(self, request: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        if len(request["tasks"]) > 100:
            raise ServiceError("InvalidParameterException", message="Too many tasks")
        known = [arn for arn in request["tasks"] if arn in self.tasks and arn not in self.hidden]
        missing = [{"arn": arn, "reason": "MISSING"} for arn in request["tasks"] if arn not in known]
        return {"tasks": [self.tasks[arn] for arn in known], "failures": missing}

    def ListTasks(self, request: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        found = [
            arn for arn, task in self.tasks.items()
            if arn not in self.hidden and task["startedBy"] == request["startedBy"]
            and task["desiredStatus"] == request["desiredStatus"]
        ]  # fmt: skip
        return {"taskArns": found}

    def DescribeClusters(self, request: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        found = [{"clusterName": name, "status": "ACTIVE"} for name in request["clusters"] if name == "c"]
        return {"clusters": found, "failures": []}

    def DescribeTaskDefinition(self, request: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        if request["taskDefinition"] not in self.definitions:
            raise ServiceError("ClientException", message="Unable to describe task definition.")
        return {"taskDefinition": self.definitions[request["taskDefinition"]]}

    def StopTask(self, request: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        arn = request["task"]
        if arn not in self.tasks or arn in self.hidden:
            raise ServiceError("InvalidParameterException", message="The referenced task was not found.")
        task = self.tasks[arn]
        if task["desiredStatus"] != "STOPPED":
            task |= {"desiredStatus": "STOPPED", "stopCode": "UserInitiated", "stoppedReason": request["reason"]}
            if self.stops_at_once:
                self.finish(arn, 143, "UserInitiated", request["reason"])
        return {"task": task}


@contextmanager
def fake_ecs() -> Iterator[FakeEcs]:
    """A running service."""
    fake, lock = FakeEcs(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = 200
            try:
                with lock:
                    answer = fake.answer(self.headers["X-Amz-Target"].partition(".")[2], request)
            except ServiceError as refusal:
                status, answer = refusal.status, refusal.body
            if answer is LOST:
                self.close_connection = True
                return
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
