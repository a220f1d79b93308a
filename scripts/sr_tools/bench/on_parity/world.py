"""A world whose documents and engine runs are on S3, and whose authority is Postgres."""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import override

from sr_tools.bench.daemon import Daemon, log_tail
from sr_tools.bench.on_parity.place import THREADS, Folder, Place, engine_folder
from sr_tools.bench.on_parity.postgres import OutageProxy, Schema
from sr_tools.bench.report import CheckFailedError, Json
from sr_tools.bench.world import SMALL_PART_BYTES, World


@dataclass(frozen=True, kw_only=True)
class ParityWorld(World):
    """See the module.

    Attributes:
        place: S3 and Postgres.
        schema: The authority's.
        ledger: Where documents go.
        engine: Where engine runs go.
        more_wiring: Further keys of the wiring profile.
    """

    place: Place
    schema: Schema
    ledger: Folder
    engine: Folder
    more_wiring: Json = field(default_factory=dict)

    @override
    def wiring(self) -> Json:
        ours = {
            "object_store_root": self.ledger.uri(),
            "authority_store_dsn": self.schema.dsn,
            "engine_roots": [self.engine.uri()],
        }
        return {**super().wiring(), **self.place.wiring(), **ours, **self.more_wiring}

    @override
    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of the authority; never through a proxy."""
        return self.schema.query(sql)

    @override
    def contents(self, refs: Sequence[str]) -> Iterator[bytes]:
        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(lambda ref: self.ledger.read(self.ledger.key(ref)), refs)

    def now_us(self) -> int:
        """The database's clock, in microseconds."""
        return int(self.query("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")[0][0])

    def upload_engine_run(
        self, key: str, number: int, part_bytes: int = SMALL_PART_BYTES
    ) -> tuple[Json, dict[str, int]]:
        """An engine run on S3 with an identity of its own; returns a request for it, and its keys and sizes."""
        request = self.make_engine_run(key, number, part_bytes)
        local = Path(request["engine_run_root"])
        keys = self.engine.upload(local, local.name)
        return request | {"engine_run_root": self.engine.uri(local.name)}, keys

    def counts(self) -> dict[str, int]:
        """What the last daemon counted (S3 calls, statements), from the last line of its log.

        Raises:
            CheckFailedError: That line has no counts.
        """
        lines = self.logs[-1].read_text("utf-8", "replace").splitlines()
        try:
            counts = json.loads(lines[-1])["counts"]
            return {str(name): int(count) for name, count in counts.items()}
        except (IndexError, ValueError, KeyError, TypeError) as error:
            tail = log_tail(self.logs[-1])
            raise CheckFailedError(f"the daemon did not log its counts at the end; {tail}") from error

    def drop_steadily(self, request: Json, name: str, rate: float, seconds: float) -> list[str]:
        """Drop requests at a steady rate; returns run ids."""
        started, run_ids = time.perf_counter(), []
        for number in range(max(1, round(rate * seconds))):
            time.sleep(max(0.0, started + number / rate - time.perf_counter()))
            run_ids.append(self.drop(request, f"{name}-{number}"))
        return run_ids

    def wait_until_sent(self, daemon: Daemon, count: int) -> None:
        """Wait until that many READY signals are on the bus.

        Raises:
            CheckFailedError: The daemon ended, or it takes too long.
        """
        daemon.until(lambda: self._sent() >= count, f"{count} READY expected, not all of them were sent", pause=0.02)

    def _sent(self) -> int:
        rows = self.query("SELECT count(*) FROM outbox WHERE kind = 'READY' AND sent_us IS NOT NULL")
        return int(rows[0][0]) if rows else 0


@contextmanager
def parity_world(
    options: argparse.Namespace, folder: Path, proxy: OutageProxy | None = None, **wiring: object
) -> Iterator[ParityWorld]:
    """A world with a prefix, an engine folder and a schema of its own, taken away at the end.

    Args:
        options: With ``place``, ``subject``, ``timeout`` and ``keep``.
        folder: For local files; its name names everything else.
        proxy: Which the daemon goes through to Postgres.
        wiring: More keys of the wiring profile.
    """
    place: Place = options.place
    schema = Schema(place.dsn)
    ledger = place.folder(place.bucket, f"{place.prefix}/{folder.name}")
    if proxy is not None:
        wiring["authority_store_dsn"] = schema.within(proxy.dsn)
    try:
        with engine_folder(place, folder.name, keep=options.keep) as engine:
            world = ParityWorld(
                root=folder, runs=folder / "runs", subject=options.subject, timeout=options.timeout, place=place,
                schema=schema, ledger=ledger, engine=engine, more_wiring=wiring,
            )  # fmt: skip
            world.prepare()
            yield world
    finally:
        schema.drop()
        if not options.keep:
            ledger.empty()
