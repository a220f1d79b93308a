"""Fixtures of tests that are about PostgreSQL: a schema of the test's own, and authorities on it."""

from collections.abc import Callable, Iterator

import pytest
from postgres_support import Schema, Server, given_dsn

from scenario_runner.authority.base import Authority
from scenario_runner.retry import RetryPolicy


@pytest.fixture
def schema() -> Iterator[Schema]:
    made = Schema(given_dsn())
    yield made
    made.drop()


@pytest.fixture
def opened() -> Iterator[Callable[[str], Authority]]:
    """Opens authorities, and closes them at the end."""
    given_dsn()
    from scenario_runner.authority.postgres import PostgresAuthority

    made: list[Authority] = []

    def open_one(dsn: str) -> Authority:
        made.append(PostgresAuthority(dsn, "profile p"))
        return made[-1]

    yield open_one
    for authority in made:
        authority.close()


@pytest.fixture
def authority(schema: Schema, opened: Callable[[str], Authority]) -> Authority:
    return opened(schema.dsn)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of the test's own; commits are not flushed to the disk, since only processes die here."""
    given_dsn()
    made = Server("fsync = off", "max_connections = 40")
    yield made
    made.remove()


@pytest.fixture
def impatient_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls give up after the first failure."""
    given_dsn()
    monkeypatch.setattr(
        "scenario_runner.authority.postgres_pool._RETRY", RetryPolicy(0.01, 0.02, deadline_seconds=0.05)
    )
    monkeypatch.setattr("scenario_runner.authority.postgres_pool._WAIT_SECONDS", 0.3)
