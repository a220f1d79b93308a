"""The result of an examination, and the report that says what was found where."""

from dataclasses import dataclass
from enum import StrEnum

from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import (
    EvidenceArchived,
    EvidenceMissing,
    EvidenceRefused,
    EvidenceSaysNo,
    Refusal,
)
from scenario_runner.contracts.reasons import Reason
from scenario_runner.gates.verified_set import OutputEvidence, Verified


class Outcome(StrEnum):
    """What the evidence as a whole says, worst first."""

    CONFLICT = "CONFLICT"
    FAIL = "FAIL"
    MISSING = "MISSING"
    PASS = "PASS"  # noqa: S105 - a verdict


_WORST_FIRST = tuple(Outcome)


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of an examination.

    Attributes:
        outcome: The worst of what was found.
        reason: Reason code of the first finding that is as bad as that; None when all passed.
        detail: Its sentence.
        report: ``{outcome, gates: [...], outputs: [...]}`` and, where it was refused, ``run_receipt``.
        verified: The finished set when ``outcome`` is PASS, else None. Nothing else leads to READY.
        archived: Details of what is missing because it lies in an archive of its store.
        root_absent: Nothing stands at the engine run root.
        outputs: Outputs that were read whole, whatever else was found. They prove nothing without ``verified``.
    """

    outcome: Outcome
    reason: Reason | None
    detail: str
    report: Json
    verified: Verified | None
    archived: tuple[str, ...] = ()
    root_absent: bool = False
    outputs: tuple[OutputEvidence, ...] = ()


def refused_without_report(outcome: Outcome, refusal: Refusal) -> Finding:
    """The finding of an examination that ended before any gate was read."""
    report: Json = {
        "outcome": outcome.value,
        "reason_code": refusal.reason.value,
        "detail": refusal.detail,
        "gates": [],
        "outputs": [],
    }
    return Finding(outcome, refusal.reason, refusal.detail, report, None)


class Report:
    """Collects what is found; the first worst refusal gives reason and detail."""

    def __init__(self) -> None:
        self.gates: list[Json] = []
        self.outputs: list[Json] = []
        self.run_receipt: Json = {}
        self.worst = Outcome.PASS
        self._reason: Reason | None = None
        self._detail = ""
        self._archived: list[str] = []

    def classify(self, refusal: Refusal) -> Json:
        """Count a refusal; returns the fields that describe it in the report."""
        outcome = Outcome.CONFLICT
        if isinstance(refusal, EvidenceArchived):
            self._archived.append(refusal.detail)
        if isinstance(refusal, EvidenceMissing):
            outcome = Outcome.MISSING
        elif isinstance(refusal, EvidenceSaysNo):
            outcome = Outcome.FAIL
        if _WORST_FIRST.index(outcome) < _WORST_FIRST.index(self.worst):
            self.worst, self._reason, self._detail = outcome, refusal.reason, refusal.detail
        found: Json = {"outcome": outcome.value, "reason_code": refusal.reason.value, "detail": refusal.detail}
        if isinstance(refusal, EvidenceMissing):
            found["missing"] = refusal.path
        if isinstance(refusal, EvidenceRefused):
            found.update({key: value for key in ("path", "expected", "actual") if (value := getattr(refusal, key))})
        return found

    def finding(self, verified: Verified | None, outputs: tuple[OutputEvidence, ...] = ()) -> Finding:
        """The finding that all of this comes to.

        Args:
            verified: The finished set; only when nothing was refused.
            outputs: Outputs that were read whole.
        """
        document: Json = {"outcome": self.worst.value, "gates": self.gates, "outputs": self.outputs}
        if self.run_receipt:
            document["run_receipt"] = self.run_receipt
        archived = tuple(self._archived)
        return Finding(self.worst, self._reason, self._detail, document, verified, archived, outputs=outputs)
