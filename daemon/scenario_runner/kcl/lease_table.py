"""What SR itself reads and writes of KCL's tables in DynamoDB.

KCL 3 elects a leader that hands out the leases, and a killed leader's lock lasts two minutes. Its 2.x-compatible mode
has no leader, but leaves that mode by itself once every worker could, unless the application's state says that it was
rolled back (``CLIENT_VERSION_2X``). That state is written here, once, before the first worker starts (docs/adr/0015).
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import structlog

from scenario_runner.bus.stream import client_of, failure_of
from scenario_runner.contracts.errors import Unavailable

_STATE_KEY: Final = "Migration3.0"
_STREAM_KEY: Final = "ScenarioRunnerStream"
"""A row of our own in the coordinator table, of which KCL reads rows by key only."""
_LEADERLESS: Final = "CLIENT_VERSION_2X"
_ACTIVE_SECONDS: Final = 60.0
_log = structlog.get_logger("intake")


@dataclass(frozen=True, slots=True)
class Lease:
    """A shard's lease.

    Attributes:
        owner: Worker id, or empty.
        counter: Grows while the owner lives.
        ended: All of the shard was consumed.
    """

    owner: str
    counter: str
    ended: bool


@dataclass(frozen=True)
class Tables:
    """KCL's tables of one application.

    Args:
        application: The consumer application.
        region: Of the tables; the environment's when None.
        endpoint_url: Of an emulator; None for the service.
        connect: Makes the client; for tests.
        sleep: Pauses.
    """

    application: str
    region: str | None
    endpoint_url: str | None
    connect: Callable[[str, str | None, str | None], Any] = client_of
    sleep: Callable[[float], None] = field(default=time.sleep)

    @cached_property
    def client(self) -> Any:  # noqa: ANN401 - boto3 has no types
        """The boto3 client, made when first wanted."""
        return self.connect("dynamodb", self.region, self.endpoint_url)

    def _ask(self, operation: str, *expected: str, **arguments: Any) -> Any:  # noqa: ANN401
        """Call an operation; None when it fails with one of the expected codes."""
        try:
            return getattr(self.client, operation)(**arguments)
        except Exception as error:
            code, sentence, _ = failure_of(error)
            if code in expected:
                return None
            if not code or type(error).__module__.startswith("scenario_runner"):
                raise
            raise Unavailable(f"table {arguments.get('TableName')} in DynamoDB: {sentence}") from error

    def make_leaderless(self) -> None:
        """Write the state that keeps workers in the mode without a leader, unless there is one already.

        Raises:
            Unavailable: DynamoDB does not answer, or refuses.
        """
        table = f"{self.application}-CoordinatorState"
        if self._ask("describe_table", "ResourceNotFoundException", TableName=table) is None:
            self._ask(
                "create_table", "ResourceInUseException", TableName=table, BillingMode="PAY_PER_REQUEST",
                KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
            )  # fmt: skip
        self._until_active(table)
        state = {
            "key": {"S": _STATE_KEY},
            "cv": {"S": _LEADERLESS},
            "mb": {"S": "scenario-runner"},
            "mts": {"N": str(time.time_ns() // 1_000_000)},
        }
        made = self._ask(
            "put_item", "ConditionalCheckFailedException", TableName=table, Item=state,
            ConditionExpression="attribute_not_exists(#k)", ExpressionAttributeNames={"#k": "key"},
        )  # fmt: skip
        if made is not None:
            return
        found = self._ask("get_item", TableName=table, Key={"key": {"S": _STATE_KEY}}, ConsistentRead=True)
        version = found.get("Item", {}).get("cv", {}).get("S")
        if version != _LEADERLESS:
            _log.warning("this application elects a leader; when the leader is killed its shards rest for two minutes",
                         table=table, state=version)  # fmt: skip

    def stream_identity(self) -> str:
        """Identity of the stream that the leases are about; empty when it was never kept.

        Raises:
            Unavailable: DynamoDB does not answer.
        """
        found = self._ask(
            "get_item", "ResourceNotFoundException", TableName=f"{self.application}-CoordinatorState",
            Key={"key": {"S": _STREAM_KEY}}, ConsistentRead=True,
        )  # fmt: skip
        return str((found or {}).get("Item", {}).get("stream", {}).get("S", ""))

    def keep_stream_identity(self, identity: str) -> None:
        """Keep the identity of the stream that the leases are about from now on.

        Raises:
            Unavailable: DynamoDB does not answer, or has no coordinator table.
        """
        item = {"key": {"S": _STREAM_KEY}, "stream": {"S": identity}}
        self._ask("put_item", TableName=f"{self.application}-CoordinatorState", Item=item)

    def forget_leases(self, shard_ids: Iterable[str]) -> None:
        """Delete leases, so that KCL makes them anew from the start position.

        Raises:
            Unavailable: DynamoDB does not answer.
        """
        for shard_id in shard_ids:
            self._ask("delete_item", TableName=self.application, Key={"leaseKey": {"S": shard_id}})

    def _until_active(self, table: str) -> None:
        deadline = time.monotonic() + _ACTIVE_SECONDS
        while True:
            found = self._ask("describe_table", "ResourceNotFoundException", TableName=table)
            if found is not None and found["Table"]["TableStatus"] in ("ACTIVE", "UPDATING"):
                return
            if time.monotonic() > deadline:
                raise Unavailable(f"table {table} in DynamoDB is still being created")
            self.sleep(0.2)

    def leases(self) -> Mapping[str, Lease]:
        """Leases by shard id; none when the table does not exist yet.

        Raises:
            Unavailable: DynamoDB does not answer.
        """
        found: dict[str, Lease] = {}
        more: dict[str, Any] = {}
        while True:
            page = self._ask(
                "scan", "ResourceNotFoundException", TableName=self.application, ConsistentRead=True, **more
            )
            if page is None:
                return found
            for item in page["Items"]:
                ended = item.get("checkpoint", {}).get("S") == "SHARD_END"
                found[item["leaseKey"]["S"]] = Lease(
                    item.get("leaseOwner", {}).get("S", ""), item.get("leaseCounter", {}).get("N", ""), ended
                )
            if not page.get("LastEvaluatedKey"):
                return found
            more = {"ExclusiveStartKey": page["LastEvaluatedKey"]}
