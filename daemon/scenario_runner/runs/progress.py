"""How far a lifecycle has come, and the commit of a step on its way."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from scenario_runner.authority.values import Claim, Transition
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.runs.effects import Effect, RecordProgress


@dataclass(slots=True)
class Progress:
    """The claim as the authority has it now, and what was found of the evidence."""

    claim: Claim
    report: Json = field(default_factory=dict)


def record(transition: Transition) -> Generator[Effect, Any, Claim]:
    """Commit progress. When the answer is lost, commit the same once more: its token tells whether it was committed.

    Without that the run could not even be put off: a retry from the claim as it was before changes no row of a run
    whose progress is there, so the run would wait for its lease to run out.

    Returns:
        The claim as it is afterwards.
    """
    after: Claim
    try:
        after = yield RecordProgress(transition)
    except Unavailable:
        after = yield RecordProgress(transition)
    return after
