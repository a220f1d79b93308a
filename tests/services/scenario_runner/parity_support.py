"""Worlds on the parity profile: ledger and engine runs on S3, authority in Postgres, the installed command between.

Bucket, prefix and DSN come from the variables SR_TEST_S3_* and SR_TEST_PG_DSN; every world has its own key prefix and
its own schema. What the daemons ask of S3 goes through a :class:`~fault_proxy.FaultProxy`; what a test looks at itself
does not.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
from crashing import Scenery, drained, evidence, load_records
from invariants import check, photograph
from invariants_world import Paths
from postgres_support import with_parameters
from psycopg.rows import dict_row
from s3_support import Spot
from support import PACK, World

SMALL: Mapping[str, Any] = {"members": 3, "parts": 2}


@dataclass
class Mirror:
    """A folder that is made equal to a prefix of a bucket, again and again; unchanged objects are not fetched twice.

    Files get the time at which their objects were last written.
    """

    spot: Spot
    prefix: str
    folder: Path
    _seen: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def refresh(self) -> Path:
        """Bring the folder up to date; returns it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, tuple[str, Any]] = {}
        pages = self.spot.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.spot.bucket_name, Prefix=self.prefix + "/"):
            for item in page.get("Contents", []):
                found[item["Key"].removeprefix(self.prefix + "/")] = (item["ETag"], item["LastModified"])
        for gone in self._seen.keys() - found.keys():
            self._path(gone).unlink(missing_ok=True)
        changed = [key for key, mark in found.items() if self._seen.get(key) != mark]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: self._fetch(key, found[key][1]), changed))
        self._seen = found
        return self.folder

    def _path(self, key: str) -> Path:
        return self.folder / key

    def _fetch(self, key: str, modified: Any) -> None:
        path = self._path(key)
        if key.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        answer = self.spot.client.get_object(Bucket=self.spot.bucket_name, Key=f"{self.prefix}/{key}")
        path.write_bytes(answer["Body"].read())
        os.utime(path, (modified.timestamp(),) * 2)


class EngineRuns:
    """Engine runs made by scripts/make_engine_run.py and put on S3.

    Attributes:
        checksum: Arguments of each put that have S3 keep a checksum.

    Args:
        spot: Where.
        name: Folder of the spot.
        folder: A folder of this machine to make runs in.
    """

    def __init__(self, spot: Spot, name: str, folder: Path) -> None:
        self.spot, self.name = spot, name
        self.uri = spot.uri(name)
        self.checksum: Mapping[str, str] = {}
        self.maker = World(folder / "maker")
        self.mirror = Mirror(spot, f"{spot.prefix}/{name}", folder / "copy")

    def make(self, key: str = "key-1", *, upload: bool = True, **options: Any) -> dict[str, Any]:
        """Make a run and put it on S3; its request names it there."""
        made = self.maker.make_run(key, **{**SMALL, **options})
        local = Path(made["engine_run_root"])
        relative = local.relative_to(self.maker.runs.resolve())
        uri = f"{self.uri}/{relative}"
        request = {**made["request"], "engine_run_root": uri}
        if upload and local.is_dir():
            self.upload(local)
        return {**made, "engine_run_root": uri, "local": local, "request": request}

    def upload(self, local: Path) -> None:
        """Put a folder of the maker's runs on S3; empty folders become folder markers."""
        runs = self.maker.runs.resolve()
        objects: dict[str, bytes] = {}
        for directory, folders, files in os.walk(local):
            relative = Path(directory).relative_to(runs)
            if not folders and not files:
                objects[f"{self.name}/{relative}/"] = b""
            for file in files:
                objects[f"{self.name}/{relative}/{file}"] = (Path(directory) / file).read_bytes()
        self.spot.put_all(objects, **self.checksum)

    def key(self, made: Mapping[str, Any], path: str) -> str:
        """Key, relative to the spot, of a path of a run."""
        return f"{made['engine_run_root'].removeprefix(self.spot.uri(''))}/{path}"


