"""The listener: what it answers, and what a client cannot do to it."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

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


# --- clients that say nothing


@pytest.fixture
def pages() -> dict[str, Page]:
    return dict(PAGES)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch, pages: dict[str, Page]) -> Iterator[HealthListener]:
    """A listener that waits for longer than any test, so that only its places can let a client in."""
    monkeypatch.setattr(module, "_SECONDS", 60.0)
    made = HealthListener("127.0.0.1", 0, pages, "test")
    made.start()
    yield made
    made.stop()


@contextmanager
def connected(listener: HealthListener, *addresses: str) -> Iterator[list[socket.socket]]:
    """Connections from these addresses. All but 127.0.0.1, which they call, are other hosts to the listener."""
    with ExitStack() as closing:
        yield [
            closing.enter_context(
                socket.create_connection(("127.0.0.1", listener.port), timeout=30, source_address=(address, 0))
            )
            for address in addresses
        ]


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.2"] * 8, [f"127.0.0.{number}" for number in range(2, 10)], ["127.0.0.1"] * 8],
    ids=["of one other host", "of many other hosts", "of this host"],
)
def test_a_probe_is_answered_at_once_whoever_says_nothing(patient: HealthListener, addresses: list[str]) -> None:
    with connected(patient, *addresses):
        assert ask(patient, "GET", "/good")[0] == 200


def test_other_hosts_are_answered_while_some_say_nothing(patient: HealthListener) -> None:
    silent = [f"127.0.0.{2 + number % 5}" for number in range(20)]
    with connected(patient, *silent), connected(patient, "127.0.0.9") as (other,):
        other.sendall(b"GET /good HTTP/1.1\r\n\r\n")
        assert received(other).startswith(b"HTTP/1.1 200 ")


def test_many_connections_of_a_host_put_no_other_host_out(patient: HealthListener) -> None:
    """Also while its request has not come yet."""
    with connected(patient, "127.0.0.1", "127.0.0.3") as waiting, connected(patient, *["127.0.0.2"] * 20) as many:
        assert [received(connection) for connection in many[:16]] == [b""] * 16, "the oldest ones give way"
        for connection in waiting:
            connection.sendall(b"GET /good HTTP/1.1\r\n\r\n")
            assert received(connection).startswith(b"HTTP/1.1 200 ")
        for connection in many[16:]:
            connection.sendall(b"GET /good HTTP/1.1\r\n\r\n")
            assert received(connection).startswith(b"HTTP/1.1 200 ")


def test_a_request_that_is_being_answered_keeps_its_place(patient: HealthListener, pages: dict[str, Page]) -> None:
    begun, may_end = threading.Semaphore(0), threading.Event()

    def slow() -> Answer:
        begun.release()
        assert may_end.wait(30)
        return Answer(200, b"late\n", "text/plain")

    pages["/slow"] = slow
    with connected(patient, *["127.0.0.1"] * 4) as asking:
        for connection in asking:
            connection.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
            assert begun.acquire(timeout=30)
        with connected(patient, "127.0.0.1") as (refused,):
            assert received(refused) == b""
        may_end.set()
        assert [received(connection)[-5:] for connection in asking] == [b"late\n"] * 4


def test_there_are_never_more_threads_than_places(patient: HealthListener, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, most, lock, read_head = [0], [0], threading.Lock(), module._read_head

    def counting(connection: socket.socket) -> bytes | None:
        """Those that read hold a place; a thread that has left its place may take a while to end."""
        with lock:
            reading[0] += 1
            most[0] = max(most[0], reading[0])
        try:
            return read_head(connection)
        finally:
            with lock:
                reading[0] -= 1

    monkeypatch.setattr(module, "_read_head", counting)
    with connected(patient, *[f"127.0.0.{1 + number % 7}" for number in range(200)]):
        assert ask(patient, "GET", "/good")[0] == 200
    assert 4 < most[0] <= 12


def test_an_address_that_is_taken_is_an_operators_to_correct(listener: HealthListener) -> None:
    with pytest.raises(ConfigurationError, match="health_listen"):
        HealthListener("127.0.0.1", listener.port, PAGES, "test")
