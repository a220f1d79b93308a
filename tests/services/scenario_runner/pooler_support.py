"""Poolers for tests: PgBouncer, where it is installed, and one of our own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import psycopg
import pytest
from postgres_support import with_parameters
from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from collections.abc import Callable

Order = Literal["last in, first out", "first in, first out", "any"]
_SSL_REQUESTS: Final = (80877103, 80877104)
_REPORTED: Final = ("server_version", "client_encoding", "standard_conforming_strings", "integer_datetimes", "TimeZone")


class TransactionPooler:
    """Hands every transaction of its clients to one of a few server connections, as poolers in transaction mode do.

    Clients are let in without a password. Whatever a client sets or prepares stays in the server connection.

    Args:
        dsn: The server behind it.
        size: How many server connections there are.
        order: Which idle one is taken.
        honest_keys: Tell clients the process ids of real server connections, as a plain proxy would.
    """

    def __init__(self, dsn: str, size: int, order: Order, *, honest_keys: bool = False) -> None:
        self._servers = [psycopg.connect(dsn, sslmode="disable", autocommit=True) for _ in range(size)]
        self._keys = [server.info.backend_pid for server in self._servers] if honest_keys else []
        self._order = order
        self._idle = deque(self._servers)
        self._free = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = with_parameters(dsn, host="127.0.0.1", port=self._listener.getsockname()[1], sslmode="disable",
                                   gssencmode="disable")  # fmt: skip
        self.sharing = True
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more clients, and leave the server."""
        self._listener.close()
        for server in self._servers:
            server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, EOFError, psycopg.Error):
            while True:
                (length, code) = struct.unpack("!ii", _exactly(client, 8))
                _exactly(client, length - 8)
                if code not in _SSL_REQUESTS:
                    break
                client.sendall(b"N")
            client.sendall(self._welcome())
            self._transactions(client)

    def _welcome(self) -> bytes:
        status = [(name, self._servers[0].info.parameter_status(name) or "") for name in _REPORTED]
        key = secrets.choice(self._keys) if self._keys else secrets.randbelow(1 << 30)
        return b"".join(
            [
                _message(b"R", struct.pack("!i", 0)),
                *(_message(b"S", f"{name}\0{value}\0".encode()) for name, value in status),
                _message(b"K", struct.pack("!ii", key, 1)),
                _message(b"Z", b"I"),
            ]
        )

    def _transactions(self, client: socket.socket) -> None:
        server: Any = None
        try:
            while True:
                kind, data = _read(client)
                if kind == b"X":
                    return
                server = server or self._take()
                backend = socket.socket(fileno=os.dup(server.fileno()))
                backend.setblocking(True)
                with backend:
                    backend.sendall(data)
                    if kind in (b"Q", b"S"):
                        idle = self._answer(backend, client)
                        if idle and self.sharing:
                            self._give(server)
                            server = None
        finally:
            if server is not None:
                self._give(server)

    @staticmethod
    def _answer(backend: socket.socket, client: socket.socket) -> bool:
        while True:
            kind, data = _read(backend)
            client.sendall(data)
            if kind == b"Z":
                return data[5:6] == b"I"

    def _take(self) -> Any:
        with self._free:
            self._free.wait_for(lambda: self._idle, 20)
            if self._order == "last in, first out":
                return self._idle.pop()
            if self._order == "any":
                self._idle.rotate(secrets.randbelow(len(self._idle)))
            return self._idle.popleft()

    def _give(self, server: Any) -> None:
        with self._free:
            self._idle.append(server)
            self._free.notify()


def _exactly(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = end.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _read(end: socket.socket) -> tuple[bytes, bytes]:
    head = _exactly(end, 5)
    return head[:1], head + _exactly(end, struct.unpack("!i", head[1:])[0] - 4)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


class PgBouncer:
    """A PgBouncer in front of a server; skips the test where the command is not installed.

    Args:
        dsn: The server behind it.
        mode: Its ``pool_mode``.
        size: Its ``default_pool_size``.
        settings: More lines of its section.
    """

    def __init__(self, dsn: str, mode: str, size: int, *settings: str) -> None:
        if shutil.which("pgbouncer") is None:
            pytest.skip("the command pgbouncer is not installed: nothing to pool with")
        given = conninfo_to_dict(dsn)
        self._folder = Path(tempfile.mkdtemp(prefix="sr-pgbouncer-", dir="/tmp"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = " ".join(
            f"{key}={given[key]}" for key in ("host", "port", "dbname", "user", "password") if given.get(key)
        )
        (self._folder / "ini").write_text("\n".join([
            "[databases]", f"{given['dbname']} = {server}", "[pgbouncer]", "listen_addr = 127.0.0.1",
            f"listen_port = {port}", "unix_socket_dir =", "auth_type = any", f"pool_mode = {mode}",
            f"default_pool_size = {size}", *settings,
        ]) + "\n")  # fmt: skip
        import pwd

        user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        if user is not None:
            os.chown(self._folder, user, -1)
            os.chown(self._folder / "ini", user, -1)
        self._process = subprocess.Popen(
            ["pgbouncer", "-q", str(self._folder / "ini")], user=user, cwd=self._folder, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.dsn = with_parameters(dsn, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        _until(lambda: _listens(port))

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _until(found: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not found():
        assert time.monotonic() < end, "it did not start"
        time.sleep(0.02)
