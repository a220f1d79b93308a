"""The files of a spool's intake: claimed by rename, read where nobody else reaches, put away by rename.

A claim renames ``requests/NAME`` to ``.private/claimed/LOT/NAME``. The lot is a new folder of a random name, so what is
dropped under the same name later never meets it, and the pair (lot, name) stands for this one drop for ever. Renaming
asks for permission on the folders only: whose file it is, and whether it can be read, does not matter.
"""

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from scenario_runner.bus.spool import MAX_RECORD_BYTES, SpoolPaths
from scenario_runner.contracts.errors import ConfigurationError, Unavailable, printable
from scenario_runner.posix import O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK
from scenario_runner.storage import renames
from scenario_runner.storage.anchored import Anchor, AnchoredRoot

QUIET_SECONDS: Final = 2.0
"""A file that was not written to for so long is taken to be complete."""
_FORGOTTEN_SECONDS: Final = 300.0
"""Temporary names (hidden, ``.tmp``, ``.part`` ...) are a producer's own for so long."""
_PROBE: Final = "probe-"
_STALE_SECONDS: Final = 3600.0
_TEMPORARY: Final = (".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".swp", "~")
_DIRECTORY: Final = os.O_RDONLY | O_DIRECTORY | O_CLOEXEC
_READ: Final = os.O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC
_OUTAGES: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.EROFS,
     errno.ENODEV, errno.ETIMEDOUT, errno.EHOSTDOWN}
)  # fmt: skip
"""Errors that are not about one file."""


