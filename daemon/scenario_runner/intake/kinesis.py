"""Consuming a Kinesis stream with KCL 3: this process supervises a JVM, whose record processors admit the records.

Leases, resharding, hand-over and checkpoints are KCL's. What is ours: records are disposed of before they are
checkpointed (``kcl.processor``), worker ids are stable and unique (``kcl.slots``), the JVM runs while it is wanted and
not longer (``kcl.keeper``).
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog

from scenario_runner.bus.stream import Stream
from scenario_runner.contracts.canonical import Json, canonical_bytes
from scenario_runner.contracts.errors import ConfigurationError, ScenarioRunnerError, Unavailable
from scenario_runner.kcl import config as kcl_config
from scenario_runner.kcl import stream_identity as identity
from scenario_runner.kcl.lease_table import Lease, Tables
from scenario_runner.kcl.shard_status import Doing, Report
from scenario_runner.kcl.supervisor import Keeper, Recipe
from scenario_runner.kcl.worker_ids import Slot, take_slot
from scenario_runner.profiles.wiring import Wiring

_GIVE_UP_AFTER: Final = 3
_LOOK_SECONDS: Final = 0.5
_SAME_STREAM_SECONDS: Final = {"production": 30.0, "fast": 3.0}
"""By ``kinesis_timing``: how often a running daemon makes sure that its stream was not made anew."""
_log = structlog.get_logger("intake")


@dataclass(frozen=True)
class _Parts:
    """What there is once the intake is open."""

    slot: Slot
    keeper: Keeper


class KinesisIntake:
    """See the module.

    Args:
        wiring: The profile.
        stream: The stream.
        tables: KCL's tables.
        child: What record processors need to know, as JSON values.
        pack: The interface pack that requests are judged by: the one that the daemon was started with and has pinned,
            whatever lies in the profile's files by the time a record processor starts.
        monotonic: Seconds, never going back.
    """

    def __init__(
        self,
        wiring: Wiring,
        stream: Stream,
        tables: Tables,
        child: Mapping[str, Any],
        pack: Json,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wiring, self._stream, self._tables, self._child = wiring, stream, tables, child
        self._pack = pack
        self._parts: _Parts | None = None
        self._counted: dict[tuple[str, int], int] = {}
        self._seen: dict[str, Lease] = {}
        self._monotonic, self._look_again = monotonic, 0.0
        self._identity, self._same_until = "", 0.0

    def open(self) -> None:
        """See :class:`~scenario_runner.intake.base.Intake`: Java, the jars and the leases' stream must be there."""
        java, jars = kcl_config.find_java(os.environ), kcl_config.find_jars()
        self._stream.check()
        self._identity = self._stream.identity()
        with suppress(Unavailable):  # DynamoDB may come later, and the same is asked then
            identity.check(self._stream, self._tables)
        slot = take_slot(
            self._wiring.kinesis_state_dir, self._wiring.kinesis_application, self._wiring.kinesis_worker_id
        )
        region = str(self._stream.client.meta.region_name)
        properties, pack = (os.path.join(slot.folder, name) for name in ("kcl.properties", "interface_pack.json"))
        try:
            with open(properties, "w", encoding="ascii") as file:
                file.write(kcl_config.render(kcl_config.properties_of(self._wiring, region, slot.worker_id)))
            with open(pack, "wb") as packed:
                packed.write(canonical_bytes(self._pack))
        except OSError as error:
            slot.release()
            raise Unavailable(f"cannot write to {slot.folder}: {error.strerror}") from error
        logging = os.path.join(os.path.dirname(kcl_config.__file__), "logback.xml")
        command = kcl_config.command_of(self._wiring, java, jars, properties, logging)
        recipe = Recipe(command, kcl_config.jvm_environment(os.environ), {**self._child, "pack": pack})
        keeper = Keeper(slot, recipe, self._prepare)
        keeper.start()
        self._parts = _Parts(slot, keeper)

    def _prepare(self) -> bool:
        try:
            self._tables.make_leaderless()
            identity.note(self._stream, self._tables)
        except ConfigurationError:
            raise
        except ScenarioRunnerError as error:
            _log.warning("waiting for DynamoDB, where KCL keeps its leases", detail=error.detail)
            return False
        return True

    def step(self) -> int:
        """How many records were disposed of since the last call.

        Raises:
            ConfigurationError: the stream was made anew.
            Unavailable: KCL ended several times in a row without handing out anything.
        """
        if self._parts is None:
            return 0
        if self._monotonic() >= self._same_until:
            self._look_at_stream()
        disposed = 0
        for report in self._parts.keeper.reports().values():
            key = (report.shard_id, report.pid)
            disposed += report.records - self._counted.get(key, 0)
            self._counted[key] = report.records
        if self._parts.keeper.failures >= _GIVE_UP_AFTER and not disposed:
            raise Unavailable("KCL does not come up; the log says why")
        return disposed

    def _look_at_stream(self) -> None:
        """Make sure that the stream is still the one that was opened; one that is away may come back."""
        self._same_until = self._monotonic() + _SAME_STREAM_SECONDS[self._wiring.kinesis_timing]
        try:
            found = self._stream.identity()
        except (ConfigurationError, Unavailable) as error:
            _log.error("the stream is away; its records are waited for", detail=error.detail)
        else:
            self._check_same(found)

    def _check_same(self, found: str) -> None:
        if found != self._identity:
            problem = f"it was {self._identity} when the daemon started, and is {found}"
            raise identity.made_anew(self._stream.name, self._tables.application, problem)

    def empty(self) -> bool:
        """True when every open shard is consumed to its tip by us, or in the hands of another worker that lives.

        Raises:
            ConfigurationError: the leases are not about this stream, so nobody can say.
            Unavailable: the stream or DynamoDB does not answer.
        """
        if self._parts is None:
            return True
        now = self._monotonic()
        reports = self._parts.keeper.reports()
        busy = any(report.doing is not Doing.ENDED and not _caught_up(report) for report in reports.values())
        if busy or now < self._look_again:
            return False
        self._look_again = now + _LOOK_SECONDS
        state = identity.check(self._stream, self._tables)
        self._check_same(state.stream)
        leases = state.leases
        worker, settled = self._parts.slot.worker_id, True
        for shard_id, lease in leases.items():
            ours = lease.owner in ("", worker)
            lives = self._moves(shard_id, lease)
            settled &= lease.ended or (_caught_up(reports.get(shard_id)) if ours else lives)
        return settled and all(shard_id in leases for shard_id in state.open_shards)

    def _moves(self, shard_id: str, lease: Lease) -> bool:
        """True when the owner of a lease was seen to renew it."""
        before = self._seen.get(shard_id)
        if before is None or before.owner != lease.owner:
            self._seen[shard_id] = lease
            return False
        return before.counter != lease.counter

    def sweep(self) -> int:
        """Nothing: a slot is swept when it is taken."""
        return 0

    def close(self) -> None:
        """Let record processors finish and checkpoint, then end the JVM."""
        if self._parts is None:
            return
        self._parts.keeper.stop()
        self._parts.slot.release()
        self._parts = None


def _caught_up(report: Report | None) -> bool:
    return report is not None and report.doing is Doing.IDLE and report.caught_up
