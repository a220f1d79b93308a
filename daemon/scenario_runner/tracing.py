"""Spans of runs: what is recorded of a run's way, and the trace context that every process derives from its run id.

The trace of a run has the run's id, and each span's id is derived from the run, the span's name and what tells it apart
from others of that name. So processes and restarts need to hand nothing over: whoever records a span knows its parent,
and whoever repeats a step repeats the same span.

Nothing is recorded unless a recorder is installed (:mod:`scenario_runner.service.span_export`); without one, every
function here is one comparison. Nothing here imports OpenTelemetry, and nothing here waits or raises.
"""

import hashlib
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

#: Version 00 as it is sent. A later version may be longer, and begins with the same four fields.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?", re.ASCII
)
#: Characters of version 00.
_LENGTH: Final = 55
#: Far more than any version has; what is longer is not even looked at.
_LONGEST: Final = 256


class SpanName(StrEnum):
    """Names of spans. All but the first are children of the first."""

    RUN = "SR.Run"
    INGRESS = "SR.Ingress"
    PLAN_COMPILE = "SR.PlanCompile"
    ADMISSION = "SR.Admission"
    ENGINE_ATTEMPT = "SR.EngineAttempt"
    EVIDENCE_VERIFY = "SR.EvidenceVerify"
    COMMIT_FACTS = "SR.CommitFacts"
    PUBLISH_READY = "SR.PublishReady"
    REEMIT = "SR.Reemit"


class Context(NamedTuple):
    """A W3C trace context.

    Attributes:
        trace_id: hex32.
        span_id: hex16.
        flags: One byte; bit 0 says that the trace is sampled.
    """

    trace_id: str
    span_id: str
    flags: int

    def text(self) -> str:
        """The context as version 00 of ``traceparent``."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


class Span(NamedTuple):
    """A span that has ended. Times are nanoseconds since the epoch.

    Attributes:
        run_id: Also the trace id.
        attributes: Ids, numbers and words of closed lists; never text that somebody sent.
        which: Tells the span apart from others of its name in its run.
        failed: Whether its step came to a refusal or a negative verdict.
        link: The context of whoever asked for the run.
        root: Whether it has no parent, like the run itself, and requests that no run was made of.
    """

    run_id: str
    name: SpanName
    start_ns: int
    end_ns: int
    attributes: Mapping[str, str | int]
    which: str = ""
    failed: bool = False
    link: Context | None = None
    root: bool = False


@dataclass(slots=True)
class RequestTimes:
    """What is observed of a request while it is validated; no decision reads it.

    Attributes:
        caller: The trace context of its envelope.
        began_ns: When its validation began; the next two frame the compilation of its plan.
    """

    began_ns: int
    planning_ns: int = 0
    planned_ns: int = 0
    validated_ns: int = 0
    caller: Context | None = None


class Recorder(Protocol):
    """Takes spans. It neither waits nor raises."""

    def sampled(self, run_id: str) -> bool:
        """Whether the trace of a run is recorded: a function of its id, the same in every process."""
        ...

    def record(self, spans: Iterable[Span]) -> None:
        """Take spans that have ended."""
        ...


_recorder: Recorder | None = None


def install(recorder: Recorder | None) -> None:
    """Record spans with a recorder from now on; None for no longer."""
    global _recorder  # noqa: PLW0603 - one for each process, like the counts
    _recorder = recorder


def is_on() -> bool:
    """Whether spans are recorded."""
    return _recorder is not None


def now_ns() -> int:
    """The time of this host in nanoseconds since the epoch; 0 when nothing is recorded."""
    return time.time_ns() if _recorder is not None else 0


def record(spans: Iterable[Span]) -> None:
    """Record spans of steps whose outcome is committed."""
    if _recorder is not None:
        _recorder.record(spans)


def request_times() -> RequestTimes | None:
    """Begin to observe a request; None when nothing is recorded."""
    return RequestTimes(time.time_ns()) if _recorder is not None else None


def traceparent_of(run_id: str, name: SpanName, which: str = "") -> str:
    """The context of a span as others take it up; empty when nothing is recorded."""
    if _recorder is None:
        return ""
    return Context(run_id, span_id_of(run_id, name, which), int(_recorder.sampled(run_id))).text()


def span_id_of(run_id: str, name: SpanName, which: str = "") -> str:
    """hex16 id of a span."""
    return hashlib.sha256(f"sr_span|{run_id}|{name}|{which}".encode("utf-8", "backslashreplace")).hexdigest()[:16]


def caller_of(attributes: Mapping[str, object]) -> Context | None:
    """The trace context in the attributes of an envelope; None when there is none, or none that W3C allows.

    Args:
        attributes: Anything that somebody sent.
    """
    value = attributes.get("traceparent")
    if not isinstance(value, str) or not _LENGTH <= len(value) <= _LONGEST:
        return None
    found = _TRACEPARENT.fullmatch(value)
    if found is None or (value.startswith("00-") and len(value) != _LENGTH):
        return None
    return Context(found[1], found[2], int(found[3], 16))
