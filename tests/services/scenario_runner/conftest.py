"""Fixtures of all tiers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from support import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A fresh world with the embedded profile."""
    return World(tmp_path / "world")
