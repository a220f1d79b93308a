"""The files of a spool's intake: claimed by rename, read where no producer reaches, moved on by rename.

A claim renames ``requests/NAME`` to ``.private/claimed/LOT/NAME``. A lot is a new folder with a random name that holds
the files of one claim. A file that is dropped later under the same name never meets it, so the pair (lot, name) stands
for one drop for ever. A rename needs permission on the folders only: it does not matter who owns the file, nor whether
it can be read.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final

from scenario_runner.bus.spool import MAX_RECORD_BYTES, SpoolPaths
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.posix import O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK
from scenario_runner.storage import renames
from scenario_runner.storage.anchored import Anchor, AnchoredRoot

QUIET_SECONDS: Final = 2.0
"""A file that was not written to for so long counts as complete: a copy that goes on writes more often."""

_DIRECTORY: Final = os.O_RDONLY | O_DIRECTORY | O_CLOEXEC
#: Anybody may drop a link or a FIFO, which must be neither followed nor waited for.
_READ: Final = os.O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC
_OUTAGES: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.EROFS,
     errno.ENODEV, errno.ETIMEDOUT, errno.EHOSTDOWN}
)  # fmt: skip
"""Errors that are not about one file: the file must not be refused for them."""


@dataclass(frozen=True, slots=True)
class ClaimedFile:
    """A drop that was claimed; no other drop ever has the same pair.

    Attributes:
        lot: Folder under ``.private/claimed``.
        name: The name under which it was dropped.
    """

    lot: str
    name: str

    @property
    def path(self) -> str:
        """Path relative to ``.private/claimed``."""
        return f"{self.lot}/{self.name}"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a claimed file holds now.

    Attributes:
        raw: Its bytes, at most ``MAX_RECORD_BYTES``.
        size: Its full size in bytes.
        unreadable: Why it cannot be read; empty when it can.
        stamp: Changes whenever the file is written to, or its mode is changed.
        quiet: Whether nobody had written to it for a while when it was claimed, by the clock of the file system.
    """

    raw: bytes
    size: int
    unreadable: str
    stamp: tuple[int, int, int]
    quiet: bool


@dataclass(frozen=True, slots=True)
class Folders:
    """Descriptors of the folders of a spool.

    Attributes:
        requests: Where requests are dropped.
        claimed: Where lots lie.
        consumed: Where admitted requests go.
        rejected: Where refused requests go.
        mode: Mode of folders that are made in them.
    """

    requests: int
    claimed: int
    consumed: int
    rejected: int
    mode: int


class SpoolFiles:
    """A spool, as its intake moves files through it.

    Args:
        root: Its root folder.
    """

    def __init__(self, root: AnchoredRoot) -> None:
        self.root, self.paths = root, SpoolPaths(root.path)

    def open(self) -> None:
        """Make the folders that are missing.

        Raises:
            Unavailable: The root is another one than before, or a folder cannot be made.
        """
        self.paths.make(self.root)

    @contextmanager
    def folders(self) -> Iterator[Folders]:
        """The folders, opened anew below the proven root: a folder that was replaced is then not written to.

        Raises:
            Unavailable: The root or a folder is missing, or an error occurred that is not about one file.
        """
        with ExitStack() as opened:
            try:
                anchor = self.root.proven()
                fds = [self._opened(anchor, path, opened) for path in folder_paths(self.paths)]
                requests, claimed, consumed, rejected = fds
                yield Folders(requests, claimed, consumed, rejected, self.root.modes.folder)
            except OSError as error:
                where = f": {error.filename!a}" if error.filename else ""
                raise Unavailable(f"the spool {self.paths.root}: {error.strerror}{where}") from error

    def _opened(self, anchor: Anchor, path: str, opened: ExitStack) -> int:
        fd = os.open(os.path.relpath(path, self.paths.root), _DIRECTORY, dir_fd=anchor.fd)
        opened.callback(os.close, fd)
        return fd


def folder_paths(paths: SpoolPaths) -> tuple[str, str, str, str]:
    """Paths of the folders, in the order of :class:`Folders`."""
    return paths.requests, paths.claimed, paths.consumed, paths.rejected


def may_rename_in(fd: int) -> bool:
    """Whether this process may list a folder and rename what lies in it."""
    return os.access(".", os.R_OK | os.W_OK | os.X_OK, dir_fd=fd, effective_ids=os.access in os.supports_effective_ids)


# ---------------------------------------------------------------- claiming


def dropped(folders: Folders) -> tuple[list[str], list[str]]:
    """Names in ``requests/``, sorted: those of requests, and all others."""
    names = sorted(os.listdir(folders.requests))
    requests = [name for name in names if is_request(name)]
    return requests, [name for name in names if not is_request(name)]


def oldest_drop(folders: Folders, most: int) -> float | None:
    """When the oldest of the requests was written, in seconds since the epoch; None when there is none.

    Args:
        folders: Of the spool.
        most: So many are compared at most, in no order.
    """
    oldest: float | None = None
    with os.scandir(folders.requests) as entries:
        for entry in islice((entry for entry in entries if is_request(entry.name)), most):
            with suppress(FileNotFoundError):  # claimed meanwhile
                written = entry.stat(follow_symlinks=False).st_mtime
                oldest = written if oldest is None else min(oldest, written)
    return oldest


