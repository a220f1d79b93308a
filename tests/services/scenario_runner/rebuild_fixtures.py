"""Fixtures of rebuilds: one world that is made once, and given to each test as it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from rebuild_support import Lost, as_kept, keep

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world that is made once and copied."""
    root = tmp_path_factory.mktemp("rebuild") / "w"
    return keep(root, Lost(root))


@pytest.fixture
def lost(made: Path) -> Lost:
    """The same world, as it was made."""
    return as_kept(made)
