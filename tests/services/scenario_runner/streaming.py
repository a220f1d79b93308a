"""A world whose control bus is a Kinesis stream of its own, on whatever endpoint the environment names.

``SR_KINESIS_ENDPOINT_URL`` names Kinesis, ``SR_KINESIS_DYNAMODB_ENDPOINT_URL`` DynamoDB where that is elsewhere. Where
neither serves DynamoDB (LocalStack needs a download for it), the test session starts one of its own. Where the store
and the authority are is decided in one place, :func:`backends`.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
import uuid
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import pytest
from support import REPO, World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
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
    import boto3

    return boto3.client(service, region_name=REGION, endpoint_url=dynamodb() if service == "dynamodb" else ENDPOINT)


def dynamodb() -> str:
    """The endpoint where KCL keeps its leases; the test is skipped, saying why, when there is none.

    Asked for once: the environment, which daemons inherit and which overrides profiles, names it from then on.
    """
    found = _dynamodb()
    if not found.startswith("http"):
        pytest.skip(found)
    return found


@cache
def _dynamodb() -> str:
    named = os.environ.get("SR_KINESIS_DYNAMODB_ENDPOINT_URL", "")
    found = next((url for url in (named, ENDPOINT) if url and _serves_dynamodb(url)), "") or _own_dynamodb()
    os.environ["SR_KINESIS_DYNAMODB_ENDPOINT_URL"] = found
    return found


def _serves_dynamodb(url: str) -> bool:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1})
    try:
        boto3.client("dynamodb", region_name=REGION, endpoint_url=url, config=config).list_tables()
    except (BotoCoreError, ClientError):
        return False
    return True


def _own_dynamodb() -> str:
    """Start an emulator that ends with the session; its endpoint, or why there is none."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(["bash", str(REPO / "scripts/localstack.sh"), "dynamodb"], stdin=subprocess.DEVNULL,
                                   stdout=said, stderr=said, start_new_session=True,
                                   env={**os.environ, "SR_LOCALSTACK_DYNAMODB_PORT": str(port)})  # fmt: skip
        atexit.register(_end, process)
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while process.poll() is None and time.monotonic() < deadline:
            if _listens(port) and _serves_dynamodb(url):
                return url
            time.sleep(0.1)
        _end(process)
        said.seek(0)
        return f"no DynamoDB for KCL's leases, none could be started: {said.read().decode(errors='replace')[-300:]}"


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def make_stream(shards: int = 1, name: str | None = None) -> str:
    """A new stream, ready for use."""
    kinesis, name = client(), name or f"sr-{uuid.uuid4().hex[:12]}"
    kinesis.create_stream(StreamName=name, ShardCount=shards)
    MADE.append(name)
    until_active(name)
    return name


def delete_streams(names: list[str]) -> None:
    """Delete streams, whoever still reads them."""
    for name in names:
        client().delete_stream(StreamName=name, EnforceConsumerDeletion=True)


def until_active(name: str) -> None:
    kinesis = client()
    until(lambda: kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]["StreamStatus"]
          == "ACTIVE", f"stream {name} is active")  # fmt: skip


def until(true: Callable[[], Any], what: str, seconds: float = 60.0, pause: float = 0.1) -> Any:
    """Poll until something is true and return it; AssertionError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(pause)
    return found


def records_of(stream: str, kinesis: Any = None) -> list[dict[str, Any]]:
    """Every record on a stream, shard by shard, each with its ``ShardId``."""
    kinesis, found = kinesis or client(), []
    for shard in kinesis.list_shards(StreamName=stream)["Shards"]:
        iterator = kinesis.get_shard_iterator(
            StreamName=stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        while iterator:
            page = kinesis.get_records(ShardIterator=iterator, Limit=10_000)
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
        entries = [document if isinstance(document, bytes) else json.dumps(document).encode() for document in documents]
        keys = []
        for start in range(0, len(entries), 500):
            answer = (kinesis or self.kinesis).put_records(
                StreamName=self.stream,
                Records=[{"Data": data, "PartitionKey": hashlib.sha256(data).hexdigest()[:32]}
                         for data in entries[start : start + 500]],
            )  # fmt: skip
            assert answer["FailedRecordCount"] == 0
            keys += [f"kinesis/{self.stream}/{item['ShardId']}/{item['SequenceNumber']}" for item in answer["Records"]]
        return keys

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
        from botocore.exceptions import ClientError

        try:
            items = self.dynamodb.scan(TableName=self.application)["Items"]
        except ClientError:
            return {}
        return {item["leaseKey"]["S"]: item.get("leaseOwner", {}).get("S", "") for item in items}


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
    world.dynamodb.create_table(
        TableName=world.application,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "leaseKey", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("leaseKey", "leaseOwner")],
        GlobalSecondaryIndexes=[
            {
                "IndexName": "LeaseOwnerToLeaseKeyIndex",
                "KeySchema": [
                    {"AttributeName": "leaseOwner", "KeyType": "HASH"},
                    {"AttributeName": "leaseKey", "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "KEYS_ONLY"},
            }
        ],
    )
    put_leases(world)


def put_leases(world: KinesisWorld) -> None:
    """A lease at the horizon for every shard, in a table that is there."""
    text = "S"
    for shard in world.kinesis.list_shards(StreamName=world.stream)["Shards"]:
        world.dynamodb.put_item(
            TableName=world.application,
            Item={
                "leaseKey": {text: shard["ShardId"]},
                "leaseCounter": {"N": "0"},
                "checkpoint": {text: "TRIM_HORIZON"},
                "checkpointSubSequenceNumber": {"N": "0"},
                "ownerSwitchesSinceCheckpoint": {"N": "0"},
                "startingHashKey": {text: shard["HashKeyRange"]["StartingHashKey"]},
                "endingHashKey": {text: shard["HashKeyRange"]["EndingHashKey"]},
            },
        )
