"""The proxy that delays answers: bytes arrive unchanged and in order, late, and the proxy ends with its user."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from sr_tools.bench.delay_proxy import DelayError, delayed

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit
BODY = bytes(range(256)) * 20_000  # several reads and several chunks in flight


@contextmanager
def echo_server() -> Iterator[str]:
    """A server that sends back what it gets, connection by connection."""

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(client,), daemon=True).start()

    def echo(client: socket.socket) -> None:
        with client:
            while data := client.recv(1 << 16):
                client.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def connect(url: str) -> socket.socket:
    return socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=30)


def receive(client: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (data := client.recv(1 << 20)):
        found += data
    return found


def test_answers_arrive_unchanged_and_late() -> None:
    with echo_server() as server, delayed(server, 60) as url, connect(url) as client:
        threading.Thread(target=client.sendall, args=(BODY,), daemon=True).start()
        started = time.perf_counter()
        assert receive(client, len(BODY)) == BODY
        assert time.perf_counter() - started >= 0.06


def test_every_call_of_a_connection_is_late() -> None:
    with echo_server() as server, delayed(server, 20) as url, connect(url) as client:
        for call in (b"one", b"two", b"three"):
            started = time.perf_counter()
            client.sendall(call)
            assert receive(client, len(call)) == call
            assert time.perf_counter() - started >= 0.02


def test_a_jitter_varies_the_delay_and_keeps_the_order_of_bytes() -> None:
    taken = []
    with echo_server() as server, delayed(server, 5, 10) as url, connect(url) as client:
        threading.Thread(target=client.sendall, args=(BODY,), daemon=True).start()
        assert receive(client, len(BODY)) == BODY
        for _ in range(20):
            started = time.perf_counter()
            client.sendall(b"call")
            receive(client, 4)
            taken.append(time.perf_counter() - started)
    assert min(taken) >= 0.005
    assert max(taken) >= 0.015  # of 20 exponential times with a mean of 10 ms, one series in 10,000 stays below


def test_without_a_delay_there_is_no_proxy() -> None:
    with delayed("https://s3.example", 0) as url:
        assert url == "https://s3.example"


def test_the_proxy_ends_with_the_block() -> None:
    with echo_server() as server, delayed(server, 1) as url:
        connect(url).close()
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the system likes
        connect(url)


@pytest.mark.parametrize("endpoint", ["", "https://s3.example"])
def test_only_plain_http_can_be_delayed(endpoint: str) -> None:
    with pytest.raises(DelayError, match="http://"), delayed(endpoint, 25):
        pass
