"""Reading and verifying the runs of a ledger: in this process, and in others once there are many.

What is verified is decided in :mod:`~scenario_runner.rebuild.restore` alone; here is only where that is done. A run
costs half a millisecond of CPU (docs/benchmarks.md), so processes share them. One process writes the database.
"""

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from typing import Final, TypeVar

from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.audit.parallel import in_order
from scenario_runner.contracts import refs
from scenario_runner.contracts.errors import Unavailable, in_short
from scenario_runner.rebuild.documents import RunDocuments, RunToRead
from scenario_runner.rebuild.restore import Restorer
from scenario_runner.rebuild.values import NotRestoredError, Restored
from scenario_runner.storage.base import ObjectStore

A = TypeVar("A")

#: Runs that are read before other processes are started: starting one takes as long as reading these.
FEW: Final = 1000
#: Runs that a process is given at once: 30 ms of work, and half a megabyte of rows to hand back.
_CHUNK: Final = 64
#: Chunks of each process that are being read, or wait to be inserted.
_AHEAD: Final = 4
#: Runs that one process is reading from S3: with three documents and more each at 25 ms, 128 are 1,000 runs a second.
_WINDOW: Final = 128


#: Objects that are allocated before the garbage collector looks at them, which was a tenth of a rebuild: documents hold
#: no circles, and a batch of them is some hundred thousand objects.
_COLLECTED: Final = 500_000


Outcome = Restored | LedgerFinding


@dataclass(frozen=True)
class RunReader:
    """Reads the documents of one run, and verifies them. Safe for several threads."""

    store: ObjectStore
    restorer: Restorer

    def __call__(self, run: RunToRead) -> Outcome:
        """A run as it was, or why it is left out.

        Raises:
            Unavailable: the store, the control bus or an engine run root does not answer, or this process lacks memory
                or open files.
        """
        try:
            return self.restorer.restore(RunDocuments(self.store, run))
        except NotRestoredError as error:
            return error.finding
        except Unavailable:
            raise
        except (MemoryError, OSError) as error:  # of this process: no run is left out because memory or files are short
            detail = f"run {run.run_id} cannot be read: {type(error).__name__} {in_short(error)}"
            raise Unavailable(f"{detail}; the same command goes on") from error
        except Exception as error:  # noqa: BLE001 - whatever a document makes our code raise, its run is left out
            place = self.store.locate(refs.record_ref(run.run_id))
            detail = f"its documents cannot be read: {type(error).__name__}: {in_short(error)}"
            return LedgerFinding(FindingCode.RECORD_DAMAGED, run.run_id, place, detail)


MakeReader = Callable[[], RunReader]
"""Makes the reader of a process; it is sent to other processes, so it holds no open store."""


@dataclass(frozen=True)
class Reading:
    """Reads runs, in their order.

    Attributes:
        read: The reader of this process.
        make: The reader of another process.
        threads: Threads of each process that wait for the store; 0 where the reading thread reads as fast.
        processes: Other processes; 0 to read everything in this one.
    """

    read: RunReader
    make: MakeReader
    threads: int
    processes: int

    def __call__(self, runs: Iterable[RunToRead]) -> Iterator[Outcome]:
        """Outcomes of runs, in their order.

        Raises:
            Unavailable: the store, the control bus or an engine run root does not answer, or a process was killed.
        """
        rest = iter(runs)
        first = list(islice(rest, FEW))
        more = list(islice(rest, 1)) if self.processes else []
        if not more:
            yield from self._here(chain(first, rest))
            return
        chunks = batches(chain(first, more, rest), _CHUNK)
        try:
            with ProcessPoolExecutor(
                self.processes, get_context("spawn"), initializer=_begin, initargs=(self.make, self.threads)
            ) as pool:
                for outcomes in in_order(pool, _read_chunk, chunks, self.processes * _AHEAD):
                    yield from outcomes
        except BrokenProcessPool as error:
            raise Unavailable("a process that reads the ledger was killed; the same command goes on") from error

    def _here(self, runs: Iterator[RunToRead]) -> Iterator[Outcome]:
        if not self.threads:
            for run in runs:  # and not map: it would take a StopIteration of one run for the end of all
                yield self.read(run)
            return
        with ThreadPoolExecutor(self.threads, thread_name_prefix="read") as pool:
            yield from in_order(pool, self.read, runs, _WINDOW)


def batches(items: Iterator[A], size: int) -> Iterator[list[A]]:
    """Items in lists of so many."""
    while batch := list(islice(items, size)):
        yield batch


def collect_rarely() -> None:
    """Let the garbage collector leave modules alone, and look at documents rarely. For a command that then ends."""
    gc.freeze()
    gc.set_threshold(_COLLECTED)


# --- in another process


@dataclass
class _Process:
    """What a process that reads keeps between two chunks."""

    read: RunReader | None = None
    pool: Executor | None = None


_PROCESS: Final = _Process()


def _begin(make: MakeReader, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the calling process hears it, and ends this one
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    _PROCESS.read = make()
    collect_rarely()
    _PROCESS.pool = ThreadPoolExecutor(threads, thread_name_prefix="read") if threads else None


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever: it holds both ends of its queue."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _read_chunk(runs: list[RunToRead]) -> list[Outcome]:
    assert _PROCESS.read is not None
    return list(in_order(_PROCESS.pool, _PROCESS.read, runs, _WINDOW))
