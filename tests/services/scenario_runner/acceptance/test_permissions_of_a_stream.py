"""``doctor`` names the permission that a stream or its lease tables deny, and leaves everything as it was."""

from __future__ import annotations

import json
import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from streaming import ENDPOINT, WHY_NOT, KinesisWorld, dynamodb, records_of, seed_leases

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.localstack, pytest.mark.skipif(not ENDPOINT, reason=WHY_NOT)]

ACTIONS = (
    "kinesis:DescribeStreamSummary", "kinesis:ListShards", "kinesis:GetShardIterator", "kinesis:GetRecords",
    "kinesis:PutRecords", "dynamodb:DescribeTable", "dynamodb:CreateTable", "dynamodb:UpdateTable",
    "dynamodb:UpdateContinuousBackups", "dynamodb:Query", "dynamodb:Scan", "dynamodb:GetItem", "dynamodb:PutItem",
    "dynamodb:UpdateItem", "dynamodb:DeleteItem",
)  # fmt: skip


class DenyingProxy:
    """In front of an endpoint of AWS: denies one action, and passes all others on."""

    def __init__(self, endpoint: str) -> None:
        self.denied, place = "", urlsplit(endpoint)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                action = (self.headers["X-Amz-Target"] or "").rpartition(".")[2]
                status, answer = 400, json.dumps({"__type": "AccessDeniedException", "message": "no"}).encode()
                kind = "application/x-amz-json-1.1"
                if action != proxy.denied:
                    upstream = HTTPConnection(place.hostname or "", place.port or 80, timeout=20)
                    upstream.request("POST", self.path, body, dict(self.headers))
                    response = upstream.getresponse()
                    status, answer, kind = response.status, response.read(), response.headers["Content-Type"]
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def proxies() -> Iterator[dict[str, DenyingProxy]]:
    made = {"kinesis": DenyingProxy(ENDPOINT), "dynamodb": DenyingProxy(dynamodb())}
    yield made
    for proxy in made.values():
        proxy.close()


def test_doctor_names_each_permission_that_is_denied_and_changes_nothing(
    tmp_path: Path, proxies: dict[str, DenyingProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = KinesisWorld(tmp_path / "world")
    seed_leases(world)
    for name, service in (("SR_KINESIS_ENDPOINT_URL", "kinesis"), ("SR_KINESIS_DYNAMODB_ENDPOINT_URL", "dynamodb")):
        monkeypatch.setenv(name, proxies[service].url)

    def state() -> Any:
        return records_of(world.stream), world.dynamodb.scan(TableName=world.application)["Items"], tables()

    def tables() -> list[str]:
        return sorted(name for name in world.dynamodb.list_tables()["TableNames"] if name.startswith(world.application))

    before = state()
    arguments = ("doctor", "--wiring", str(world.wiring), "--json")
    found = world.command(*arguments)
    assert found.returncode == 0, found.stdout
    for permission in ACTIONS:
        service, _, action = permission.partition(":")
        proxies[service].denied = action
        denied = world.command(*arguments)
        proxies[service].denied = ""
        failed = [item for item in json.loads(denied.stdout)["checks"] if not item["ok"]]
        assert {item["check"] for item in failed} == {f"permission {permission}"}, permission
        assert denied.returncode == 2
    assert state() == before
