"""infra/monitoring and docs/runbook.md name what there is: metrics, labels, alerts and reason codes, each of them."""

from __future__ import annotations

import json
import re
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.service.metrics import BY_NAME, METRICS, Kind

pytestmark = pytest.mark.unit

REPO = Path(__file__).resolve().parents[4]
MONITORING = REPO / "infra/monitoring"
GROUPS = yaml.safe_load((MONITORING / "alerts.yaml").read_text("utf-8"))["groups"]
ALERTS: list[dict[str, Any]] = [alert for group in GROUPS for alert in group["rules"]]
CASES = yaml.safe_load((MONITORING / "alerts.test.yaml").read_text("utf-8"))["tests"]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text("utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]
RUNBOOK = (REPO / "docs/runbook.md").read_text("utf-8")
#: Labels that a scraper adds, and those of histograms and of the build information.
FOREIGN = {"job", "instance", "le", "version", "role"}


def entries(title: str = "") -> dict[str, str]:
    """The entries of the runbook by their headings: those of a section, or of every section."""
    text = RUNBOOK
    if title:
        text = re.split(r"^## ", RUNBOOK.partition(f"\n## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    parts = re.split(r"^(###? .+)$", text, flags=re.MULTILINE)
    return {head.removeprefix("### "): body for head, body in pairwise(parts) if head.startswith("### ")}


def selectors(expression: str) -> list[tuple[str, dict[str, str]]]:
    """Name and matched labels of every series that an expression names."""
    found = re.findall(r"\b(sr_[a-z_]+)(?:\{([^}]*)\})?", expression)
    return [(name, dict(re.findall(r'(\w+)=~?"([^"]*)"', labels))) for name, labels in found]


def declared(name: str) -> str:
    """The metric that a series belongs to."""
    if name == "sr_build_info":
        return name
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return base if base in BY_NAME and BY_NAME[base].kind is Kind.HISTOGRAM else name


@pytest.mark.parametrize("expression", [*QUERIES, *(alert["expr"] for alert in ALERTS)])
def test_every_query_names_metrics_and_labels_that_there_are(expression: str) -> None:
    assert selectors(expression)
    for name, labels in selectors(expression):
        metric = BY_NAME.get(declared(name))
        assert metric is not None or name == "sr_build_info", name
        for label, wanted in labels.items():
            assert label in FOREIGN or (metric is not None and label == metric.label), (name, label)
            if metric is not None and label == metric.label and metric.values:
                for alternative in wanted.split("|"):
                    assert any(re.fullmatch(alternative, value) for value in metric.values), (name, alternative)
    for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
        own = {BY_NAME[declared(name)].label for name, _ in selectors(expression) if declared(name) in BY_NAME}
        assert {label.strip() for label in grouped.split(",")} <= own | FOREIGN


def test_the_dashboard_shows_every_metric() -> None:
    shown = {declared(name) for query in QUERIES for name, _ in selectors(query)}
    assert shown == {metric.name for metric in METRICS} | {"sr_build_info"}


def test_the_panels_of_the_dashboard_are_apart_and_named() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        place, targets = panel["gridPos"], panel.get("targets", [])
        assert panel["title"]
        assert place["x"] + place["w"] <= 24
        assert len({target["refId"] for target in targets}) == len(targets)
        assert all(target["datasource"]["uid"] == "${datasource}" for target in targets)
    for one, other in combinations((panel["gridPos"] for panel in PANELS), 2):
        apart_in_width = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart_in_width or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_where_its_entry_is(alert: dict[str, Any]) -> None:
    assert set(alert) == {"alert", "expr", "for", "labels", "annotations"}
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert set(alert["annotations"]) == {"summary", "runbook_url"}
    assert re.fullmatch(r"[{N].{20,160}\.", alert["annotations"]["summary"])
    assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{alert['alert'].lower()}"


@pytest.mark.parametrize("name", [alert["alert"] for alert in ALERTS])
def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not(name: str) -> None:
    cases = [case for test in CASES for case in test["alert_rule_test"] if case["alertname"] == name]
    assert {bool(case.get("exp_alerts")) for case in cases} == {True, False}


def test_the_runbook_has_an_entry_for_each_alert_and_each_reason_code_and_no_other() -> None:
    alerts = entries("Alerts")
    assert sorted(alerts) == sorted(alert["alert"] for alert in ALERTS)
    assert sorted(set(entries()) - set(alerts)) == sorted(Reason)
    assert RUNBOOK.count("\n### ") == len(entries()), "two entries have one name"


@pytest.mark.parametrize(("name", "text"), entries().items(), ids=entries())
def test_an_entry_says_what_it_means_what_to_look_at_and_what_to_do(name: str, text: str) -> None:
    assert "- **Means.** " in text
    assert "- **Look and do.** " in text or ("- **Look.**" in text and "- **Do.** " in text)
    if name in set(Reason):
        assert SENTENCES[Reason(name)] not in text, "the sentence of the code is known already"


def sections() -> dict[str, str]:
    """What stands directly below each heading of the runbook, by the anchor of the heading."""
    parts = re.split(r"^##+ (.+)$", RUNBOOK, flags=re.MULTILINE)
    return {head.lower().replace(" ", "-"): body for head, body in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize(("name", "text"), entries().items(), ids=entries())
def test_what_an_entry_says_to_look_at_comes_with_commands(name: str, text: str) -> None:
    look = text[text.index("- **Look") :].partition("- **Do.**")[0]
    linked = [sections()[anchor] for anchor in re.findall(r"\]\(#([\w-]+)\)", look)]
    assert any("\n```sh\n" in body for body in (look, *linked)), "no commands, and no link to any"


def test_the_commonest_reason_codes_have_commands_of_their_own() -> None:
    common = {
        Reason.AUTH_DENIED, Reason.REQUEST_SCHEMA_INVALID, Reason.EQUIV_KEY_COLLISION, Reason.EVIDENCE_MISSING,
        Reason.EVIDENCE_MISSING_DEADLINE, Reason.GATE_FAIL, Reason.ENGINE_EXIT_NONZERO, Reason.EVIDENCE_CONFLICT,
        Reason.UNAVAILABLE, Reason.CONFIGURATION_INVALID, Reason.RUN_NOT_FOUND,
    }  # fmt: skip
    assert [name for name in common if "\n```sh\n" not in entries()[name]] == []
