"""Object store on a file system, durable before a call returns.

A new object is written to a file without a name, fsynced, linked into place (which fails if the name is taken: the
conditional create) and its directory fsynced. Where the file system has no unnamed files, temporary ones do. A replace
takes a lock, compares the version, and renames a temporary file. Those live in one folder of their own that no listing
reaches; old ones are swept at start-up.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from scenario_runner.contracts.errors import ConfigurationError, SequenceError, Unavailable
from scenario_runner.contracts.paths import check_relative_posix
from scenario_runner.contracts.reasons import Reason
from scenario_runner.storage.base import NotAnObjectError, ObjectTooLargeError, StoredObject

A = TypeVar("A")
B = TypeVar("B")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LOCKS: Final = 64
_SLICES: Final = 8
_ALONE: Final = 2
_OPEN_AT_ONCE: Final = 128
_NO_UNNAMED_FILES: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_NOT_A_FILE: Final = (errno.ELOOP, errno.ENXIO)
"""What opening a symbolic link (not followed), or a socket, fails with."""

_SYNCED_KEPT: Final = 100_000
_STALE_SECONDS: Final = 3600.0


def fsync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _fill(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.fsync(fd)


def write_durably(path: str, data: bytes) -> None:
    """Write a new file and fsync it; it must not exist. A file that could not be written whole is removed again."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            _fill(fd, data)
        finally:
            os.close(fd)
    except BaseException:
        os.unlink(path)
        raise


def write_unnamed(folder: str, data: bytes) -> int:
    """Write a file that has no name and fsync it; it is gone when its descriptor, the result, is closed.

    Three times as fast as a temporary name when several threads write: they do not wait for the folder.
    """
    fd = os.open(folder, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o644)
    try:
        _fill(fd, data)
    except BaseException:
        os.close(fd)
        raise
    return fd


@dataclass(frozen=True, slots=True)
class _Written:
    """A file that is durable and waits for its name: an open one without any, or a temporary one."""

    fd: int
    path: str

    def give_name(self, path: str) -> None:
        """Link it; raises ``FileExistsError`` when the name is taken."""
        if self.fd < 0:
            os.link(self.path, path)
        else:  # a descriptor for the source makes Python follow the link that /proc shows
            os.link(f"/proc/self/fd/{self.fd}", path, src_dir_fd=self.fd, follow_symlinks=True)

    def let_go(self) -> None:
        """Close or remove what was waiting; a name that was given stays."""
        if self.fd < 0:
            os.unlink(self.path)
        else:
            os.close(self.fd)


