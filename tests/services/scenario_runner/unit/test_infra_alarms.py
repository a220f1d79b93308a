"""The alarms of infra/aws: each page rule has one, each filter reads what the code logs, each expression says what its
rule says."""

from __future__ import annotations

import json
import re
import threading
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from cloudformation import NAMES, template
from structlog.testing import capture_logs

from scenario_runner.authority.observed import DEADLINES, Backlog
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.intake.base import IntakeLag
from scenario_runner.service.heartbeats import Heartbeats
from scenario_runner.service.metrics import BY_NAME
from scenario_runner.service.minute_log import MinuteLog
from scenario_runner.service.observer import Observer

pytestmark = pytest.mark.unit

REPO = Path(__file__).resolve().parents[4]
GUIDE = (REPO / "docs/guides/aws.md").read_text("utf-8")
PARAMETERS = {name for file in NAMES for name in template(file)["Parameters"]}
RESOURCES = template("service.yaml")["Resources"]
STACK = {"Ref": "AWS::StackName"}
TERM = re.compile(r'\$\.([\w.]+) (=|>=) (?:"([^"]*)"|([\d.]+))')


def of_type(kind: str) -> dict[str, dict[str, Any]]:
    return {name: item["Properties"] for name, item in RESOURCES.items() if item["Type"] == kind}


