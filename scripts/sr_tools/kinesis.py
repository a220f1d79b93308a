"""Streams and KCL's lease table on whatever endpoint the environment names: what tests and the bench both need.

Clients are boto3's and passed in. Endpoints come from ``SR_KINESIS_ENDPOINT_URL`` (Kinesis) and
``SR_KINESIS_DYNAMODB_ENDPOINT_URL`` (DynamoDB, where that is elsewhere).
"""

import atexit
import hashlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sr_tools.waiting import until

SCRIPTS: Final = Path(__file__).resolve().parents[1]
#: Records that one call of PutRecords takes.
_BATCH: Final = 500
#: Seconds for an emulator that has to be installed first.
_START_SECONDS: Final = 180


class NoEndpointError(Exception):
    """There is no DynamoDB for KCL's leases; the message says why."""


def client(service: str, endpoint: str, region: str) -> Any:  # noqa: ANN401 - an untyped library
    """A boto3 client."""
    import boto3  # noqa: PLC0415 - slow to import

    return boto3.client(service, region_name=region, endpoint_url=endpoint)


def make_stream(kinesis: Any, name: str, shards: int) -> None:  # noqa: ANN401 - an untyped client
    """Make a stream, ready for use."""
    kinesis.create_stream(StreamName=name, ShardCount=shards)
    until_active(kinesis, name)


def until_active(kinesis: Any, name: str) -> None:  # noqa: ANN401 - an untyped client
    """Wait until a stream can be used."""

    def active() -> bool:
        summary = kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]
        return bool(summary["StreamStatus"] == "ACTIVE")

    until(active, f"stream {name} is active")


def put_records(kinesis: Any, stream: str, documents: Sequence[object]) -> list[str]:  # noqa: ANN401 - untyped client
    """Put records on a stream, spread over its shards.

    Args:
        kinesis: The client.
        stream: Name of the stream.
        documents: Bytes as they are, or documents to encode as JSON.

    Returns:
        The keys that the authority knows the records by.
    """
    entries = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in documents]
    keys: list[str] = []
    for start in range(0, len(entries), _BATCH):
        batch = entries[start : start + _BATCH]
        records = [{"Data": data, "PartitionKey": hashlib.sha256(data).hexdigest()[:32]} for data in batch]
        answer = kinesis.put_records(StreamName=stream, Records=records)
        assert answer["FailedRecordCount"] == 0
        keys += [f"kinesis/{stream}/{item['ShardId']}/{item['SequenceNumber']}" for item in answer["Records"]]
    return keys


def read_shard(kinesis: Any, stream: str) -> list[tuple[str, bytes]]:  # noqa: ANN401 - an untyped client
    """The records of a stream's first shard to its tip: the key that the authority knows each by, and its data."""
    shard = kinesis.list_shards(StreamName=stream)["Shards"][0]["ShardId"]
    start = {"StreamName": stream, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"}
    iterator, found = kinesis.get_shard_iterator(**start)["ShardIterator"], list[tuple[str, bytes]]()
    while True:
        page = kinesis.get_records(ShardIterator=iterator)
        found += [(f"kinesis/{stream}/{shard}/{item['SequenceNumber']}", item["Data"]) for item in page["Records"]]
        if not page["Records"] and not page.get("MillisBehindLatest"):
            return found
        iterator = page["NextShardIterator"]


# --- KCL's leases


def make_lease_table(dynamodb: Any, kinesis: Any, application: str, stream: str) -> None:  # noqa: ANN401 - untyped clients
    """Make the lease table beforehand, as KCL would: it waits for 1 to 30 s before it makes one itself."""
    dynamodb.create_table(
        TableName=application,
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
    put_leases(dynamodb, kinesis, application, stream)


def put_leases(dynamodb: Any, kinesis: Any, application: str, stream: str) -> None:  # noqa: ANN401 - untyped clients
    """A lease at the horizon for every shard, in a table that is there."""
    text = "S"
    for shard in kinesis.list_shards(StreamName=stream)["Shards"]:
        dynamodb.put_item(
            TableName=application,
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


def lease_owners(dynamodb: Any, application: str) -> dict[str, str]:  # noqa: ANN401 - an untyped client
    """The worker that holds each shard's lease; nothing while there is no table."""
    from botocore.exceptions import ClientError  # noqa: PLC0415 - slow to import

    try:
        items = dynamodb.scan(TableName=application)["Items"]
    except ClientError:
        return {}
    return {item["leaseKey"]["S"]: item.get("leaseOwner", {}).get("S", "") for item in items}


# --- where the leases are kept


def find_dynamodb(named: str, kinesis: str, region: str) -> str:
    """The endpoint of a DynamoDB: the one that is named, else that of Kinesis, else an emulator of this process's own.

    LocalStack needs a download for DynamoDB, so it may serve Kinesis only.

    Raises:
        NoEndpointError: There is none, and none could be started.
    """
    for url in filter(None, (named, kinesis)):
        if serves_dynamodb(url, region):
            return url
    return own_dynamodb(region)


def serves_dynamodb(url: str, region: str) -> bool:
    """Whether a DynamoDB answers there."""
    import boto3  # noqa: PLC0415 - slow to import
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    config = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1})
    try:
        boto3.client("dynamodb", region_name=region, endpoint_url=url, config=config).list_tables()
    except (BotoCoreError, ClientError):
        return False
    return True


def own_dynamodb(region: str) -> str:
    """Start an emulator that ends with this process; returns its endpoint.

    Raises:
        NoEndpointError: It could not be started.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            ["bash", str(SCRIPTS / "localstack.sh"), "dynamodb"], stdin=subprocess.DEVNULL, stdout=output,
            stderr=output, start_new_session=True, env={**os.environ, "SR_LOCALSTACK_DYNAMODB_PORT": str(port)},
        )  # fmt: skip
        atexit.register(_end, process)
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if _listens(port) and serves_dynamodb(url, region):
                return url
            time.sleep(0.1)
        _end(process)
        output.seek(0)
        text = output.read().decode(errors="replace")[-300:]
    raise NoEndpointError(f"no DynamoDB for KCL's leases, none could be started: {text}")


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the emulator with everything that it started: it has a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
