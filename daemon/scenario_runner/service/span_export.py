"""Spans on their way to a collector: a bounded queue, and one thread that hands them to OpenTelemetry's SDK.

Whoever records appends to the queue and goes on. What finds the queue full, and what the collector does not take within
the exporter's time limit, is dropped and counted as ``spans.dropped``. Only the end of the process waits for what is
queued, and not for longer than a second.

Everything is configured by the standard variables of OpenTelemetry, which the SDK reads. Its packages are the extra
``otel``, imported only where an endpoint is configured.
"""

import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, Protocol

import structlog
from typing_extensions import override

from scenario_runner import tracing
from scenario_runner.counters import count
from scenario_runner.tracing import Recorder, Span

#: Some megabytes of memory, and the spans of a thousand runs: more than a busy daemon makes in a second.
_MOST_QUEUED: Final = 8192
#: Spans of one request: some 100 KB.
_BATCH: Final = 512
#: For how long spans are gathered after the first one, so that one request takes many.
_GATHER_SECONDS: Final = 0.5
#: How long the end of a process waits for its last spans: a collector that lives takes them in milliseconds, and the
#: stop of a daemon has other things to do.
_FLUSH_SECONDS: Final = 1.0
#: How often it is logged that spans are dropped.
_REMIND_SECONDS: Final = 60.0
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SERVED: Final = "http/protobuf"
_log = structlog.get_logger("service")


class Export(Protocol):
    """Sends spans to a collector.

    Attributes:
        status: What the collector answered last, a status code of HTTP; 0 when it did not answer.
    """

    status: int

    def sampled(self, run_id: str) -> bool:
        """Whether the trace of a run is recorded; asked by many threads."""
        ...

    def send(self, spans: Sequence[Span]) -> int | None:
        """Send spans; how many of them the collector took, those that are not sampled left out; None for none."""
        ...

    def give_up(self) -> None:
        """End a :meth:`send` that waits to try again; called by another thread."""
        ...


class SpanQueue(Recorder):
    """Takes spans without waiting, and exports them in a thread of its own.

    Args:
        export: Where they go.
    """

    def __init__(self, export: Export) -> None:
        self._export = export
        self._spans: deque[Span] = deque()
        self._wanted, self._ending = threading.Event(), threading.Event()
        self._remind_at = 0.0
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)

    def start(self) -> None:
        """Begin to export."""
        self._thread.start()

    @override
    def sampled(self, run_id: str) -> bool:
        try:
            return self._export.sampled(run_id)
        except Exception:  # noqa: BLE001 - asked before a run is driven, and samplers may be anybody's
            return False

    @override
    def record(self, spans: Iterable[Span]) -> None:
        for span in spans:
            # Several threads may find the last place at once: the bound is for memory, a few more do no harm.
            if len(self._spans) >= _MOST_QUEUED:
                count("spans.dropped")
            else:
                self._spans.append(span)
        if not self._wanted.is_set():
            self._wanted.set()

    def stop(self) -> None:
        """Export what is queued, for a second at most; the rest is dropped."""
        self._ending.set()
        self._wanted.set()
        self._thread.join(_FLUSH_SECONDS)
        self._export.give_up()
        if left := self._take(len(self._spans)):
            self._drop(len(left))

    def _run(self) -> None:
        ending = False
        while not ending:
            self._wanted.wait()
            self._wanted.clear()  # first of all: whatever comes later, span or end, sets it again
            ending = self._ending.wait(_GATHER_SECONDS)
            while (batch := self._take(_BATCH)) and self._export_batch(batch):
                pass

    def _take(self, most: int) -> list[Span]:
        """Take spans off the queue; each is taken once, by the thread or by the end of the process."""
        taken: list[Span] = []
        with suppress(IndexError):
            while len(taken) < most:
                taken.append(self._spans.popleft())
        return taken

    def _export_batch(self, batch: list[Span]) -> bool:
        """Export a batch; false when it was dropped and the process ends, which must not wait for the next ones."""
        try:
            taken = self._export.send(batch)
        except Exception as error:  # noqa: BLE001 - whatever the SDK raises, nothing may follow from it
            _log.debug("spans could not be made", error=type(error).__name__)
            taken = None
        if taken is None:
            self._drop(len(batch), self._export.status)
        else:
            count("spans.exported", by=taken)
        return taken is not None or not self._ending.is_set()

    def _drop(self, spans: int, status: int = 0) -> None:
        count("spans.dropped", by=spans)
        if time.monotonic() >= self._remind_at:
            self._remind_at = time.monotonic() + _REMIND_SECONDS
            facts = {"status": status} if status else {}
            _log.warning("spans are dropped: their collector does not take them; runs are not affected", spans=spans,
                         **facts)  # fmt: skip


@contextmanager
def traced(role: str, environ: Mapping[str, str]) -> Iterator[None]:
    """Record spans where a collector is configured; without one, or without the extra ``otel``, do nothing.

    Args:
        role: What this process does.
        environ: The environment.
    """
    queue = _open(role, environ) if _is_wanted(environ) else None
    if queue is None:
        yield
        return
    queue.start()
    tracing.install(queue)
    try:
        yield
    finally:
        tracing.install(None)
        queue.stop()


def _is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the variables name a collector, and none of them turns spans off."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() != "otlp":
        return False
    return any(environ.get(name, "").strip() for name in _ENDPOINTS)


def _variables_in(text: str, environ: Mapping[str, str]) -> list[str]:
    """Variables of OpenTelemetry that are set and that a text names."""
    return [name for name in re.findall(r"\bOTEL_[A-Z_]+\b", text) if name in environ]


def _open(role: str, environ: Mapping[str, str]) -> SpanQueue | None:
    """The queue, with the SDK behind it; None when it cannot be used, which the log says."""
    protocol = next(filter(None, (environ.get(name, "").strip() for name in _PROTOCOLS)), _SERVED)
    if protocol != _SERVED:
        _log.warning("no spans are recorded: only OTLP over HTTP is served", served=_SERVED)
        return None
    try:
        from scenario_runner.service.otlp import OtlpExport  # noqa: PLC0415 - slow to import, and an extra

        export = OtlpExport(role)
    except ImportError:
        _log.warning("no spans are recorded: a collector is configured, and the extra 'otel' is not installed")
    except Exception as error:  # noqa: BLE001 - a value that the SDK does not take is no reason not to start
        # Names only: the text may quote the value of a variable, and headers hold secrets.
        _log.warning("no spans are recorded: a variable OTEL_* has a value that cannot be used",
                     variables=", ".join(_variables_in(str(error), environ)), error=type(error).__name__)  # fmt: skip
    else:
        if export.unusable:
            _log.warning("the default of a variable applies: its value cannot be used",
                         variables=", ".join(export.unusable))  # fmt: skip
        _log.info("spans are recorded")
        return SpanQueue(export)
    return None
