"""The parity bench takes real measurements on S3 and Postgres, says how, and refuses numbers for work not done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from postgres_support import given_dsn
from support import REPO, s3_place

pytestmark = pytest.mark.parity

SIZES = ["--known-runs", "12", "--new-worlds-runs", "3", "--new-latency-runs", "2", "--rate", "10",
         "--latency-seconds", "1", "--stream-rounds", "2", "--stream-size", "2M", "--outage-seconds", "2",
         "--outage-rate", "5", "--herd-runs", "300", "--herd-siblings", "5", "--herd-warm-seconds", "1",
         "--herd-seconds", "2", "--woken-runs", "300", "--woken-come"]  # fmt: skip
ENTRIES = {
    "known_world": ["known_world", "known_world_calls", "known_world_cpu"],
    "new_worlds": ["new_worlds", "new_worlds_calls", "new_worlds_cpu"],
    "latency": ["latency_ready_p50", "latency_ready_p99", "latency_sent_p50", "latency_sent_p99"],
    "new_latency": ["new_latency_ready_p50", "new_latency_sent_p50"],
    "streaming": ["streaming", "streaming_peak_rss"],
    "outage": ["outage_lost", "outage_admission", "outage_ready"],
    "usage": ["usage_known", "usage_new"],
    "herd": ["herd_cpu", "herd_log_lines", "herd_s3_calls"],
    "woken": ["woken_new_run"],
}
REAL = Path(sys.executable).parent / "scenario-runner"


def bench(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, REPO / "scripts/bench_parity.py", "--dir", folder, *SIZES, *arguments],
        capture_output=True, timeout=280, check=False, env=env,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout or b"{}"), done.stderr.decode()


def take(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """One measurement's entries, of which every one has the shape that all have."""
    s3_place()
    given_dsn()
    code, report, progress = bench(folder, "--only", name)
    assert code == 0, (progress, report)
    assert report["checks_failed"] == []
    assert [item["name"] for item in report["results"]] == ENTRIES[name]
    for item in report["results"]:
        assert isinstance(item["value"], int | float)
        assert isinstance(item["met"], bool)
        assert item["unit"]
        assert item["target"]
        assert item["how"]
    return {item["name"]: item for item in report["results"]}


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def failed(folder: Path, name: str, command: str) -> str:
    """Why a measurement with this command was refused."""
    s3_place()
    given_dsn()
    code, report, progress = bench(folder, "--only", name, "--command", command)
    assert code == 1, progress
    assert report["checks_failed"] == [name]
    (entry,) = report["results"]
    assert entry["value"] is None
    assert entry["met"] is False
    return str(entry["error"])


def test_known_world_tells_rates_calls_and_statements_beside_bare_calls(tmp_path: Path) -> None:
    found = take(tmp_path, "known_world")["known_world"]
    assert found["runs"] == 12
    for rate in ("wall_runs_per_second", "steady_runs_per_second", "cpu_ms_per_run", "peak_rss_mb"):
        assert found[rate] > 0
    kinds = found["s3_calls_per_run_by_operation"]
    assert sum(kinds.values()) == pytest.approx(found["s3_calls_per_run"], abs=0.01)
    assert kinds["s3.put"] > 1
    assert found["statements_per_run"] == found["transactions_per_run"]["value"] > 0
    assert found["reference"]["calls"] == sum(count for key, count in found["counts"].items() if key.startswith("s3."))
    assert found["reference"]["value"] > 0
    assert 0 < found["counts_of_a_start"]["s3.put"] < found["counts"]["s3.put"]
    assert list(tmp_path.iterdir()) == []


def test_new_worlds_are_each_read_and_what_is_asked_beyond_that_is_told(tmp_path: Path) -> None:
    found = take(tmp_path, "new_worlds")
    runs = found["new_worlds"]
    assert runs["runs"] == 3
    kinds = runs["s3_calls_per_run_by_operation"]
    assert kinds["s3.get"] >= 10 * 8 + 9
    assert found["new_worlds_calls"]["value"] == pytest.approx(runs["s3_calls_per_run"] - 94 - 1, abs=0.01)
    assert found["new_worlds_calls"]["value"] >= kinds["s3.put"]


