"""What keeps a run out of a rebuild lies in its documents, never in the process that reads them."""

from __future__ import annotations

import errno
import subprocess
import sys
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


SHORT_OF_MEMORY = """
import resource
from scenario_runner.ledger.records import DamagedRecordError, read_record

data = b'{"details":"' + b"a" * (24 << 20) + b'"}\\n'
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (100 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    read_record(data, "0" * 32)
except (DamagedRecordError, MemoryError) as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of an address space is Linux's")
def test_a_record_that_memory_is_too_short_for_is_not_called_damaged() -> None:
    done = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, check=True)
    assert done.stdout == "MemoryError\n", "the library that parses has one error for both"


@pytest.mark.parametrize("error", [RecursionError("deep"), ZeroDivisionError(), StopIteration()])
def test_whatever_else_is_raised_lies_in_the_documents(tmp_path: Path, error: Exception) -> None:
    found = read(tmp_path, error)
    assert isinstance(found, LedgerFinding)
    assert found.code is FindingCode.RECORD_DAMAGED
