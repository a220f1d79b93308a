"""A world whose control bus is a Kinesis stream of its own, on whatever endpoint the environment names.

``SR_KINESIS_ENDPOINT_URL`` names Kinesis, ``SR_KINESIS_DYNAMODB_ENDPOINT_URL`` DynamoDB where that is elsewhere. Where
neither serves DynamoDB (LocalStack needs a download for it), the test session starts one of its own. Where the store
and the authority are is decided in one place, :func:`backends`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import uuid
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import pytest
from support import World

from sr_tools import kinesis as streams

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ENDPOINT = os.environ.get("SR_KINESIS_ENDPOINT_URL", "")
REGION = os.environ.get("SR_KINESIS_REGION", "us-east-1")
SHARED = os.environ.pop("SR_KINESIS_STREAM", "")
"""The stream that the environment names, taken out of it: it would override the worlds' own streams."""
WHY_NOT = "SR_KINESIS_ENDPOINT_URL is not set: scripts/localstack.sh start, then see .env.localstack.example"
TOPIC = "fp.bus.control.v1"
MADE: list[str] = []
"""Streams that were made and are deleted when the test ends: an emulator allows a hundred shards."""
for _name, _value in (("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")):
    if ENDPOINT:
        os.environ.setdefault(_name, _value)


def backends(root: Path) -> dict[str, Any]:
    """Wiring keys of the store and the authority of a world."""
    return {
        "object_store_root": str(root / "object-store"),
        "authority_store_dsn": f"sqlite:///{root / 'authority.db'}",
    }


def client(service: str = "kinesis") -> Any:
    return streams.client(service, dynamodb() if service == "dynamodb" else ENDPOINT, REGION)


def dynamodb() -> str:
    """The endpoint where KCL keeps its leases; the test is skipped, saying why, when there is none.

    Looked for once: the environment, which daemons inherit and which overrides profiles, names it from then on.
    """
    try:
        return _dynamodb()
    except streams.NoEndpointError as error:
        pytest.skip(str(error))


@cache
def _dynamodb() -> str:
    found = streams.find_dynamodb(os.environ.get("SR_KINESIS_DYNAMODB_ENDPOINT_URL", ""), ENDPOINT, REGION)
    os.environ["SR_KINESIS_DYNAMODB_ENDPOINT_URL"] = found
    return found


def make_stream(shards: int = 1, name: str | None = None) -> str:
    """A new stream, ready for use."""
    name = name or f"sr-{uuid.uuid4().hex[:12]}"
    client().create_stream(StreamName=name, ShardCount=shards)
    MADE.append(name)
    until_active(name)
    return name


def delete_streams(names: list[str]) -> None:
    """Delete streams, whoever still reads them."""
    for name in names:
        client().delete_stream(StreamName=name, EnforceConsumerDeletion=True)


def until_active(name: str) -> None:
    streams.until_active(client(), name)


def records_of(stream: str, reader: Any = None) -> list[dict[str, Any]]:
    """Every record on a stream, shard by shard, each with its ``ShardId``."""
    reader, found = reader or client(), []
    for shard in reader.list_shards(StreamName=stream)["Shards"]:
        iterator = reader.get_shard_iterator(
            StreamName=stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        while iterator:
            page = reader.get_records(ShardIterator=iterator, Limit=10_000)
            found += [{**record, "ShardId": shard["ShardId"]} for record in page["Records"]]
            if not page["Records"] and not page.get("MillisBehindLatest"):
                break
            iterator = page.get("NextShardIterator")
    return found


@dataclass
class KinesisWorld(World):
    """See the module."""

    shards: int = 1
    timing: str = "fast"
    stream: str = ""
    kinesis: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _require_java()
        self.kinesis = client()
        self.stream = self.stream or make_stream(self.shards)
        self.wiring_changes = {
            "control_bus_kind": "kinesis",
            "control_bus_root": None,
            "control_bus_stream": self.stream,
            "control_bus_region": REGION,
            "control_bus_endpoint_url": ENDPOINT,
            "kinesis_dynamodb_endpoint_url": dynamodb(),
            "kinesis_state_dir": str(self.root / "kinesis"),
            "kinesis_timing": self.timing,
            **backends(self.root),
            **self.wiring_changes,
        }
        super().__post_init__()

    @cached_property
    def dynamodb(self) -> Any:
        return client("dynamodb")

    @property
    def application(self) -> str:
        return f"scenario-runner-{self.stream}"

    def put(self, *documents: dict[str, Any] | bytes, kinesis: Any = None) -> list[str]:
        """Put records by hand; returns the keys that the authority will know them by."""
        return streams.put_records(kinesis or self.kinesis, self.stream, documents)

    def signals(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Envelopes that SR published, of one kind or all; copies of one message once."""
        found: dict[str, dict[str, Any]] = {}
        for record in records_of(self.stream, self.kinesis):
            try:
                document = json.loads(record["Data"])
            except (ValueError, RecursionError):
                continue
            if isinstance(document, dict) and document.get("attributes", {}).get("kind") not in (None, "RUN_REQUEST"):
                found[document["message_id"]] = document
        return [item for item in found.values() if kind is None or item["attributes"]["kind"] == kind]

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of the authority."""
        if not self.database.exists():
            return []
        try:
            with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30)) as connection:
                return connection.execute(statement).fetchall()
        except sqlite3.OperationalError:
            return []

    def dispositions(self) -> dict[str, str]:
        """Disposition of every record by its key, our own signals left out."""
        rows = self.rows("SELECT record_key, disposition FROM intake_records WHERE disposition != 'IGNORED'")
        return {str(key): str(disposition) for key, disposition in rows}

    def leases(self) -> dict[str, str]:
        """Owner of each shard's lease."""
        return streams.lease_owners(self.dynamodb, self.application)


def _require_java() -> None:
    from scenario_runner.contracts.errors import ConfigurationError
    from scenario_runner.kcl.config import find_java

    try:
        find_java(os.environ)
    except ConfigurationError as error:
        pytest.skip(f"KCL needs Java: {error.detail}")


def requests_of(world: World, count: int, *, key: str = "key", worlds: int = 1) -> list[dict[str, Any]]:
    """Requests for a few sealed engine runs, each under an equivalence key of its own."""
    made = [world.make_run(f"{key}-world-{number}", seed=number, members=2, parts=1)["request"]
            for number in range(worlds)]  # fmt: skip
    return [{**made[number % worlds], "run_equivalence_key": f"{key}-{number}"} for number in range(count)]


def run_ids(requests: Sequence[dict[str, Any]]) -> set[str]:
    return {hashlib.sha256(f"sr_run|{item['run_equivalence_key']}".encode()).hexdigest()[:32] for item in requests}


def seed_leases(world: KinesisWorld) -> None:
    """Make the lease table beforehand, as KCL would: it waits for 1 to 30 s before it makes one itself."""
    streams.make_lease_table(world.dynamodb, world.kinesis, world.application, world.stream)


def put_leases(world: KinesisWorld) -> None:
    """A lease at the horizon for every shard, in a table that is there."""
    streams.put_leases(world.dynamodb, world.kinesis, world.application, world.stream)
