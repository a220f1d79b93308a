"""The bench of the stream takes a real measurement, and says what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from streaming import ENDPOINT, WHY_NOT, dynamodb
from support import REPO


def bench(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / "scripts/bench_kinesis.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=env)


@pytest.mark.localstack
@pytest.mark.skipif(not ENDPOINT, reason=WHY_NOT)
def test_records_are_admitted_and_each_has_one_disposition() -> None:
    dynamodb()
    done = bench("--only", "admit", "--records", "20", "--timing", "fast")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["admit"]["records"] == 20
    assert report["admit"]["records_per_second"] > 0
    assert (report["timing"], report["endpoint"]) == ("fast", ENDPOINT)


@pytest.mark.localstack
@pytest.mark.skipif(not ENDPOINT, reason=WHY_NOT)
def test_requests_are_submitted_and_each_is_on_the_stream_once() -> None:
    done = bench("--only", "submit", "--records", "600")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["submit"]
    assert report["requests"] == 600
    assert report["requests_per_second"] > 0


@pytest.mark.integration
def test_without_an_endpoint_it_says_what_to_do() -> None:
    done = bench(env={name: value for name, value in os.environ.items() if name != "SR_KINESIS_ENDPOINT_URL"})
    assert done.returncode == 1
    assert done.stderr.startswith("error: SR_KINESIS_ENDPOINT_URL is not set")
    assert done.stdout == ""


@pytest.mark.integration
def test_an_unknown_measurement_is_a_usage_error() -> None:
    done = bench("--only", "admit,nothing")
    assert done.returncode == 2
    assert "nothing" in done.stderr
