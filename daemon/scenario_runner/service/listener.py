"""The listener for health and metrics: a few short HTTP answers, and nothing that a client could hold up.

It knows three paths and two methods, answers one request for each connection, and reads no body. A client has five
seconds for a request of 4 KiB. Four connections of an address are answered at a time, and eight of all other hosts;
this host has places of its own. Where all are taken, a new connection gets the place of the oldest one that has not
sent its request: clients that say nothing keep no probe waiting. Its threads are daemon threads and hold no lock that
work waits for: whatever a client does, runs go on.
"""

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
from typing_extensions import override

from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.service.metrics import CONTENT_TYPE

#: Of one address: a probe, a scraper, and a person; more at a time are a mistake.
_MOST_OF_ADDRESS: Final = 4
#: Of all other hosts, and, apart from them, of this one: the probe of a supervisor gets in whatever others do.
_MOST_OF_OTHERS, _MOST_OF_THIS_HOST = 8, 4
#: Of a request, with its header fields: scrapers send some hundred bytes.
_MOST_BYTES: Final = 4096
#: For a whole request, and for an answer: a host that is overloaded may need seconds to run a thread.
_SECONDS: Final = 5.0
#: Connections that wait to be accepted: where a burst fills the queue, a probe waits a second until it tries again.
_QUEUE: Final = 128
_REASONS: Final = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
                   500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip
_log = structlog.get_logger("service")


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent.

    Attributes:
        status: Status code of HTTP.
    """

    status: int
    body: bytes
    content_type: str


Page = Callable[[], Answer]


def health_page(answer: Callable[[], tuple[bool, Mapping[str, Any]]]) -> Page:
    """A page of a check: 200 when it passes and 503 when it does not, with the details as JSON."""

    def page() -> Answer:
        passed, document = answer()
        return Answer(200 if passed else 503, json.dumps(document, sort_keys=True).encode() + b"\n", "application/json")

    return page


def metrics_page(text: Callable[[], bytes]) -> Page:
    """The page of the metrics."""
    return lambda: Answer(200, text(), CONTENT_TYPE)


class HealthListener:
    """Serves pages on one address.

    Args:
        host: Name or address to bind to.
        port: 0 for a free one.
        pages: By path.
        place: What named the address, for messages.

    Raises:
        ConfigurationError: the address cannot be bound.
    """

    def __init__(self, host: str, port: int, pages: Mapping[str, Page], place: str) -> None:
        self._server = _bound(host, port, pages, place)
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


def require_bindable(host: str, port: int, place: str) -> None:
    """Bind to an address and let go of it again.

    Raises:
        ConfigurationError: it cannot be bound.
    """
    _bound(host, port, {}, place).server_close()


def _bound(host: str, port: int, pages: Mapping[str, Page], place: str) -> "_Server":
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return _Server(family, address, pages)
    except OSError as error:
        raise ConfigurationError(
            f"{place}, key 'health_listen'", f"cannot listen on {host}:{port}: {error.strerror}",
            "name an address of this host and a port that is free",
        ) from error  # fmt: skip


@dataclass(eq=False, slots=True)
class _Connection:
    """A connection that has a place.

    Attributes:
        address: Of the client.
        of_this_host: Whether the client has the address that it called. No other host can.
        silent: Whether its request is being waited for.
        closed: Whether it lost its place to another one.
    """

    socket: socket.socket
    address: str
    of_this_host: bool
    silent: bool = True
    closed: bool = False


class _Places:
    """Which connections are answered. The thread that accepts them takes places, those that answer leave them."""

    def __init__(self) -> None:
        self._taken: dict[socket.socket, _Connection] = {}  # in the order in which they came
        self._left = threading.Condition()

    def take(self, connection: socket.socket, address: str) -> bool:
        """Take a place for a new connection, that of the oldest silent one if need be; whether there was one."""
        new = _Connection(connection, address, connection.getsockname()[0] == address)
        with self._left:
            if (crowd := self._crowd(new)) and not self._close_oldest(crowd):
                return False
            self._taken[connection] = new
            return True

    def _crowd(self, new: _Connection) -> list[_Connection]:
        """The connections among which there is no room for a new one; empty when there is."""
        hosts = [other for other in self._taken.values() if other.of_this_host == new.of_this_host]
        address = [other for other in hosts if other.address == new.address]
        if len(address) >= _MOST_OF_ADDRESS:
            return address
        return hosts if len(hosts) >= (_MOST_OF_THIS_HOST if new.of_this_host else _MOST_OF_OTHERS) else []

    def _close_oldest(self, crowd: list[_Connection]) -> bool:
        """Close the oldest silent connection and wait for its thread, so that there are never more than places."""
        oldest = next((other for other in crowd if other.silent), None)
        if oldest is None:
            return False
        oldest.closed = True
        with suppress(OSError):  # the client was quicker
            oldest.socket.shutdown(socket.SHUT_RDWR)  # wakes up its thread
        return self._left.wait_for(lambda: oldest.socket not in self._taken, _SECONDS)

    def may_answer(self, connection: socket.socket) -> bool:
        """A connection is silent no more, and nobody but its thread closes it; whether it still has its place."""
        with self._left:
            place = self._taken[connection]
            place.silent = False
            return not place.closed

    def leave(self, connection: socket.socket) -> None:
        """A connection is closed."""
        with self._left:
            self._taken.pop(connection, None)
            self._left.notify_all()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = _QUEUE

    def __init__(self, family: int, address: Any, pages: Mapping[str, Page]) -> None:  # noqa: ANN401 - of any family
        self.address_family = family
        self.pages = pages
        self.places = _Places()
        super().__init__(address, _Handler)

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.places.take(request, client_address[0]):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self.places.leave(request)
            self.shutdown_request(request)
            raise

    @override
    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.leave(request)

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that go away in the middle of an answer."""


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    @override
    def handle(self) -> None:
        head = _read_head(self.request)
        if not self.server.places.may_answer(self.request) or head is None:
            return
        method, answer = _answer(head, self.server.pages)
        lines = (
            f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}", f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}", "Cache-Control: no-store", "Connection: close", "", "",
        )  # fmt: skip
        self.request.settimeout(_SECONDS)
        self.request.sendall("\r\n".join(lines).encode("ascii") + (b"" if method == "HEAD" else answer.body))


