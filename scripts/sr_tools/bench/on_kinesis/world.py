"""A world whose control bus is a Kinesis stream of its own."""

import uuid
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import override

from sr_tools import kinesis
from sr_tools.bench.on_kinesis.daemon import KinesisDaemon
from sr_tools.bench.report import Json
from sr_tools.bench.subject import Subject
from sr_tools.bench.world import World


@dataclass(frozen=True)
class Endpoints:
    """Where Kinesis and DynamoDB are."""

    kinesis: str
    dynamodb: str
    region: str

    @classmethod
    def from_environment(cls, env: MutableMapping[str, str]) -> "Endpoints":
        """The endpoints that SR_KINESIS_* name.

        The environment is changed for the daemons that inherit it, where it goes before their profiles: it names the
        DynamoDB that was found, credentials that an emulator accepts, and no stream, because that would override the
        worlds' own ones.

        Raises:
            NoEndpointError: One is not named and cannot be started.
        """
        named, region = env.get("SR_KINESIS_ENDPOINT_URL", ""), env.get("SR_KINESIS_REGION", "us-east-1")
        if not named:
            raise kinesis.NoEndpointError(
                "SR_KINESIS_ENDPOINT_URL is not set: scripts/localstack.sh start, then see .env.localstack.example"
            )
        env.pop("SR_KINESIS_STREAM", None)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            env.setdefault(name, "test")
        dynamodb = kinesis.find_dynamodb(env.get("SR_KINESIS_DYNAMODB_ENDPOINT_URL", ""), named, region)
        env["SR_KINESIS_DYNAMODB_ENDPOINT_URL"] = dynamodb
        return cls(named, dynamodb, region)

    def client(self, service: str = "kinesis") -> Any:  # noqa: ANN401 - an untyped library
        """A boto3 client of one of the two."""
        return kinesis.client(service, self.dynamodb if service == "dynamodb" else self.kinesis, self.region)


@dataclass(frozen=True, kw_only=True)
class KinesisWorld(World):
    """See the module.

    Attributes:
        endpoints: Where Kinesis and DynamoDB are.
        stream: Name of its stream.
        timing: Of KCL: ``production`` or ``fast``.
    """

    endpoints: Endpoints
    stream: str
    timing: str

    @classmethod
    def on_stream(
        cls, root: Path, subject: Subject, endpoints: Endpoints, *, shards: int, timing: str, leases: bool
    ) -> "KinesisWorld":
        """A world with a new stream, ready to serve in.

        Args:
            root: Its folder.
            subject: What is measured.
            endpoints: Where Kinesis and DynamoDB are.
            shards: Of the stream.
            timing: Of KCL.
            leases: Whether the lease table is there beforehand.
        """
        stream = f"sr-{uuid.uuid4().hex[:12]}"
        kinesis.make_stream(endpoints.client(), stream, shards)
        # KCL needs minutes for what the other benches do in seconds, so no timeout kills these daemons.
        world = cls(root=root, runs=root / "runs", subject=subject, timeout=float("inf"), endpoints=endpoints,
                    stream=stream, timing=timing)  # fmt: skip
        world.prepare()
        if leases:
            kinesis.make_lease_table(world.dynamodb, endpoints.client(), world.application, stream)
        return world

    @override
    def wiring(self) -> Json:
        wiring = super().wiring()
        del wiring["control_bus_root"]
        return wiring | {
            "control_bus_kind": "kinesis",
            "control_bus_stream": self.stream,
            "control_bus_region": self.endpoints.region,
            "control_bus_endpoint_url": self.endpoints.kinesis,
            "kinesis_dynamodb_endpoint_url": self.endpoints.dynamodb,
            "kinesis_state_dir": str(self.root / "kinesis"),
            "kinesis_timing": self.timing,
        }

    @property
    def application(self) -> str:
        """Name of the KCL application, and of its lease table."""
        return f"scenario-runner-{self.stream}"

    @cached_property
    def dynamodb(self) -> Any:  # noqa: ANN401 - an untyped library
        """A client of the lease table's database."""
        return self.endpoints.client("dynamodb")

    @override
    def serve(self, *more: str) -> "KinesisDaemon":
        return KinesisDaemon(self.subject, self.serve_arguments(*more), self.next_log(), self.timeout)

    def put(self, *documents: object, client: Any = None) -> list[str]:  # noqa: ANN401 - an untyped client
        """Put records on the stream; returns the keys that the authority knows them by."""
        return kinesis.put_records(client or self.endpoints.client(), self.stream, documents)

    def records(self) -> list[tuple[str, bytes]]:
        """The key and the data of every record of the stream's first shard."""
        return kinesis.read_shard(self.endpoints.client(), self.stream)

    def requests_for(self, count: int, key: str = "key", worlds: int = 1) -> list[Json]:
        """Requests for a few sealed engine runs, each under a run equivalence key of its own."""
        made = [self.make_engine_run(f"{key}-world-{number}", number, members=2, parts=1) for number in range(worlds)]
        return [{**made[number % worlds], "run_equivalence_key": f"{key}-{number}"} for number in range(count)]

    def dispositions(self) -> dict[str, str]:
        """Disposition of every record by its key, SR's own signals left out."""
        rows = self.query("SELECT record_key, disposition FROM intake_records WHERE disposition != 'IGNORED'")
        return {str(key): str(disposition) for key, disposition in rows}

    def disposed(self) -> int:
        """How many records have a disposition, SR's own signals left out."""
        rows = self.query("SELECT count(*) FROM intake_records WHERE disposition != 'IGNORED'")
        return int(rows[0][0]) if rows else 0

    def sent(self) -> dict[str, int]:
        """When READY of each run was on the stream, in microseconds since the epoch."""
        rows = self.query("SELECT run_id, sent_us FROM outbox WHERE kind = 'READY' AND sent_us IS NOT NULL")
        return {str(run_id): int(at) for run_id, at in rows}

    def lease_owners(self) -> dict[str, str]:
        """The worker that holds each shard's lease."""
        return kinesis.lease_owners(self.dynamodb, self.application)
