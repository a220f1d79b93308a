"""Engine run roots on a file system.

Every path is walked component by component from the allowed root with ``openat`` and ``O_NOFOLLOW``, so no
symbolic link anywhere below it is followed, whoever puts one there and at whatever moment.
"""

import errno
import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from typing_extensions import override

from scenario_runner.artifacts.base import (
    MAX_FILES,
    MAX_SEGMENTS,
    Artifacts,
    Kind,
    RootsSeen,
    SequenceDigest,
    root_not_allowed,
)
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.artifacts.examined import ExaminedRoot, Unread, check_size
from scenario_runner.artifacts.listing import BAD_NAME, Listing, too_many
from scenario_runner.artifacts.local_files import Identity, identity_of, os_errors, raise_for, refuse_type, shrank
from scenario_runner.artifacts.local_look import look_at_folders
from scenario_runner.artifacts.parallel import Found, in_parallel, or_refusal
from scenario_runner.artifacts.reuse import DigestReuse, Unfinished
from scenario_runner.contracts.errors import (
    EvidenceChanged,
    EvidenceMissing,
    EvidenceRefused,
    ScenarioRunnerError,
    Unavailable,
)
from scenario_runner.contracts.reasons import Reason
from scenario_runner.posix import O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK

_DIRECTORY: Final = os.O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC
_FILE: Final = os.O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC
#: Bytes of one read of a large file: 1 MiB takes less than a millisecond to digest, so leases and stops are noticed.
_BUFFER: Final = 1 << 20
#: What opening a socket, or a device without a driver, fails with.
_NO_FILE: Final = (errno.ENXIO, errno.ENODEV)
#: Directories of one examination that are held open: a process may have 1024 files, and examines several at a time.
_KEPT_OPEN: Final = 64
#: A file up to this size is read by one call, into bytes instead of a buffer.
_SMALL: Final = 64 << 10
#: A sequence up to this size is digested sooner than a thread is started.
_PARALLEL_FROM: Final = 4 << 20


