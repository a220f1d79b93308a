"""An S3 server in memory that takes so little CPU that the client's own shows; its answers may be late.

The emulators take ten times the CPU of the client that is measured, so on one machine they bound every rate. This
server knows what SR and the bench ask for: PUT with its conditions, GET with an ETag and a range, HEAD, LIST, DELETE.
It checks no signature and keeps nothing. It is no reference for how S3 behaves: the tests use the emulators.

A process of its own (``python lean_s3.py DELAY_MS JITTER_MS``), which prints two ports: one answers at once, one late.
It ends when its standard input is closed. Standard library only.
"""

import asyncio
import hashlib
import random
import re
import subprocess
import sys
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

#: Connections that may wait to be accepted: a pool of clients opens all of its connections at once.
_BACKLOG: Final = 512
#: Most that jitter adds, in means.
_MOST_JITTER: Final = 10
#: Seed of the jitter.
_SEED: Final = 13
_PAGE: Final = 1000
_RANGE: Final = re.compile(r"bytes=([0-9]+)-([0-9]+)")

Answer = tuple[int, str, bytes, int]
"""Status, further header lines, body, and the length that the head tells."""


@contextmanager
def lean_s3(delay_ms: float, jitter_ms: float) -> Iterator[tuple[str, str]]:
    """A server for as long as the block lasts: its URL, and one at which the same server answers late."""
    command = [sys.executable, str(Path(__file__).resolve()), str(delay_ms), str(jitter_ms)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            at_once, late = process.stdout.readline().split()
            yield f"http://127.0.0.1:{int(at_once)}", f"http://127.0.0.1:{int(late)}"
        finally:
            process.stdin.close()


class Bucket:
    """Objects by key, and their keys in order."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str, float]] = {}
        self.keys: list[str] = []

    def put(self, key: str, data: bytes, headers: dict[str, str]) -> Answer:
        """Write an object, if its conditions hold."""
        found = self.objects.get(key)
        if "if-none-match" in headers and found is not None:
            return _error(412, "PreconditionFailed")
        if "if-match" in headers and (found is None or found[1] != headers["if-match"]):
            return _error(404, "NoSuchKey") if found is None else _error(412, "PreconditionFailed")
        if found is None:
            insort(self.keys, key)
        etag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        self.objects[key] = data, etag, time.time()
        return 200, f"etag: {etag}\r\n", b"", 0

    def get(self, key: str, headers: dict[str, str], *, body: bool) -> Answer:
        """An object or a range of it; its head alone without ``body``."""
        found = self.objects.get(key)
        if found is None:
            return _error(404, "NoSuchKey")
        data, etag, written = found
        if headers.get("if-match", etag) != etag:
            return _error(412, "PreconditionFailed")
        more = f"etag: {etag}\r\nlast-modified: {_http_time(written)}\r\naccept-ranges: bytes\r\n"
        asked = _RANGE.fullmatch(headers.get("range", ""))
        if asked is None:
            return 200, more, data if body else b"", len(data)
        start, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
        return 206, f"{more}content-range: bytes {start}-{end - 1}/{len(data)}\r\n", data[start:end], end - start

    def listing(self, query: dict[str, list[str]]) -> Answer:
        """A page of the keys with a prefix."""
        prefix = query.get("prefix", [""])[0]
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        at = max(bisect_left(self.keys, prefix), bisect_left(self.keys, after + "\0") if after else 0)
        page = self.keys[at : at + _PAGE]
        page = [key for key in page if key.startswith(prefix)]
        next_key = self.keys[at + len(page)] if at + len(page) < len(self.keys) else ""
        more = len(page) == _PAGE and next_key.startswith(prefix)
        items = "".join(self._item(key) for key in page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        text = (
            f"<ListBucketResult><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount><MaxKeys>{_PAGE}"
            f"</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}{items}</ListBucketResult>"
        )
        return _xml(200, text)

    def _item(self, key: str) -> str:
        data, etag, written = self.objects[key]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(written))
        return (
            f"<Contents><Key>{escape(key)}</Key><LastModified>{stamp}</LastModified><ETag>{escape(etag)}</ETag>"
            f"<Size>{len(data)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )

    def delete(self, keys: list[str]) -> None:
        """Remove objects."""
        for key in keys:
            if self.objects.pop(key, None) is not None:
                del self.keys[bisect_left(self.keys, key)]


def _http_time(seconds: float) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(seconds))


def _xml(status: int, text: str) -> Answer:
    data = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
    return status, "content-type: application/xml\r\n", data, len(data)


def _error(status: int, code: str) -> Answer:
    return _xml(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")


def answer(buckets: dict[str, Bucket], method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
    """What the server answers to a request."""
    parts = urlsplit(target)
    name, _, key = unquote(parts.path).lstrip("/").partition("/")
    query = parse_qs(parts.query, keep_blank_values=True)
    if not key and method == "PUT":
        buckets.setdefault(name, Bucket())
        return 200, "", b"", 0
    bucket = buckets.get(name)
    if bucket is None:
        return _error(404, "NoSuchBucket")
    if method == "GET" and not key:
        return bucket.listing(query)
    if method in ("GET", "HEAD", "PUT"):
        return bucket.put(key, body, headers) if method == "PUT" else bucket.get(key, headers, body=method == "GET")
    if method == "POST":  # the only one: many deletes
        keys = re.findall(r"<Key>([^<]*)</Key>", body.decode())
        bucket.delete([unescape(found) for found in keys])
        deleted = "".join(f"<Deleted><Key>{found}</Key></Deleted>" for found in keys)
        return _xml(200, f"<DeleteResult>{deleted}</DeleteResult>")
    bucket.delete([key])
    if not key:
        del buckets[name]
    return 204, "", b"", 0


class _Connection(asyncio.Protocol):
    """A connection of a client; its requests are answered one after the other."""

    def __init__(self, buckets: dict[str, Bucket], delay: Callable[[], float]) -> None:
        self._buckets, self._delay, self._data = buckets, delay, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer the requests that have come whole."""
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            first, *lines = self._data[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            whole = end + 4 + int(headers.get("content-length", 0))
            if len(self._data) < whole:
                return
            body, self._data = self._data[end + 4 : whole], self._data[whole:]
            method, target, _ = first.split(" ")
            status, more, sent, length = answer(self._buckets, method, target, headers, body)
            head = f"HTTP/1.1 {status} X\r\n{more}content-length: {length}\r\n\r\n".encode("latin-1")
            message = head + (b"" if method == "HEAD" else sent)
            seconds = self._delay()
            if seconds:
                asyncio.get_running_loop().call_later(seconds, self._transport.write, message)
            else:
                self._transport.write(message)


async def serve(delay_seconds: float, jitter_seconds: float) -> None:
    """Print the ports of a server, and serve until standard input is closed."""
    buckets: dict[str, Bucket] = {}
    source = random.Random(_SEED)

    def late() -> float:
        if not jitter_seconds:
            return delay_seconds
        return delay_seconds + min(source.expovariate(1 / jitter_seconds), _MOST_JITTER * jitter_seconds)

    loop = asyncio.get_running_loop()
    ports = []
    for delay in (lambda: 0.0, late):
        server = await loop.create_server(
            lambda delay=delay: _Connection(buckets, delay),  # type: ignore[misc]
            "127.0.0.1", 0, backlog=_BACKLOG,
        )  # fmt: skip
        ports.append(server.sockets[0].getsockname()[1])
    print(*ports, flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]) / 1000, float(sys.argv[2]) / 1000))
