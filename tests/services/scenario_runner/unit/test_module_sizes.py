"""A module is read in one sitting, and a test module is named by its base name alone."""

from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

REPO = Path(__file__).resolve().parents[4]
FOLDERS = ("daemon", "scripts", "tests", "docs")
#: Lines of a module: more than that holds two subjects, and is split by them.
MOST_LINES = 500


def test_no_module_is_longer_than_one_subject_is() -> None:
    lengths = {
        str(path): len(path.read_bytes().splitlines()) for folder in FOLDERS for path in (REPO / folder).rglob("*.py")
    }
    assert len(lengths) > 500
    assert {path: count for path, count in lengths.items() if count > MOST_LINES} == {}


def test_each_test_module_has_a_name_of_its_own() -> None:
    names = Counter(path.name for path in (REPO / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
