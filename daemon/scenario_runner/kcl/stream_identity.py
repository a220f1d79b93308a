"""Checks that the leases of an application are about the stream that has its name today.

A stream that is deleted and created again keeps the name and the shard ids of the old stream and has none of its
records. KCL does not see the difference: it applies the old checkpoints to the new stream, and it never reads a shard
whose lease says SHARD_END. So SR stores the identity of the stream beside the leases (docs/adr/0019). Only a person
knows whether the stream was meant to be replaced: nothing is read until an operator adopts the new stream.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from scenario_runner.bus.stream import Stream
from scenario_runner.contracts.errors import ConfigurationError, UsageError
from scenario_runner.kcl.lease_table import KclLeaseTable, ShardLease

#: A live worker renews its leases every third of ``failoverTimeMillis``, which is at most 10 s in practice.
_RENEWED_WITHIN_SECONDS: Final = 4.0
#: Names in a message for people: some show what kind of thing it is, all would hide the sentence.
_NAMED: Final = 3
_log = structlog.get_logger("kcl")


@dataclass(frozen=True)
class LeaseState:
    """The leases of an application, and the stream that they should be about.

    Attributes:
        stream: Identity of the stream today.
        recorded: Identity of the stream that the leases are about; empty when none was stored.
        leases: Leases by shard id.
        open_shards: Ids of the shards that still take records, listed after the leases.
    """

    stream: str
    recorded: str
    leases: Mapping[str, ShardLease]
    open_shards: Sequence[str]

    @property
    def problem(self) -> str:
        """Why the leases cannot be about the stream; empty when they can."""
        if not self.leases:
            return ""
        if self.recorded and self.recorded != self.stream:
            return (
                f"its leases are about another stream ({self.recorded}) than the one of this name today ({self.stream})"
            )
        ended = [shard_id for shard_id in self.open_shards if shard_id in self.leases and self.leases[shard_id].ended]
        if ended:
            shards = ", ".join(ended[:_NAMED])
            return f"{shards} ended by its lease and is open on the stream, so it is another stream's lease"
        return ""


def is_open(shard: Mapping[str, Any]) -> bool:
    """Whether a shard takes records."""
    return "EndingSequenceNumber" not in shard["SequenceNumberRange"]


def read_lease_state(stream: Stream, table: KclLeaseTable) -> LeaseState:
    """Read the leases and the stream.

    The leases are read before the shards: a shard that ends between the two reads is then neither ended by its lease
    nor open, which is no contradiction.

    Raises:
        ConfigurationError: The stream does not exist.
        Unavailable: The stream or DynamoDB does not answer.
    """
    identity, recorded, leases = stream.identity(), table.stream_identity(), table.leases()
    return LeaseState(identity, recorded, leases, [shard["ShardId"] for shard in stream.shards() if is_open(shard)])


def check_leases(stream: Stream, table: KclLeaseTable) -> LeaseState:
    """Check that the leases can be about the stream; returns what was read.

    Raises:
        ConfigurationError: They cannot, or the stream does not exist.
        Unavailable: The stream or DynamoDB does not answer.
    """
    state = read_lease_state(stream, table)
    if state.problem:
        raise stream_was_replaced(stream.name, table.application, state.problem)
    return state


def stream_was_replaced(stream: str, application: str, problem: str) -> ConfigurationError:
    """The refusal to read a stream under leases that are about another stream."""
    return ConfigurationError(
        f"stream {stream}, lease table {application}",
        f"the stream was deleted and made anew: {problem}; nothing is read, because records would be lost silently",
        "stop every daemon of this application, then 'scenario-runner stream adopt --wiring FILE' forgets the old "
        "leases; or choose another kinesis_application_name",
    )


def record_stream_identity(stream: Stream, table: KclLeaseTable) -> None:
    """Store the identity of the stream beside its leases, once it was checked; the coordinator table exists.

    Raises:
        ConfigurationError: The leases are about another stream, or the stream does not exist.
        Unavailable: The stream or DynamoDB does not answer.
    """
    state = check_leases(stream, table)
    if state.recorded == state.stream:
        return
    if state.recorded:
        _log.warning("the stream was deleted and made anew; there are no leases of the former stream",
                     stream=state.stream, former=state.recorded)  # fmt: skip
    table.store_stream_identity(state.stream)


def adopt_new_stream(stream: Stream, table: KclLeaseTable, sleep: Callable[[float], None]) -> LeaseState:
    """Delete leases that are not about the stream, so that all of the stream is read: an operator's decision.

    Args:
        stream: The stream.
        table: KCL's tables.
        sleep: Waits some seconds.

    Returns:
        The state before. When it shows no problem, nothing was changed.

    Raises:
        UsageError: A daemon of the application runs.
        ConfigurationError: The stream does not exist.
        Unavailable: The stream or DynamoDB does not answer.
    """
    state = read_lease_state(stream, table)
    if not state.problem:
        return state
    # A worker that runs would write its old leases again. Its counters grow while we wait, those of a dead one do not.
    sleep(_RENEWED_WITHIN_SECONDS)
    later = table.leases()
    owners = {lease.owner for shard_id, lease in later.items()
              if lease.owner and lease.counter != state.leases.get(shard_id, lease).counter}  # fmt: skip
    if owners:
        raise UsageError(
            f"a daemon of {table.application} runs ({', '.join(sorted(owners)[:_NAMED])}); stop all of them first"
        )
    table.disable_leader_election()
    # In this order: after a kill between the two the stored identity names the former stream, so leases that are left
    # are still refused. The other way round they would pass for leases of the new stream.
    table.delete_leases(later)
    table.store_stream_identity(state.stream)
    return state
