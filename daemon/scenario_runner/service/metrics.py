"""The metrics of a daemon: the closed list of their names and labels, and their text for Prometheus.

Counts and durations come from :mod:`scenario_runner.counters`, which every room counts with. Gauges are values of the
last refresh (:mod:`scenario_runner.service.observer`); only heartbeats are read when the text is made. So the text is
made without a statement, a request or a lock that work waits for. A label is one of a closed list; whatever is not on
it is ``other``.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from scenario_runner.authority.observed import DEADLINES, MOST_COUNTED
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import SignalKind
from scenario_runner.counters import BUCKETS, OTHER, counts, durations
from scenario_runner.service.heartbeats import Heartbeats

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.metrics_core import Metric as Family

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MOST_SHARDS: Final = 64
"""Shards of one daemon that are shown by name; the worst of the others is shown as ``other``."""

#: A text takes milliseconds of the interpreter, which runs need: whoever asks more often gets the same again.
_KEPT_SECONDS: Final = 1.0
_AT_MOST: Final = f"at most {MOST_COUNTED:,} are counted"
_REASONS: Final = tuple(reason.value for reason in Reason)
LOOPS: Final = (
    "main", "intake", "runner", "roots", "relay", "renewal", "housekeeping", "arrivals", "folders", "engine", "bulk",
    "shard",
)  # fmt: skip
"""The loops that a daemon may run; of several alike the worst is shown."""
OPERATIONS: Final = (
    "counters.failed", "engine.found", "engine.launched", "evidence_queue.unavailable", "locks.kept_by_others",
    "log.dropped", "postgres.statements", "relay.drift", "relay.reemit_refused", "relay.signal_drift",
    "relay.signal_unavailable", "relay.unavailable", "roots.looked_at", "runs.examined_in_vain", "runs.postponed",
    "s3.get", "s3.head", "s3.list", "s3.put", "spans.dropped", "spans.exported", "sqlite.locked_by_others",
)  # fmt: skip
"""Names of counts that are shown as labels of ``sr_operations_total``."""


class Kind(StrEnum):
    """What a metric is."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        label: Name of its label; empty when it has none.
        values: The closed list of its label's values; empty for shards, which are bounded by number.
    """

    name: str
    kind: Kind
    help: str
    label: str = ""
    values: tuple[str, ...] = ()


def _counter(name: str, text: str, label: str = "", values: Iterable[str] = ()) -> Metric:
    return Metric(name, Kind.COUNTER, text, label, tuple(values))


def _histogram(name: str, text: str) -> Metric:
    return Metric(name, Kind.HISTOGRAM, text)


def _gauge(name: str, text: str, label: str = "", values: Iterable[str] = ()) -> Metric:
    return Metric(name, Kind.GAUGE, text, label, tuple(values))


METRICS: Final = (
    _counter("sr_run_requests_total", "Records of the control bus that were disposed of, by kind, without repeats.",
             "kind", (SignalKind.RUN_REQUEST, SignalKind.REEMIT_REQUEST, SignalKind.EVIDENCE_ARRIVED, OTHER)),
    _counter("sr_evidence_arrivals_total",
             "Waiting runs that were told that evidence has come, by who said it; they are examined within a second.",
             "source", ("bus", "s3", "folder", "engine", OTHER)),
    _counter("sr_evidence_events_total",
             "Messages of the queue of S3 events, by what they were: told (runs wait there), unawaited (no run waits), "
             "other (no new object), invalid (no event of S3).",
             "outcome", ("told", "unawaited", "other", "invalid", OTHER)),
    _counter("sr_runs_accepted_total", "Runs that were admitted."),
    _counter("sr_runs_rejected_total", "Records that were refused, by reason code.", "reason", (*_REASONS, OTHER)),
    _counter("sr_runs_ready_total", "Runs that became READY."),
    _counter("sr_runs_failed_total", "Runs that became FAILED, by reason code.", "reason", (*_REASONS, OTHER)),
    _counter("sr_runs_quarantined_total", "Runs that became QUARANTINED."),
    _counter("sr_engine_attempts_total", "Attempts of engines whose end was put on record, by outcome.", "outcome",
             ("SUCCEEDED", "FAILED", OTHER)),
    _histogram("sr_engine_attempt_duration_seconds", "How long an attempt of an engine ran."),
    _histogram("sr_evidence_wait_duration_seconds",
               "From the admission to the end of runs whose evidence was missing at first."),
    _histogram("sr_ready_commit_latency_seconds", "From the admission of a run to the commit of READY."),
    _counter("sr_ready_publish_failures_total", "Times that a READY signal could not be published; it is tried again."),
    _counter("sr_lease_lost_total", "Runs that were given up because their lease was lost."),
    _counter("sr_verification_bytes_total", "Bytes of evidence that were read and hashed."),
    _counter("sr_verification_seconds_total", "Seconds spent on examinations of evidence."),
    _counter("sr_digest_reuse_hits_total", "Digests of unchanged files that were used again instead of being read."),
    _counter("sr_jvm_restarts_total", "Times that KCL's JVM ended by itself and was started again."),
    _counter("sr_operations_total", "Requests to stores and databases, and rare events, by name.", "operation",
             (*OPERATIONS, OTHER)),
    _gauge("sr_runs_waiting", f"Runs that wait for evidence; of each class of deadlines {_AT_MOST}."),
    _gauge("sr_runs_waiting_by_deadline",
           f"Runs that wait for evidence, by the time left until their evidence deadline; {_AT_MOST}.", "left",
           (name for name, _ in DEADLINES)),
    _gauge("sr_quarantine_open",
           f"Runs that are QUARANTINED and not acknowledged, among the newest {MOST_COUNTED:,} that are QUARANTINED."),
    _gauge("sr_scrub_drifted_runs",
           "READY runs whose evidence has drifted, as the last scrub of all runs found, and scrubs since then."),
    _gauge("sr_scrub_last_end_timestamp_seconds",
           "When a scrub of all READY runs ended last, in seconds since the epoch; 0 when none has."),
    _gauge("sr_dead_letters", f"Refused records whose bytes are kept; {_AT_MOST}."),
    _gauge("sr_oldest_due_run_age_seconds", "For how long the run is due that waits longest for a runner; or 0."),
    _gauge("sr_outbox_depth", f"Signals that are not on the control bus yet; {_AT_MOST}."),
    _gauge("sr_outbox_oldest_age_seconds", "Age of the oldest of these signals; 0 when there is none."),
    _gauge("sr_projections_owed", f"Runs whose documents are owed to the ledger; {_AT_MOST}."),
    _gauge("sr_projections_oldest_age_seconds", "How long ago the one of these runs changed that changed first."),
    _gauge("sr_intake_lag_seconds", "How far the last read of a shard was behind its end.", "shard"),
    _gauge("sr_intake_oldest_record_age_seconds", "Age of the oldest record that is not disposed of.", "shard"),
    _gauge("sr_intake_checkpoint_age_seconds", "Since when records are disposed of and not checkpointed; 0 when none.",
           "shard"),
    _gauge("sr_daemons", "Daemons that reported themselves to the authority within the last minute."),
    _gauge("sr_ready",
           "1 when the daemon has started, does not drain, and the last probe found store, authority and bus usable."),
    _gauge("sr_refresh_age_seconds", "Age of the gauges that come from the authority, the store and the bus."),
    _gauge("sr_loop_heartbeat_age_seconds",
           "How long ago a loop of this daemon made progress; of several alike the worst.", "loop", LOOPS),
)  # fmt: skip
"""Every metric but ``sr_build_info``, in the order in which they are shown."""

BY_NAME: Final = {metric.name: metric for metric in METRICS}
Gauges = Mapping[tuple[str, str], float]
"""Values of gauges by name and label; the label is empty where there is none."""


class Exposition:
    """Makes the text of all metrics.

    Args:
        build: Labels of ``sr_build_info``.
        heartbeats: Of the daemon's loops.
        gauges: Values of the other gauges, as of the last refresh.
        monotonic: Seconds, never going back.
    """

    def __init__(
        self,
        build: Mapping[str, str],
        heartbeats: Heartbeats,
        gauges: Callable[[], Gauges],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._build, self._heartbeats, self._gauges = dict(build), heartbeats, gauges
        self._monotonic, self._lock = monotonic, threading.Lock()
        self._text, self._made_at = b"", 0.0

    def text(self) -> bytes:
        """The metrics in the text format of Prometheus, as of a second ago at most."""
        with self._lock:  # only clients wait for it
            if not self._text or self._monotonic() - self._made_at >= _KEPT_SECONDS:
                self._text, self._made_at = self._made(), self._monotonic()
            return self._text

    def _made(self) -> bytes:
        from prometheus_client import CollectorRegistry  # noqa: PLC0415 - slow to import: only where it is listened
        from prometheus_client.exposition import generate_latest  # noqa: PLC0415

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return bytes(generate_latest(registry))

    def collect(self) -> Iterator["Family"]:
        """The metrics as ``prometheus_client`` takes them."""
        from prometheus_client.core import (  # noqa: PLC0415
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        counted, lasted = _declared(counts()), durations()
        gauges = self.gauges()
        for metric in METRICS:
            labels = [metric.label] if metric.label else []
            if metric.kind is Kind.COUNTER:
                counter = CounterMetricFamily(metric.name, metric.help, labels=labels)
                for value in metric.values or ("",):
                    counter.add_metric([value] if labels else [], counted.get((metric.name, value), 0.0))
                yield counter
            elif metric.kind is Kind.HISTOGRAM:
                buckets, total = lasted.get(metric.name, ([0.0] * (len(BUCKETS) + 1), 0.0))
                histogram = HistogramMetricFamily(metric.name, metric.help)
                histogram.add_metric([], _cumulative(buckets), total)
                yield histogram
            else:
                yield _gauge_family(GaugeMetricFamily(metric.name, metric.help, labels=labels), metric, gauges)
        build = GaugeMetricFamily("sr_build_info", "1; its labels say what runs.", labels=list(self._build))
        build.add_metric(list(self._build.values()), 1.0)
        yield build

    def gauges(self) -> Gauges:
        """The values of all gauges: those of the last refresh, and the heartbeats of now."""
        return {**self._gauges(), **self._ages()}

    def _ages(self) -> dict[tuple[str, str], float]:
        ages: dict[tuple[str, str], float] = {}
        for state in self._heartbeats.loops():
            key = ("sr_loop_heartbeat_age_seconds", state.kind)
            ages[key] = max(ages.get(key, 0.0), state.seconds)
        return ages


def worst_of(gauges: Gauges) -> dict[str, float]:
    """Gauges by name alone: of one with a label the largest value."""
    found: dict[str, float] = {}
    for (name, _), value in sorted(gauges.items()):
        found[name] = max(found.get(name, value), value)
    return found


def totals() -> dict[str, float]:
    """Counters by name alone: of one with a label the sum. Without ``sr_operations_total``, whose labels are unlike."""
    found = {metric.name: 0.0 for metric in METRICS if metric.kind is Kind.COUNTER and metric.label != "operation"}
    for (name, _), value in _declared(counts()).items():
        if name in found:
            found[name] += value
    return found


def _gauge_family(family: "GaugeMetricFamily", metric: Metric, gauges: Gauges) -> "GaugeMetricFamily":
    """A gauge with the values that are known: what was never read has no value, and is not zero."""
    for (name, value), number in sorted(gauges.items()):
        if name == metric.name and (not metric.values or value in metric.values):
            family.add_metric([value] if metric.label else [], number)
    return family


def _declared(counted: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Counts by metric and label; labels and names that are not declared are added up as ``other``."""
    found: dict[tuple[str, str], float] = {}
    for (given, label), value in counted.items():
        name, shown = (given, label) if given in BY_NAME else ("sr_operations_total", given)
        metric = BY_NAME[name]
        if metric.label and shown not in metric.values:
            shown = OTHER
        key = (name, shown if metric.label else "")
        found[key] = found.get(key, 0.0) + value
    return found


def _cumulative(buckets: Sequence[float]) -> list[tuple[str, float]]:
    total, found = 0.0, list[tuple[str, float]]()
    for bound, number in zip([*(f"{bound:g}" for bound in BUCKETS), "+Inf"], buckets, strict=True):
        total += number
        found.append((bound, total))
    return found
