"""An HTTP proxy in front of an S3 server that fails on request, and counts what is asked for.

Requests are passed on as they came, the Host header and everything that is signed included, so a server that checks
signatures accepts them. Buckets are addressed by path. A :class:`Rule` names requests (operation, key, how-manieth) and
a :class:`Fault`: what happens before a request is passed on, and to the answer afterwards.
"""

import random
import re
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Headers = list[tuple[str, str]]
_OF_ONE_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


@dataclass(frozen=True)
class Request:
    """A request: ``operation`` is PUT, GET, HEAD, LIST, or the method where it is none of them."""

    method: str
    target: str
    operation: str
    key: str
    headers: Headers
    body: bytes

    def without(self, header: str) -> Self:
        """The same without a header."""
        return replace(self, headers=[item for item in self.headers if item[0].lower() != header.lower()])


@dataclass(frozen=True)
class Answer:
    """An answer. ``sent``: how many bytes of the body go out before the connection breaks; None sends all of it."""

    status: int
    headers: Headers
    body: bytes
    length: int
    sent: int | None = None


class ResetError(Exception):
    """The connection is to be reset instead of an answer."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        before: Sees a request; returns the one to pass on, or an answer in its place; may raise ``ResetError``.
        after: Sees the server's answer; returns the one to give; may raise ``ResetError``.
    """

    name: str
    before: Callable[[Request], Request | Answer] = lambda request: request
    after: Callable[[Answer], Answer] = lambda answer: answer


@dataclass
class Rule:
    """Which requests a fault is for.

    Attributes:
        fault: What happens to them.
        operation: PUT, GET, HEAD or LIST; empty for all.
        key: Regular expression that is searched in the key (for LIST: in the prefix).
        skip: So many matching requests pass unharmed first.
        times: So many are hit; None for all.
        chance: Probability that a matching request is hit.
    """

    fault: Fault
    operation: str = ""
    key: str = ""
    skip: int = 0
    times: int | None = 1
    chance: float = 1.0
    hits: int = 0
    _seen: int = field(default=0, repr=False)

    def fires(self, request: Request, dice: random.Random) -> bool:
        """Whether a request is hit; counts it."""
        if self.operation not in ("", request.operation) or not re.search(self.key, request.key):
            return False
        self._seen += 1
        if self._seen <= self.skip or (self.times is not None and self.hits >= self.times):
            return False
        if self.chance < 1.0 and dice.random() >= self.chance:
            return False
        self.hits += 1
        return True


# ---------------------------------------------------------------- faults

_WORDS = {
    503: ("SlowDown", "Please reduce your request rate."),
    500: ("InternalError", "We encountered an internal error. Please try again."),
    403: ("AccessDenied", "Access Denied"),
    409: ("ConditionalRequestConflict", "The conditional request cannot succeed due to a conflicting operation."),
    404: ("NoSuchKey", "The specified key does not exist."),
    412: ("PreconditionFailed", "At least one of the pre-conditions you specified did not hold"),
}


def error_answer(status: int, code: str = "", *, with_body: bool = True) -> Answer:
    """An error as S3 words it."""
    known, message = _WORDS.get(status, ("Error", "error"))
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code or known}</Code><Message>{escape(message)}</Message><RequestId>0</RequestId></Error>"
    ).encode()
    sent = body if with_body else b""
    return Answer(status, [("Content-Type", "application/xml"), ("x-amz-request-id", "0")], sent, len(sent))


def status(code: int) -> Fault:
    """Answer with an error; the server never sees the request."""
    return Fault(f"{code}", before=lambda request: error_answer(code, with_body=request.method != "HEAD"))


def _reset(_: Any) -> Any:
    raise ResetError


def reset_before() -> Fault:
    """Reset the connection; the server never sees the request."""
    return Fault("reset before", before=_reset)


def reset_after() -> Fault:
    """Let the server do what it is asked and lose its answer: of a conditional write, the retry sees 412."""
    return Fault("answer lost", after=_reset)


def status_after(code: int) -> Fault:
    """Let the server do what it is asked, and answer with an error all the same."""
    return Fault(f"done, and {code}", after=lambda _: error_answer(code))