class LocalRunRoot(ExaminedRoot[Identity]):
    """An engine run root in a folder.

    Args:
        base: Absolute path of the allowed root.
        below: Path of the run root below it, or empty.
        threads: How many large files are hashed at the same time. Every examination has threads of its own, so that
            the kernel divides the cores among them and none waits for the files of another.
        reuse: Digests of unchanged files; None reads everything.
        budget: What the examination may cost.
    """

    def __init__(
        self,
        base: str,
        below: str,
        threads: int,
        reuse: DigestReuse | None,
        budget: ReadBudget,
    ) -> None:
        super().__init__(os.path.join(base, below) if below else base, budget, reuse)
        self._base, self._below = base, below
        self._threads = threads
        self._max_entries = max(MAX_FILES, budget.bounds.max_output_files)
        self._directories: dict[str, int] = {}
        self._lock = threading.RLock()
        try:
            self._open_root()
        except BaseException:
            self.close()
            raise

    @override
    @staticmethod
    def _size_of(identity: Identity) -> int:
        return identity[2]

    @override
    @staticmethod
    def _changed_ns(identity: Identity) -> int:
        return max(identity[3], identity[4])

    @override
    def _read_ns(self) -> int:
        return time.time_ns()

    # --- walking

    def _open_root(self) -> None:
        try:
            fd = os.open(self._base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(
                f"the engine root {self._base} cannot be opened: {error.strerror}; mount it, or correct engine_roots "
                "in the wiring profile"
            ) from error
        with os_errors(self.location):
            for name in self._below.split("/") if self._below else ():
                try:
                    child = self._step(fd, name, self.location)
                finally:
                    os.close(fd)
                fd = child
        self._directories[""] = fd

    @staticmethod
    def _step(parent: int, name: str, path: str) -> int:
        try:
            return os.open(name, _DIRECTORY, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                refuse_type(path, os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode, "a directory")
            raise

    def _directory(self, path: str) -> int:
        """A descriptor of a directory, open only while the lock is held: few are kept at the same time."""
        fd = self._directories.get(path)
        if fd is not None:
            return fd
        if path.count("/") >= MAX_SEGMENTS:
            raise EvidenceRefused(f"{path} is nested too deeply", Reason.EVIDENCE_TOO_LARGE, path=path)
        head, _, name = path.rpartition("/")
        parent = self._directory(head)
        with os_errors(path):
            fd = self._step(parent, name, path)
        self._directories[path] = fd
        if len(self._directories) > _KEPT_OPEN:
            oldest = next(key for key in self._directories if key not in ("", path))
            os.close(self._directories.pop(oldest))
        return fd

    def _stat(self, path: str) -> os.stat_result:
        self.budget.operations()
        head, _, name = path.rpartition("/")
        with self._lock:
            parent = self._directory(head)
            try:
                return os.stat(name, dir_fd=parent, follow_symlinks=False)
            except OSError as error:
                raise_for(error, path)

    @override
    def _identity_now(self, path: str) -> Identity:
        info = self._stat(path)
        if not stat.S_ISREG(info.st_mode):
            refuse_type(path, info.st_mode, "a regular file")
        return identity_of(info)

    @override
    def _identify(self, path: str) -> Identity:
        """Identity of a file as it was first seen in this examination; it is compared again when the file is read."""
        known = self._seen.get(path)
        if known is None:
            known = self._seen[path] = self._identity_now(path)
        return known

    def _observe(self, path: str, identity: Identity) -> None:
        if self._seen.setdefault(path, identity) != identity:
            raise EvidenceChanged(f"{path} changed during the examination", path=path)

    @override
    def _kind_now(self, path: str) -> Kind:
        try:
            mode = self._stat(path).st_mode
        except EvidenceMissing:
            return Kind.ABSENT
        if stat.S_ISREG(mode):
            return Kind.FILE
        if stat.S_ISDIR(mode):
            return Kind.DIRECTORY
        return refuse_type(path, mode, "a regular file or directory")

    # --- listing

    @override
    def _list_now(self, path: str) -> Listing:
        with os_errors(path):
            entries: list[tuple[str, bool]] = []
            with self._lock, os.scandir(self._directory(path)) as scan:
                for entry in scan:
                    self.budget.entries()
                    if len(entries) >= self._max_entries:
                        raise too_many(path, f"more than {self._max_entries}", self.budget.bounds.max_output_files)
                    entries.append((entry.name, self._is_directory(path, entry)))
        return tuple(sorted(entries))

    @staticmethod
    def _is_directory(path: str, entry: os.DirEntry[str]) -> bool:
        if BAD_NAME.search(entry.name):
            raise EvidenceRefused(f"the file name {entry.name!r} in {path} cannot be listed", path=path)
        if entry.is_dir(follow_symlinks=False):
            return True
        if entry.is_file(follow_symlinks=False):
            return False
        mode = entry.stat(follow_symlinks=False).st_mode
        return refuse_type(f"{path}/{entry.name}", mode, "a regular file or directory")

    # --- reading

    def _open(self, path: str) -> tuple[int, Identity]:
        """A descriptor of one regular file, and its identity now."""
        self.budget.operations()
        head, _, name = path.rpartition("/")
        with self._lock:
            parent = self._directory(head)
            try:
                fd = os.open(name, _FILE, dir_fd=parent)
            except OSError as error:
                if error.errno in _NO_FILE:  # raises with what it is
                    self._identity_now(path)
                raise_for(error, path)
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            os.close(fd)
            refuse_type(path, info.st_mode, "a regular file")
        return fd, identity_of(info)

    @staticmethod
    def _close_unchanged(fd: int, path: str, before: Identity) -> None:
        try:
            after = identity_of(os.fstat(fd))
        finally:
            os.close(fd)
        if after != before:
            raise EvidenceChanged(f"{path} changed while it was being read", path=path)

    @override
    def read(self, path: str, limit: int) -> bytes:
        fd, identity = self._open(path)
        try:
            size = identity[2]
            check_size(path, size, limit)
            self.budget.document(size)
            self._observe(path, identity)
            data = b""
            while len(data) < size and (chunk := os.read(fd, size - len(data))):
                data += chunk
        except OSError as error:
            os.close(fd)
            raise_for(error, path)
        except BaseException:
            os.close(fd)
            raise
        self._close_unchanged(fd, path, identity)
        if len(data) != size:
            raise shrank(path)
        return data

    @override
    def prefetch(self, paths: Iterable[str], limit: int) -> None:
        """Do nothing: reading ahead saves no time on a file system."""

    @override
    def _hash_all(self, work: list[Unread[Identity]]) -> Iterator[tuple[int, Found]]:
        """Digest small sequences in this thread, one after the other, and then large ones in parallel."""
        for item in work:
            if item.size < _PARALLEL_FROM:
                yield self._hash_one(item)
        yield from self._hash_large([item for item in work if item.size >= _PARALLEL_FROM])

    def _hash_one(self, item: Unread[Identity]) -> tuple[int, Found]:
        return item.index, or_refusal(partial(self._hash, item))

    def _hash_large(self, work: list[Unread[Identity]]) -> Iterator[tuple[int, Found]]:
        if not work:
            return
        work.sort(key=lambda item: -item.size)  # the largest first, so that the threads end at about the same time
        jobs = [partial(self._hash_one, item) for item in work]
        with ThreadPoolExecutor(self._threads, thread_name_prefix="hash") as pool:
            yield from in_parallel(pool, self.budget, jobs)

    def _hash(self, item: Unread[Identity]) -> SequenceDigest:
        read_ns = self._read_ns()
        whole = hashlib.sha256() if len(item.paths) > 1 else None
        members: list[str] = []
        for path, identity in zip(item.paths, item.identities, strict=True):
            fd, now = self._open(path)
            try:
                if now != identity:
                    raise EvidenceChanged(f"{path} changed before it was read", path=path)
                members.append(self._hash_file(fd, path, identity, whole))
            except OSError as error:
                os.close(fd)
                raise_for(error, path)
            except BaseException:
                os.close(fd)
                raise
            self._close_unchanged(fd, path, identity)
        return self._digested(item, (whole.hexdigest() if whole else members[0], *members), read_ns)

    def _hash_file(self, fd: int, path: str, identity: Identity, whole: "hashlib._Hash | None") -> str:
        """Digest of one open file; its bytes go into the digest of the sequence too, where there is one."""
        size = identity[2]
        if size <= _SMALL:
            data = os.read(fd, size) if size else b""
            if len(data) != size:
                raise shrank(path)
            self.budget.beat(size)
            if whole is not None:
                whole.update(data)
            return hashlib.sha256(data).hexdigest()
        if whole is None:
            return self._hash_resumably(fd, path, identity)
        own = hashlib.sha256()
        for chunk in self._chunks(fd, path, size):
            own.update(chunk)
            whole.update(chunk)
        return own.hexdigest()

    def _hash_resumably(self, fd: int, path: str, identity: Identity) -> str:
        """Digest of one open file, continued where an earlier examination of it was broken off."""
        read_ns = self._read_ns()
        kept = self._reuse.resume(identity) if self._reuse else None
        state, offset = (kept.state, kept.offset) if kept else (hashlib.sha256(), 0)
        self.budget.hashed_before(offset)
        os.lseek(fd, offset, os.SEEK_SET)
        try:
            for chunk in self._chunks(fd, path, identity[2] - offset):
                state.update(chunk)
                offset += len(chunk)
        except ScenarioRunnerError:
            if self._reuse and self._is_stable([identity], read_ns):
                self._reuse.put_off(identity, Unfinished(state, offset))
            raise
        return state.hexdigest()

    def _chunks(self, fd: int, path: str, left: int) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(_BUFFER, max(left, 1))))
        while left > 0:
            count = os.readv(fd, [buffer[:left]])
            if count == 0:
                raise shrank(path)
            yield buffer[:count]
            left -= count
            self.budget.beat(count)

    # --- confirming

    @override
    def _reopen(self) -> None:
        self.close()
        self._open_root()

    @override
    def _is_listing_now(self, path: str, listing: Listing) -> bool:
        return self._names(path, len(listing)) == [name for name, _ in listing]

    def _names(self, path: str, most: int) -> list[str]:
        """Names in a folder, sorted; one more than ``most`` when there are more."""
        names: list[str] = []
        with self._lock, os_errors(path), os.scandir(self._directory(path)) as scan:
            for entry in scan:
                self.budget.entries()
                names.append(entry.name)
                if len(names) > most:
                    break
        names.sort()
        return names

    @override
    def close(self) -> None:
        directories, self._directories = self._directories, {}
        for fd in directories.values():
            os.close(fd)