def test_a_herd_is_measured_while_a_new_run_beside_it_becomes_ready(tmp_path: Path) -> None:
    found = take(tmp_path, "herd")["herd_cpu"]
    assert found["how"].startswith("300 runs that wait for a root each, absent, for 1 to 3 h, on S3 and PostgreSQL")
    assert found["new_run_ready_ms"] > 0
    assert found["runs_examined_in_vain_per_second"] == 0


def test_new_runs_are_measured_behind_a_herd_that_one_message_wakes(tmp_path: Path) -> None:
    found = take(tmp_path, "woken")["woken_new_run"]
    assert found["herd_ready"] == 300
    assert 0 < found["decided_ms"] <= found["value"] <= found["longest_ms"]


def test_usage_tells_of_a_run_all_that_its_cost_is_made_of(tmp_path: Path) -> None:
    assumed = yaml.safe_load((REPO / "docs/cost.yaml").read_text("utf-8"))["measured"]
    for name, found in take(tmp_path, "usage").items():
        wanted = assumed["known_world" if name == "usage_known" else "new_world"]
        told = {key.replace(".", "_"): value for key, value in found.items() if key.replace(".", "_") in wanted}
        assert set(told) == set(wanted)
        assert (told["request_records"], told["signal_records"]) == (1, 1)
        assert told["ledger_bytes"] > told["ledger_objects"] * 100 > 0


def test_latency_is_told_for_ready_and_for_the_bus(tmp_path: Path) -> None:
    found = take(tmp_path, "latency")
    assert found["latency_ready_p50"]["requests"] == 10
    assert 0 < found["latency_ready_p50"]["value"] <= found["latency_ready_p99"]["value"]
    assert found["latency_ready_p50"]["value"] < found["latency_sent_p50"]["value"]


def test_a_new_world_is_timed_alone(tmp_path: Path) -> None:
    found = take(tmp_path, "new_latency")
    assert 0 < found["new_latency_ready_p50"]["value"] <= found["new_latency_ready_p50"]["max"]
    assert found["new_latency_ready_p50"]["value"] < found["new_latency_sent_p50"]["value"]


def test_streaming_stands_beside_plain_reads_of_the_same_objects(tmp_path: Path) -> None:
    found = take(tmp_path, "streaming")["streaming"]
    assert found["bytes"] > 2_000_000
    assert len(found["seconds_each"]) == 2
    for reference in ("reference", "reference_ranged"):
        assert found[reference]["value"] > 0
        assert len(found[reference]["seconds_each"]) == 2


def test_outage_loses_nothing_and_tells_when_it_went_on(tmp_path: Path) -> None:
    found = take(tmp_path, "outage")
    assert found["outage_lost"]["value"] == 0
    assert found["outage_lost"]["dropped"] == 40
    assert found["outage_lost"]["outage_seconds"] >= 2
    assert found["outage_admission"]["value"] > 0
    assert found["outage_ready"]["value"] > 0


def test_a_distant_s3_slows_down_the_daemon_and_the_bare_calls_alike(tmp_path: Path) -> None:
    if not s3_place().endpoint.startswith("http://"):
        pytest.skip("a delay needs an S3 endpoint of plain HTTP (SR_TEST_S3_ENDPOINT_URL)")
    given_dsn()
    sizes = ("--only", "known_world", "--known-rounds", "1", "--delay-ms", "30")
    code, report, progress = bench(tmp_path, *sizes)
    assert code == 0, progress
    assert report["s3_delay_ms"] == 30
    found = report["results"][0]
    calls_in_turn = found["reference"]["calls"] / 16  # of each of the 16 threads
    assert min(found["reference"]["seconds_each"]) >= 0.03 * calls_in_turn
    assert found["wall_seconds"] >= 0.03