ALARMS, FILTERS = of_type("AWS::CloudWatch::Alarm"), of_type("AWS::Logs::MetricFilter")
RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load((REPO / "infra/monitoring/alerts.yaml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
}


def at(line: Any, path: str) -> Any:
    """The value at a path of a line; None where there is none."""
    for key in path.split("."):
        line = line.get(key) if isinstance(line, dict) else None
    return line


def matches(pattern: str, line: dict[str, Any]) -> bool:
    """Whether a pattern for JSON matches a line, as CloudWatch documents it: terms with one kind of connective."""
    assert not ("&&" in pattern and "||" in pattern)
    found = []
    for path, operator, text, number in TERM.findall(pattern):
        value = at(line, path)
        if operator == "=":
            found.append(isinstance(value, str) and fnmatchcase(value, text))
        else:
            found.append(isinstance(value, int | float) and value >= float(number))
    assert TERM.sub("", pattern).strip("{}() &|") == "", "a pattern that this test cannot read"
    return any(found) if "||" in pattern else all(found)


def taken(line: dict[str, Any]) -> dict[str, float]:
    """What the filters make of a line, by the name of the metric."""
    made = {}
    for item in FILTERS.values():
        (change,) = item["MetricTransformations"]
        if matches(item["FilterPattern"], line):
            value = change["MetricValue"]
            made[change["MetricName"]] = at(line, value[2:]) if value.startswith("$.") else float(value)
    return made


def lines(*, bus: str = "") -> list[dict[str, Any]]:
    """What a daemon logs in a minute in which it did nothing, as it is in the log."""

    def check_bus() -> None:
        if bus:
            raise Unavailable(bus)

    backlog = Backlog(9_000_000, {name: 1 for name, _ in DEADLINES}, 0, 0, 1, 2_000_000, 0, None, 1_000_000, 1)
    daemon: Any = SimpleNamespace(
        intake=SimpleNamespace(lags=lambda: [IntakeLag("shard-0", 1.0, 4.0)]),
        relay=SimpleNamespace(check_bus=check_bus), store=SimpleNamespace(identity=lambda: "1", where="here"),
        authority=SimpleNamespace(backlog=lambda _most: backlog), stopping=threading.Event(), started=threading.Event(),
    )  # fmt: skip
    daemon.started.set()
    heartbeats = Heartbeats(60.0, lambda: 0.0)
    heartbeats.begin("runner")
    observer = Observer(daemon, "all", heartbeats)
    observer.refresh()
    with capture_logs() as logged:
        MinuteLog(observer).step()
    return [json.loads(json.dumps({"level": line.pop("log_level"), **line})) for line in map(dict, logged)]


# --- filters


def test_each_event_that_a_log_filter_waits_for_is_one_that_the_code_logs() -> None:
    source = "\n".join(path.read_text("utf-8") for path in sorted((REPO / "daemon").rglob("*.py")))
    logged = set(re.findall(r"\"([^\"\n]+)\"", source))
    patterns = [item["FilterPattern"] for item in FILTERS.values()]
    events = {event for pattern in patterns for event in re.findall(r'\$\.event = "([^"]+)"', pattern)}
    assert len(events) == 6
    for event in events:
        assert [text for text in logged if fnmatchcase(text, event)] != [], event
    for key, value in re.findall(r'\$\.(level|state) = "([^"]+)"', "".join(patterns)):
        assert value in ({"critical", "error"} if key == "level" else {"QUARANTINED"})


def test_the_line_of_a_minute_becomes_the_metrics_of_that_name() -> None:
    (line,) = lines()
    made = taken(line)
    read = {item["MetricTransformations"][0]["MetricName"] for item in FILTERS.values()
            if "metrics of the last minute" in item["FilterPattern"]}  # fmt: skip
    assert made.keys() == read
    assert made.keys() <= BY_NAME.keys()
    for name, value in made.items():
        assert value == line["gauges" if name in line["gauges"] else "counts"][name]
    assert {name: value for name, value in made.items() if value} == {
        "sr_ready": 1, "sr_intake_oldest_record_age_seconds": 4, "sr_oldest_due_run_age_seconds": 8,
        "sr_outbox_oldest_age_seconds": 7, "sr_runs_waiting": len(DEADLINES), "sr_runs_waiting_by_deadline": 1,
    }  # fmt: skip


def test_a_daemon_without_work_that_cannot_use_its_bus_is_seen_each_minute() -> None:
    failed, metrics = lines(bus="refused")
    assert taken(failed) == {"Waiting": 1}
    assert taken(metrics)["sr_ready"] == 0


def test_a_metric_of_a_line_has_no_default_which_would_be_a_value_that_no_daemon_said() -> None:
    for item in FILTERS.values():
        (change,) = item["MetricTransformations"]
        assert change["MetricNamespace"] == STACK
        assert change.get("DefaultValue") == (None if change["MetricValue"].startswith("$.") else 0)


def test_each_log_filter_counts_into_an_alarm() -> None:
    made = [item["MetricTransformations"][0]["MetricName"] for item in FILTERS.values()]
    watched = {alarm["MetricName"] for alarm in ALARMS.values() if alarm.get("Namespace") == STACK}
    for alarm in ALARMS.values():
        metrics = [item["MetricStat"]["Metric"] for item in alarm.get("Metrics", []) if "MetricStat" in item]
        assert all(metric["Namespace"] == STACK for metric in metrics)
        watched |= {metric["MetricName"] for metric in metrics}
    assert len(made) == len(set(made))
    assert set(made) == watched


# --- alarms


def test_each_alarm_tells_the_topic_also_when_it_is_over_and_names_metrics_that_there_are() -> None:
    assert len(ALARMS) == 18
    for name, alarm in ALARMS.items():
        assert alarm["AlarmActions"] == alarm["OKActions"] == [{"Ref": "AlarmTopic"}], name
        assert alarm["TreatMissingData"] in ("breaching", "notBreaching", "missing"), name
        assert set(re.findall(r"sr_\w+", alarm["AlarmDescription"])) <= set(BY_NAME), name


def test_each_entry_of_the_runbook_that_an_alarm_names_is_there() -> None:
    named = re.findall(r"Runbook: (\w+)$", "\n".join(alarm["AlarmDescription"] for alarm in ALARMS.values()), re.M)
    assert len(named) == len(set(named)) == 14
    assert set(named) <= RULES.keys()


def test_each_page_rule_has_an_alarm_and_the_guide_says_what_it_does_not_tell() -> None:
    section = GUIDE.partition("\n### Page rules and their alarms\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (Sr\w+) \| `(\w+)` \| (.+) \|$", section, re.M)
    assert [rule for rule, *_ in rows] == [name for name, rule in RULES.items() if rule["labels"]["severity"] == "page"]
    for rule, alarm, missing in rows:
        assert set(re.findall(r"`([A-Z][a-z]+[A-Z]\w*|Waits)`", missing)) <= ALARMS.keys() | PARAMETERS, rule
        owners = {name for name, item in ALARMS.items() if f"Runbook: {rule}" in item["AlarmDescription"]}
        # The service runs every role in every daemon, so one alarm stands for the four rules on daemons that are gone.
        assert owners == {alarm} or (alarm, owners) == ("ServiceDown", set()), rule


def test_the_guide_lists_every_alarm() -> None:
    section = GUIDE.partition("\n## Alarms\n")[2].partition("\n### ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == ALARMS.keys()


def test_an_alarm_on_a_gauge_fires_where_its_rule_does() -> None:
    compared = set()
    for alarm in ALARMS.values():
        rule = RULES.get(alarm["AlarmDescription"].rpartition("Runbook: ")[2], {"expr": ""})
        found = re.fullmatch(r"max by \([\w, ]+\) \((sr_\w+)\) (>|==) (\d+)", rule["expr"].strip())
        if found is None or alarm.get("MetricName") != found[1]:
            continue
        compared.add(found[1])
        assert (alarm["Statistic"], alarm["Period"]) == ("Maximum", 60)
        if found[2] == ">":
            assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("GreaterThanThreshold", int(found[3]))
            assert alarm["TreatMissingData"] == "notBreaching"
        else:  # sr_ready == 0, of a gauge that is 0 or 1; that no daemon says it is worse
            assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("LessThanThreshold", 1)
            assert alarm["TreatMissingData"] == "breaching"
    assert compared == {
        "sr_ready", "sr_loop_heartbeat_age_seconds", "sr_intake_oldest_record_age_seconds",
        "sr_oldest_due_run_age_seconds", "sr_outbox_oldest_age_seconds",
    }  # fmt: skip


def fires(name: str, **values: float) -> bool:
    """Whether the expression of an alarm is over its threshold, as CloudWatch documents IF, AND and comparisons."""
    alarm = ALARMS[name]
    *given, made = alarm["Metrics"]
    assert {item["Id"] for item in given} == values.keys()
    assert {item["MetricStat"]["Period"] for item in given} == {{"MostRefused": 900, "NoVerdicts": 3600}[name]}
    assert [item["ReturnData"] for item in alarm["Metrics"]] == [False] * len(given) + [True]
    assert (alarm["Threshold"], alarm["ComparisonOperator"]) == (0, "GreaterThanThreshold")
    condition = re.fullmatch(r"IF\((.+), 1, 0\)", made["Expression"])
    assert condition is not None
    return bool(eval(condition[1].replace(" AND ", " and "), {"__builtins__": {}}, values))


def test_more_refused_than_admitted_fires_from_eleven_on() -> None:
    assert fires("MostRefused", refused=11, admitted=10)
    assert not fires("MostRefused", refused=10, admitted=0)
    assert not fires("MostRefused", refused=50, admitted=50)


@pytest.mark.parametrize("verdict", ["ready", "failed", "quarantined"])
def test_an_hour_without_a_verdict_fires_unless_all_that_was_admitted_may_wait(verdict: str) -> None:
    hour = {"admitted": 5, "ready": 0, "failed": 0, "quarantined": 0, "waiting": 4, "largest": 4}
    assert fires("NoVerdicts", **hour)
    assert not fires("NoVerdicts", **hour | {verdict: 1})
    assert not fires("NoVerdicts", **hour | {"waiting": 5})
    assert not fires("NoVerdicts", **hour | {"admitted": 0, "waiting": 0})
    assert not fires("NoVerdicts", **hour | {"admitted": 5000, "waiting": 1004, "largest": 1000})


def test_the_metrics_of_an_expression_are_summed_where_they_count_and_else_the_worst() -> None:
    for name in ("MostRefused", "NoVerdicts"):
        for item in ALARMS[name]["Metrics"][:-1]:
            counts = item["MetricStat"]["Metric"]["MetricName"].endswith("_total")
            assert item["MetricStat"]["Stat"] == ("Sum" if counts else "Maximum")
