"""Alerts and dashboard against the metrics of a real daemon, by the tools of Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support import REPO, World, need_posix
from test_health import serving, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.integration

MONITORING = REPO / "infra/monitoring"
ALERTS = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]  # fmt: skip
QUERIES = [
    target["expr"] for panel in json.loads((MONITORING / "dashboard.json").read_text("utf-8"))["panels"]
    for target in panel.get("targets", ())
]  # fmt: skip


def need(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not there; scripts/run_tests.sh unpacks it where apt is")
    return found


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """Queries a Prometheus that watches a daemon before and after a run of each end and a refused record."""
    need_posix()
    program = need("prometheus")
    folder = tmp_path_factory.mktemp("watched")
    world = World(folder / "world")
    small: dict[str, Any] = {"members": 2, "parts": 1, "outputs": ["s3_candidate_set_1A"]}
    damages = {"ready": None, "failed": "flag_says_fail", "quarantined": "flag_bit_off", "waiting": "flag_missing"}
    made = {
        name: world.make_run(name, seed=seed, **small, **({"damage": damage} if damage else {}))
        for seed, (name, damage) in enumerate(damages.items())
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving(world) as served:
        until(lambda: served.check("/readyz")[0] == 200)
        settings = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(MONITORING / "alerts.yaml")],
            "scrape_configs": [{"job_name": "sr", "static_configs": [{"targets": [f"127.0.0.1:{served.port}"]}]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings), "utf-8")
        with (folder / "log").open("wb") as log:
            prometheus = subprocess.Popen(
                [program, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
                 f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log,
            )  # fmt: skip

        def query(expression: str) -> list[dict[str, Any]]:
            given = urllib.parse.urlencode({"query": expression})
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{given}") as response:
                return list(json.load(response)["data"]["result"])

        def holds(expression: str) -> bool:
            assert prometheus.poll() is None, (folder / "log").read_text("utf-8")
            try:
                return bool(query(expression))
            except (ConnectionError, urllib.error.URLError):
                return False

        try:
            until(lambda: holds("sr_runs_ready_total == 0"))
            for name, item in made.items():
                world.drop(item["request"], f"{name}.json")
            world.drop(b"no request", "bad.json")
            for name in ("sr_runs_ready_total", "sr_runs_quarantined_total", "sum(sr_runs_failed_total)",
                         "sum(sr_runs_rejected_total)", "sr_quarantine_open", "sr_runs_waiting"):  # fmt: skip
                until(lambda name=name: holds(f"{name} == 1"))
            yield query
        finally:
            prometheus.terminate()
            prometheus.wait(30)


@pytest.mark.parametrize("expression", QUERIES)
def test_every_query_of_the_dashboard_has_an_answer(
    expression: str, ask: Callable[[str], list[dict[str, Any]]]
) -> None:
    expression = expression.replace("$__rate_interval", "5m").replace("$job", ".+")
    assert ask(expression)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_reads_series_that_a_daemon_has(
    alert: dict[str, Any], ask: Callable[[str], list[dict[str, Any]]]
) -> None:
    for selector in re.findall(r"\bsr_[a-z_]+(?:\{[^}]*\})?", alert["expr"]):
        assert ask(selector), selector


def test_prometheus_takes_the_rules_and_only_the_right_ones_are_pending(
    ask: Callable[[str], list[dict[str, Any]]],
) -> None:
    until(lambda: ask('ALERTS{alertname="SrQuarantineOpen"}'))
    pending = {item["metric"]["alertname"] for item in ask("ALERTS")}
    assert {"SrQuarantineOpen", "SrDeadLettersGrow"} <= pending
    assert pending <= {"SrQuarantineOpen", "SrDeadLettersGrow", "SrMostRequestsRefused", "SrMostRunsFail"}


def test_promtool_finds_nothing_wrong_with_the_metrics_of_a_daemon(tmp_path_factory: pytest.TempPathFactory) -> None:
    promtool = need("promtool")
    with serving(World(tmp_path_factory.mktemp("metrics") / "world")) as served:
        until(lambda: served.value("sr_daemons") == 1)
        text = served.get("/metrics")[1]
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("arguments", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts.test.yaml")])
def test_promtool_accepts_the_alerts_and_their_tests_pass(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([need("promtool"), *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