def is_request(name: str) -> bool:
    """Whether a file with this name is taken for a request."""
    return name.endswith(".json") and not name.startswith(".")


def claim(folders: Folders, names: Sequence[str]) -> tuple[list[ClaimedFile], dict[str, OSError]]:
    """Claim files, durably.

    Returns:
        The files that are ours now, and the errors of files that cannot be claimed, by name. A file that another
        process has claimed is in neither.
    """
    lot = _make_lot(folders)
    claimed: list[ClaimedFile] = []
    refused: dict[str, OSError] = {}
    for name in names:
        try:
            os.rename(name, f"{lot}/{name}", src_dir_fd=folders.requests, dst_dir_fd=folders.claimed)
        except FileNotFoundError:
            continue  # of several intakes the first rename wins
        except OSError as error:
            if error.errno in _OUTAGES or not may_rename_in(folders.requests):
                raise
            refused[name] = error
        else:
            claimed.append(ClaimedFile(lot, name))
    if claimed:
        _make_durable(folders, lot)
    else:
        leave_lots(folders, [lot])
    return claimed, refused


def _make_lot(folders: Folders) -> str:
    lot = secrets.token_hex(8)
    os.mkdir(lot, folders.mode, dir_fd=folders.claimed)
    return lot


def _make_durable(folders: Folders, lot: str) -> None:
    """Make a claim survive a power failure.

    Otherwise the file could be back in ``requests/`` after it was admitted; claimed again, it would be in another lot,
    have another key, and count as another message.
    """
    try:
        fd = os.open(lot, _DIRECTORY, dir_fd=folders.claimed)
    except FileNotFoundError:
        return  # another process has taken the lot over and moved its files on
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.fsync(folders.claimed)


def leave_lots(folders: Folders, lots: Iterable[str]) -> None:
    """Remove those of some lots that are empty."""
    for lot in lots:
        try:
            os.rmdir(lot, dir_fd=folders.claimed)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise


def claimed_lots(folders: Folders) -> dict[str, list[str]]:
    """All claimed files, whoever claimed them: sorted names by lot."""
    found: dict[str, list[str]] = {}
    for lot in sorted(os.listdir(folders.claimed)):
        try:
            fd = os.open(lot, _DIRECTORY | O_NOFOLLOW, dir_fd=folders.claimed)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            found[lot] = sorted(os.listdir(fd))
        finally:
            os.close(fd)
    return found


# ---------------------------------------------------------------- reading


def read(folders: Folders, file: ClaimedFile) -> Contents | None:
    """Read a claimed file; None when another process has moved it on.

    Raises:
        OSError: An error that is not about this file.
    """
    try:
        info = os.stat(file.path, dir_fd=folders.claimed, follow_symlinks=False)
        if not stat.S_ISREG(info.st_mode):
            return Contents(b"", 0, "it is not a regular file", _stamp(info), quiet=True)
        fd = os.open(file.path, _READ, dir_fd=folders.claimed)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in _OUTAGES:
            raise
        return Contents(b"", 0, _denied(info, error), _stamp(info), _quiet(info))
    try:
        # The stamp is taken before the bytes are read, so that a write during the read changes it.
        info = os.fstat(fd)
        return Contents(_read_all(fd, info.st_size), info.st_size, "", _stamp(info), _quiet(info))
    finally:
        os.close(fd)


def _read_all(fd: int, size: int) -> bytes:
    wanted = min(size, MAX_RECORD_BYTES)
    raw = os.read(fd, wanted)
    while len(raw) < wanted and (chunk := os.read(fd, wanted - len(raw))):
        raw += chunk
    return raw


def _stamp(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_mode


def _quiet(info: os.stat_result) -> bool:
    """Whether the last write was long before the claim: the rename of the claim set the time of the last change."""
    return info.st_ctime_ns - info.st_mtime_ns >= QUIET_SECONDS * 1e9


def _denied(info: os.stat_result, error: OSError) -> str:
    return (
        f"the daemon's user (uid {os.geteuid()}) may not read it: {error.strerror}; it is of uid {info.st_uid} and "
        f"has mode {stat.S_IMODE(info.st_mode):04o}. Drop it again with a mode that lets the daemon read it "
        "(umask 022, or chmod a+r before the rename)"
    )


# ---------------------------------------------------------------- moving on


def move_unless_changed(
    folders: Folders, file: ClaimedFile, stamp: tuple[int, int, int], into: int, other_name: str
) -> bool:
    """Move a claimed file on, unless it was changed since it was read. No file is ever overwritten.

    Args:
        folders: The folders of the spool.
        file: The file.
        stamp: Its stamp when it was read.
        into: Descriptor of the folder that it goes to.
        other_name: A name that no other file has, for when its own is taken there.

    Returns:
        False when it was changed: what it holds now is another message.
    """
    try:
        if _stamp(os.stat(file.path, dir_fd=folders.claimed, follow_symlinks=False)) != stamp:
            return False
        if not renames.rename_new(folders.claimed, file.path, into, file.name):
            os.rename(file.path, other_name, src_dir_fd=folders.claimed, dst_dir_fd=into)
    except FileNotFoundError:
        pass  # another process has taken the claim over and moved the file
    return True