@dataclass(frozen=True, slots=True)
class ClaimedFile:
    """A drop that was claimed; the same pair never stands for another one.

    Attributes:
        lot: Folder under ``.private/claimed``.
        name: As it was dropped.
    """

    lot: str
    name: str

    @property
    def path(self) -> str:
        """Relative to ``.private/claimed``."""
        return f"{self.lot}/{self.name}"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a claimed file holds now.

    Attributes:
        raw: Its bytes, at most ``MAX_RECORD_BYTES``.
        size: Its full size.
        unreadable: Why it cannot be read, or empty.
        stamp: Changes whenever the file is written to or its mode is changed.
        quiet: True when nobody had written to it for a while when it was claimed, by the file system's own clock.
    """

    raw: bytes
    size: int
    unreadable: str
    stamp: tuple[int, int, int]
    quiet: bool


@dataclass(frozen=True, slots=True)
class Folders:
    """Descriptors of a spool's folders.

    Attributes:
        mode: Of folders that are made in them.
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
            Unavailable: the root is not the known one, or a folder cannot be made.
        """
        self.paths.make(self.root)

    @contextmanager
    def folders(self) -> Iterator[Folders]:
        """The folders, opened anew below the root that was proven.

        Raises:
            Unavailable: the root or a folder is not there, or an error that is not about one file.
        """
        with ExitStack() as opened:
            try:
                anchor = self.root.proven()
                fds = [self._opened(anchor, path, opened) for path in _ways(self.paths)]
                requests, claimed, consumed, rejected = fds
                yield Folders(requests, claimed, consumed, rejected, self.root.modes.folder)
            except OSError as error:
                where = f": {error.filename!a}" if error.filename else ""
                raise Unavailable(f"the spool {self.paths.root}: {error.strerror}{where}") from error

    def _opened(self, anchor: Anchor, path: str, opened: ExitStack) -> int:
        fd = os.open(os.path.relpath(path, self.paths.root), _DIRECTORY, dir_fd=anchor.fd)
        opened.callback(os.close, fd)
        return fd

    def probe(self) -> None:
        """Try what the intake needs, leaving nothing behind.

        Raises:
            ConfigurationError: a folder cannot be written to, or files cannot be renamed from one to the next.
            Unavailable: a folder is not there.
        """
        with self.folders() as folders:
            _check_writable(self.paths, folders)
            way = (("requests", folders.requests), ("consumed", folders.consumed), ("rejected", folders.rejected))
            for name, fd in way:
                _check_same_mount(self.paths.root, name, fd, folders.claimed)
            _check_rename(self.paths, folders)


def _ways(paths: SpoolPaths) -> tuple[str, str, str, str]:
    """In the order of :class:`Folders`."""
    return paths.requests, paths.claimed, paths.consumed, paths.rejected


def _check_writable(paths: SpoolPaths, folders: Folders) -> None:
    places = zip(_ways(paths), (folders.requests, folders.claimed, folders.consumed, folders.rejected), strict=True)
    denied = [path for path, fd in places if not _may_change(fd)]
    if denied:
        raise ConfigurationError(
            ", ".join(denied),
            f"the daemon's user (uid {os.geteuid()}) may not rename files in it",
            "make the user the owner of the folder, or give its group read, write and search permission",
        )


def _may_change(fd: int) -> bool:
    """Whether we may list a folder and rename what lies in it."""
    return os.access(".", os.R_OK | os.W_OK | os.X_OK, dir_fd=fd, effective_ids=os.access in os.supports_effective_ids)


def _check_same_mount(root: str, name: str, fd: int, claimed: int) -> None:
    """Rename what is not there: where files cannot pass at all, the answer is not that it is absent."""
    absent = f".{secrets.token_hex(8)}"
    try:
        os.rename(absent, absent, src_dir_fd=fd, dst_dir_fd=claimed)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(
            os.path.join(root, name),
            f"files cannot be renamed between it and {root}: {error.strerror}",
            "put all folders of the spool on one file system, under one mount",
        ) from error


def _check_rename(paths: SpoolPaths, folders: Folders) -> None:
    """Make, rename and remove a file within the private folder, and make names durable in every folder."""
    name = f"{_PROBE}{secrets.token_hex(8)}"
    made = os.path.join(paths.private, name)
    try:
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.rename(made, name, dst_dir_fd=folders.claimed)
        os.unlink(name, dir_fd=folders.claimed)
        for fd in (folders.requests, folders.claimed, folders.consumed, folders.rejected):
            os.fsync(fd)
    except OSError as error:
        raise ConfigurationError(
            paths.root,
            f"files cannot be renamed from folder to folder, or folders not made durable: {error.strerror}",
            "use a file system that can (ext4, xfs, btrfs, NFS)",
        ) from error


def sweep(folders: Folders) -> int:
    """Remove what probes of killed processes left; returns how many files."""
    left = [name for name in os.listdir(folders.claimed) if name.startswith(_PROBE)]
    stale = [name for name in left if _age(folders.claimed, name) > _STALE_SECONDS]
    for name in stale:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folders.claimed)
    return len(stale)


# ---------------------------------------------------------------- taking


def dropped(folders: Folders) -> tuple[list[str], list[str]]:
    """Names in ``requests/``, sorted: those that are taken, and those that nobody takes."""
    names = sorted(os.listdir(folders.requests))
    taken = [name for name in names if is_request(name)]
    return taken, [name for name in names if not is_request(name)]


def is_request(name: str) -> bool:
    """Whether a file of this name is taken."""
    return name.endswith(".json") and not name.startswith(".")


def claim(folders: Folders, names: Sequence[str]) -> tuple[list[ClaimedFile], dict[str, OSError]]:
    """Claim files, durably.

    Returns:
        Those that are ours now, and what kept others from being claimed. A file that somebody else claimed is in
        neither.
    """
    lot = _make_lot(folders)
    claimed: list[ClaimedFile] = []
    refused: dict[str, OSError] = {}
    for name in names:
        try:
            os.rename(name, f"{lot}/{name}", src_dir_fd=folders.requests, dst_dir_fd=folders.claimed)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in _OUTAGES or not _may_change(folders.requests):
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
    """A claim that a power failure undid would be claimed again, and be another record."""
    try:
        fd = os.open(lot, _DIRECTORY, dir_fd=folders.claimed)
    except FileNotFoundError:
        return  # another process has taken the lot over and put it away
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.fsync(folders.claimed)


def leave_lots(folders: Folders, lots: Iterable[str]) -> None:
    """Remove lots that are empty."""
    for lot in lots:
        try:
            os.rmdir(lot, dir_fd=folders.claimed)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise


def claimed_lots(folders: Folders) -> dict[str, list[str]]:
    """What lies claimed, whoever claimed it: lot to names, in order."""
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
    """Read a claimed file; None when another process has put it away.

    Raises:
        OSError: an error that is not about this file.
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
        info = os.fstat(fd)  # before it is read: what is written meanwhile changes it
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
    """The claim itself set the time of the last change: how long before was the file written to?"""
    return info.st_ctime_ns - info.st_mtime_ns >= QUIET_SECONDS * 1e9


