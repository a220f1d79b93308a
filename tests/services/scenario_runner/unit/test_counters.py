"""Counts and durations, and their text for Prometheus: closed lists, one mechanism, harmless to whoever counts."""

import ast
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import scenario_runner
from scenario_runner import counters
from scenario_runner.counters import BUCKETS, OTHER, count, counted, counts, durations, observe, observing
from scenario_runner.service.heartbeats import Heartbeats
from scenario_runner.service.metrics import BY_NAME, LOOPS, METRICS, OPERATIONS, Exposition, Kind

pytestmark = pytest.mark.unit

PACKAGE = Path(scenario_runner.__file__).parent
#: Alerts and dashboards name these.
ASKED_FOR = {
    "sr_run_requests_total{kind}",
    "sr_runs_accepted_total",
    "sr_runs_rejected_total{reason}",
    "sr_runs_ready_total",
    "sr_runs_failed_total{reason}",
    "sr_runs_quarantined_total",
    "sr_runs_waiting",
    "sr_engine_attempts_total{outcome}",
    "sr_engine_attempt_duration_seconds",
    "sr_evidence_wait_duration_seconds",
    "sr_ready_commit_latency_seconds",
    "sr_ready_publish_failures_total",
    "sr_lease_lost_total",
}


@pytest.fixture(autouse=True)
def none_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_counts", {})
    monkeypatch.setattr(counters, "_labels", type(counters._labels)())
    monkeypatch.setattr(counters, "_durations", {})


def text(gauges: dict[tuple[str, str], float] | None = None, heartbeats: Heartbeats | None = None) -> str:
    exposition = Exposition({"version": "1"}, heartbeats or Heartbeats(60.0), lambda: gauges or {})
    return exposition.text().decode()


def test_the_text_is_made_once_a_second_whoever_asks() -> None:
    now, made = [100.0], []
    exposition = Exposition({"version": "1"}, Heartbeats(60.0), lambda: made.append(1) or {}, lambda: now[0])
    first = exposition.text()
    count("sr_runs_accepted_total")
    now[0] = 100.9
    assert exposition.text() == first
    now[0] = 101.0
    assert exposition.text() != first
    assert len(made) == 2


def test_counts_are_kept_by_name_and_label() -> None:
    count("a")
    count("a", by=2)
    count("b", "x")
    count("b", "y", by=0.5)
    assert counts() == {("a", ""): 3, ("b", "x"): 1, ("b", "y"): 0.5}
    assert counted() == {"a": 3, "b{x}": 1, "b{y}": 0}


