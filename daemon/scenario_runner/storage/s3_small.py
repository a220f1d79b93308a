"""Small objects, read whole and many at a time by one thread.

The native client takes 0.19 ms of CPU for a small object together with the thread that waits for it, and an engine run
has a hundred of them. libcurl takes 0.07 ms, for as many at a time as it is asked for.

Only the plainest answer counts: ``200`` with the ETag and the length that were asked for, to a signed request that
names the ETag. Whatever else happens is no answer, and the caller asks the native client, which repeats what is worth
it and knows the errors. So nothing is decided here, and a failure costs one request more.
"""

import atexit
import math
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from importlib.util import find_spec
from typing import Any, Final
from urllib import request as environment

import structlog

from scenario_runner.counters import count
from scenario_runner.storage.s3_signing import SignedGet

#: Objects up to this size are read here. Of larger ones the copying counts, which the native client does without the
#: interpreter's lock.
SMALL_BYTES: Final = 1 << 18
#: Requests of the process at one time, and connections that are kept. At 25 ms they are 5,120 a second; S3 gives a
#: prefix 5,500 GETs a second.
_IN_FLIGHT: Final = 128
#: An answer takes 10 to 60 ms. One that takes so long is asked for again by the native client, with its own patience.
_TIMEOUT_MS: Final = 10_000
#: A connection to a server that is up is made at once.
_CONNECT_TIMEOUT_MS: Final = 5_000
#: After a connection failed, everything goes to the native client for so long: it may reach what libcurl does not.
_PAUSE_SECONDS: Final = 30.0
#: Three times the longest transfer. No answer within it is none: the thread that gives it may be gone, as in a fork.
_MOST_SECONDS: Final = 30.0
#: Header fields that libcurl adds unless they are named without a value.
_NO_FIELDS: Final = ("user-agent:", "accept:")
#: Rings that are heard at once: more than are ever waiting.
_RINGS: Final = 4096
_log = structlog.get_logger("s3")


@dataclass(frozen=True, slots=True)
class SmallRead:
    """The bytes of an object, and its version where the bucket keeps versions."""

    data: bytes
    version: str


Answer = SmallRead | None
"""An object, or nothing known of it."""


class Asked:
    """A small object that was asked for, and what came of it so far.

    A future of the standard library would wake its waiter for each of a hundred objects, and take as much CPU as the
    transfer. This one has one waiter, which takes objects in order, and is woken for those only that it waits for.

    Args:
        request: The request, signed by whoever asks: keys may take long to come. None where that failed.
        etag: That the object must have, with its quotes.
        size: That it must have, in bytes.
    """

    __slots__ = (
        "_answer",
        "_body",
        "_done",
        "_etag",
        "_fields",
        "_received",
        "_size",
        "_waiter",
        "given_up",
        "request",
    )

    def __init__(self, request: SignedGet | None, etag: str, size: int) -> None:
        self.request, self._etag, self._size = request, etag, size
        self.given_up = False
        self._body: list[bytes] = []
        self._fields: list[bytes] = []
        self._received = 0
        self._answer: Answer = None
        self._done = False
        self._waiter: threading.Lock | None = None

    def result(self) -> Answer:
        """Wait for the object; None when it did not come in the plainest form, and the native client is to be asked."""
        if not self._done:
            waiter = threading.Lock()
            waiter.acquire()
            self._waiter = waiter
            if not self._done:  # after the waiter is there: whoever is done from here on releases it
                waiter.acquire(timeout=_MOST_SECONDS)
        return self._answer

    def cancel(self) -> None:
        """Give it up: it is not sent if it was not sent yet."""
        self.given_up = True

    # --- in the thread that reads

    def head(self, line: bytes) -> None:
        """Take a line of the answer's head that may count; another status line begins another head."""
        if line[:1] in b"eExX":
            self._fields.append(line)
        elif line.startswith(b"HTTP/"):
            self._fields.clear()

    def write(self, data: bytes) -> int:
        """Take a piece of the body; 0 ends the transfer when more comes than the object holds."""
        self._received += len(data)
        self._body.append(data)
        return len(data) if self._received <= self._size else 0

    def answered(self, status: int) -> None:
        """The answer has come whole: it is the object, if it is the one that was asked for."""
        try:
            if status == HTTPStatus.OK and self._received == self._size and self._field(b"etag") == self._etag:
                self._answer = SmallRead(b"".join(self._body), self._field(b"x-amz-version-id"))
        finally:
            self.ended()

    def ended(self) -> None:
        """Nothing more comes; more than once does no harm."""
        if self._done:
            return
        self._body.clear()  # the handle of libcurl keeps this object until its next transfer
        self._done = True
        if self._waiter is not None:  # read after the mark is set: see `result`
            self._waiter.release()

    def _field(self, name: bytes) -> str:
        found = [line for line in self._fields if line[: len(name) + 1].lower() == name + b":"]
        return found[0][len(name) + 1 :].strip().decode("latin-1") if len(found) == 1 else ""