@pytest.mark.parametrize("name", list(ENTRIES))
def test_a_command_that_does_nothing_is_no_measurement(tmp_path: Path, name: str) -> None:
    assert failed(tmp_path / "worlds", name, script(tmp_path / "idle", "exit 0"))


def test_a_command_that_fails_is_no_measurement(tmp_path: Path) -> None:
    broken = script(tmp_path / "broken", "echo out of order >&2; exit 5")
    assert "ended with 5" in failed(tmp_path / "worlds", "known_world", broken)


LOSE = 'cd "$(dirname "$3")/control-bus/fp.bus.control.v1" 2>/dev/null || exit 0\nrm -f "$(ls | head -n 1)"'


def test_one_missing_ready_is_found_after_a_drain(tmp_path: Path) -> None:
    losing = script(tmp_path / "losing", f'{REAL} "$@" || exit\n{LOSE}')
    assert "12 READY expected, 11 found" in failed(tmp_path / "worlds", "known_world", losing)


@pytest.mark.parametrize("name", ["latency", "new_latency", "streaming", "outage"])
def test_one_missing_ready_of_a_running_daemon_is_found(tmp_path: Path, name: str) -> None:
    body = f'{REAL} "$@" &\ntrap "kill -TERM $!" TERM\nwait $!\nwait $!\n{LOSE}'
    assert "1 missing" in failed(tmp_path / "worlds", name, script(tmp_path / "losing", body))


def test_a_daemon_that_does_not_log_its_counts_is_no_measurement(tmp_path: Path) -> None:
    silent = script(tmp_path / "silent", f'{REAL} "$@" 2>&1 | grep -v counts >&2')
    assert "did not log its counts" in failed(tmp_path / "worlds", "known_world", silent)


def test_a_facts_view_with_other_bytes_is_found(tmp_path: Path) -> None:
    body = (
        "import json, pathlib, sys, urllib.parse, yaml, obstore\nfrom obstore.store import S3Store\n"
        "w = yaml.safe_load(pathlib.Path(sys.argv[1]).read_text())\n"
        "bucket, _, prefix = w['object_store_root'].removeprefix('s3://').partition('/')\n"
        "store = S3Store(bucket, endpoint=w['s3_endpoint_url'], region='us-east-1',\n"
        "                virtual_hosted_style_request=not w['s3_path_style'], client_options={'allow_http': True})\n"
        "for page in obstore.list(store, f'{prefix}/fraud-platform/sr/run_facts_view'):\n"
        "    obstore.put(store, page[0]['path'], b'{}')\n"
    )
    (tmp_path / "spoil.py").write_text(body)
    lying = script(tmp_path / "lying", f'{REAL} "$@" || exit\n{sys.executable} {tmp_path}/spoil.py "$3"')
    assert "does not have the digest" in failed(tmp_path / "worlds", "known_world", lying)


@pytest.mark.parametrize("missing", ["SR_TEST_S3_BUCKET", "SR_TEST_PG_DSN"])
def test_an_unset_variable_is_named_with_what_to_do(tmp_path: Path, missing: str) -> None:
    others = {"SR_TEST_S3_BUCKET": "bucket", "SR_TEST_PG_DSN": "postgresql://localhost/db"}
    env = {key: value for key, value in {**os.environ, **others}.items() if key != missing}
    code, report, said = bench(tmp_path, env=env)
    assert (code, report) == (2, {})
    assert missing in said
    assert "parity_stack.sh up" in said
    assert "Traceback" not in said


def test_help_teaches(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, REPO / "scripts/bench_parity.py", "--help"], capture_output=True,
                          timeout=60, check=False)  # fmt: skip
    text = done.stdout.decode()
    assert done.returncode == 0
    for name in (*ENTRIES, "SR_TEST_S3_BUCKET", "SR_TEST_PG_DSN", "Exit codes"):
        assert name in text
