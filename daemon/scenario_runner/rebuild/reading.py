"""Reading and verifying the runs of a ledger: in this process, and in others once there are many.

What is verified is decided in :mod:`~scenario_runner.rebuild.restore` alone; here is only where that is done. A run
costs half a millisecond of CPU (docs/benchmarks.md), so processes share them. One process writes the database.
"""

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import Final, TypeVar

from scenario_runner.audit.ends_on_bus import EndsOnBus, read_ends
from scenario_runner.audit.ledger_findings import FindingCode, LedgerFinding
from scenario_runner.audit.parallel import in_order
from scenario_runner.contracts import refs
from scenario_runner.contracts.errors import ScenarioRunnerError, Unavailable, in_short
from scenario_runner.rebuild.documents import RunDocuments, RunToRead
from scenario_runner.rebuild.restore import Restorer
from scenario_runner.rebuild.values import NotRestoredError, Restored
from scenario_runner.storage.base import ObjectStore

A = TypeVar("A")

#: Runs that a process is given at once: 30 ms of work, and half a megabyte of rows to hand back.
_CHUNK: Final = 64
#: Files of the control bus that a process is given at once: as much work.
_FILES: Final = 1000
#: Chunks that are being read, or wait to be inserted: those of a transaction, since the processes would stand still
#: while it is written, and one for each process.
_AHEAD: Final = 20
#: Runs that one process is reading from S3: with three documents and more each at 25 ms, 128 are 1,000 runs a second.
_WINDOW: Final = 128
#: Objects that are allocated before the garbage collector looks at them, which was a tenth of a rebuild: documents hold
#: no circles, and a batch of them is some hundred thousand objects.
_COLLECTED: Final = 500_000

Identities = tuple[tuple[str, str], ...]
"""Name and identity of each store."""

Outcome = Restored | LedgerFinding


@dataclass(frozen=True)
class RunReader:
    """Reads the documents of one run, and verifies them. Safe for several threads.

    Attributes:
        store: The ledger's store.
        spool: The control bus, where it keeps messages.
        stores: Both by their names.
    """

    store: ObjectStore
    restorer: Restorer
    spool: ObjectStore | None = None
    stores: Mapping[str, ObjectStore] = field(default_factory=dict)

    def expect(self, identities: Identities) -> None:
        """Accept only the stores with these identities from now on.

        Raises:
            Unavailable: another store is there.
        """
        known = dict(identities)
        for name, store in self.stores.items():
            store.expect(known[name])

    def __call__(self, run: RunToRead) -> Outcome:
        """A run as it was, or why it is left out.

        Raises:
            Unavailable: the store, the control bus or an engine run root does not answer, or this process lacks memory
                or open files.
        """
        try:
            return self.restorer.restore(RunDocuments(self.store.held(), run))
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
"""Makes the reader of a process; it may be sent to other processes, so it holds no open store."""


@contextmanager
def processes(make: MakeReader, threads: int, number: int) -> Iterator[Executor | None]:
    """Start the processes that read: before anything else of a rebuild, which takes its time meanwhile.

    On Linux they are copies of this process: each takes some 60 ms of CPU to start, and not 700. So this process must
    not have other threads yet, whose locks a copy would find locked for ever, nor connections.

    Args:
        make: Makes the reader of a process.
        threads: Threads of each process that wait for the store; 0 where the reading thread reads as fast.
        number: How many; 0 for none.

    Raises:
        Unavailable: one of them was killed.
    """
    if not number:
        yield None
        return
    alone = sys.platform == "linux" and threading.active_count() == 1
    context = get_context("fork" if alone else "spawn")
    try:
        with ProcessPoolExecutor(number, context, initializer=_begin, initargs=(make, threads)) as pool:
            with _interrupted_afterwards():
                for _ in range(number):
                    pool.submit(_started)
            yield pool
    except BrokenProcessPool as error:
        raise Unavailable("a process that reads the ledger was killed; the same command goes on") from error


@contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Hold Ctrl-C back: a pool that is interrupted while it starts its processes waits for ever for one of them."""
    if threading.current_thread() is not threading.main_thread():  # only that one is interrupted
        yield
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        signal.raise_signal(signal.SIGINT)


@dataclass(frozen=True)
class Reading:
    """Reads runs, in their order.

    Attributes:
        read: The reader of this process.
        identities: Of the stores that the other processes read.
        threads: Threads of each process that wait for the store; 0 where the reading thread reads as fast.
        pool: Other processes, which :func:`processes` started; None to read everything in this one.
    """

    read: RunReader
    identities: Identities
    threads: int
    pool: Executor | None = None

    def __call__(self, runs: Iterable[RunToRead]) -> Iterator[Outcome]:
        """Outcomes of runs, in their order.

        Raises:
            Unavailable: the store, the control bus or an engine run root does not answer, or a process was killed.
        """
        if self.pool is None:
            yield from self._here(iter(runs))
            return
        chunks = ((self.identities, chunk) for chunk in batches(iter(runs), _CHUNK))
        for outcomes in in_order(self.pool, _read_chunk, chunks, _AHEAD):
            yield from outcomes

    def ends(self, topic: str, on_read: Callable[[int], None]) -> EndsOnBus:
        """What the control bus says of the ends of all runs; nothing where it keeps no messages.

        Args:
            topic: The folder of signals.
            on_read: Called with the number of files that were read so far.

        Raises:
            Unavailable: the spool does not answer, or a process was killed.
        """
        spool = self.read.spool
        if spool is None:
            return EndsOnBus()
        if self.pool is None:
            return EndsOnBus.read(spool, topic, on_read)
        keys = (item.key for item in spool.list_objects(topic))
        chunks = ((self.identities, topic, chunk) for chunk in batches(keys, _FILES))

        def parts(pool: Executor) -> Iterator[tuple[list[bytes], list[str]]]:
            for number, found in enumerate(in_order(pool, _read_ends, chunks, _AHEAD), 1):
                yield found
                on_read(number * _FILES)

        return EndsOnBus.of(parts(self.pool))

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
    problem: str = ""
    pool: Executor | None = None
    identities: Identities | None = None

    def proven(self, identities: Identities) -> RunReader:
        """Its reader, with stores that have these identities.

        Raises:
            Unavailable: another store is there, or the reader could not be made.
        """
        if self.read is None:
            raise Unavailable(f"another process cannot read the ledger: {self.problem}")
        if self.identities != identities:
            self.read.expect(identities)
            self.identities = identities
        return self.read


_PROCESS: Final = _Process()


def _begin(make: MakeReader, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the calling process hears it, and ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a copy has the handler of the calling process
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    try:
        _PROCESS.read = make()
    except ScenarioRunnerError as error:  # the calling process makes one as well, and most probably says the same
        _PROCESS.problem = error.detail
    collect_rarely()
    _PROCESS.pool = ThreadPoolExecutor(threads, thread_name_prefix="read") if threads else None


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever: it holds both ends of its queue."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _started() -> None:
    """Nothing is to be done, but the process has to be there."""


def _read_chunk(given: tuple[Identities, list[RunToRead]]) -> list[Outcome]:
    identities, runs = given
    return list(in_order(_PROCESS.pool, _PROCESS.proven(identities), runs, _WINDOW))


def _read_ends(given: tuple[Identities, str, list[str]]) -> tuple[list[bytes], list[str]]:
    identities, topic, keys = given
    spool = _PROCESS.proven(identities).spool
    assert spool is not None
    return read_ends(spool, topic, keys)
