"""One root, seven families.

* :class:`SequenceError` - our own order of steps is wrong. A defect: stops the daemon, never becomes a verdict.
* :class:`Refusal` - material from outside is bad. Becomes a disposition or a verdict, never stops the worker.
* :class:`LedgerDrift` - an object of our own is not what we wrote. QUARANTINED where a verdict depends on it.
* :class:`EvidenceChanged` - an artifact changed while it was read. Nothing was decided: examine again.
* :class:`Unavailable` - infrastructure failed. Retried, never an outcome of a run.
* :class:`LeaseLostError` - the lease ran out or was taken, or the process stops. No verdict is committed.
* :class:`ConfigurationError` / :class:`UsageError` - a person must change something before we start.
"""

from typing import Final

from scenario_runner.contracts.reasons import SENTENCES, Reason

#: Characters of a detail: it quotes what was met, and a row, an event and a log line hold it.
_LONGEST: Final = 2000
#: Characters of a library's message that are quoted: the first sentence says what is wrong, the rest is a dump.
_SHORT: Final = 300


def one_line(text: str) -> str:
    """Text from outside as it may be stored, logged and shown: valid UTF-8, nothing unprintable."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}... ({len(text)} characters)"
    return printable(text)


def printable(text: str) -> str:
    """Text with everything escaped that is not a printable character: controls, line ends, bidirectional marks."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def in_short(text: object) -> str:
    """What a library says, for a message of ours: one line, however many it takes for itself, and not a long one."""
    words = " ".join(str(text).split())
    return one_line(words if len(words) <= _SHORT else f"{words[:_SHORT]}...")


class ScenarioRunnerError(Exception):
    """Root of everything SR raises on purpose.

    Attributes:
        reason: Stable code from the closed list.
        detail: What, where and what to do, for a person.
    """

    default_reason: Reason = Reason.INTERNAL_ERROR

    def __init__(self, detail: str, reason: Reason | None = None) -> None:
        self.reason = reason or self.default_reason
        self.detail = one_line(detail)
        super().__init__(f"{self.reason}: {self.detail}")

    def sentence(self) -> str:
        """The sentence of the reason code."""
        return SENTENCES[self.reason]


class SequenceError(ScenarioRunnerError):
    """A step was taken before what must precede it was final. A defect of SR."""


class LeaseLostError(ScenarioRunnerError):
    """The lease epoch is no longer ours: another worker owns the run. Stop writing for it."""


class StoppingError(LeaseLostError):
    """The process stops and has waited long enough: the run is left undecided, as when its lease is lost."""

    default_reason = Reason.UNAVAILABLE


class UsageError(ScenarioRunnerError):
    """The caller of a command gave arguments that cannot be used (exit 2)."""

    default_reason = Reason.USAGE


class AmbiguousRunError(UsageError):
    """The beginning of a run id is that of more than one (exit 2).

    Attributes:
        candidates: Some of them: ``{run_id, run_equivalence_key}``.
    """

    default_reason = Reason.RUN_AMBIGUOUS

    def __init__(self, detail: str, candidates: list[dict[str, str]]) -> None:
        super().__init__(detail)
        self.candidates = candidates


class ConfigurationError(ScenarioRunnerError):
    """A profile, policy, schema or interface pack is not valid (exit 2).

    Args:
        place: File, and line or key where known.
        problem: What is wrong.
        remedy: What to change.
    """

    default_reason = Reason.CONFIGURATION_INVALID

    def __init__(self, place: str, problem: str, remedy: str, reason: Reason | None = None) -> None:
        self.place, self.problem, self.remedy = one_line(place), one_line(problem), one_line(remedy)
        super().__init__(f"{place}: {problem}. Remedy: {remedy}", reason)


def needs_posix(place: str, what: str) -> ConfigurationError:
    """The refusal of something that Windows cannot do."""
    return ConfigurationError(
        place, f"{what} needs a POSIX system, which Windows is not",
        "run it in WSL2 (a Linux under Windows), in a container, or on Linux",
    )  # fmt: skip


