"""How the record processors tell the supervisor where they stand: one small file for each shard, replaced whole.

Reports are hints for ``--until-idle``, for health and for logs. Nothing is decided by them: what was disposed of is
in the authority, what was read is in KCL's checkpoints.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum


class Doing(StrEnum):
    """What a record processor does."""

    IDLE = "idle"
    ADMITTING = "admitting"
    WAITING = "waiting"  # for the authority
    ENDED = "ended"  # end of the shard, or the lease was lost


@dataclass(frozen=True, slots=True)
class Report:
    """Where one record processor stands.

    Attributes:
        generation: Of the JVM that started it; reports of earlier ones mean nothing.
        caught_up: The last read found no record and the stream had none to give.
        records: Disposed of since the processor started.
        at: Monotonic seconds of this machine when it last did something.
    """

    generation: str
    shard_id: str
    pid: int
    doing: Doing
    caught_up: bool
    records: int
    at: float


class Reporter:
    """Writes reports.

    Args:
        folder: Where; it exists.
        generation: Of the JVM.
    """

    def __init__(self, folder: str, generation: str) -> None:
        self._folder, self._generation = folder, generation

    def write(self, shard_id: str, doing: Doing, *, caught_up: bool, records: int, at: float) -> None:
        """Replace the report of a shard; a report that cannot be written is not worth an error."""
        report = Report(self._generation, shard_id, os.getpid(), doing, caught_up, records, at)
        path = os.path.join(self._folder, f"{shard_id}.json")
        with suppress(OSError):
            temporary = f"{path}.{os.getpid()}.tmp"
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(asdict(report), file)
            os.replace(temporary, path)


def read_reports(folder: str, generation: str) -> dict[str, Report]:
    """Reports of one generation by shard; what cannot be read is left out."""
    found: dict[str, Report] = {}
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
            report = Report(**{**document, "doing": Doing(document["doing"])})
            if report.generation == generation:
                found[report.shard_id] = report
    return found
