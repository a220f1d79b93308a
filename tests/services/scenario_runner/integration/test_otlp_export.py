"""What is said of variables that cannot be used, and of a collector that does not take spans."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import structlog
from otlp_support import Collector, collector

from scenario_runner.counters import counted
from scenario_runner.service.otlp import OtlpExport
from scenario_runner.service.span_export import SpanQueue
from scenario_runner.tracing import Span, SpanName

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

RUN = "c980277977eb878cf9c677bbee926c2d"


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    with collector() as found:
        for name, value in found.env.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_SAMPLER_ARG", "5%"),
        ("OTEL_TRACES_SAMPLER_ARG", "5"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
        ("OTEL_RESOURCE_ATTRIBUTES", "secret"),
        ("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "package"),
    ],
)
def test_a_variable_whose_default_applies_is_named(
    received: Collector, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    assert received.port
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    assert OtlpExport("all").unusable == []
    monkeypatch.setenv(name, value)
    assert OtlpExport("all").unusable == [name]


def test_a_sampler_of_an_installed_package_is_not_used(received: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    assert received.port
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "of_a_package")
    with pytest.raises(ValueError, match="OTEL_TRACES_SAMPLER names no sampler"):
        OtlpExport("all")


@pytest.mark.parametrize("status", [401, 300, 302, 307])
def test_what_a_collector_answers_instead_of_taking_spans_is_logged_once(received: Collector, status: int) -> None:
    received.status = status
    before = counted().get("spans.dropped", 0)
    with structlog.testing.capture_logs() as logged:
        queue = SpanQueue(OtlpExport("all"))
        queue.start()
        for number in range(600):  # more than one request
            queue.record([Span(RUN, SpanName.RUN, 1, 2, {}, str(number))])
        queue.stop()
    assert counted()["spans.dropped"] - before == 600
    assert [line.get("status") for line in logged if "dropped" in line["event"]] == [status]
    assert {item["Host"] for item in received.headers} == {f"127.0.0.1:{received.port}"}
