"""Fixtures of tests that are about S3: places on two servers of different make."""

from collections.abc import Iterator

import pytest
from s3_support import SERVERS, Spot, spot_on

from scenario_runner.retry import RetryPolicy


@pytest.fixture(params=SERVERS)
def spot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spot]:
    """A place of the test's own on each server in turn."""
    with spot_on(request.param, monkeypatch.setenv) as made:
        yield made


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spot]:
    """A place on the first server only."""
    with spot_on("first", monkeypatch.setenv) as made:
        yield made


@pytest.fixture
def impatient_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls give up after a fraction of a second."""
    monkeypatch.setattr("scenario_runner.storage.s3_client._RETRY", RetryPolicy(0.01, 0.05, deadline_seconds=0.1))
    monkeypatch.setattr("scenario_runner.storage.s3_client._REQUEST_SECONDS", "300ms")
    monkeypatch.setattr("scenario_runner.storage.s3_small._TIMEOUT_MS", 300)


@pytest.fixture
def writes_are_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was just written counts as written long ago."""
    monkeypatch.setattr("scenario_runner.artifacts.reuse.RACY_NS", -60_000_000_000)
