"""Files of an engine run root on a file system: what makes one the same, and what the system's errors mean."""

import errno
import os
import stat
from typing import NoReturn

from scenario_runner.contracts.errors import EvidenceChanged, EvidenceMissing, EvidenceRefused, Unavailable

#: Device, inode, size in bytes, time of the last change of the bytes and of the file, in nanoseconds.
Identity = tuple[int, int, int, int, int]


def identity_of(info: os.stat_result) -> Identity:
    """What makes a file the same, unchanged one."""
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def refuse_type(path: str, mode: int, wanted: str) -> NoReturn:
    """Refuse what is not of the wanted type.

    Raises:
        EvidenceRefused: says what it is.
    """
    what = "a symbolic link" if stat.S_ISLNK(mode) else "a directory" if stat.S_ISDIR(mode) else "not a regular file"
    raise EvidenceRefused(f"{path} is {what}; {wanted} is needed", path=path)


def raise_for(error: OSError, path: str) -> NoReturn:
    """Raise what an error of the system means for the evidence at a path.

    Raises:
        EvidenceMissing: it is not there.
        EvidenceRefused: it is a link, or its name is too long.
        Unavailable: anything else.
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        raise EvidenceMissing(f"{path} is not there", path=path) from error
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
        raise EvidenceRefused(f"{path}: {error.strerror}", path=path) from error
    raise Unavailable(f"cannot read {path}: {error.strerror}") from error


class os_errors:  # noqa: N801 - used as a function; a generator takes five times as long, for each folder
    """Translate errors of the system; see :func:`raise_for`."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Translate what was raised."""
        if isinstance(error, OSError):
            raise_for(error, self._path)


def shrank(path: str) -> EvidenceChanged:
    """A file that ended before its size."""
    return EvidenceChanged(f"{path} shrank while it was being read", path=path)
