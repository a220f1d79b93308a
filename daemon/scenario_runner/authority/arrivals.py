"""Arrivals: the word that evidence has come at an engine run root, and what comes of it. Pure.

An arrival proves nothing and decides nothing: it has the runs examined soon that wait for evidence at that root. It
changes ``due_us`` and ``arrived_us`` of a run, and nothing else. No lease and no commit depends on either, so it races
with nobody, as a wake.

A run under lease is being examined, and the examination may have passed the place where evidence has just come. Its
``due_us`` becomes later than its claim, and by that the commit that goes on waiting knows that it is due again
(``commit_runs``). Only a waiting run is told. A run that is examined for the first time is not: if it waits afterwards,
it is due again within a second by the schedule.

A run is told once a second at most: one that was told less than a second ago is due a second after that. So many
objects of one engine run, or a flood of messages, cost an examination a second, and the last of them is not missed.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from scenario_runner.authority.acts import Arrival
from scenario_runner.authority.values import Admission
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.states import Disposition
from scenario_runner.counters import count

MOST_TOLD: Final = 500
"""Runs that one statement tells: it keeps their rows locked for some milliseconds."""
NOBODY_WAITS: Final = "no run waits for evidence there"
"""Detail of a record that says an arrival and is IGNORED."""


def root_of(intent: Json, inputs: Json) -> str:
    """Where a run waits for evidence: the engine run root of its request, or the one that was pinned for it.

    The statements that tell runs find them by the same (``sr_root_of`` of PostgreSQL).
    """
    return str(intent.get("engine_run_root") or inputs.get("engine_run_root", ""))


def count_told(source: str, runs: int) -> None:
    """Count waiting runs that were told of an arrival.

    Args:
        source: Who said it: ``bus``, ``s3``, ``folder`` or ``engine``.
        runs: How many.
    """
    if runs:
        count("sr_evidence_arrivals_total", source, runs)


def told_first(tell: Callable[[Sequence[Arrival]], list[int]], records: Sequence[Admission]) -> list[Admission]:
    """Tell waiting runs what records of the control bus say, before the records are disposed of.

    A process that is killed between the two tells them again when the record is delivered again, which costs an
    examination.

    Args:
        tell: ``Authority.tell``.
        records: Any records.

    Returns:
        The same records; of those that say an arrival the disposition is known.
    """
    arrivals = [record.arrival for record in records if record.arrival is not None]
    if not arrivals:
        return list(records)
    told = iter(tell(arrivals))
    return [record if record.arrival is None else _disposed(record, next(told)) for record in records]


def _disposed(record: Admission, runs: int) -> Admission:
    count_told("bus", runs)
    if not runs:
        return replace(record, disposition=Disposition.IGNORED, detail=NOBODY_WAITS)
    return replace(record, disposition=Disposition.ACCEPTED, detail=f"waiting runs that were told: {runs}")
