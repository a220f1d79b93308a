"""Postgres of the environment: a schema of the bench's own, and a TCP proxy that can take the server away."""

import secrets
import socket
import threading
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Schema:
    """A schema of its own, with a connection of the bench to it."""

    def __init__(self, dsn: str) -> None:
        self.name = f"sr_bench_{secrets.token_hex(6)}"
        self.dsn = self.within(dsn)
        self._lock = threading.Lock()
        self._connection = psycopg.connect(self.dsn, autocommit=True)
        self.query(f"CREATE SCHEMA {self.name}")

    def within(self, dsn: str) -> str:
        """Another way to the same database, that ends in this schema."""
        return make_conninfo(dsn, options=f"-csearch_path={self.name}")

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a statement; none when it returns none, or asks for what the daemon has not made yet."""
        with self._lock:
            try:
                cursor = self._connection.execute(sql.encode())
            except psycopg.errors.UndefinedTable:
                return []
            return cursor.fetchall() if cursor.description else []

    def drop(self) -> None:
        """Remove it with everything in it."""
        self.query(f"DROP SCHEMA IF EXISTS {self.name} CASCADE")
        self._connection.close()


class OutageProxy:
    """A TCP proxy in front of Postgres that can be closed: then connections are cut, and new ones refused.

    Args:
        dsn: Of the server behind it.
    """

    def __init__(self, dsn: str) -> None:
        given = conninfo_to_dict(dsn)
        host, port = str(given.get("hostaddr") or given.get("host") or "localhost"), int(given.get("port") or 5432)
        self._upstream: Any = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = int(self._listener.getsockname()[1])
        local = {"host": "localhost"} if host.startswith("/") else {}
        self.dsn = make_conninfo(dsn, hostaddr="127.0.0.1", port=self._port, **local)
        self._accept_in_thread()

    def _accept_in_thread(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Cut every connection, and refuse new ones."""
        with self._lock:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._listener.close()
            ends, self._ends = self._ends, set()
        for end in ends:
            _hang_up(end)

    def open(self) -> None:
        """Let connections through again."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._accept_in_thread()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                family = socket.AF_UNIX if isinstance(self._upstream, str) else socket.AF_INET
                server = socket.socket(family, socket.SOCK_STREAM)
                server.connect(self._upstream)
                with self._lock:
                    self._ends |= {client, server}
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=ends, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            _hang_up(end)
        with self._lock:
            self._ends -= {source, target}


def _hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