class SmallReads:
    """Reads small objects in a thread of its own, which is started with the first request. Any thread may submit.

    Without libcurl, and after a defect, no answer comes. Nor does one where the environment names a proxy: the native
    client decides by rules of its own what goes through it, and signed requests must not go elsewhere.
    """

    def __init__(self) -> None:
        self._waiting: deque[Asked] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._paused_until = 0.0
        reason = why_not()
        self._closed = bool(reason)
        if reason:
            _log.info("small objects are read by the other client, which takes more CPU", reason=reason)
        self._asleep = False
        self._bell, self._ring = socket.socketpair()
        self._bell.settimeout(0.0)
        self._ring.settimeout(0.0)

    def submit(self, asked: Asked) -> Asked:
        """Ask for an object when its turn comes; returns its argument."""
        with self._lock:
            if self._closed or asked.request is None or time.monotonic() < self._paused_until or not self._started():
                asked.ended()
                return asked
            self._waiting.append(asked)
            if self._asleep:
                self._asleep = False
                self._wake()
        return asked

    def _started(self) -> bool:
        """Start the thread with the first request; False where the system gives none."""
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="s3-small", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
            atexit.register(self.close)  # an interpreter that ends must not take the thread down within libcurl
        return True

    def close(self) -> None:
        """End the thread; what it was asked for does not come. More than once does no harm."""
        atexit.unregister(self.close)
        with self._lock:
            self._closed = True
            if self._ring.fileno() < 0:
                return
            self._wake()
        if self._thread is not None:
            self._thread.join()
        self._bell.close()
        self._ring.close()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # then enough is waiting to be heard
            self._ring.send(b".")

    # --- in the thread

    def _work(self) -> None:
        under_way: dict[Any, Asked] = {}
        try:
            self._serve(_Curl(self._bell, under_way))
        except Exception as defect:  # noqa: BLE001 - the native client reads from now on
            _log.error("small objects are read by the other client", detail=f"{type(defect).__name__}: {defect}")
        finally:
            with self._lock:
                self._closed = True
                left = [*under_way.values(), *self._waiting]
                self._waiting.clear()
            for asked in left:
                asked.ended()

    def _serve(self, curl: "_Curl") -> None:
        while self._begin(curl):
            curl.wait()
            self._asleep = False
            if curl.end():
                self._pause()

    def _pause(self) -> None:
        """Leave everything to the native client for a while, also what waits already."""
        _log.info("S3 was not reached by libcurl; the other client reads small objects", seconds=_PAUSE_SECONDS)
        with self._lock:
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            waiting = list(self._waiting)
            self._waiting.clear()
        for asked in waiting:
            asked.ended()

    def _begin(self, curl: "_Curl") -> bool:
        """Send what may be sent now; False at the end. Whoever submits from here on has to wake the thread."""
        with self._lock:
            if self._closed:
                return False
            self._asleep = True
        while self._waiting and curl.free:
            asked = self._waiting.popleft()
            if asked.given_up or asked.request is None:
                asked.ended()
                continue
            try:
                curl.begin(asked, asked.request)
            except BaseException:
                asked.ended()
                raise
        return True


