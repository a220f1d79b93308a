"""The bench takes real measurements, says how, and refuses to report numbers for work that was not done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import REPO

pytestmark = pytest.mark.integration

SIZES = ["--one-world-runs", "12", "--own-worlds-runs", "4", "--own-worlds-daemons", "2", "--drain-runs", "20",
         "--submit-requests", "30", "--reemit-runs", "20", "--one-shot-calls", "2",
         "--large-part-mb", "2", "--large-rounds", "1", "--large-warm", "1"]  # fmt: skip


def bench(folder: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, REPO / "scripts/bench.py", "--dir", folder, *SIZES, *arguments],
        capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout or b"{}"), done.stderr.decode()


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in report["results"]}


def test_every_measurement_gives_a_value_a_target_and_says_how_beside_references_of_the_same_process_run(
    tmp_path: Path,
) -> None:
    code, report, progress = bench(tmp_path / "worlds", "--json", str(tmp_path / "report.json"))
    assert code == 0, progress
    assert report["checks_failed"] == []
    results = by_name(report)
    assert set(results) == {
        "one_world", "own_worlds", "drain", "drain_peak_rss", "large_cold", "large_warm", "large_warm_new_process",
        "large_peak_rss", "help", "submit",
    }  # fmt: skip
    for item in results.values():
        assert item["value"] > 0
        assert isinstance(item["met"], bool)
        assert item["unit"]
        assert item["target"]
        assert item["how"]
    assert json.loads((tmp_path / "report.json").read_bytes()) == report
    for name in ("one_world", "own_worlds", "large_cold"):
        assert results[name]["reference"]["value"] > 0
        assert results[name]["reference"]["how"]
    assert results["one_world"]["runs"] == 12
    assert results["one_world"]["reference"]["files"] >= 12 * 6
    assert results["own_worlds"]["durable_files_per_run"] > results["one_world"]["durable_files_per_run"]
    assert results["large_cold"]["bytes"] > 9 * 2_000_000


def test_repeated_signals_and_one_shot_runs_are_measured_when_they_are_asked_for(tmp_path: Path) -> None:
    code, report, progress = bench(tmp_path, "--only", "reemit", "--only", "one_shot")
    assert code == 0, progress
    results = by_name(report)
    assert set(results) == {"reemit", "reemit_with_records", "one_shot"}
    assert len(results["one_shot"]["seconds_each"]) == 2


def test_only_takes_the_named_measurements_and_leaves_nothing_behind(tmp_path: Path) -> None:
    code, report, progress = bench(tmp_path, "--only", "help")
    assert code == 0, progress
    assert list(by_name(report)) == ["help"]
    assert list(tmp_path.iterdir()) == []


def test_two_checkouts_are_measured_in_turns_and_compared(tmp_path: Path) -> None:
    code, report, progress = bench(tmp_path, "--only", "one_world", "--against", str(REPO), "--rounds", "1")
    assert code == 0, progress
    assert [item["subject"] for item in report["results"]] == ["this", "other"]
    compared = {item["name"]: item for item in report["comparison"]}
    for figure in ("one_world", "one_world cpu_ms_per_run", "one_world steady_runs_per_second"):
        assert compared[figure]["ratio"] > 0
        assert figure in progress
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("measurement", ["one_world", "own_worlds", "drain", "large", "submit"])
def test_a_command_that_does_nothing_is_no_measurement(tmp_path: Path, measurement: str) -> None:
    idle = script(tmp_path / "idle", "exit 0")
    code, report, _ = bench(tmp_path / "worlds", "--only", measurement, "--command", idle)
    assert code == 1
    assert report["checks_failed"] == [measurement]
    failed = by_name(report)[measurement]
    assert failed["value"] is None
    assert failed["met"] is False
    assert failed["error"]


@pytest.mark.parametrize("measurement", ["one_world", "help"])
def test_a_command_that_fails_is_no_measurement(tmp_path: Path, measurement: str) -> None:
    broken = script(tmp_path / "broken", "echo out of order >&2; exit 5")
    code, report, _ = bench(tmp_path / "worlds", "--only", measurement, "--command", broken)
    assert code == 1
    assert "ended with 5" in by_name(report)[measurement]["error"]


def test_one_missing_ready_is_found(tmp_path: Path) -> None:
    real = Path(sys.executable).parent / "scenario-runner"
    losing = script(tmp_path / "losing", f'{real} "$@" || exit\ncd "$(dirname "$3")/control-bus/fp.bus.control.v1"\n'
                    'rm "$(ls | head -n 1)"')  # fmt: skip
    code, report, _ = bench(tmp_path / "worlds", "--only", "one_world", "--command", losing)
    assert code == 1
    assert "12 READY expected, 11 found" in by_name(report)["one_world"]["error"]


def test_a_facts_view_with_other_bytes_is_found(tmp_path: Path) -> None:
    real = Path(sys.executable).parent / "scenario-runner"
    lying = script(tmp_path / "lying", f'{real} "$@" || exit\ncd "$(dirname "$3")/object-store"\n'
                   'for f in fraud-platform/sr/run_facts_view/*; do echo >> "$f"; break; done')  # fmt: skip
    code, report, _ = bench(tmp_path / "worlds", "--only", "one_world", "--command", lying)
    assert code == 1
    assert "does not have the digest" in by_name(report)["one_world"]["error"]


def test_one_request_that_is_not_in_the_spool_is_found(tmp_path: Path) -> None:
    real = Path(sys.executable).parent / "scenario-runner"
    losing = script(tmp_path / "losing", f'{real} "$@" || exit\ncd "$(dirname "$3")/control-bus/requests"\n'
                    'rm "$(ls | head -n 1)"')  # fmt: skip
    code, report, _ = bench(tmp_path / "worlds", "--only", "submit", "--command", losing)
    assert code == 1
    assert "30 requests submitted, files in the spool: 1 missing" in by_name(report)["submit"]["error"]


def test_retention_is_measured_alone_and_beside_a_daemon(tmp_path: Path) -> None:
    code, report, progress = bench(tmp_path, "--only", "retention", "--retention-rows", "1000")
    assert code == 0, progress
    results = by_name(report)
    assert results["retention_longest_batch"]["unit"] == "ms"
    assert results["retention_longest_batch"]["how"].startswith("1300 rows on SQLite")
    assert results["admission_alone_p50"]["admissions"] == 10
    assert {"retention_rate", "admission_beside_retention_max", "retention_beside_rate"} < set(results)


def test_look_ups_are_measured_when_they_are_asked_for_on_a_database_of_copied_runs(tmp_path: Path) -> None:
    code, report, progress = bench(tmp_path, "--only", "lookups", "--lookups-runs", "1000", "--lookups-calls", "1")
    assert code == 0, progress
    results = by_name(report)
    assert results["lookup_list_all"]["rows"] == 100
    assert results["lookup_list_failed"]["rows"] == 30
    assert results["lookup_list_missing_of_one"]["rows"] == results["lookup_list_key_of_one"]["rows"] == 1
    assert results["lookup_dead_letters"]["rows"] == 10
    assert {"lookup_status_by_prefix", "lookup_explain", "lookup_dead_letter", "lookup_quarantined"} < set(results)


def test_a_herd_is_measured_while_a_new_run_beside_it_becomes_ready(tmp_path: Path) -> None:
    sizes = ("--herd-runs", "300", "--herd-siblings", "5", "--herd-warm-seconds", "1", "--herd-seconds", "2")
    code, report, progress = bench(tmp_path, "--only", "herd", *sizes)
    assert code == 0, progress
    results = by_name(report)
    assert set(results) == {"herd_cpu", "herd_log_lines"}
    assert results["herd_cpu"]["how"].startswith("300 runs that wait for a root each, absent, for 1 to 3 h, on files")
    assert results["herd_cpu"]["new_run_ready_ms"] > 0
    assert results["herd_cpu"]["runs_examined_in_vain_per_second"] == 0


@pytest.mark.parametrize("come", [False, True])
def test_new_runs_are_measured_behind_a_herd_that_one_message_wakes(tmp_path: Path, come: bool) -> None:
    more = ("--woken-come",) if come else ()
    code, report, progress = bench(tmp_path, "--only", "woken", "--woken-runs", "300", *more)
    assert code == 0, progress
    (found,) = by_name(report).values()
    assert found["how"].endswith("their evidence has come" if come else "the root is still absent")
    assert found["herd_ready"] == (300 if come else 0)
    assert 0 < found["decided_ms"] <= found["value"] <= found["longest_ms"]
    assert found["new_runs"] >= 1


def test_a_rebuild_and_a_check_are_measured_over_every_run(tmp_path: Path) -> None:
    code, report, progress = bench(tmp_path, "--only", "rebuild", "--rebuild-runs", "12")
    assert code == 0, progress
    results = by_name(report)
    assert set(results) == {"rebuild", "ledger_check"}
    assert all(item["value"] > 0 for item in results.values())


def test_a_short_soak_has_every_fault_and_loses_nothing(tmp_path: Path) -> None:
    code, report, progress = bench(tmp_path, "--only", "soak", "--soak-minutes", "0.2")
    assert code == 0, progress
    results = by_name(report)
    assert {"soak_rss", "soak_files", "soak_threads"} <= set(results)
    for fault in ("store_away", "spool_away", "authority_locked", "stopped", "clients_hang"):
        assert f"{fault} 1" in results["soak_rss"]["how"]
    assert results["soak_rss"]["scrapes"] > 0
    assert results["soak_rss"]["samples"] >= 20


@pytest.mark.parametrize("lost", ["", "fp.bus.control.v1"])
def test_a_soak_that_lost_something_gives_no_figure(tmp_path: Path, lost: str) -> None:
    real = Path(sys.executable).parent / "scenario-runner"
    end = f'cd "$(dirname "$3")/control-bus/{lost}" && rm "$(ls | head -n 1)"' if lost else "exit 5"
    losing = script(tmp_path / "losing", f'trap "" TERM\n{real} "$@" & daemon=$!\ntrap "kill $daemon" TERM\n'
                    f"wait $daemon\nwait $daemon\n{end}")  # fmt: skip
    code, report, _ = bench(tmp_path / "w", "--only", "soak", "--soak-minutes", "0.1", "--command", losing)
    assert code == 1
    said = ("READY", "signals on the bus") if lost else ("ended with 5",)  # the lost one may be a TERMINAL
    assert any(text in by_name(report)["soak"]["error"] for text in said)


def test_the_cost_of_being_watched_is_measured_in_turns(tmp_path: Path) -> None:
    code, report, progress = bench(tmp_path, "--only", "telemetry", "--telemetry-runs", "1000")
    assert code == 0, progress
    results = by_name(report)
    assert set(results) == {"telemetry_throughput", "telemetry_cpu"}
    assert all(results["telemetry_throughput"][f"{each}_runs_per_second"] > 0 for each in ("on", "off"))
    assert [line.split()[2] for line in progress.splitlines() if "runs/s," in line] == ["off:", "on:", "on:", "off:"]
