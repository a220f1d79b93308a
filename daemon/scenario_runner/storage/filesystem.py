"""Object store on a file system, durable before a call returns.

A new object is written to a file without a name, fsynced, linked into place (which fails if the name is taken: the
conditional create) and its directory fsynced. All files of a batch are written before the first is fsynced, so that few
commits of a journal carry them; each has an fsync of its own all the same. Where the file system has no unnamed files,
temporary ones are used. A replace takes a lock, compares the version, and renames a temporary file. Temporary files
live in a folder of their own; old ones are removed at start-up.

All of it happens relative to the open root, which is proven to be the store before and after (``anchored.py``).
"""

import errno
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple, TypeVar

from typing_extensions import override

from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.posix import O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK
from scenario_runner.storage.anchored import Anchor, AnchoredRoot, anchored, fsync_directory
from scenario_runner.storage.base import (
    ListedObject,
    NotAnObjectError,
    ObjectReader,
    ObjectStore,
    ObjectTooLargeError,
    StoredObject,
    check_key,
    version_of,
)
from scenario_runner.storage.identity import MARKER, marker_bytes
from scenario_runner.storage.locks import BoundedLocks
from scenario_runner.storage.modes import Modes
from scenario_runner.storage.sorting import sorted_objects
from scenario_runner.storage.written import Written, write_durably, write_unnamed

A = TypeVar("A")
B = TypeVar("B")
_LOCKS: Final = range(64, 96)
"""Numbers of the lock files. Those below were readable by every user in earlier releases, and so could be locked. Two
objects seldom share one of 32, and a replace takes a millisecond."""

_TO_READ: Final = os.O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK
#: Slices of a batch that is written in parallel: a file system is busy with this many fsyncs.
_SLICES: Final = 8
#: A batch up to this size is written sooner than it is handed to threads.
_ALONE: Final = 2
#: Files that wait for their names at one time: each is open, and a process may have 1024.
_OPEN_AT_ONCE: Final = 128
#: What a file system answers that has no unnamed files.
_NO_UNNAMED_FILES: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_NOT_A_FILE: Final = (errno.ELOOP, errno.ENXIO)
"""What opening a symbolic link (not followed), or a socket, fails with."""

#: Folders that are remembered as durable; a hundred bytes each. The set is cleared when it is full.
_SYNCED_KEPT: Final = 100_000
#: A temporary file of this age has no writer any more: writing one takes milliseconds.
_STALE_SECONDS: Final = 3600.0