class _Curl:
    """Transfers of libcurl, driven by the events of their sockets.

    Args:
        bell: Becomes readable when :meth:`wait` is to return.
        under_way: Objects that were asked for, by the handles of their transfers.
    """

    def __init__(self, bell: socket.socket, under_way: dict[Any, Asked]) -> None:
        import pycurl  # noqa: PLC0415 - an extra

        self._pycurl, self._bell, self._under_way = pycurl, bell, under_way
        self._selector, self._due = selectors.DefaultSelector(), 0.0
        self._selector.register(bell, selectors.EVENT_READ)
        self._masks = {
            pycurl.POLL_IN: selectors.EVENT_READ,
            pycurl.POLL_OUT: selectors.EVENT_WRITE,
            pycurl.POLL_INOUT: selectors.EVENT_READ | selectors.EVENT_WRITE,
        }
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, _IN_FLIGHT)
        self._idle: list[Any] = []
        self._cut_off = {
            pycurl.E_COULDNT_RESOLVE_PROXY, pycurl.E_COULDNT_RESOLVE_HOST, pycurl.E_COULDNT_CONNECT,
            pycurl.E_OPERATION_TIMEDOUT, pycurl.E_SSL_CONNECT_ERROR, pycurl.E_PEER_FAILED_VERIFICATION,
            pycurl.E_SSL_CACERT_BADFILE,
        }  # fmt: skip

    @property
    def free(self) -> int:
        """How many transfers may begin."""
        return _IN_FLIGHT - len(self._under_way)

    def begin(self, asked: Asked, request: SignedGet) -> None:
        """Send a request; one that libcurl cannot express, such as a NUL in a field, is left to the native client."""
        curl = self._pycurl
        handle = self._idle.pop() if self._idle else self._make()
        try:
            handle.setopt(curl.URL, request.url)
            handle.setopt(curl.HTTPHEADER, [*request.fields, *_NO_FIELDS])
        except (ValueError, TypeError):  # a UnicodeError is a ValueError
            self._idle.append(handle)
            asked.ended()
            return
        handle.setopt(curl.HEADERFUNCTION, asked.head)
        handle.setopt(curl.WRITEFUNCTION, asked.write)
        self._under_way[handle] = asked
        count("s3.get")
        self._multi.add_handle(handle)

    def _make(self) -> Any:  # noqa: ANN401 - untyped
        curl, handle, paths = self._pycurl, self._pycurl.Curl(), ssl.get_default_verify_paths()
        for option, value in (
            (curl.NOSIGNAL, 1), (curl.PATH_AS_IS, 1), (curl.HTTP_VERSION, curl.CURL_HTTP_VERSION_1_1),
            (curl.CONNECTTIMEOUT_MS, _CONNECT_TIMEOUT_MS), (curl.TIMEOUT_MS, _TIMEOUT_MS), (curl.PROXY, ""),
            (curl.CAINFO, paths.cafile), (curl.CAPATH, paths.capath),
        ):  # fmt: skip
            if value is not None:
                handle.setopt(option, value)
        return handle

    def wait(self) -> None:
        """Wait for an event, and go on with the transfers that it is about."""
        curl = self._pycurl
        timeout = None if self._due == math.inf else max(0.0, self._due - time.monotonic())
        for key, mask in self._selector.select(timeout):
            if key.fileobj is self._bell:
                self._bell.recv(_RINGS)
                continue
            bits = (curl.CSELECT_IN if mask & selectors.EVENT_READ else 0) | (
                curl.CSELECT_OUT if mask & selectors.EVENT_WRITE else 0
            )
            self._multi.socket_action(key.fd, bits)
        if time.monotonic() >= self._due:
            self._due = math.inf
            self._multi.socket_action(curl.SOCKET_TIMEOUT, 0)

    def end(self) -> bool:
        """Take what has ended; whether the server could not be reached for some of it."""
        is_cut_off, left = False, 1
        while left:
            left, done, failed = self._multi.info_read()
            for handle in done:
                status = handle.getinfo(self._pycurl.RESPONSE_CODE)
                self._free(handle).answered(status)
            for handle, code, _text in failed:
                self._free(handle).ended()
                is_cut_off = is_cut_off or code in self._cut_off
        return is_cut_off

    def _free(self, handle: Any) -> Asked:  # noqa: ANN401
        self._multi.remove_handle(handle)
        self._idle.append(handle)
        return self._under_way.pop(handle)

    def _watch(self, what: int, fd: int, _multi: object, _data: object) -> None:
        """Called by libcurl: what it waits for on a socket."""
        mask = self._masks.get(what)
        known = fd in self._selector.get_map()
        if mask is None:
            if known:
                self._selector.unregister(fd)
        elif known:
            self._selector.modify(fd, mask)
        else:
            self._selector.register(fd, mask)

    def _set_timer(self, milliseconds: int) -> None:
        """Called by libcurl: when it wants to be called although nothing happened."""
        self._due = math.inf if milliseconds < 0 else time.monotonic() + milliseconds / 1000


def why_not() -> str:
    """Why small objects are read by the native client in this process; empty when libcurl reads them."""
    if find_spec("pycurl") is None:
        return "pycurl is not installed"
    proxies = [name for name in environment.getproxies_environment() if name != "no"]
    return f"the environment names a proxy for {', '.join(sorted(proxies))}" if proxies else ""