def version_of(data: bytes) -> str:
    """The version token of an object's bytes."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _reported(action: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = {
            errno.ENOSPC: "the disk is full; free some space",
            errno.EDQUOT: "the quota is used up",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "permission denied; check the owner and mode",
        }.get(error.errno or 0, error.strerror or "input/output error")
        raise Unavailable(f"cannot {action} {path}: {hint}") from error


def _sync_names(folder: str) -> Unavailable | None:
    try:
        with _reported("fsync", folder):
            fsync_directory(folder)
    except Unavailable as error:
        return error
    return None


class FilesystemStore:
    """Objects as files under a root directory.

    Args:
        root: The object-store root; created when absent.
        private: Folder under the root, as a key, for temporary files and locks.
        pool: Threads that write many objects at once; one after the other without.
        token: Source of random names.
    """

    def __init__(
        self,
        root: str,
        private: str,
        pool: ThreadPoolExecutor | None = None,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._pool = pool
        self.root = os.path.abspath(root)
        self._private = os.path.join(self.root, private)
        self._token = token
        self._synced: set[str] = set()
        self._unnamed = hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd")

    def _path(self, key: str) -> str:
        try:
            check_relative_posix(key)
            key.encode("utf-8")
        except ValueError as error:
            raise SequenceError(f"the object key {key!r} is not a normalised relative path: {error}") from error
        return os.path.join(self.root, key)

    def _make_folder(self, folder: str) -> list[str]:
        """Make a folder below the root; returns the folders whose new names are not durable yet.

        What this process has not seen made durable counts as new, whoever made it.
        """
        unsynced = []
        while folder not in self._synced and folder.startswith(self.root):
            unsynced.append(folder)
            folder = os.path.dirname(folder)
        for path in reversed(unsynced):
            try:
                os.mkdir(path, 0o755)
            except FileExistsError:
                continue
            except FileNotFoundError:  # above the root
                os.makedirs(path, 0o755, exist_ok=True)
        return unsynced

    def _make_private(self) -> None:
        if self._private not in self._synced:
            self._make_folder(self._private)
            self._synced.add(self._private)  # temporary files need no durable names

    def create(self, key: str, data: bytes) -> bool:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        result = self.create_many([(key, data)])[0]
        if isinstance(result, Unavailable):
            raise result
        return result

    def create_many(self, items: Sequence[tuple[str, bytes]]) -> list[bool | Unavailable]:
        """See :class:`~scenario_runner.storage.base.ObjectStore`.

        Files are written and fsynced in parallel, then linked in the order given; each directory that gained names is
        fsynced once.
        """
        paths = [self._path(key) for key, _ in items]
        made: dict[str, None] = {}
        results: list[bool | Unavailable] = []
        for start in range(0, len(items), _OPEN_AT_ONCE):
            written = self._map(self._write, [data for _, data in items[start : start + _OPEN_AT_ONCE]])
            for path, file in zip(paths[start:], written, strict=False):
                results.append(file if isinstance(file, Unavailable) else self._link(path, file, made))
        # a name that somebody else gave may not be durable yet either
        gained = {
            os.path.dirname(path): None
            for path, result in zip(paths, results, strict=True)
            if not isinstance(result, Unavailable)
        }
        unsynced = list(dict.fromkeys([*gained, *map(os.path.dirname, made)]))
        broken = dict(zip(unsynced, self._map(_sync_names, unsynced), strict=True))
        failure = next((error for error in broken.values() if error is not None), None)
        if failure is not None:
            return [result if isinstance(result, Unavailable) else failure for result in results]
        if len(self._synced) > _SYNCED_KEPT:
            self._synced.clear()
        self._synced.update(made)
        return results

    def _map(self, function: Callable[[A], B], items: Sequence[A]) -> list[B]:
        """Apply a function in parallel: one slice for each thread, since a hand-over costs more than a file."""
        if self._pool is None or len(items) <= _ALONE:
            return [function(item) for item in items]
        width = -(-len(items) // _SLICES)
        slices = [items[start : start + width] for start in range(0, len(items), width)]
        return [
            result for part in self._pool.map(lambda part: [function(item) for item in part], slices) for result in part
        ]

    def _write(self, data: bytes) -> _Written | Unavailable:
        path = os.path.join(self._private, f"{self._token()}.tmp")
        try:
            with _reported("write", path):
                self._make_private()
                if self._unnamed:
                    try:
                        return _Written(write_unnamed(self._private, data), "")
                    except OSError as error:
                        if error.errno not in _NO_UNNAMED_FILES:
                            raise
                        self._unnamed = False
                write_durably(path, data)
        except Unavailable as error:
            self._synced.clear()  # somebody may have removed what we had made
            return error
        return _Written(-1, path)

    def _link(self, path: str, file: _Written, made: dict[str, None]) -> bool | Unavailable:
        """Give a written file its name, unless the name is taken; adds the folders that were made to ``made``."""
        try:
            with _reported("link", path):
                try:
                    folder = os.path.dirname(path)
                    if folder not in made:
                        made.update(dict.fromkeys(self._make_folder(folder)))
                    file.give_name(path)
                except FileExistsError:
                    return False
                finally:
                    file.let_go()
        except Unavailable as error:
            self._synced.clear()
            return error
        return True

    def read(self, key: str, limit: int) -> StoredObject | None:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        path = self._path(key)
        with _reported("read", path):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError):
                self._check_root()
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
                with os.fdopen(os.dup(fd), "rb") as file:
                    data = file.read(limit + 1)
            finally:
                os.close(fd)
        if len(data) > limit:
            raise ObjectTooLargeError(f"{path} grew beyond {limit} bytes")
        return StoredObject(data, version_of(data))

    def _check_root(self) -> None:
        """Nothing is absent from a store that is not there itself."""
        if not os.path.isdir(self.root):
            raise Unavailable(f"the folder {self.root} is not there; mount or restore it, or start the daemon once")

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        slot = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % _LOCKS
        path = os.path.join(self._private, f"{slot:02d}.lock")
        self._make_private()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        path = self._path(key)
        with _reported("replace", path), self._locked(key):
            current = self.read(key, 1 << 30)
            if current is None or current.version != version:
                return False
            temporary = os.path.join(self._private, f"{self._token()}.tmp")
            write_durably(temporary, data)
            try:
                os.rename(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
            fsync_directory(os.path.dirname(path))
        return True

    def keys(self, prefix: str) -> list[str]:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        self._path(prefix.removesuffix("/") if prefix else "all")  # a prefix is the beginning of a key
        found: list[str] = []
        pending = [os.path.join(self.root, os.path.dirname(prefix))]
        while pending:
            folder = pending.pop()
            with _reported("list", folder):
                try:
                    entries = list(os.scandir(folder))
                except (FileNotFoundError, NotADirectoryError):
                    continue
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.extend([] if entry.path == self._private else [entry.path])
                else:
                    found.append(os.path.relpath(entry.path, self.root))
        return sorted(key for key in found if key.startswith(prefix))

    def locate(self, key: str) -> str:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        return self._path(key)

    def probe(self) -> None:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        key = os.path.relpath(os.path.join(self._private, f"probe-{self._token()}"), self.root)
        first, second = b"first", b"second"
        honoured = self.create(key, first) and not self.create(key, second) and self._holds(key, first)
        honoured = honoured and not self.replace(key, second, version_of(second)) and self._holds(key, first)
        honoured = honoured and self.replace(key, second, version_of(first)) and self._holds(key, second)
        with _reported("remove", key):
            os.unlink(self._path(key))
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

    def sweep(self) -> int:
        """Remove temporary files that a killed process left behind; returns how many."""
        removed = 0
        with _reported("sweep", self._private):
            try:
                names = [
                    name for name in os.listdir(self._private) if name.endswith(".tmp") or name.startswith("probe-")
                ]
            except FileNotFoundError:
                return 0
            for name in names:
                removed += self._sweep_one(os.path.join(self._private, name))
        return removed

    @staticmethod
    def _sweep_one(path: str) -> int:
        try:
            if time.time() - os.lstat(path).st_mtime <= _STALE_SECONDS:
                return 0
            os.unlink(path)
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            return 0  # its writer has just finished, or it is nobody's temporary file
        return 1