def install_extra(*names: str) -> str:
    """The remedy for an optional part that is not installed. PyPI's package of this name is another project's."""
    return (
        f"install Scenario Runner again with its extra {' or '.join(names)}: "
        f"pip install '.[{names[0]}]' in a clone, or './NAME.whl[{names[0]}]'"
    )


class Unavailable(ScenarioRunnerError):  # noqa: N818 - the field's word for it
    """A store, database or stream did not answer. Nothing was decided; try again (exit 5)."""

    default_reason = Reason.UNAVAILABLE


class Refusal(ScenarioRunnerError):  # noqa: N818 - a refusal is an answer, not a fault
    """Material from outside was judged and found bad."""

    default_reason = Reason.EVIDENCE_MALFORMED


class RequestRefused(Refusal):
    """A record on the control bus cannot become a run; it becomes a disposition."""

    default_reason = Reason.REQUEST_SCHEMA_INVALID


class EvidenceRefused(Refusal):
    """Evidence is malformed or contradicts itself: a person must look (QUARANTINED).

    Attributes:
        path: The artifact the refusal is about, relative to the engine run root where it has one.
        expected: What the evidence claimed, e.g. a digest.
        actual: What was found instead.
    """

    default_reason = Reason.EVIDENCE_MALFORMED

    def __init__(
        self,
        detail: str,
        reason: Reason | None = None,
        *,
        path: str = "",
        expected: str = "",
        actual: str = "",
    ) -> None:
        super().__init__(detail, reason)
        self.path, self.expected, self.actual = one_line(path), one_line(expected), one_line(actual)


class EvidenceSaysNo(EvidenceRefused):
    """Well-formed evidence that declares the gate failed (FAILED, GATE_FAIL)."""

    default_reason = Reason.GATE_FAIL


class EvidenceMissing(Refusal):
    """Evidence is not there (yet): wait until the deadline.

    Attributes:
        path: What is missing, relative to the engine run root.
    """

    default_reason = Reason.EVIDENCE_MISSING

    def __init__(self, detail: str, *, path: str) -> None:
        super().__init__(detail)
        self.path = path


class EvidenceArchived(EvidenceMissing):
    """An artifact is there but its store has put it into an archive: missing until somebody restores it."""


class EngineRefusal(Refusal):
    """What an engine would be given cannot be given to it: nothing is launched, and the attempt has failed."""

    default_reason = Reason.ENGINE_INVOCATION_INVALID


class EvidenceChanged(ScenarioRunnerError):  # noqa: N818 - what happened, no fault of anybody
    """An artifact changed while it was read. Nothing was decided: examine again, and refuse what never keeps still.

    It is no :class:`Refusal`, so that no handler of refusals can turn a file that is just being written into a verdict.

    Attributes:
        path: What changed, relative to the engine run root.
    """

    default_reason = Reason.EVIDENCE_CHANGED

    def __init__(self, detail: str, *, path: str) -> None:
        super().__init__(detail)
        self.path = path


class LedgerDrift(ScenarioRunnerError):  # noqa: N818 - a finding, not a fault
    """An object of our own is not what we wrote, or are to write (QUARANTINED where a verdict depends on it).

    Attributes:
        place: Path or URI of the object; empty when the refusal is about no object.
        expected: sha256 of what belongs there.
        actual: sha256 of what is there; empty when no bytes could be read (no regular file, or too large).
    """

    default_reason = Reason.FACTS_VIEW_DRIFT

    def __init__(
        self,
        detail: str,
        reason: Reason | None = None,
        *,
        place: str = "",
        expected: str = "",
        actual: str = "",
    ) -> None:
        super().__init__(detail, reason)
        self.place, self.expected, self.actual = one_line(place), expected, actual

    def facts(self) -> dict[str, str]:
        """``{object, expected, actual}`` for a report; empty when the refusal is about no object."""
        if not self.place:
            return {}
        return {"object": self.place, "expected": self.expected, "actual": self.actual}
