"""Old files of a spool: requests that were admitted, which retention removes.

A file came into ``consumed/`` by a rename, which sets the time of its last change (ctime); the time of the last write
(mtime) is the producer's. Both must be old.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from scenario_runner.authority.retention import Expired, Removal
from scenario_runner.intake.spool_files import Folders, claimed_lots


def oldest_claim_us(folders: Folders) -> int | None:
    """When the file was claimed that has waited longest for being moved on; None when none waits.

    Its record may be in the authority already: then the daemon was killed before it could move the file.
    """
    found: list[int] = []
    for lot, names in claimed_lots(folders).items():
        for name in names:
            with suppress(FileNotFoundError):
                found.append(
                    os.stat(f"{lot}/{name}", dir_fd=folders.claimed, follow_symlinks=False).st_ctime_ns // 1000
                )
    return min(found, default=None)


def count_expired(folders: Folders, before_us: int, most: int) -> Expired:
    """How many files of ``consumed/`` are older; at most so many files are looked at."""
    times = [changed for _, changed in islice(_files(folders.consumed), most)]
    old = [changed for changed in times if changed < before_us]
    return Expired(len(old), len(times) >= most and bool(old), min(old, default=None))


def expired_files(folders: Folders, before_us: int) -> Iterator[str]:
    """Names in ``consumed/`` of files that are older, in no order."""
    return (name for name, changed in _files(folders.consumed) if changed < before_us)


def remove_files(folders: Folders, names: Iterator[str], limit: int) -> Removal:
    """Remove the next files; one that somebody else has removed does not count."""
    batch, removed = list(islice(names, limit)), 0
    for name in batch:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folders.consumed)
            removed += 1
    return Removal(removed, 0, len(batch) == limit)


def _files(folder: int) -> Iterator[tuple[str, int]]:
    """Names of regular files and microseconds of their last change."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(info.st_mode):
                    yield entry.name, max(info.st_ctime_ns, info.st_mtime_ns) // 1000