def _read_up_to(fd: int, size: int, most: int) -> bytes:
    """A file to its end, or so many bytes of it; ``size`` is what it probably holds."""
    first = os.read(fd, min(most, size + 1))
    if len(first) == size < most:
        return first  # one byte more was asked for, and is not there: this is the end
    parts, left = [first], most - len(first)
    while left > 0 and (part := os.read(fd, min(left, size + 1))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


class translating_os_errors:  # noqa: N801 - used as a function; a generator takes five times as long, for each read
    """Raise ``Unavailable`` for an error of the system, saying what cannot be done and what to do."""

    __slots__ = ("_action", "_path")

    def __init__(self, action: str, path: str) -> None:
        self._action, self._path = action, path

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Translate what was raised."""
        if isinstance(error, OSError):
            hint = {
                errno.ENOSPC: "the disk is full; free some space",
                errno.EDQUOT: "the quota is used up",
                errno.EROFS: "the file system is read-only",
                errno.EACCES: "permission denied; check the owner and mode",
            }.get(error.errno or 0, error.strerror or "input/output error")
            raise Unavailable(f"cannot {self._action} {self._path}: {hint}") from error


class FilesystemStore(ObjectStore):
    """Objects as files under a root directory.

    Args:
        root: The object-store root; created when absent, unless the identity of the store is known.
        private: Folder under the root, as a key, for temporary files, locks and the store's marker.
        pool: Threads that write many objects at once; one after the other without.
        token: Source of random names.
        modes: Of what is created; None for those of the root.
    """

    def __init__(
        self,
        root: str | AnchoredRoot,
        private: str,
        pool: ThreadPoolExecutor | None = None,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
        modes: Modes | None = None,
    ) -> None:
        self._pool = pool
        self._root = anchored(root)
        self.root = self._root.path
        self._modes = modes or self._root.modes
        self._private = private
        self._token = token
        self._synced: set[str] = set()
        self._locks = BoundedLocks()
        self._unnamed = hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd")

    def _path(self, key: str) -> str:
        check_key(key)
        return f"{self.root}/{key}" if self.root != "/" else f"/{key}"

    # --- identity

    @property
    def _marker(self) -> str:
        return f"{self._private}/{MARKER}"

    @property
    @override
    def where(self) -> str:
        return self.root

    @override
    def identity(self) -> str:
        return self._root.identity(self._marker)

    @override
    def leave_identity(self, proposed: str) -> str:
        self.create(self._marker, marker_bytes(proposed))
        return self.identity()

    @override
    def expect(self, identity: str) -> None:
        self._root.expect(self._marker, identity)

    # --- writing

    def _make_folder(self, anchor: Anchor, folder: str) -> list[str]:
        """Make a folder below the root; returns the folders whose new names are not durable yet.

        What this process has not seen made durable counts as new, whoever made it.
        """
        unsynced = []
        while folder and folder not in self._synced:
            unsynced.append(folder)
            folder = os.path.dirname(folder)
        for key in reversed(unsynced):
            try:
                os.mkdir(key, self._modes.folder, dir_fd=anchor.fd)
            except FileExistsError:
                continue
        return unsynced

    def _make_private(self, anchor: Anchor) -> None:
        if self._private not in self._synced:
            self._make_folder(anchor, self._private)
            self._synced.add(self._private)  # temporary files need no durable names

    @override
    def create(self, key: str, data: bytes) -> bool:
        result = self.create_many([(key, data)])[0]
        if isinstance(result, Unavailable):
            raise result
        return result

    @override
    def create_many(self, items: Sequence[tuple[str, bytes]]) -> list[bool | Unavailable]:
        """Write and fsync the files in parallel, link them in the order given, and fsync each directory once."""
        for key, _ in items:
            self._path(key)
        if not items:
            return []
        try:
            anchor = self._root.make()
            results, made = self._link_all(anchor, items)
            self._make_durable(anchor, items, results, made)
            self._root.prove(anchor)
        except Unavailable as error:
            self._synced.clear()
            return [error] * len(items)
        return results

    def _link_all(
        self, anchor: Anchor, items: Sequence[tuple[str, bytes]]
    ) -> tuple[list[bool | Unavailable], dict[str, None]]:
        """Write files and give them their names; also returns the folders that were made on the way."""
        made: dict[str, None] = {}
        results: list[bool | Unavailable] = []
        for start in range(0, len(items), _OPEN_AT_ONCE):
            some = items[start : start + _OPEN_AT_ONCE]
            written = self._map(self._flush, self._map(lambda item: self._write(anchor, item[1]), some))
            for (key, _), file in zip(some, written, strict=True):
                path = os.path.join(self.root, key)
                results.append(file if isinstance(file, Unavailable) else self._link(path, key, file, anchor, made))
        return results, made

    def _make_durable(
        self,
        anchor: Anchor,
        items: Sequence[tuple[str, bytes]],
        results: Sequence[bool | Unavailable],
        made: dict[str, None],
    ) -> None:
        """Fsync every directory that gained a name.

        Raises:
            Unavailable: one could not be synced, so nothing of the batch is promised.
        """
        # also where the name was taken: whoever gave it may not have synced the directory yet
        gained = [
            os.path.dirname(key)
            for (key, _), result in zip(items, results, strict=True)
            if not isinstance(result, Unavailable)
        ]
        unsynced = list(dict.fromkeys([*gained, *map(os.path.dirname, made)]))
        for failure in self._map(lambda folder: self._sync_names(anchor, folder), unsynced):
            if failure is not None:
                raise failure
        if len(self._synced) > _SYNCED_KEPT:
            self._synced.clear()
        self._synced.update(made)

    def _sync_names(self, anchor: Anchor, folder: str) -> Unavailable | None:
        try:
            with translating_os_errors("fsync", os.path.join(self.root, folder)):
                fsync_directory(folder or ".", anchor.fd)
        except Unavailable as error:
            return error
        return None

    def _map(self, function: Callable[[A], B], items: Sequence[A]) -> list[B]:
        """Apply a function in parallel, to a slice in each task: handing over a task costs more than writing a file."""
        if self._pool is None or len(items) <= _ALONE:
            return [function(item) for item in items]
        width = -(-len(items) // _SLICES)
        slices = [items[start : start + width] for start in range(0, len(items), width)]
        return [
            result for part in self._pool.map(lambda part: [function(item) for item in part], slices) for result in part
        ]

    def _write(self, anchor: Anchor, data: bytes) -> Written | Unavailable:
        key = f"{self._private}/{self._token()}.tmp"
        try:
            with translating_os_errors("write", os.path.join(self.root, key)):
                self._make_private(anchor)
                if self._unnamed:
                    try:
                        fd = write_unnamed(self._private, data, self._modes.file, anchor.fd)
                        return Written(fd, key, anchor.fd)
                    except OSError as error:
                        if error.errno not in _NO_UNNAMED_FILES:
                            raise
                        self._unnamed = False
                write_durably(key, data, self._modes.file, anchor.fd)
        except Unavailable as error:
            self._synced.clear()  # the folders that were made may have been removed
            return error
        return Written(-1, key, anchor.fd)

    def _flush(self, file: Written | Unavailable) -> Written | Unavailable:
        """Make the bytes of a written file durable. One that cannot be is dropped, and never flushed a second time."""
        if isinstance(file, Unavailable):
            return file
        try:
            with translating_os_errors("fsync", os.path.join(self.root, file.key)):
                file.flush()
        except Unavailable as error:
            file.release()
            self._synced.clear()
            return error
        return file

    def _link(self, path: str, key: str, file: Written, anchor: Anchor, made: dict[str, None]) -> bool | Unavailable:
        """Give a written file its name, unless the name is taken; adds the folders that were made to ``made``."""
        try:
            with translating_os_errors("link", path):
                try:
                    folder = os.path.dirname(key)
                    if folder not in made:
                        made.update(dict.fromkeys(self._make_folder(anchor, folder)))
                    file.give_name(key)
                except FileExistsError:
                    return False
                finally:
                    file.release()
        except Unavailable as error:
            self._synced.clear()
            return error
        return True

    @contextmanager
    def _locked(self, anchor: Anchor, key: str) -> Iterator[None]:
        slot = _LOCKS[int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % len(_LOCKS)]
        name = f"{self._private}/{slot:02d}.lock"
        self._make_private(anchor)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(name, flags, self._modes.file, dir_fd=anchor.fd)
        try:
            self._locks.acquire(fd, os.path.join(self.root, name))
            yield
        finally:
            os.close(fd)

    @override
    def replace(self, key: str, data: bytes, version: str) -> bool:
        path = self._path(key)
        anchor = self._root.make()
        with translating_os_errors("replace", path), self._locked(anchor, key):
            current = self.read(key, 1 << 30)
            if current is None or current.version != version:
                return False
            temporary = f"{self._private}/{self._token()}.tmp"
            write_durably(temporary, data, self._modes.file, anchor.fd)
            try:
                os.rename(temporary, key, src_dir_fd=anchor.fd, dst_dir_fd=anchor.fd)
            except BaseException:
                os.unlink(temporary, dir_fd=anchor.fd)
                raise
            fsync_directory(os.path.dirname(key) or ".", anchor.fd)
        self._root.prove(anchor)
        return True

    @override
    def settle(self, key: str) -> None:
        anchor = self._root.proven()
        check_key(key)
        failure = self._sync_names(anchor, os.path.dirname(key))
        if failure is not None:
            raise failure
        self._root.prove(anchor)

    # --- reading

    @override
    def read(self, key: str, limit: int) -> StoredObject | None:
        path = self._path(key)
        return self._read(key, path, limit, self._root.proven())

    @override
    def held(self) -> ObjectReader:
        anchor = self._root.proven()
        return _Held(lambda key, limit: self._read(key, self._path(key), limit, anchor))

    def _read(self, key: str, path: str, limit: int, anchor: Anchor) -> StoredObject | None:
        with translating_os_errors("read", path):
            try:
                fd = os.open(key, _TO_READ, dir_fd=anchor.fd)
            except (FileNotFoundError, NotADirectoryError):
                self._root.prove(anchor)  # otherwise the object would seem absent from another store
                return None
            except OSError as error:
                if error.errno in _NOT_A_FILE and not stat.S_ISREG(os.lstat(path).st_mode):
                    raise NotAnObjectError(f"{path} is not a regular file; move it away") from error
                raise
            try:
                info = os.fstat(fd)
                if not stat.S_ISREG(info.st_mode):
                    raise NotAnObjectError(f"{path} is not a regular file; move it away")
                if info.st_size > limit:
                    raise ObjectTooLargeError(f"{path} holds {info.st_size} bytes, at most {limit} are read")
                data = _read_up_to(fd, info.st_size, limit + 1)
            finally:
                os.close(fd)
        if len(data) > limit:
            raise ObjectTooLargeError(f"{path} grew beyond {limit} bytes")
        return StoredObject(data)

    @override
    def list_objects(self, folder: str) -> Iterator[ListedObject]:
        path = self._path(folder)
        anchor = self._root.proven()
        with translating_os_errors("list", path):
            yield from sorted_objects(_files_below(folder, anchor))
        self._root.prove(anchor)

    @override
    def locate(self, key: str) -> str:
        return self._path(key)

    @override
    def probe(self) -> None:
        self._probe(replaces=True)

    @override
    def examine(self) -> bool:
        if not os.path.isdir(self._path(self._private)):
            return False
        self._probe(replaces=False)  # a replace leaves the file of its lock
        return True

    def _probe(self, *, replaces: bool) -> None:
        key = f"{self._private}/probe-{self._token()}"
        first, second = b"first", b"second"
        honoured = self.create(key, first) and not self.create(key, second) and self._holds(key, first)
        if replaces:
            honoured = honoured and not self.replace(key, second, version_of(second)) and self._holds(key, first)
            honoured = honoured and self.replace(key, second, version_of(first)) and self._holds(key, second)
        with translating_os_errors("remove", self._path(key)):
            os.unlink(key, dir_fd=self._root.proven().fd)
        if not honoured:
            raise ConfigurationError(
                self.root,
                "the file system does not honour conditional creates and replaces",
                "use a local POSIX file system",
                Reason.STORE_UNSAFE,
            )

    def _holds(self, key: str, data: bytes) -> bool:
        stored = self.read(key, len(data))
        return stored is not None and stored.data == data

    @override
    def sweep(self) -> int:
        anchor = self._root.anchor_if_there()
        if anchor is None:
            return 0
        removed = 0
        with translating_os_errors("sweep", os.path.join(self.root, self._private)):
            try:
                names = _names_in(self._private, anchor)
            except FileNotFoundError:
                return 0
            for name in names:
                if name.endswith(".tmp") or name.startswith("probe-"):
                    removed += _sweep_one(f"{self._private}/{name}", anchor)
        return removed


class _Held(NamedTuple):
    """Reads from a root folder that was proven; it stays open, so nothing is read from what may take its place."""

    read: Callable[[str, int], StoredObject | None]


def _files_below(folder: str, anchor: Anchor) -> Iterator[ListedObject]:
    """Everything below a folder but folders; links are not followed. What vanishes meanwhile is left out."""
    pending = [folder]
    while pending:
        folder = pending.pop()
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=anchor.fd)
        except FileNotFoundError:
            continue
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{folder}/{entry.name}")
                        continue
                    with suppress(FileNotFoundError):
                        info = entry.stat(follow_symlinks=False)
                        yield ListedObject(f"{folder}/{entry.name}", info.st_size, info.st_mtime_ns // 1000)
        finally:
            os.close(fd)


def _names_in(folder: str, anchor: Anchor) -> list[str]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=anchor.fd)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _sweep_one(key: str, anchor: Anchor) -> int:
    try:
        if time.time() - os.stat(key, dir_fd=anchor.fd, follow_symlinks=False).st_mtime <= _STALE_SECONDS:
            return 0
        os.unlink(key, dir_fd=anchor.fd)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        return 0  # its writer has just finished, or it is no temporary file of ours
    return 1
