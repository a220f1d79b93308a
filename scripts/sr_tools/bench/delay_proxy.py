"""A TCP proxy that delivers every answer late: a distant S3 in front of a server on this machine.

Bytes pass unchanged, so signatures stay valid. The delay is that of a wire: each piece of an answer arrives a fixed
time after the server sent it. That adds one round trip to a call and takes no throughput from long answers. With a
jitter each piece takes a random time more, as answers of S3 do; the pieces of a connection keep their order.

The proxy is a process of its own (``python delay_proxy.py HOST PORT DELAY_MS JITTER_MS``): inside the bench's process
it would compete with the reference for the interpreter lock, and slow the reference down more than the daemon. It
prints its port, and ends when its standard input is closed, so it never outlives the bench. Standard library only.
"""

import asyncio
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

#: Bytes read at once: long answers cost few wake-ups.
_CHUNK: Final = 1 << 18
#: Chunks on the way of one connection before the server has to wait: 64 MiB in flight hold 1 GB/s at 60 ms.
_IN_FLIGHT: Final = 256
#: Most that jitter adds, in means: one answer in 20,000 would take longer, and none takes for ever.
_MOST_JITTER: Final = 10
#: Seed of the jitter: each proxy delays its n-th piece by the same time.
_SEED: Final = 13
#: Connections that may wait to be accepted: a pool of clients opens all of its connections at once.
_BACKLOG: Final = 512

_Chunks = asyncio.Queue[tuple[float, bytes]]


class DelayError(Exception):
    """No delay can be put in front of the endpoint; the message says why."""


@contextmanager
def delayed(endpoint: str, delay_ms: float, jitter_ms: float = 0.0) -> Iterator[str]:
    """The URL of a server that answers like another one, but later; the server itself without a delay.

    Args:
        endpoint: URL of the server, ``http://host:port``.
        delay_ms: Milliseconds by which every answer is late.
        jitter_ms: Mean of a random time that each answer takes more, distributed exponentially.

    Yields:
        The URL to use instead, for as long as the block lasts.

    Raises:
        DelayError: The endpoint is not plain HTTP: a delay cannot be put in front of it.
    """
    if not delay_ms and not jitter_ms:
        yield endpoint
        return
    parts = urlsplit(endpoint)
    if parts.scheme != "http" or not parts.hostname:
        raise DelayError(f"a delay needs an S3 endpoint that starts with http://, not {endpoint or 'AWS'}")
    delays = [str(delay_ms), str(jitter_ms)]
    command = [sys.executable, str(Path(__file__).resolve()), parts.hostname, str(parts.port or 80), *delays]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


async def serve(host: str, port: int, delay_seconds: float, jitter_seconds: float) -> None:
    """Print the port of a proxy, and pass connections on until standard input is closed."""
    source = random.Random(_SEED)

    def delay() -> float:
        if not jitter_seconds:
            return delay_seconds
        return delay_seconds + min(source.expovariate(1 / jitter_seconds), _MOST_JITTER * jitter_seconds)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            up_reader, up_writer = await asyncio.open_connection(host, port, limit=_CHUNK)
            await asyncio.gather(_pass_on(reader, up_writer, lambda: 0.0), _pass_on(up_reader, writer, delay))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=_CHUNK, backlog=_BACKLOG)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: Callable[[], float]) -> None:
    """Copy one direction of a connection; the end of it travels like its bytes."""
    chunks: _Chunks = asyncio.Queue(_IN_FLIGHT)
    delivery = asyncio.ensure_future(_deliver(chunks, writer))
    now = asyncio.get_running_loop().time
    data, due = b"-", 0.0
    while data:
        try:
            data = await reader.read(_CHUNK)
        except OSError:
            data = b""
        due = max(due, now() + delay())
        await chunks.put((due, data))
    await delivery


async def _deliver(chunks: _Chunks, writer: asyncio.StreamWriter) -> None:
    """Write chunks when they are due; an empty one ends the connection. A client that left is no error."""
    now, open_ = asyncio.get_running_loop().time, True
    while item := await chunks.get():
        due, data = item
        if not data:
            writer.close()
            return
        if open_:
            await asyncio.sleep(max(0.0, due - now()))
            try:
                writer.write(data)
                await writer.drain()
            except OSError:
                open_ = False  # keep taking chunks: the reading side must not wait for room for ever


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1000, float(sys.argv[4]) / 1000))
