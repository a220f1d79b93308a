"""Fixtures of all tiers."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import pytest
from support import NEEDS_POSIX, World

from scenario_runner import posix

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


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A fresh world with the embedded profile."""
    return World(tmp_path / "world")
