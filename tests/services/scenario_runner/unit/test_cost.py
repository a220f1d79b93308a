"""docs/cost.md: every assumption counts, and sums are what they say."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support import REPO

from sr_tools import cost

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

ASSUMED: dict[str, Any] = yaml.safe_load(cost.ASSUMPTIONS.read_text("utf-8"))
#: What is shown and not paid for by itself.
SHOWN_ONLY = {"postgres_statements", "ledger_objects", "log_lines", "cpu_ms"}


def dollars(assumed: dict[str, Any]) -> dict[str, float]:
    return {item.component: item.dollars for item in cost.items(assumed)}


def changed(part: str, name: str, by: float) -> dict[str, Any]:
    found = copy.deepcopy(ASSUMED)
    found[part][name] *= by
    return found


@pytest.mark.parametrize("part", ["prices", "workload"])
def test_every_assumption_has_a_meaning_and_changes_the_sum(part: str) -> None:
    for name in ASSUMED[part]:
        assert ASSUMED["meanings"][name]
        assert sum(dollars(changed(part, name, 3)).values()) != pytest.approx(sum(dollars(ASSUMED).values())), name
    assert set(ASSUMED["meanings"]) == {*ASSUMED["prices"], *ASSUMED["workload"]}


def test_everything_that_was_measured_is_paid_for_or_shown() -> None:
    for name in ASSUMED["measured"]["known_world"]:
        other = copy.deepcopy(ASSUMED)
        for run in other["measured"].values():
            run[name] = run[name] * 100 + 1
        assert (dollars(other) != dollars(ASSUMED)) is (name not in SHOWN_ONLY), name


def test_a_million_runs_cost_what_the_prices_say() -> None:
    found = dollars(ASSUMED)
    assert found["Kinesis, shards"] == pytest.approx(2 * 730 * 0.015)
    known, new = (ASSUMED["measured"][name]["s3_get"] for name in ("known_world", "new_world"))
    assert found["S3, GET and HEAD"] == pytest.approx((0.9 * known + 0.1 * new) * 1000 * 0.0004)
    assert found["Kinesis, records"] == pytest.approx(2 * 0.014), "a request and its READY, each below 25 KB"


def test_what_is_paid_by_the_hour_is_spread_over_the_runs_of_a_month() -> None:
    tenfold = list(cost.items(changed("workload", "runs_per_month", 10)))
    for before, after in zip(cost.items(ASSUMED), tenfold, strict=True):
        assert after.dollars == pytest.approx(before.dollars / 10 if before.fixed else before.dollars)


def test_the_script_prints_the_sum_for_another_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(changed("prices", "rds_hour", 0)), "utf-8")
    command = [sys.executable, str(REPO / "scripts/cost.py"), str(tmp_path / "mine.yaml")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| RDS, instance | 730 hours | 0.00 |" in shown
    assert shown.rstrip().splitlines()[-1].startswith("| **all** |")
