"""Fixtures of all tiers."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import pytest
from support import NEEDS_POSIX, World

from scenario_runner import posix
from scenario_runner.storage.s3_small import SmallReads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# nohup and a shell's `&` leave SIGINT ignored, which every command under test would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On Windows the tests of the daemon are skipped by name; what asks S3, Postgres or Kinesis is tried."""
    if posix.AVAILABLE:
        return
    for item in items:
        if item.path.parent.name in ("integration", "acceptance"):
            item.add_marker(pytest.mark.skip(reason=NEEDS_POSIX))


@pytest.fixture(autouse=True)
def _streams_are_deleted() -> Iterator[None]:
    """Streams that a test made do not outlive it."""
    yield
    streaming = sys.modules.get("streaming")
    if streaming is not None and streaming.MADE:
        made, streaming.MADE[:] = list(streaming.MADE), []
        streaming.delete_streams(made)


@pytest.fixture(scope="session", autouse=True)
def _spare_schemas_are_dropped() -> Iterator[None]:
    """Schemas of PostgreSQL that tests have one after the other do not outlive them all."""
    yield
    support = sys.modules.get("postgres_support")
    while support is not None and support.SPARE:
        support.SPARE.pop().drop()


@pytest.fixture(autouse=True)
def _small_reads_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connections to S3 that a test opened do not outlive it: a process would have thousands of them."""
    made: list[SmallReads] = []
    begin = SmallReads.__init__

    def noted(reads: SmallReads) -> None:
        begin(reads)
        made.append(reads)

    monkeypatch.setattr(SmallReads, "__init__", noted)
    yield
    for reads in made:
        reads.close()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A fresh world with the embedded profile."""
    return World(tmp_path / "world")