def test_counts_of_many_threads_are_all_there() -> None:
    threads = [threading.Thread(target=lambda: [count("a") for _ in range(1000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted() == {"a": 8000}


def test_labels_that_nobody_bounded_do_not_fill_the_memory() -> None:
    for number in range(10_000):
        count("a", f"label {number}")
    assert len(counts()) == counters._MOST_LABELS + 1
    assert counts()["a", OTHER] == 10_000 - counters._MOST_LABELS


def test_a_duration_falls_into_its_bucket_and_none_is_below_zero() -> None:
    for seconds in (0.005, 0.01, 0.02, 1e9, -1.0):
        observe("a", seconds)
    numbers, total = durations()["a"]
    assert (numbers[0], numbers[1], numbers[-1], sum(numbers)) == (3, 1, 1, 5)
    assert total == pytest.approx(1e9 + 0.035)
    assert len(numbers) == len(BUCKETS) + 1


def test_a_function_that_only_counts_fails_nobody() -> None:
    @observing
    def broken(_value: int) -> None:
        raise KeyError("whatever")

    broken(1)
    assert counted() == {"counters.failed": 1}


# --- the list of metrics ----------------------------------------------------------------------------------------------


def test_the_metrics_have_the_names_and_labels_that_were_asked_for() -> None:
    found = {metric.name + (f"{{{metric.label}}}" if metric.label else "") for metric in METRICS}
    assert found >= ASKED_FOR


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                yield str(path.relative_to(PACKAGE)), node


def texts(module: str, node: ast.expr) -> set[str]:
    """The values that the first argument of a call in a module may have."""
    if isinstance(node, ast.IfExp):
        return texts(module, node.body) | texts(module, node.orelse)
    if isinstance(node, ast.Name):
        name = "scenario_runner." + module.removesuffix(".py").replace("/", ".")
        value = getattr(import_module(name), node.id, None)
        return {value} if isinstance(value, str) else set()
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def test_whatever_is_counted_is_declared_and_whatever_is_declared_is_counted() -> None:
    found = set()
    for module, call in calls("count"):
        if module == "intake/kinesis.py":
            continue  # takes over what a shard worker has counted under names of this list
        assert texts(module, call.args[0]), f"{module}:{call.lineno} counts under a name that this test cannot read"
        found |= texts(module, call.args[0])
    counters_declared = {metric.name for metric in METRICS if metric.kind is Kind.COUNTER} - {"sr_operations_total"}
    assert found == counters_declared | set(OPERATIONS)
    observed = {name for module, call in calls("observe") for name in texts(module, call.args[0])}
    assert observed == {metric.name for metric in METRICS if metric.kind is Kind.HISTOGRAM}


# --- their text -------------------------------------------------------------------------------------------------------


def test_a_label_that_is_not_on_its_list_is_shown_as_other() -> None:
    count("sr_runs_failed_total", "GATE_FAIL")
    count("sr_runs_failed_total", "REASON_OF_A_NEWER_RELEASE", by=2)
    count("sr_runs_failed_total", by=3)
    count("a.name.that.nobody.declared")
    shown = text()
    assert 'sr_runs_failed_total{reason="GATE_FAIL"} 1.0\n' in shown
    assert 'sr_runs_failed_total{reason="other"} 5.0\n' in shown
    assert 'sr_operations_total{operation="other"} 1.0\n' in shown
    assert "NEWER" not in shown
    assert "nobody" not in shown


def test_counters_and_durations_are_there_before_anything_was_counted_and_gauges_are_not() -> None:
    shown = text()
    assert "sr_runs_ready_total 0.0\n" in shown
    assert "sr_ready_commit_latency_seconds_count 0.0\n" in shown
    assert not re.search(r"^sr_outbox_depth ", shown, re.MULTILINE), "nobody knows it, which is not zero"


def test_durations_are_shown_cumulated() -> None:
    observe("sr_ready_commit_latency_seconds", 0.02)
    observe("sr_ready_commit_latency_seconds", 1e6)
    shown = dict(re.findall(r'^sr_ready_commit_latency_seconds_bucket\{le="(.+)"\} (.+)$', text(), re.MULTILINE))
    assert (shown["0.01"], shown["0.05"], shown["86400"], shown["+Inf"]) == ("0.0", "1.0", "1.0", "2.0")


def test_a_gauge_is_shown_under_its_label_and_an_unknown_one_is_not_shown() -> None:
    shown = text({("sr_intake_lag_seconds", "shard-1"): 2.5, ("sr_runs_waiting_by_deadline", "no class"): 1.0,
                  ("sr_unknown", ""): 1.0})  # fmt: skip
    assert 'sr_intake_lag_seconds{shard="shard-1"} 2.5\n' in shown
    assert "no class" not in shown
    assert "sr_unknown" not in shown


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_says_what_it_is(metric: Any) -> None:
    shown = text()
    stem = metric.name.removesuffix("_total") if metric.kind is Kind.COUNTER else metric.name
    assert re.search(rf"^# HELP {stem}(_total)? \S.+$", shown, re.MULTILINE)
    assert re.search(rf"^# TYPE {stem}(_total)? {metric.kind}$", shown, re.MULTILINE)
    assert metric.help.endswith(".")


def test_every_number_of_series_is_bounded() -> None:
    for number in range(10_000):
        for metric in METRICS:
            if metric.kind is Kind.COUNTER:
                count(metric.name, f"label {number}")
    assert len(text().splitlines()) < 600


def test_promtool_finds_nothing_to_complain_of() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt install prometheus): the metrics were not checked with it")
    gauges = {(metric.name, (metric.values or ("shard",))[0] if metric.label else ""): 1.0
              for metric in METRICS if metric.kind is Kind.GAUGE}  # fmt: skip
    heartbeats = Heartbeats(60.0)
    heartbeats.begin("runner")
    done = subprocess.run([promtool, "check", "metrics"], input=text(gauges, heartbeats).encode(), capture_output=True,
                          check=False)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_loops_are_those_that_the_service_starts() -> None:
    started = set()
    for name in ("supervisor.py", "engine_lane.py", "bulk_pool.py", "observer.py"):
        source = (PACKAGE / "service" / name).read_text("utf-8")
        begun = r'self\._thread\(\s*"([a-z]+)"|(?:heartbeats\.begin|LoopState)\(f?"([a-z]+)[":]'
        started |= set(re.findall(begun, source))
    assert {one or other for one, other in started} == set(LOOPS)


def test_names_of_metrics_are_given_once() -> None:
    assert len(BY_NAME) == len(METRICS)


def test_every_series_is_shown_once() -> None:
    """A scrape with the same series twice is refused, or half of it lost."""
    made = Exposition({"version": "1"}, Heartbeats(1.0), dict).text().decode()
    series = [line.rpartition(" ")[0] for line in made.splitlines() if not line.startswith("#")]
    assert len(series) > 100
    assert sorted({name for name in series if series.count(name) > 1}) == []