def _read_head(connection: socket.socket) -> bytes | None:
    """The request up to the empty line; None when it does not come in time or is too long."""
    deadline, head = time.monotonic() + _SECONDS, b""
    while b"\r\n\r\n" not in head:
        left = deadline - time.monotonic()
        if left <= 0 or len(head) > _MOST_BYTES:
            return None
        connection.settimeout(left)
        try:
            received = connection.recv(_MOST_BYTES)
        except OSError:
            return None
        if not received:
            return None
        head += received
    return head


def _answer(head: bytes, pages: Mapping[str, Page]) -> tuple[str, Answer]:
    parts = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):  # noqa: PLR2004 - method, target, version
        return "", _plain(400, "not a request")
    method, path = parts[0], parts[1].partition("?")[0]
    page = pages.get(path)
    if page is None:
        return method, _plain(404, f"there are {', '.join(sorted(pages))}")
    if method not in ("GET", "HEAD"):
        return method, _plain(405, "GET or HEAD")
    try:
        return method, page()
    except Exception as error:  # noqa: BLE001 - an answer that cannot be made ends no thread with a traceback
        _log.warning("a page could not be made", path=path, detail=f"{type(error).__name__}: {error}")
        return method, _plain(500, "the page could not be made; the log says why")


def _plain(status: int, text: str) -> Answer:
    return Answer(status, f"{text}\n".encode(), "text/plain; charset=utf-8")
