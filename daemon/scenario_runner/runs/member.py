"""A lifecycle on its way: what it waits for, or what came of it."""

from dataclasses import dataclass
from typing import Any

import structlog

from scenario_runner.authority.values import Claim, Transition
from scenario_runner.contracts.errors import LeaseLostError, StoppingError, Unavailable
from scenario_runner.evidence.examiner import ExaminationDeferred
from scenario_runner.evidence.key import EvidenceKey
from scenario_runner.runs.counting import count_lost_lease
from scenario_runner.runs.effects import Effect
from scenario_runner.runs.lifecycle import Lifecycle

_log = structlog.get_logger("runs")

Answer = Any
"""What a lifecycle is resumed with: the answer to its effect, or the exception that is raised in it."""


@dataclass(slots=True)
class Member:
    """A lifecycle of a claimed run. One of effect, transition and deferred is set, or none once the lease is lost.

    Attributes:
        claim: The run as it was claimed.
        steps: The lifecycle.
        effect: What it waits for.
        transition: What it has returned.
        deferred: The evidence whose examination is put off.
        examined_ns: Begin and end of its examination; for its spans, like the next.
        attesting_ns: When its attestation was begun.
    """

    claim: Claim
    steps: Lifecycle
    effect: Effect | None = None
    transition: Transition | None = None
    deferred: EvidenceKey | None = None
    examined_ns: tuple[int, int] | None = None
    attesting_ns: int = 0

    def resume(self, answer: Answer) -> None:
        """Give the lifecycle the answer to its effect, and let it go on to its next effect or to its end.

        Args:
            answer: None begins the lifecycle.

        Raises:
            SequenceError: our own order of steps is wrong.
        """
        self.effect = None
        try:
            self.effect = self.steps.throw(answer) if isinstance(answer, Exception) else self.steps.send(answer)
        except StopIteration as end:
            self.transition = end.value
        except ExaminationDeferred as deferred:
            self.deferred = deferred.key
        except LeaseLostError as lost:
            _log.warning("lease lost", run_id=self.claim.run_id, detail=lost.detail)
            if not isinstance(lost, StoppingError):  # it is given back
                count_lost_lease()
        except Unavailable as error:  # not even the clock could be read
            _log.warning("nothing was decided; the lease will run out", run_id=self.claim.run_id, detail=error.detail)
