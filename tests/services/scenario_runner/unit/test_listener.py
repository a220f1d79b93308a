"""The listener: what it answers, and what a client cannot do to it."""

import http.client
import socket
import time
from collections.abc import Iterator

import pytest

from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.service import listener as module
from scenario_runner.service.listener import Answer, HealthListener, Page, health_page

pytestmark = pytest.mark.unit


def broken() -> Answer:
    raise RuntimeError("cannot be made")


PAGES: dict[str, Page] = {
    "/good": health_page(lambda: (True, {"status": "ok"})),
    "/bad": health_page(lambda: (False, {"status": "stuck"})),
    "/broken": broken,
}


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[HealthListener]:
    monkeypatch.setattr(module, "_SECONDS", 0.5)
    made = HealthListener("127.0.0.1", 0, PAGES, "test")
    made.start()
    yield made
    made.stop()


def ask(listener: HealthListener, method: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=30)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def send(listener: HealthListener, data: bytes) -> bytes:
    """What comes back until the connection is closed."""
    with socket.create_connection(("127.0.0.1", listener.port), timeout=30) as connection:
        connection.sendall(data)
        return received(connection)


def received(connection: socket.socket) -> bytes:
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionError:
        pass
    return found


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/good", 200, b'{"status": "ok"}\n'),
        ("GET", "/good?x=1", 200, b'{"status": "ok"}\n'),
        ("GET", "/bad", 503, b'{"status": "stuck"}\n'),
        ("HEAD", "/bad", 503, b""),
        ("POST", "/good", 405, b"GET or HEAD\n"),
        ("GET", "/other", 404, b"there are /bad, /broken, /good\n"),
        ("GET", "/broken", 500, b"the page could not be made; the log says why\n"),
    ],
)
def test_a_request_gets_its_answer(listener: HealthListener, method: str, path: str, status: int, body: bytes) -> None:
    assert ask(listener, method, path) == (status, body)


@pytest.mark.parametrize("data", [b"\r\n\r\n", b"GET /good\r\n\r\n", b"\xff\xfe\x00 / HTTP/2\r\n\r\n"])
def test_what_is_no_request_is_refused(listener: HealthListener, data: bytes) -> None:
    assert send(listener, data).startswith(b"HTTP/1.1 400 ")


def test_a_request_that_is_too_long_gets_no_answer(listener: HealthListener) -> None:
    assert send(listener, b"GET /good HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n") == b""


def test_a_client_that_sends_a_byte_now_and_then_is_cut_off(listener: HealthListener) -> None:
    with socket.create_connection(("127.0.0.1", listener.port), timeout=30) as connection:
        began = time.monotonic()
        try:
            while time.monotonic() - began < 60:
                connection.sendall(b"x")
                time.sleep(0.05)
        except ConnectionError:
            pass
        assert received(connection) == b""
    assert time.monotonic() - began < 60


def test_more_clients_than_are_answered_are_closed_and_the_listener_goes_on(listener: HealthListener) -> None:
    silent = [socket.create_connection(("127.0.0.1", listener.port), timeout=30) for _ in range(40)]
    assert [received(connection) for connection in silent] == [b""] * 40
    for connection in silent:
        connection.close()
    assert wait_for_answer(listener) == 200


def wait_for_answer(listener: HealthListener) -> int:
    """The status once the listener has a thread to spare."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return ask(listener, "GET", "/good")[0]
        except (ConnectionError, http.client.HTTPException):
            assert time.monotonic() < deadline


def test_an_address_that_is_taken_is_an_operators_to_correct(listener: HealthListener) -> None:
    with pytest.raises(ConfigurationError, match="health_listen"):
        HealthListener("127.0.0.1", listener.port, PAGES, "test")
