"""How shard workers tell the supervisor what they do: one small file per shard, replaced as a whole.

The supervisor, ``--until-idle`` and logs read these files as hints. Nothing is decided by them: the authority knows
what was disposed of, and KCL's checkpoints say what was read.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from scenario_runner.counters import counts


class ProcessorState(StrEnum):
    """What a record processor does at the moment."""

    IDLE = "idle"
    ADMITTING = "admitting"
    WAITING = "waiting"  # for the authority
    ENDED = "ended"  # the shard has ended, or its lease was lost


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """What the record processor of one shard does.

    Attributes:
        generation: Names the JVM that started the processor. Files of earlier JVMs mean nothing.
        shard_id: The shard.
        pid: Process id of the shard worker.
        state: What the processor does.
        caught_up: The last read found no record, and the stream had no more to give.
        records: How many records were disposed of since the processor started.
        at: Monotonic seconds of this machine when the processor last wrote.
        behind_seconds: How far the last read was behind the end of the shard.
        oldest_at: When the oldest record arrived that was read and is not disposed of, in seconds since the epoch; 0
            when there is none.
        uncheckpointed_at: Since when something is disposed of and not checkpointed, in monotonic seconds; 0 when
            nothing is.
        counts: What the shard worker has counted (:mod:`scenario_runner.counters`), as name, label and value.
    """

    generation: str
    shard_id: str
    pid: int
    state: ProcessorState
    caught_up: bool
    records: int
    at: float
    behind_seconds: float = 0.0
    oldest_at: float = 0.0
    uncheckpointed_at: float = 0.0
    counts: list[tuple[str, str, float]] = field(default_factory=list)


class StatusWriter:
    """Writes the status of shards.

    Args:
        folder: Where; the folder exists.
        generation: Of the JVM that started this process.
    """

    def __init__(self, folder: str, generation: str) -> None:
        self._folder, self._generation = folder, generation

    def write(
        self, shard_id: str, state: ProcessorState, *, caught_up: bool, records: int, at: float,
        behind_seconds: float = 0.0, oldest_at: float = 0.0, uncheckpointed_at: float = 0.0,
    ) -> None:  # fmt: skip
        """Replace the status of a shard. A failed write is ignored: no record must wait for a hint."""
        status = ShardStatus(
            self._generation, shard_id, os.getpid(), state, caught_up, records, at, behind_seconds, oldest_at,
            uncheckpointed_at, [(name, label, value) for (name, label), value in counts().items()],
        )  # fmt: skip
        path = os.path.join(self._folder, f"{shard_id}.json")
        with suppress(OSError):
            temporary = f"{path}.{os.getpid()}.tmp"
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(asdict(status), file)
            os.replace(temporary, path)


def read_statuses(folder: str, generation: str) -> dict[str, ShardStatus]:
    """The statuses of one generation by shard id. Files that cannot be read or parsed are left out."""
    found: dict[str, ShardStatus] = {}
    try:
        names = os.listdir(folder)
    except OSError:
        return found
    for name in names:
        if not name.endswith(".json"):
            continue
        with suppress(OSError, ValueError, TypeError, KeyError):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                document = json.load(file)
            status = ShardStatus(**{**document, "state": ProcessorState(document["state"])})
            if status.generation == generation:
                found[status.shard_id] = status
    return found