class LocalArtifacts(Artifacts):
    """Opens run roots that lie under the allowed roots.

    Args:
        roots: Absolute paths of the allowed roots.
        threads: How many large files of one run are hashed at the same time.
        reuse: Digests of unchanged files; None reads everything (``digest_reuse: off``).
    """

    remote = False

    def __init__(self, roots: Sequence[str], threads: int, reuse: DigestReuse | None) -> None:
        self._roots = [os.path.realpath(root) for root in roots]
        self._given = [os.path.abspath(root) for root in roots]
        self._threads, self._reuse = threads, reuse

    @override
    def open(self, engine_run_root: str, budget: ReadBudget) -> LocalRunRoot:
        for given, real in sorted(zip(self._given, self._roots, strict=True), key=lambda pair: -len(pair[0])):
            prefix = given.rstrip("/") + "/"
            if engine_run_root == given or engine_run_root.startswith(prefix):
                root = LocalRunRoot(real, engine_run_root[len(prefix) :], self._threads, self._reuse, budget)
                root.location = engine_run_root
                return root
        raise root_not_allowed(engine_run_root, self._given)

    @override
    def look(self, roots: Sequence[str]) -> RootsSeen:
        return look_at_folders(roots, dict(zip(self._given, self._roots, strict=True)))

    @override
    def close(self) -> None:
        """Every examination has ended its own threads."""
