"""What the parity bench stands on: S3 and Postgres from the environment, a world on both, and a door to Postgres.

Everything is made under names of its own and taken away again: a key prefix, a bucket for engine runs where the server
is an emulator (they list a whole bucket to list a prefix), and a schema. This file imports nothing from
``scenario_runner``.
"""

import argparse
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import obstore
import psycopg
from obstore.store import S3Store
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import bench

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config

THREADS: Final = 16
_REMEDY: Final = """\
To start both on this machine, without Docker, and set all variables:
  scripts/parity_stack.sh up
  eval "$(scripts/parity_stack.sh env)"
"""


class UnsetError(Exception):
    """A variable is missing; says what to do."""


# ---------------------------------------------------------------- S3


@dataclass(frozen=True)
class Place:
    """S3 and Postgres of the environment.

    What is measured (daemons and references) reaches S3 through ``measured_endpoint``, which may be a proxy that delays
    answers; what only prepares, checks and cleans up uses ``endpoint``.
    """

    bucket: str
    prefix: str
    endpoint: str
    region: str
    path_style: bool
    dsn: str
    measured_endpoint: str

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> "Place":
        """The place that SR_TEST_S3_* and SR_TEST_PG_DSN name, with a key prefix of its own.

        Raises:
            UnsetError: one of them is missing.
        """
        missing = [name for name in ("SR_TEST_S3_BUCKET", "SR_TEST_PG_DSN") if not env.get(name)]
        if missing:
            raise UnsetError(f"not set: {', '.join(missing)}\n{_REMEDY}")
        endpoint, style = env.get("SR_TEST_S3_ENDPOINT_URL", ""), env.get("SR_TEST_S3_PATH_STYLE", "")
        prefix = "/".join(filter(None, (env.get("SR_TEST_S3_PREFIX", "").strip("/"), f"bench-{secrets.token_hex(6)}")))
        return cls(
            env["SR_TEST_S3_BUCKET"], prefix, endpoint, env.get("SR_TEST_S3_REGION", ""),
            style.lower() in ("1", "true", "yes") if style else bool(endpoint), env["SR_TEST_PG_DSN"], endpoint,
        )  # fmt: skip

    def store(self, bucket: str, endpoint: str) -> S3Store:
        """A plain client of a bucket, with credentials of the environment."""
        config: S3Config = {"region": self.region or "us-east-1", "virtual_hosted_style_request": not self.path_style}
        if endpoint:
            config["endpoint"] = endpoint
        client: ClientConfig = {"allow_http": endpoint.startswith("http://"), "timeout": "120s"}
        return S3Store(bucket, config=config, client_options=client)

    def folder(self, bucket: str, prefix: str) -> "Folder":
        """A prefix of a bucket, with both clients."""
        return Folder(bucket, prefix, self.store(bucket, self.endpoint), self.store(bucket, self.measured_endpoint))

    def wiring(self) -> dict[str, object]:
        """How a profile reaches this S3."""
        return {"s3_endpoint_url": self.measured_endpoint, "s3_region": self.region, "s3_path_style": self.path_style}

    def boto(self) -> Any:  # noqa: ANN401 - an untyped library
        """The other client, for what the plain one cannot do: buckets."""
        import boto3  # noqa: PLC0415 - slow to import
        from botocore.config import Config  # noqa: PLC0415

        config = Config(s3={"addressing_style": "path" if self.path_style else "virtual"})
        region = self.region or "us-east-1"
        return boto3.client("s3", endpoint_url=self.endpoint or None, region_name=region, config=config)


@dataclass(frozen=True)
class Folder:
    """A prefix of a bucket; ``measured`` is the client of references, which sees the delay that daemons see."""

    bucket: str
    prefix: str
    store: S3Store
    measured: S3Store

    def key(self, *parts: str) -> str:
        """A key in it."""
        return "/".join(filter(None, (self.prefix, *parts)))

    def uri(self, *parts: str) -> str:
        """The same as a URI."""
        return f"s3://{self.bucket}/{self.key(*parts)}".rstrip("/")

    def sizes(self) -> list[int]:
        """Bytes of every object below it."""
        return [item["size"] for page in obstore.list(self.store, self.prefix or None) for item in page]

    def empty(self) -> None:
        """Remove every object below it."""
        for page in obstore.list(self.store, self.prefix or None):
            obstore.delete(self.store, [item["path"] for item in page])


@contextmanager
def engine_folder(place: Place, name: str, *, keep: bool) -> Iterator[Folder]:
    """Where engine runs go: a bucket of its own on an emulator, else a prefix."""
    own = ""
    if place.endpoint:
        own = f"sr-bench-{secrets.token_hex(4)}-{name.replace('_', '-')}"
        try:
            place.boto().create_bucket(Bucket=own)
        except Exception as error:  # noqa: BLE001 - whatever it is: a prefix will do
            bench.note(f"no bucket for engine runs ({error}); they share {place.bucket}, and listings may be slow")
            own = ""
    bucket = own or place.bucket
    folder = place.folder(bucket, "" if own else f"{place.prefix}/{name}-engine-runs")
    try:
        yield folder
    finally:
        if not keep:
            folder.empty()
            if own:
                place.boto().delete_bucket(Bucket=own)


def in_threads(threads: int, work: Any, items: Sequence[Any]) -> None:  # noqa: ANN401 - any callable on any item
    """Do work on every item; each thread takes every n-th, in order."""

    def some(first: int) -> None:
        for item in items[first::threads]:
            work(item)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, range(threads)))