def _denied(info: os.stat_result, error: OSError) -> str:
    return (
        f"the daemon's user (uid {os.geteuid()}) may not read it: {error.strerror}; it is of uid {info.st_uid} and "
        f"has mode {stat.S_IMODE(info.st_mode):04o}. Drop it again with a mode that lets the daemon read it "
        "(umask 022, or chmod a+r before the rename)"
    )


# ---------------------------------------------------------------- putting away


def put_away(folders: Folders, file: ClaimedFile, stamp: tuple[int, int, int], into: int, other_name: str) -> bool:
    """Move a claimed file on, unless it was changed since it was read; nothing is ever overwritten.

    Args:
        folders: The spool's folders.
        file: What to move.
        stamp: As it was when it was read.
        into: Descriptor of the folder it goes to.
        other_name: A name that no other file has, for when its own is taken there.

    Returns:
        False when it was changed: what it holds now is another record.
    """
    try:
        if _stamp(os.stat(file.path, dir_fd=folders.claimed, follow_symlinks=False)) != stamp:
            return False
        if not renames.rename_new(folders.claimed, file.path, into, file.name):
            os.rename(file.path, other_name, src_dir_fd=folders.claimed, dst_dir_fd=into)
    except FileNotFoundError:
        pass  # another process was quicker
    return True


# ---------------------------------------------------------------- what is left lying


def obstacle(folders: Folders, name: str) -> str:
    """What keeps a file in ``requests/`` from being taken, and the remedy; empty when nothing is known of."""
    try:
        info = os.stat(name, dir_fd=folders.requests, follow_symlinks=False)
    except FileNotFoundError:
        return ""
    user, parent = os.geteuid(), os.fstat(folders.requests)
    if user == 0:
        return ""
    if parent.st_mode & stat.S_ISVTX and user not in (info.st_uid, parent.st_uid):
        return (
            f"requests/ is sticky and the file belongs to uid {info.st_uid}: remove the sticky bit (chmod -t), or make "
            f"the daemon's user (uid {user}) the owner of requests/"
        )
    if stat.S_ISDIR(info.st_mode) and not os.access(
        name, os.W_OK, dir_fd=folders.requests, effective_ids=os.access in os.supports_effective_ids
    ):
        return f"it is a folder of uid {info.st_uid} that the daemon's user (uid {user}) may not move: remove it"
    return ""


def left_lying(files: SpoolFiles) -> dict[str, str]:
    """Names in ``requests/`` that no daemon of this user takes, with what to do.

    Raises:
        Unavailable: the spool is not there.
    """
    with files.folders() as folders:
        taken, others = dropped(folders)
        stuck = {name: why for name in taken if (why := obstacle(folders, name))}
        return {printable(name): why for name, why in {**stuck, **overlooked(folders, others)}.items()}


def overlooked(folders: Folders, names: Iterable[str]) -> dict[str, str]:
    """Of the names that are not taken, those that somebody may have meant to be; with what to do."""
    found: dict[str, str] = {}
    for name in names:
        if name.startswith(".") or name.lower().endswith(_TEMPORARY):
            if _age(folders.requests, name) < _FORGOTTEN_SECONDS:
                continue
            found[name] = "it has a temporary name and nobody has renamed it; rename it to *.json, or remove it"
        else:
            found[name] = "only names that end in .json are taken; rename it to *.json, or move it away"
    return found


def _age(folder: int, name: str) -> float:
    try:
        return time.time() - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return 0.0
