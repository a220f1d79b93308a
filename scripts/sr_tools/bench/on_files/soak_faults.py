"""Faults of a soak: what the daemon needs goes away, the daemon stands still, and clients of its listener hang."""

import os
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

from sr_tools.bench.report import note

#: Seconds from the begin of one fault to that of the next.
PERIOD_SECONDS: Final = 120.0
#: Longest part of a period that a fault takes: the rest shows how the daemon goes on.
_PART: Final = 0.4
#: Twice as many connections as the listener answers at a time.
_HANGING: Final = 16
#: Seconds between two rounds in which hanging clients that were closed come again.
_AGAIN_SECONDS: Final = 0.5
#: What hanging clients send: nothing, half a request, a whole one whose answer they do not read.
_SENT: Final = (b"", b"GET /metrics HTTP/1.1\r\nHost: ", b"GET /metrics HTTP/1.1\r\n\r\n")


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong for a while and is put right again.

    Attributes:
        name: For the report.
        seconds: How long it lasts.
        happen: Makes it happen for that many seconds, and puts it right.
    """

    name: str
    seconds: float
    happen: Callable[[float], None]


def faults(store: Path, spool: Path, database: Path, pid: int, port: int) -> list[Fault]:
    """The faults, in their turn.

    Args:
        store: The object store.
        spool: The control bus.
        database: The authority.
        pid: The daemon.
        port: Of its listener.
    """
    return [
        Fault("store_away", 10, lambda seconds: _rename_away(store, seconds)),
        Fault("spool_away", 10, lambda seconds: _rename_away(spool, seconds)),
        Fault("authority_locked", 8, lambda seconds: _lock(database, seconds)),
        Fault("stopped", 20, lambda seconds: _stop(pid, seconds)),
        Fault("clients_hang", 20, lambda seconds: _hang(port, seconds)),
    ]


def cause(each: Sequence[Fault], total: float, over: Event) -> Counter[str]:
    """Let faults happen in turn, at a steady pace; a short soak has each of them once, and shorter.

    Args:
        each: The faults.
        total: Seconds of the whole soak.
        over: Set when no further fault shall begin.

    Returns:
        How often each happened.
    """
    period = min(PERIOD_SECONDS, total / (len(each) + 1))
    happened: Counter[str] = Counter()
    began = time.monotonic()
    while not over.wait(max(0.0, began + (happened.total() + 1) * period - time.monotonic())):
        fault = each[happened.total() % len(each)]
        seconds = min(fault.seconds, period * _PART)
        if time.monotonic() - began + seconds > total:
            break
        note(f"soak: {fault.name} for {seconds:.1f} s")
        fault.happen(seconds)
        happened[fault.name] += 1
    return happened


def _rename_away(folder: Path, seconds: float) -> None:
    """Fails when another folder with content was made in its place."""
    aside = folder.with_name(f"{folder.name}.away")
    folder.rename(aside)
    try:
        time.sleep(seconds)
    finally:
        aside.rename(folder)


def _lock(database: Path, seconds: float) -> None:
    with closing(sqlite3.connect(database, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")


def _stop(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


def _hang(port: int, seconds: float) -> None:
    end, clients = time.monotonic() + seconds, list[socket.socket]()
    with ExitStack() as stack:
        while time.monotonic() < end:
            clients = [client for client in clients if _is_open(client)]
            while len(clients) < _HANGING:
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=1))
                client.sendall(_SENT[len(clients) % len(_SENT)])
                client.settimeout(0)
                clients.append(client)
            time.sleep(_AGAIN_SECONDS)


def _is_open(client: socket.socket) -> bool:
    """Whether the listener has not closed it; nothing is read."""
    try:
        return client.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