class ParityWorld(World):
    """One profile on S3 and Postgres.

    Args:
        root: Folder for the profiles and the spool.
        spot: Where the ledger lies.
        engines: Allowed engine runs.
        dsn: What the daemons use; a schema of the world's own is made in it unless ``shared``.
        own_dsn: What the test uses to look at the rows; may avoid a proxy.
        policy: Changes of the policy profile.
        wiring: Changes of the wiring profile.
    """

    def __init__(
        self,
        root: Path,
        spot: Spot,
        engines: EngineRuns,
        dsn: str,
        own_dsn: str = "",
        policy: Mapping[str, Any] | None = None,
        **wiring: Any,
    ) -> None:
        self.spot, self.engines, self.own_dsn = spot, engines, own_dsn or dsn
        self.name = f"ledger-{root.parent.name}-{root.name}-{os.urandom(3).hex()}"
        self.mirror = Mirror(spot, f"{spot.prefix}/{self.name}", root / "ledger-copy")
        keys = {
            "profile_id": "test_parity",
            "object_store_root": spot.uri(self.name),
            "s3_endpoint_url": spot.proxy.url,
            "s3_region": spot.place.region,
            "s3_path_style": True,
            "authority_store_dsn": dsn,
            "engine_roots": [engines.uri],
            "lease_seconds": 3,
            "poll_seconds": 0.05,
        }
        super().__init__(root, {**keys, **wiring}, dict(policy or {}))

    @property
    def store(self) -> Path:
        """A copy of the object store, of this moment."""
        return self.mirror.refresh()

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Every row of every table, read in one transaction; ``ConnectionError`` when the database does not answer.

        Details of an event carry its number, as in the other authority: here it is a column only.
        """
        try:
            with psycopg.connect(self.own_dsn, row_factory=dict_row) as connection:
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                names = connection.execute("SELECT tablename AS t FROM pg_tables WHERE schemaname = current_schema()")
                tables = {row["t"]: self._table(connection, row["t"]) for row in names.fetchall()}
        except psycopg.OperationalError as error:
            raise ConnectionError from error
        for row in tables.get("run_events", []):
            row["details"] = json.dumps({**json.loads(row["details"]), "seq": row["seq"]}).encode()
        return tables

    @staticmethod
    def _table(connection: psycopg.Connection[dict[str, Any]], name: str) -> list[dict[str, Any]]:
        rows = connection.execute(psycopg.sql.SQL("SELECT * FROM {}").format(psycopg.sql.Identifier(name)))
        return [dict(row) for row in rows.fetchall()]

    def sql(self, text: str) -> list[Any]:
        """Rows of a statement."""
        with psycopg.connect(self.own_dsn, autocommit=True) as connection:
            cursor = connection.execute(text)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def paths(self) -> Paths:
        """What the invariant checker reads."""
        return Paths(
            store=self.mirror.folder,
            spool=self.bus,
            database=self.root / "no-sqlite-here",
            engine_roots=(self.engines.mirror.folder,),
            catalogue=PACK / "engine_outputs.catalogue.yaml",
            gate_map=PACK / "engine_gates.map.yaml",
            rows=self.rows,
            refresh=lambda: (self.mirror.refresh(), self.engines.mirror.refresh()),
            copies={self.engines.uri: self.engines.mirror.folder},
        )

    def published(self) -> int:
        """How many signals are on the stream."""
        return len(os.listdir(self.signals_folder)) if self.signals_folder.is_dir() else 0

    def checked(self, **options: Any) -> list[Any]:
        """What the invariant checker finds."""
        return check(self.paths(), **options)


@dataclass(frozen=True)
class ParityScenery(Scenery):
    """Requests over engine runs on S3, and what they come to without any fault."""

    engines: Any = None
    expected: Mapping[str, Any] = field(default_factory=dict)

    def wanted(self) -> int:
        """How many signals there will be."""
        return sum(key.startswith("READY ") for key in self.expected)


def make_parity_load(engines: EngineRuns, worlds: int, keys: int, **options: Any) -> ParityScenery:
    """``worlds`` engine runs, each asked for under ``keys`` equivalence keys; every tenth request comes twice."""
    records = load_records(lambda name, seed: engines.make(name, seed=seed, **options), worlds, keys)
    engines.mirror.refresh()
    return ParityScenery(engines.maker.runs, records, {}, photograph([engines.mirror.folder]), engines)


def fault_free(scenery: ParityScenery, world: ParityWorld) -> ParityScenery:
    """The scenery with what one undisturbed daemon makes of it."""
    scenery.drop(world)
    drained(world)
    assert scenery.violations(world, killed=False) == []
    return replace(scenery, expected=evidence(world))


@contextmanager
def schema_in(dsn: str) -> Iterator[str]:
    """A DSN with a fresh schema, which is dropped at the end; survives restarts of the server in between."""
    name = f"sr_test_{os.urandom(6).hex()}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")  # type: ignore[call-overload]
    try:
        yield with_parameters(dsn, options=f"-csearch_path={name}")
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA {name} CASCADE")  # type: ignore[call-overload]


def settle_racy() -> None:
    """Let objects that were just written become old enough for their digests to be kept."""
    time.sleep(3.1)
