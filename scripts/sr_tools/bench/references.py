"""References on this machine, taken without Scenario Runner: bare durable files and commits, and openssl."""

import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeVar

from sr_tools.bench.report import Json, cores

T = TypeVar("T")

#: Commits of the reference: as many as SR makes for a batch (admission, transition, receipts, outbox, projection).
RUNS_PER_COMMIT, COMMITS_PER_GROUP = 16, 5
#: Threads that write files: more do not make this kind of disk faster.
WRITER_THREADS: Final = 8
#: Bytes of a file: about the size of SR's documents.
FILE_BYTES: Final = 2048


def bare_files_and_commits(folder: Path, files: int, runs: int) -> Json:
    """Write that many durable files, and the commits of that many runs, with no SR.

    Returns:
        An entry ``reference``: runs per second, seconds, counts, and how it was taken.
    """
    commits = max(1, runs * COMMITS_PER_GROUP // RUNS_PER_COMMIT)
    for name in ("temporary", "files"):
        (folder / name).mkdir(parents=True)
    started = time.perf_counter()
    with ThreadPoolExecutor(WRITER_THREADS + 1) as pool:
        committing = pool.submit(_commit, folder / "bare.db", commits)
        for _ in pool.map(lambda number: _write_durably(str(folder), number), range(files)):
            pass
        committing.result()
    seconds = time.perf_counter() - started
    return {
        "value": round(runs / seconds, 1),
        "unit": "runs/s",
        "files": files,
        "commits": commits,
        "seconds": round(seconds, 3),
        "how": f"no SR: the same number of files of {FILE_BYTES} bytes (temporary, fsync, link, directory fsync) "
        f"from {WRITER_THREADS} threads, and at the same time {COMMITS_PER_GROUP} SQLite WAL FULL commits of "
        f"{RUNS_PER_COMMIT} rows of 1 KB per {RUNS_PER_COMMIT} runs",
    }


def bare_files(folder: Path, files: int) -> Json:
    """Write that many durable files with no SR.

    Returns:
        An entry ``reference``: files per second, and how it was taken.
    """
    for name in ("temporary", "files"):
        (folder / name).mkdir(parents=True)
    seconds = timed_readers(WRITER_THREADS, lambda number: _write_durably(str(folder), number), range(files))
    return {
        "value": round(files / seconds, 1),
        "unit": "files/s",
        "how": f"no SR: the same number of files of {FILE_BYTES} bytes (temporary, fsync, link, directory fsync) "
        f"from {WRITER_THREADS} threads",
    }


def _write_durably(folder: str, number: int) -> None:
    temporary, target = f"{folder}/temporary/{number}", f"{folder}/files/{number}.json"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, bytes(FILE_BYTES))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.link(temporary, target)
    os.unlink(temporary)
    directory = os.open(f"{folder}/files", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _commit(path: Path, commits: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, data BLOB)")
        for _ in range(commits):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO rows (data) VALUES (?)", [(bytes(1024),)] * RUNS_PER_COMMIT)
            connection.execute("COMMIT")


def openssl_seconds(files: Sequence[Path]) -> float:
    """Seconds for ``openssl dgst -sha256`` over files, one process per file, as many at once as cores."""
    names = b"".join(os.fsencode(path) + b"\0" for path in files)
    command = ["xargs", "-0", "-n", "1", "-P", str(cores()), "openssl", "dgst", "-sha256"]
    started = time.perf_counter()
    subprocess.run(command, input=names, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def timed_readers(readers: int, work: Callable[[T], None], items: Iterable[T]) -> float:
    """Seconds of readers that each take the next item."""
    started = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(work, items))
    return time.perf_counter() - started


def in_threads(threads: int, work: Callable[[Any], object], items: Sequence[Any]) -> None:
    """Do work on every item; each thread takes every n-th, in order: one task per thread, not per item."""

    def stride(first: int) -> None:
        for item in items[first::threads]:
            work(item)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(stride, range(threads)))
