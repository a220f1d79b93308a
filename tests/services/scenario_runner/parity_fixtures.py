"""Fixtures of daemons on S3 and Postgres: engine runs that a module shares, and a world and a schema for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from parity_support import EngineRuns, ParityWorld, schema_in
from postgres_support import given_dsn
from s3_support import Spot, spot_on


@pytest.fixture(scope="module")
def spot() -> Iterator[Spot]:
    """A place on the first server, for all tests of this module."""
    given_dsn()
    with pytest.MonkeyPatch.context() as patch, spot_on("first", patch.setenv) as made:
        yield made


@pytest.fixture(autouse=True)
def no_faults_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test starts and ends without faults."""
    yield
    if "spot" in request.fixturenames:
        request.getfixturevalue("spot").proxy.clear()


@pytest.fixture(scope="module")
def engines(spot: Spot, tmp_path_factory: pytest.TempPathFactory) -> EngineRuns:
    """Engine runs that tests make and share."""
    return EngineRuns(spot, "engine", tmp_path_factory.mktemp("engines"))


@pytest.fixture
def dsn() -> Iterator[str]:
    """A schema of the test's own."""
    with schema_in(given_dsn()) as made:
        yield made


@pytest.fixture
def world(spot: Spot, engines: EngineRuns, dsn: str, tmp_path: Path) -> ParityWorld:
    """A world with nothing in it."""
    return ParityWorld(tmp_path / "world", spot, engines, dsn)
