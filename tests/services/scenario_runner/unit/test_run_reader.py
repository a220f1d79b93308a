"""What keeps a run out of a rebuild lies in its documents, never in the process that reads them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, cast

import pytest

from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.rebuild.documents import RunToRead
from scenario_runner.rebuild.reading import RunReader
from scenario_runner.storage.filesystem import FilesystemStore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit


class Raising:
    """Restores nothing, and raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def restore(self, _documents: object) -> Any:
        raise self._error


def read(folder: Path, error: Exception) -> object:
    store = FilesystemStore(str(folder), ".private")
    return RunReader(store, cast("Any", Raising(error)))(RunToRead("0" * 32))


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_a_process_that_lacks_memory_or_files_makes_the_rebuild_unavailable(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(Unavailable, match=r"cannot be read: .*; the same command goes on"):
        read(tmp_path, error)


@pytest.mark.parametrize("error", [RecursionError("deep"), ZeroDivisionError(), StopIteration()])
def test_whatever_else_is_raised_lies_in_the_documents(tmp_path: Path, error: Exception) -> None:
    found = read(tmp_path, error)
    assert isinstance(found, LedgerFinding)
    assert found.code is FindingCode.RECORD_DAMAGED
