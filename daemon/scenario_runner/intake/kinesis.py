"""Consuming a Kinesis stream with KCL 3: this process supervises a JVM, whose shard workers admit the records.

KCL assigns leases, follows resharding and stores checkpoints. SR sees to the rest: a record is disposed of before it is
checkpointed (:mod:`~scenario_runner.intake.kcl_processor`), worker ids are stable and unique
(:mod:`~scenario_runner.kcl.worker_ids`), and the JVM runs exactly as long as the intake is open
(:mod:`~scenario_runner.kcl.supervisor`).
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
from typing_extensions import override

from scenario_runner.bus.stream import Stream
from scenario_runner.contracts.canonical import Json, canonical_bytes
from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.counters import count, observing
from scenario_runner.intake.base import Intake, IntakeLag
from scenario_runner.kcl import config as kcl_config
from scenario_runner.kcl import stream_identity
from scenario_runner.kcl.lease_table import KclLeaseTable, ShardLease
from scenario_runner.kcl.shard_status import ProcessorState, ShardStatus
from scenario_runner.kcl.supervisor import JvmSupervisor, LaunchSpec
from scenario_runner.kcl.worker_ids import WorkerIdLease, lease_worker_id
from scenario_runner.profiles.wiring import Wiring

#: One start may fail for a reason that passes; three in a row are an outage that an operator must hear of.
_GIVE_UP_AFTER: Final = 3
#: ``--until-idle`` asks many times a second; the lease table is read at most twice.
_LEASE_CHECK_SECONDS: Final = 0.5
_IDENTITY_CHECK_SECONDS: Final = {"production": 30.0, "fast": 3.0}
"""By ``kinesis_timing``: how often a running daemon checks that its stream was not deleted and created again."""

_log = structlog.get_logger("intake")


@dataclass(frozen=True)
class _Running:
    """What exists while the intake is open."""

    worker: WorkerIdLease
    supervisor: JvmSupervisor


class KinesisIntake(Intake):
    """Consumes a stream.

    Args:
        wiring: The profile.
        stream: The stream.
        lease_table: KCL's tables.
        worker_config: What shard workers need to know, as JSON values.
        pack: The interface pack that requests are validated against: the pack that the daemon was started with and has
            pinned, even when the profile's files have changed by the time a shard worker starts.
        monotonic: Seconds, never going back.
    """

    def __init__(
        self,
        wiring: Wiring,
        stream: Stream,
        lease_table: KclLeaseTable,
        worker_config: Mapping[str, Any],
        pack: Json,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        # A daemon that ends for a configuration error is not started again, also not once the keys are right.
        self._stream = replace(stream, denials_pass=True)
        self._wiring, self._lease_table = wiring, lease_table
        self._worker_config, self._pack, self._monotonic = worker_config, pack, monotonic
        self._running: _Running | None = None
        # What of the counts of shard workers is taken over already, by shard and process.
        self._records_seen: dict[tuple[str, int], int] = {}
        self._counts_seen: dict[tuple[str, int, str, str], float] = {}
        self._first_seen: dict[str, ShardLease] = {}  # leases of other workers
        self._next_lease_check = 0.0
        self._identity, self._next_identity_check = "", 0.0

    @override
    def open(self) -> None:
        java, jars = kcl_config.find_java(os.environ), kcl_config.find_jars()
        self._stream.check()
        self._identity = self._stream.identity()
        with suppress(Unavailable):  # DynamoDB may start later than SR: _prepare checks the same
            stream_identity.check_leases(self._stream, self._lease_table)
        worker = lease_worker_id(
            self._wiring.kinesis_state_dir, self._wiring.kinesis_application, self._wiring.kinesis_worker_id
        )
        try:
            spec = self._write_launch_files(worker, java, jars)
        except OSError as error:
            worker.release()
            raise Unavailable(f"cannot write to {worker.folder}: {error.strerror}") from error
        supervisor = JvmSupervisor(worker, spec, self._prepare)
        supervisor.start()
        self._running = _Running(worker, supervisor)

    def _write_launch_files(self, worker: WorkerIdLease, java: str, jars: str) -> LaunchSpec:
        """Write what the JVM and its shard workers read from files; returns how to start the JVM."""
        region = str(self._stream.client.meta.region_name)
        properties, pack = (os.path.join(worker.folder, name) for name in ("kcl.properties", "interface_pack.json"))
        with open(properties, "w", encoding="ascii") as file:
            file.write(kcl_config.render_properties(kcl_config.kcl_properties(self._wiring, region, worker.worker_id)))
        with open(pack, "wb") as packed:
            packed.write(canonical_bytes(self._pack))
        logging = os.path.join(os.path.dirname(kcl_config.__file__), "logback.xml")
        command = kcl_config.jvm_command(self._wiring, java, jars, properties, logging)
        return LaunchSpec(command, kcl_config.jvm_environment(os.environ), {**self._worker_config, "pack": pack})

    def _prepare(self) -> None:
        """Write to DynamoDB what must be there before the first worker starts.

        Raises:
            ConfigurationError: The leases are not about the stream.
            Unavailable: DynamoDB or the stream does not answer yet.
        """
        try:
            self._lease_table.disable_leader_election()
            stream_identity.record_stream_identity(self._stream, self._lease_table)
        except Unavailable as error:
            _log.warning("waiting for DynamoDB, where KCL keeps its leases", detail=error.detail)
            raise

    @override
    def step(self) -> int:
        if self._running is None:
            return 0
        if self._monotonic() >= self._next_identity_check:
            self._check_stream()
        disposed = 0
        for status in self._running.supervisor.statuses().values():
            key = (status.shard_id, status.pid)
            disposed += status.records - self._records_seen.get(key, 0)
            self._records_seen[key] = status.records
            self._take_over_counts(status)
        if self._running.supervisor.failures >= _GIVE_UP_AFTER and not disposed:
            raise Unavailable("KCL does not come up; the log says why")
        return disposed

    @observing
    def _take_over_counts(self, status: ShardStatus) -> None:
        """Count here what a shard worker has counted since its status was read last.

        What a worker counts after that is lost when it is killed; nothing is counted twice.
        """
        for name, label, value in status.counts:
            key = (status.shard_id, status.pid, name, label)
            count(name, label, by=value - self._counts_seen.get(key, 0.0))
            self._counts_seen[key] = value

    @override
    def lags(self) -> list[IntakeLag]:
        if self._running is None:
            return []
        now, wall = self._monotonic(), time.time()
        return [
            _lag(status, now, wall)
            for status in self._running.supervisor.statuses().values()
            if status.state is not ProcessorState.ENDED
        ]

    def _check_stream(self) -> None:
        """Check that the stream is the one that was opened; a stream that is missing may be created again."""
        self._next_identity_check = self._monotonic() + _IDENTITY_CHECK_SECONDS[self._wiring.kinesis_timing]
        try:
            identity = self._stream.identity()
        except (ConfigurationError, Unavailable) as error:
            _log.error("the stream cannot be read; SR waits for it", detail=error.detail)
        else:
            self._require_same(identity)

    def _require_same(self, identity: str) -> None:
        if identity != self._identity:
            problem = f"it was {self._identity} when the daemon started, and is {identity}"
            raise stream_identity.stream_was_replaced(self._stream.name, self._lease_table.application, problem)

    @override
    def empty(self) -> bool:
        """Whether every open shard is read to its tip by this worker, or leased by another worker that is alive.

        Raises:
            ConfigurationError: The leases are not about this stream, so that cannot be known.
            Unavailable: The stream or DynamoDB does not answer.
        """
        if self._running is None:
            return True
        statuses = self._running.supervisor.statuses()
        if any(item.state is not ProcessorState.ENDED and not _caught_up(item) for item in statuses.values()):
            return False
        now = self._monotonic()
        if now < self._next_lease_check:
            return False
        self._next_lease_check = now + _LEASE_CHECK_SECONDS
        state = stream_identity.check_leases(self._stream, self._lease_table)
        self._require_same(state.stream)
        # A list, not a generator: every lease must be looked at, or the owners of later ones are first seen too late.
        done = [self._is_done(shard_id, lease, statuses.get(shard_id)) for shard_id, lease in state.leases.items()]
        return all(done) and all(shard_id in state.leases for shard_id in state.open_shards)

    def _is_done(self, shard_id: str, lease: ShardLease, status: ShardStatus | None) -> bool:
        """Whether a shard needs nothing of this worker any more."""
        assert self._running is not None
        if lease.ended:
            return True
        # A lease without owner is ours to take as well as anybody's.
        if lease.owner in ("", self._running.worker.worker_id):
            return _caught_up(status)
        return self._is_renewed(shard_id, lease)

    def _is_renewed(self, shard_id: str, lease: ShardLease) -> bool:
        """Whether the owner of a lease was seen to renew it since the owner was first seen."""
        before = self._first_seen.get(shard_id)
        if before is None or before.owner != lease.owner:
            self._first_seen[shard_id] = lease
            return False
        return before.counter != lease.counter

    @override
    def sweep(self) -> int:
        return 0  # what a killed daemon left is removed when its worker id is leased again

    @override
    def close(self) -> None:
        if self._running is None:
            return
        self._running.supervisor.stop()
        for status in self._running.supervisor.statuses().values():
            self._take_over_counts(status)
        self._running.worker.release()
        self._running = None


def _lag(status: ShardStatus, now: float, wall: float) -> IntakeLag:
    in_hand = max(0.0, wall - status.oldest_at) if status.oldest_at else 0.0
    waiting = max(0.0, now - status.uncheckpointed_at) if status.uncheckpointed_at else 0.0
    return IntakeLag(
        status.shard_id, status.behind_seconds, max(status.behind_seconds, in_hand), waiting, max(0.0, now - status.at),
        status.state is not ProcessorState.IDLE,
    )  # fmt: skip


def _caught_up(status: ShardStatus | None) -> bool:
    return status is not None and status.state is ProcessorState.IDLE and status.caught_up