def upload(folder: Folder, root: Path, under: str) -> dict[str, int]:
    """Copy a local folder below a prefix; returns keys and sizes."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    keys = {folder.key(under, path.relative_to(root).as_posix()): path for path in files}
    in_threads(THREADS, lambda key: obstore.put(folder.store, key, keys[key]), list(keys))
    return {key: path.stat().st_size for key, path in keys.items()}


# ---------------------------------------------------------------- Postgres


class Schema:
    """A schema of its own."""

    def __init__(self, dsn: str) -> None:
        self.name = f"sr_bench_{secrets.token_hex(6)}"
        self.dsn = make_conninfo(dsn, options=f"-csearch_path={self.name}")
        self._lock = threading.Lock()
        self._connection = psycopg.connect(self.dsn, autocommit=True)
        self.query(f"CREATE SCHEMA {self.name}")

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


class Door:
    """A TCP proxy in front of Postgres that can be shut: then connections are cut, and new ones refused."""

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

    def shut(self) -> None:
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
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
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


# ---------------------------------------------------------------- a world on both


@dataclass(frozen=True)
class ParityWorld(bench.World):
    """A world whose documents and engine runs are on S3, and whose authority is Postgres."""

    place: Place
    schema: Schema
    ledger: Folder
    engine: Folder
    more_wiring: bench.Json = field(default_factory=dict)

    def wiring(self) -> bench.Json:
        """See :meth:`bench.World.wiring`."""
        ours = {
            "object_store_root": self.ledger.uri(),
            "authority_store_dsn": self.schema.dsn,
            "engine_roots": [self.engine.uri()],
        }
        return {**super().wiring(), **self.place.wiring(), **ours, **self.more_wiring}

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """See :meth:`bench.World.query`; never through the door."""
        return self.schema.query(sql)

    def now_us(self) -> int:
        """The database's clock."""
        return int(self.query("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")[0][0])

    def contents(self, refs: Sequence[str]) -> Iterator[bytes]:
        """See :meth:`bench.World.contents`."""
        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(self._read, refs)

    def _read(self, ref: str) -> bytes:
        return bytes(obstore.get(self.ledger.store, self.ledger.key(ref)).bytes())

    def engine_run(self, key: str, number: int, part_bytes: int = 4096) -> tuple[bench.Json, dict[str, int]]:
        """An engine run on S3 with an identity of its own; returns a request for it, and its keys and sizes."""
        request = bench.make_world_run(self, key, number, part_bytes)
        local = Path(request["engine_run_root"])
        keys = upload(self.engine, local, local.name)
        return request | {"engine_run_root": self.engine.uri(local.name)}, keys

    def told(self) -> dict[str, int]:
        """What the daemon counted, from the last line of its log.

        Raises:
            CheckFailedError: it told nothing.
        """
        lines = self.log.read_text("utf-8", "replace").splitlines()
        try:
            counts = json.loads(lines[-1])["counts"]
            return {str(name): int(count) for name, count in counts.items()}
        except (IndexError, ValueError, KeyError, TypeError) as error:
            tail = bench.log_tail(self.log)
            raise bench.CheckFailedError(f"the daemon did not tell its counts at the end; {tail}") from error


@contextmanager
def parity_world(
    options: argparse.Namespace, folder: Path, door: Door | None = None, **wiring: object
) -> Iterator[ParityWorld]:
    """A world with a prefix, an engine folder and a schema of its own, taken away at the end.

    Args:
        options: With ``place``, ``command``, ``timeout`` and ``keep``.
        folder: For local files; its name names everything else.
        door: Which the daemon goes through to Postgres.
        wiring: More keys of the wiring profile.
    """
    place: Place = options.place
    schema = Schema(place.dsn)
    ledger = place.folder(place.bucket, f"{place.prefix}/{folder.name}")
    if door is not None:
        wiring["authority_store_dsn"] = make_conninfo(door.dsn, options=f"-csearch_path={schema.name}")
    try:
        with engine_folder(place, folder.name, keep=options.keep) as engine:
            fields = (folder, folder / "runs", options.command, options.timeout, place, schema, ledger, engine, wiring)
            world = ParityWorld(*fields)
            world.prepare()
            yield world
    finally:
        schema.drop()
        if not options.keep:
            ledger.empty()


def drop_steadily(world: ParityWorld, request: bench.Json, name: str, rate: float, seconds: float) -> list[str]:
    """Drop requests at a steady rate; returns run ids."""
    started, run_ids = time.perf_counter(), []
    for number in range(max(1, round(rate * seconds))):
        time.sleep(max(0.0, started + number / rate - time.perf_counter()))
        run_ids.append(world.drop(request, f"{name}-{number}"))
    return run_ids


def wait_until_sent(world: ParityWorld, served: bench.Served, count: int) -> None:
    """Wait until that many READY signals are on the bus.

    Raises:
        CheckFailedError: the daemon ended, or it takes too long.
    """
    sent, deadline = 0, time.perf_counter() + world.timeout
    while sent < count:
        if served.process.poll() is not None or time.perf_counter() > deadline:
            raise bench.CheckFailedError(f"{count} READY expected, {sent} sent; {bench.log_tail(world.log)}")
        time.sleep(0.02)
        rows = world.query("SELECT count(*) FROM outbox WHERE kind = 'READY' AND sent_us IS NOT NULL")
        sent = int(rows[0][0]) if rows else 0
