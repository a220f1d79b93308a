"""What SR itself reads and writes of KCL's tables in DynamoDB.

KCL 3 elects a leader that assigns the leases. When the leader is killed, its lock blocks a new election for two
minutes. KCL's 2.x-compatible mode has no leader, but KCL leaves that mode once every worker could run without it,
unless the application's state says that it was rolled back (``CLIENT_VERSION_2X``). SR writes that state once, before
its first worker starts (docs/adr/0015).
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import structlog

from scenario_runner.contracts.errors import Unavailable
from scenario_runner.retry import RetryPolicy, with_retries
from scenario_runner.storage.boto import client_of, failure_of

_STATE_KEY: Final = "Migration3.0"
_STREAM_KEY: Final = "ScenarioRunnerStream"
"""A row of our own in the coordinator table, which is safe there: KCL reads rows of that table by key only."""

_ROLLED_BACK: Final = "CLIENT_VERSION_2X"
#: DynamoDB creates a table in 5 to 20 seconds.
_UNTIL_ACTIVE: Final = RetryPolicy(first_seconds=0.2, most_seconds=1.0, deadline_seconds=60.0)
_log = structlog.get_logger("kcl")


class _NotActiveError(Exception):
    """A table is still being created."""


@dataclass(frozen=True, slots=True)
class ShardLease:
    """KCL's lease of one shard.

    Attributes:
        owner: Worker id of the owner; empty when nobody owns the lease.
        counter: Grows with every renewal by the owner.
        ended: The whole shard was consumed.
    """

    owner: str
    counter: str
    ended: bool


@dataclass(frozen=True)
class KclLeaseTable:
    """The lease table and the coordinator table of one application.

    Args:
        application: Name of the consumer application, and of its lease table.
        region: Of the tables; None for that of the environment.
        endpoint_url: Of an emulator; None for the service.
        connect: Makes the client; replaced in tests.
        sleep: Waits some seconds.
    """

    application: str
    region: str | None
    endpoint_url: str | None
    connect: Callable[[str, str | None, str | None], Any] = client_of
    sleep: Callable[[float], None] = field(default=time.sleep)

    @cached_property
    def client(self) -> Any:  # noqa: ANN401 - boto3 has no types
        """The boto3 client, made on first use."""
        return self.connect("dynamodb", self.region, self.endpoint_url)

    @property
    def _coordinator_table(self) -> str:
        return f"{self.application}-CoordinatorState"

    def _call(self, operation: str, *expected: str, **arguments: Any) -> Any:  # noqa: ANN401
        """Call an operation; returns None when it fails with one of the expected error codes."""
        try:
            return getattr(self.client, operation)(**arguments)
        except Exception as error:
            code, sentence, _ = failure_of(error)
            if code in expected:
                return None
            if not code or type(error).__module__.startswith("scenario_runner"):
                raise
            raise Unavailable(f"table {arguments.get('TableName')} in DynamoDB: {sentence}") from error

    def disable_leader_election(self) -> None:
        """Write the state that keeps workers in the mode without a leader, unless there is a state already.

        Raises:
            Unavailable: DynamoDB does not answer, or refuses.
        """
        table = self._coordinator_table
        if self._call("describe_table", "ResourceNotFoundException", TableName=table) is None:
            # "In use" means that another worker creates the table at the same moment.
            self._call(
                "create_table", "ResourceInUseException", TableName=table, BillingMode="PAY_PER_REQUEST",
                KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
            )  # fmt: skip
        self._await_active(table)
        state = {
            "key": {"S": _STATE_KEY},
            "cv": {"S": _ROLLED_BACK},
            "mb": {"S": "scenario-runner"},
            "mts": {"N": str(time.time_ns() // 1_000_000)},
        }
        # Only where there is none: to switch the mode under workers of another consumer is not for us to do.
        written = self._call(
            "put_item", "ConditionalCheckFailedException", TableName=table, Item=state,
            ConditionExpression="attribute_not_exists(#k)", ExpressionAttributeNames={"#k": "key"},
        )  # fmt: skip
        if written is not None:
            return
        found = self._call("get_item", TableName=table, Key={"key": {"S": _STATE_KEY}}, ConsistentRead=True)
        version = found.get("Item", {}).get("cv", {}).get("S")
        if version != _ROLLED_BACK:
            _log.warning(
                "this application elects a leader; when the leader is killed, its shards are not read for two minutes",
                table=table, state=version,
            )  # fmt: skip

    def _await_active(self, table: str) -> None:
        def check() -> None:
            found = self._call("describe_table", "ResourceNotFoundException", TableName=table)
            if found is None or found["Table"]["TableStatus"] not in ("ACTIVE", "UPDATING"):
                raise _NotActiveError

        try:
            with_retries(check, _UNTIL_ACTIVE, lambda error: isinstance(error, _NotActiveError), wait=self.sleep)
        except _NotActiveError as error:
            raise Unavailable(f"table {table} in DynamoDB is still being created") from error

    def stream_identity(self) -> str:
        """Identity of the stream that the leases are about; empty when none was stored.

        Raises:
            Unavailable: DynamoDB does not answer.
        """
        found = self._call(
            "get_item", "ResourceNotFoundException", TableName=self._coordinator_table,
            Key={"key": {"S": _STREAM_KEY}}, ConsistentRead=True,
        )  # fmt: skip
        return str((found or {}).get("Item", {}).get("stream", {}).get("S", ""))

    def store_stream_identity(self, identity: str) -> None:
        """Store the identity of the stream that the leases are about from now on.

        Raises:
            Unavailable: DynamoDB does not answer, or has no coordinator table.
        """
        item = {"key": {"S": _STREAM_KEY}, "stream": {"S": identity}}
        self._call("put_item", TableName=self._coordinator_table, Item=item)

    def leases(self) -> Mapping[str, ShardLease]:
        """All leases by shard id; empty when the table does not exist yet.

        Raises:
            Unavailable: DynamoDB does not answer.
        """
        found: dict[str, ShardLease] = {}
        start: dict[str, Any] = {}
        while True:
            page = self._call(
                "scan", "ResourceNotFoundException", TableName=self.application, ConsistentRead=True, **start
            )
            if page is None:
                return found
            found |= {item["leaseKey"]["S"]: _lease(item) for item in page["Items"]}
            if not page.get("LastEvaluatedKey"):
                return found
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    def delete_leases(self, shard_ids: Iterable[str]) -> None:
        """Delete leases, so that KCL creates them again at the start position.

        Raises:
            Unavailable: DynamoDB does not answer.
        """
        for shard_id in shard_ids:
            self._call("delete_item", TableName=self.application, Key={"leaseKey": {"S": shard_id}})


def _lease(item: Mapping[str, Any]) -> ShardLease:
    return ShardLease(
        owner=item.get("leaseOwner", {}).get("S", ""),
        counter=item.get("leaseCounter", {}).get("N", ""),
        ended=item.get("checkpoint", {}).get("S") == "SHARD_END",
    )
