"""What ``ledger check`` and ``authority rebuild`` share: threads that read the ledger, findings as output, progress."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from scenario_runner.audit.ledger_findings import LedgerFinding
from scenario_runner.cli.console import print_err, print_json_line, print_line
from scenario_runner.cli.outputs.acting import LEDGER_FINDING
from scenario_runner.profiles.wiring import Wiring

#: Threads that read from S3: each waits 25 ms for an answer, and a run has five documents. A folder is read by the
#: calling thread: its files are in memory mostly.
_S3_READERS: Final = 96
#: Between two lines of progress.
_PROGRESS_SECONDS: Final = 1.0


def reading_threads(wiring: Wiring) -> int:
    """Threads that read objects; 0 where the calling thread reads as fast."""
    return _S3_READERS if wiring.store_root.startswith("s3://") else 0


@contextmanager
def readers(wiring: Wiring) -> Iterator[Executor | None]:
    """Threads that read objects; None where the calling thread reads as fast."""
    threads = reading_threads(wiring)
    if not threads:
        yield None
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        yield pool


class Progress:
    """Prints on stderr, at intervals, how far a command is."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._next = self._began + _PROGRESS_SECONDS

    def __call__(self, text: Callable[[float], str]) -> None:
        """Print a line if it is time for one.

        Args:
            text: Makes it, from the seconds since the beginning.
        """
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_SECONDS
            print_err(text(now - self._began))


def print_finding_line(finding: LedgerFinding) -> None:
    """Print a finding as one line of JSON."""
    print_json_line(finding.document(), LEDGER_FINDING)


def print_finding(finding: LedgerFinding) -> None:
    """Print a finding for a person."""
    document = finding.document()
    print_line(f"{document['code']}  {document['object']}")
    print_line(f"  {document['detail']}")
    for name in ("expected", "actual"):
        if document[name]:
            print_line(f"  {name}: {document[name]}")
    print_line(f"  {document['remedy']}")
