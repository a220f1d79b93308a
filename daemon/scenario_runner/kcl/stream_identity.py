"""Which stream the leases of an application are about, and whether that is the stream that has its name today.

A stream that is deleted and made again has the old one's name and shard ids, and none of its records. KCL does not see
the difference: it takes the checkpoints of the old one for the new one's, and after SHARD_END it never reads a shard.
So the identity of the stream is kept beside the leases (docs/adr/0019). Whether a person wanted the change is for a
person to say: nothing is read until the leases are adopted for the new stream.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from scenario_runner.bus.stream import Stream
from scenario_runner.contracts.errors import ConfigurationError, UsageError
from scenario_runner.kcl.lease_table import Lease, Tables

_RENEWED_WITHIN_SECONDS: Final = 4.0
"""A worker that lives renews its leases every third of ``failoverTimeMillis``, which is 10 s at most in practice."""
_log = structlog.get_logger("intake")


@dataclass(frozen=True)
class LeaseState:
    """The leases of an application beside the stream that they should be about.

    Attributes:
        stream: Identity of the stream today.
        noted: Identity of the stream that the leases are about; empty when that was never noted.
        leases: By shard id.
        open_shards: Ids of the shards that still take records, listed after the leases.
    """

    stream: str
    noted: str
    leases: Mapping[str, Lease]
    open_shards: Sequence[str]

    @property
    def problem(self) -> str:
        """Why the leases cannot be about the stream; empty when they can."""
        if not self.leases:
            return ""
        if self.noted and self.noted != self.stream:
            return f"its leases are about another stream ({self.noted}) than the one of this name today ({self.stream})"
        ended = [shard_id for shard_id in self.open_shards if shard_id in self.leases and self.leases[shard_id].ended]
        if ended:
            return (
                f"{', '.join(ended[:3])} ended by its lease and is open on the stream, so it is another stream's lease"
            )
        return ""


def is_open(shard: Mapping[str, Any]) -> bool:
    """True while a shard takes records."""
    return "EndingSequenceNumber" not in shard["SequenceNumberRange"]


def read_state(stream: Stream, tables: Tables) -> LeaseState:
    """Ask both; a shard that ends meanwhile is not taken for an open one.

    Raises:
        ConfigurationError: the stream does not exist.
        Unavailable: the stream or DynamoDB does not answer.
    """
    identity, noted, leases = stream.identity(), tables.stream_identity(), tables.leases()
    return LeaseState(identity, noted, leases, [shard["ShardId"] for shard in stream.shards() if is_open(shard)])


def check(stream: Stream, tables: Tables) -> LeaseState:
    """Read the state of leases that can be about the stream.

    Raises:
        ConfigurationError: they cannot, or the stream does not exist.
        Unavailable: the stream or DynamoDB does not answer.
    """
    state = read_state(stream, tables)
    if state.problem:
        raise made_anew(stream.name, tables.application, state.problem)
    return state


def made_anew(stream: str, application: str, problem: str) -> ConfigurationError:
    """The refusal to read a stream under leases that are about another one."""
    return ConfigurationError(
        f"stream {stream}, lease table {application}",
        f"the stream was deleted and made anew: {problem}; nothing is read, or records would be lost without a word",
        "stop every daemon of this application, then 'scenario-runner stream adopt --wiring FILE' forgets the old "
        "leases; or choose another kinesis_application_name",
    )


def note(stream: Stream, tables: Tables) -> None:
    """Keep the stream's identity beside leases that can be about it; the coordinator table is there.

    Raises:
        ConfigurationError: they cannot, or the stream does not exist.
        Unavailable: the stream or DynamoDB does not answer.
    """
    state = check(stream, tables)
    if state.noted and state.noted != state.stream:
        _log.warning("the stream was made anew; there are no leases about the former one", stream=state.stream,
                     former=state.noted)  # fmt: skip
    if state.noted != state.stream:
        tables.keep_stream_identity(state.stream)


def adopt(stream: Stream, tables: Tables, sleep: Callable[[float], None]) -> LeaseState:
    """Forget leases that are not about the stream, so that all of it is read: an operator's act.

    Args:
        stream: The stream.
        tables: KCL's tables.
        sleep: Waits some seconds.

    Returns:
        The state before; nothing was done when it has no problem.

    Raises:
        UsageError: a daemon of the application runs.
        ConfigurationError: the stream does not exist.
        Unavailable: the stream or DynamoDB does not answer.
    """
    state = read_state(stream, tables)
    if not state.problem:
        return state
    sleep(_RENEWED_WITHIN_SECONDS)
    later = tables.leases()
    owners = {lease.owner for shard_id, lease in later.items()
              if lease.owner and lease.counter != state.leases.get(shard_id, lease).counter}  # fmt: skip
    if owners:
        raise UsageError(
            f"a daemon of {tables.application} runs ({', '.join(sorted(owners)[:3])}); stop all of them first"
        )
    tables.make_leaderless()
    tables.forget_leases(later)
    tables.keep_stream_identity(state.stream)
    return state
