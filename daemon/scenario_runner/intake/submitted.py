"""Searches a spool for a request that no daemon has disposed of yet; nothing is moved or created."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from scenario_runner.bus.spool import MAX_RECORD_BYTES, SpoolPaths
from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.states import SignalKind
from scenario_runner.intake.decode import Message, decode, run_id_hint
from scenario_runner.intake.spool_files import is_request

#: Files that one ``status`` command reads: some seconds, also on a network file system.
_MOST_FILES: Final = 10_000
#: Bytes that it reads: 64 requests of the largest size, or all files of an ordinary size.
_MOST_BYTES: Final = 64 << 20
#: Whoever may write to ``requests/`` may leave a link or a FIFO there, which must not be followed or waited for.
_READ: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True, slots=True)
class Search:
    """The result of a search.

    Attributes:
        name: Name of the file that requests the run; empty when none was found.
        dropped_us: When it was last written to, in microseconds since the epoch.
        complete: False when not all waiting files could be read.
        detail: Why not.
    """

    name: str = ""
    dropped_us: int = 0
    complete: bool = True
    detail: str = ""


def find_submitted(root: str, topic: str, run_id: str) -> Search:
    """Search the dropped and the claimed requests for those of a run, the newest first.

    Args:
        root: Root folder of the spool; a folder that does not exist holds nothing.
        topic: The control topic.
        run_id: The run.
    """
    paths, unreadable = SpoolPaths(root), ""
    left_files, left_bytes = _MOST_FILES, _MOST_BYTES
    # In this order: a file that is claimed during the search is then met twice, not missed.
    for folder in (paths.requests, paths.claimed):
        try:
            waiting = sorted(_files(folder, deep=folder == paths.claimed), reverse=True)
        except OSError as error:
            unreadable = f"{folder} cannot be listed: {error.strerror}"
            continue
        for modified_ns, path, size in waiting:
            left_files, left_bytes = left_files - 1, left_bytes - size
            if left_files < 0 or left_bytes < 0:
                return Search(complete=False, detail=f"more requests wait in {root} than are searched")
            try:
                requested = _requested_run(path, size, topic)
            except FileNotFoundError:
                continue
            except OSError as error:
                unreadable = f"{path} cannot be read: {error.strerror}"
                continue
            if requested == run_id:
                return Search(os.path.basename(path), modified_ns // 1000)
    return Search(complete=not unreadable, detail=unreadable)


def _files(folder: str, *, deep: bool) -> Iterator[tuple[int, str, int]]:
    """Requests in a folder, or (``deep``) in its subfolders: time of the last write in ns, path, size."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if deep:
            yield from _files(entry.path, deep=False)
            continue
        try:
            info = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if is_request(entry.name) and stat.S_ISREG(info.st_mode) and info.st_size <= MAX_RECORD_BYTES:
            yield info.st_mtime_ns, entry.path, info.st_size


def _requested_run(path: str, size: int, topic: str) -> str:
    """The run id that a file requests, as intake would decode it; empty when it requests none."""
    fd = os.open(path, _READ)
    with open(fd, "rb") as file:
        raw = file.read(MAX_RECORD_BYTES)
    message = Message(path, raw, size)
    try:
        decoded = decode(message, topic, MAX_RECORD_BYTES)
    except RequestRefused:
        return run_id_hint(message)
    return run_id_hint(message) if decoded.kind == SignalKind.RUN_REQUEST and not decoded.foreign else ""
