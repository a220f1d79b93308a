"""Our spans as those of OpenTelemetry's SDK, sent with its OTLP exporter. Imported only where spans are recorded.

The SDK's tracer makes each span, so its sampler, its limits and its resource apply, as the variables ``OTEL_*`` have
them. Ids and times are ours.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final

import requests
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from typing_extensions import override

from scenario_runner import __version__
from scenario_runner.tracing import Context, Span, SpanName, span_id_of

_KINDS: Final = {
    SpanName.INGRESS: trace.SpanKind.CONSUMER,
    SpanName.PUBLISH_READY: trace.SpanKind.PRODUCER,
    SpanName.REEMIT: trace.SpanKind.PRODUCER,
}
_SAMPLER: Final = "OTEL_TRACES_SAMPLER"
_SAMPLERS: Final = frozenset({
    "always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off",
    "parentbased_traceidratio",
})  # fmt: skip
"""Those of the SDK. Another name may be that of an installed package, whose code would run in this process."""

_PROVIDERS: Final = tuple(f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{of}CREDENTIAL_PROVIDER" for of in ("", "TRACES_"))
"""Name an installed package too. Not served, for the same reason."""

_OTLP: Final = ("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_")
_WARNINGS: Final = (
    ("SAMPLER_ARG", ("OTEL_TRACES_SAMPLER_ARG",)),
    ("SAMPLER", (_SAMPLER,)),
    ("RESOURCE", ("OTEL_RESOURCE_ATTRIBUTES",)),
    *((word, tuple(prefix + variable for prefix in _OTLP))
      for word, variable in (("TIMEOUT", "TIMEOUT"), ("COMPRESSION", "COMPRESSION"), ("HEADER", "HEADERS"))),
)  # fmt: skip
"""A word of a warning of the SDK, and the variables of which it is. The SDK does not name them."""

#: What a variable is called when the SDK does not say which it is.
_SOME_VARIABLE: Final = "OTEL_*"


class _Ids(IdGenerator):
    """Hands out the ids of the span that is being made."""

    trace_id = span_id = 0

    @override
    def generate_span_id(self) -> int:
        return self.span_id

    @override
    def generate_trace_id(self) -> int:
        return self.trace_id


class _Ended(SpanProcessor):
    """Keeps the spans that have ended."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    @override
    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


class _Unusable(logging.Handler):
    """Collects the names of the variables that the SDK warns of; a warning itself may quote a secret."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.names: set[str] = set()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.names.update(_variables_of(str(record.msg)))


def _variables_of(warning: str) -> Iterable[str]:
    """Names of the variables that a warning of the SDK is about."""
    text = warning.upper()
    variables = next((names for word, names in _WARNINGS if word in text), (_SOME_VARIABLE,))
    return [name for name in variables if name in os.environ] or variables[-1:]


class OtlpExport:
    """Sends spans. Used by one thread, but for :meth:`sampled` and :meth:`give_up`.

    Args:
        role: What this process does.

    Attributes:
        unusable: Names of variables whose values the SDK replaced by its defaults.
        status: What the collector answered last, a status code of HTTP; 0 when it did not answer.

    Raises:
        ValueError: A variable ``OTEL_*`` has a value that the SDK does not take.
    """

    def __init__(self, role: str) -> None:
        sdk_log, found = logging.getLogger("opentelemetry"), _Unusable()
        sdk_log.addHandler(found)
        sdk_log.setLevel(logging.WARNING)
        sdk_log.propagate = False  # it logs each failure on its own, with the address
        try:
            self._configure(role)
        finally:
            sdk_log.addHandler(logging.NullHandler())
            sdk_log.removeHandler(found)
        self.unusable = sorted(found.names.union(name for name in _PROVIDERS if os.environ.get(name)))

    def _configure(self, role: str) -> None:
        if (os.environ.get(_SAMPLER) or "always_on").lower() not in _SAMPLERS:
            raise ValueError(f"{_SAMPLER} names no sampler of the SDK")
        session = requests.Session()
        session.hooks["response"].append(self._note_status)
        session.max_redirects = 0  # headers with secrets are for the collector that was named
        self.status = 0
        resource = Resource.create({SERVICE_VERSION: __version__, "sr.role": role})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "scenario-runner"}))
        self._ids, self._ended, self._exporter = _Ids(), _Ended(), OTLPSpanExporter(session=session)
        provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        provider.add_span_processor(self._ended)
        self._sampler = provider.sampler
        self._tracer = provider.get_tracer("scenario_runner", __version__)

    def sampled(self, run_id: str) -> bool:
        """Whether the trace of a run is recorded. Samplers of the SDK depend on nothing but the trace id."""
        decision = self._sampler.should_sample(None, int(run_id, 16), SpanName.RUN.value).decision
        return decision is Decision.RECORD_AND_SAMPLE

    def send(self, spans: Sequence[Span]) -> int | None:
        """Send spans, again and again within the exporter's time limit.

        Returns:
            How many the collector took, those that are not sampled left out; None when it took none.
        """
        self._ended.spans = []
        for span in spans:
            if self.sampled(span.run_id):
                self._make(span)
        made, self.status = self._ended.spans, 0
        if made and (self._exporter.export(made) is not SpanExportResult.SUCCESS or self._was_redirected()):
            return None
        return len(made)

    def _note_status(self, response: requests.Response, **_: Any) -> None:  # noqa: ANN401 - as requests calls it
        self.status = response.status_code

    def _was_redirected(self) -> bool:
        """Whether the collector took nothing and named another place, which the exporter takes for success."""
        return self.status >= HTTPStatus.MULTIPLE_CHOICES

    def give_up(self) -> None:
        """End a :meth:`send` that waits to try again."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _make(self, span: Span) -> None:
        parent = context.Context()
        if not span.root:
            run = Context(span.run_id, span_id_of(span.run_id, SpanName.RUN), trace.TraceFlags.SAMPLED)
            parent = trace.set_span_in_context(trace.NonRecordingSpan(_context_of(run)), parent)
        self._ids.trace_id = int(span.run_id, 16)
        self._ids.span_id = int(span_id_of(span.run_id, span.name, span.which), 16)
        links = [trace.Link(_context_of(span.link))] if span.link is not None else None
        kind = _KINDS.get(span.name, trace.SpanKind.INTERNAL)
        made = self._tracer.start_span(span.name.value, parent, kind, span.attributes, links, span.start_ns)
        if span.failed:
            made.set_status(trace.StatusCode.ERROR)
        made.end(max(span.start_ns, span.end_ns))  # of two clocks the one may be behind the other


def _context_of(found: Context) -> trace.SpanContext:
    flags = trace.TraceFlags(found.flags)
    return trace.SpanContext(int(found.trace_id, 16), int(found.span_id, 16), is_remote=True, trace_flags=flags)
