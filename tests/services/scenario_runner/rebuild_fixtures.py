"""Fixtures of rebuilds: one world that is made once, and given to each test as it was made."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from rebuild_support import Lost
from support import ForkedWorld

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world that is made once and copied; its paths stay those of the place where it was made."""
    root = tmp_path_factory.mktemp("rebuild") / "w"
    lost = Lost(root)
    (root.parent / "runs.json").write_text(json.dumps([lost.runs, lost.requests]))
    shutil.copytree(root, root.parent / "kept")
    return root


@pytest.fixture
def lost(made: Path) -> Lost:
    """The same world, as it was made, with its database."""
    shutil.rmtree(made)
    shutil.copytree(made.parent / "kept", made)
    found = object.__new__(Lost)
    found.world = ForkedWorld(made)
    found.runs, found.requests = json.loads((made.parent / "runs.json").read_text())
    return found