def cut_body() -> Fault:
    """Reset the connection in the middle of the answer's body."""
    return Fault("reset mid-body", after=lambda answer: replace(answer, sent=len(answer.body) // 2))


def short_body(missing: int = 1) -> Fault:
    """Announce a longer body than is sent, and close in good order."""
    return Fault("short body", after=lambda answer: replace(answer, length=answer.length + missing))


def delay(seconds: float) -> Fault:
    """Answer late."""

    def wait(request: Request) -> Request:
        time.sleep(seconds)
        return request

    return Fault("slow", before=wait)


def meanwhile(act: Callable[[], object]) -> Fault:
    """Do something (replace an object, say) after a request has come and before the server sees it."""

    def run(request: Request) -> Request:
        act()
        return request

    return Fault("meanwhile", before=run)


def afterwards(act: Callable[[], object]) -> Fault:
    """Do something after the server has answered and before the client hears of it."""

    def run(answer: Answer) -> Answer:
        act()
        return answer

    return Fault("afterwards", after=run)


def ignoring(header: str) -> Fault:
    """Keep a header from the server, so that it seems to ignore it."""
    return Fault(f"ignores {header}", before=lambda request: request.without(header))


# ---------------------------------------------------------------- the proxy


class FaultProxy:
    """The proxy.

    Args:
        endpoint: URL of the server behind it.
        seed: Of the dice that rules with a chance are decided by.
    """

    def __init__(self, endpoint: str, seed: int = 0) -> None:
        parts = urlsplit(endpoint)
        assert parts.scheme == "http", "the proxy speaks plain HTTP"
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._rules: list[Rule] = []
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self.log: list[tuple[str, str, int]] = []
        """Operation, key and status (0: connection reset) of every request, in the order of the answers."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; connections that are open end with their next request."""
        self._server.shutdown()
        self._server.server_close()

    def add(self, fault: Fault, operation: str = "", key: str = "", **more: Any) -> Rule:
        """Add a rule; the first that fires is the only one that acts on a request."""
        rule = Rule(fault, operation, key, **more)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Remove all rules."""
        with self._lock:
            self._rules.clear()

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Counts of the requests that were answered meanwhile, by operation; filled at the end."""
        counts: Counter[str] = Counter()
        with self._lock:
            start = len(self.log)
        yield counts
        with self._lock:
            counts.update(operation for operation, _, _ in self.log[start:])

    # --- what the handler uses

    def fault_for(self, request: Request) -> Fault | None:
        """The fault that a request is to meet."""
        with self._lock:
            rule = next((rule for rule in self._rules if rule.fires(request, self._dice)), None)
        return rule.fault if rule else None

    def note(self, request: Request, code: int) -> None:
        """Book a request."""
        with self._lock:
            self.log.append((request.operation, request.key, code))

    def forward(self, request: Request) -> Answer:
        """Ask the server, over a connection of its own: none is ever stale."""
        connection = HTTPConnection(*self._upstream, timeout=60)
        try:
            connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers:
                connection.putheader(name, value)
            connection.endheaders(request.body or None)
            response = connection.getresponse()
            body = response.read()
            headers = [item for item in response.getheaders() if item[0].lower() not in _OF_ONE_HOP]
            announced = response.getheader("Content-Length") if request.method == "HEAD" else None
            return Answer(response.status, headers, body, int(announced or len(body)))
        finally:
            connection.close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultProxy

    def shutdown_request(self, request: Any) -> None:
        """Close without a farewell where the handler asked for a reset; socketserver would say FIN first."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""


def _operation(method: str, key: str, query: dict[str, list[str]]) -> str:
    if method == "GET" and (not key or "list-type" in query):
        return "LIST"
    return method


class _Handler(BaseHTTPRequestHandler):
    """Serves one connection of a client."""

    protocol_version = "HTTP/1.1"
    timeout = 120
    disable_nagle_algorithm = True
    wbufsize = -1

    @property
    def _proxy(self) -> "FaultProxy":
        server: Any = self.server
        found: FaultProxy = server.proxy
        return found

    def _serve(self) -> None:
        request = self._request()
        try:
            answer = self._answer(request)
        except ResetError:
            self._proxy.note(request, 0)
            self._break(hard=True)
            return
        except (OSError, HTTPException):
            answer = error_answer(502)
        self._proxy.note(request, answer.status)
        self._send(request, answer)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815 - names of the base class

    def _request(self) -> Request:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        key = unquote(parts.path.lstrip("/").partition("/")[2])
        operation = _operation(self.command, key, query)
        shown = query.get("prefix", [""])[0] if operation == "LIST" else key
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return Request(self.command, self.path, operation, shown, list(self.headers.items()), body)

    def _answer(self, request: Request) -> Answer:
        fault = self._proxy.fault_for(request)
        if fault is None:
            return self._proxy.forward(request)
        passed = fault.before(request)
        if isinstance(passed, Answer):
            return passed
        answer = self._proxy.forward(passed)
        changed = fault.after(answer)
        return replace(changed, length=answer.length) if request.method == "HEAD" else changed

    def _send(self, request: Request, answer: Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(answer.length))
        self.end_headers()
        if request.method != "HEAD":
            self.wfile.write(answer.body if answer.sent is None else answer.body[: answer.sent])
        self.wfile.flush()
        if request.method != "HEAD" and (answer.sent is not None or answer.length != len(answer.body)):
            self._break(hard=answer.sent is not None)

    def _break(self, *, hard: bool) -> None:
        """End the connection: with a reset, or in good order."""
        self.close_connection = True
        with suppress(OSError):
            if hard:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                self.connection.shutdown(socket.SHUT_WR)

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""
