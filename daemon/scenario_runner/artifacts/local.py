"""Engine run roots on a file system.

Every path is walked component by component from the allowed root with ``openat`` and ``O_NOFOLLOW``, so no
symbolic link anywhere below it is followed, whoever swaps it in and when.
"""

import errno
import hashlib
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, NoReturn

from scenario_runner.artifacts.base import MAX_DEPTH, MAX_FILES, FileDigest, Kind, SequenceDigest
from scenario_runner.artifacts.reuse import RACY_NS, DigestReuse, Identity
from scenario_runner.contracts.errors import (
    EvidenceChanged,
    EvidenceMissing,
    EvidenceRefused,
    Refusal,
    Unavailable,
)
from scenario_runner.contracts.paths import check_relative_posix
from scenario_runner.contracts.reasons import Reason

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BUFFER: Final = 1 << 20
_PARALLEL_FROM: Final = 4 << 20
_Listing = tuple[tuple[str, bool], ...]


def identity_of(info: os.stat_result) -> Identity:
    """What makes a file the same, unchanged one."""
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def _refuse_type(path: str, mode: int, wanted: str) -> NoReturn:
    what = "a symbolic link" if stat.S_ISLNK(mode) else "a directory" if stat.S_ISDIR(mode) else "not a regular file"
    raise EvidenceRefused(f"{path} is {what}; {wanted} is needed", path=path)


@contextmanager
def _os_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise EvidenceMissing(f"{path} is not there", path=path) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise EvidenceRefused(f"{path}: {error.strerror}", path=path) from error
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error


class LocalRunRoot:
    """See :class:`~scenario_runner.artifacts.base.RunRoot`.

    Args:
        base: Absolute path of the allowed root.
        below: Path of the run root below it, or empty.
        pool: Threads that hash.
        reuse: Digests of unchanged files; None reads everything.
        heartbeat: Called with bytes read; may raise.
    """

    def __init__(
        self,
        base: str,
        below: str,
        pool: ThreadPoolExecutor,
        reuse: DigestReuse | None,
        heartbeat: Callable[[int], None],
    ) -> None:
        self.location = os.path.join(base, below) if below else base
        self._base, self._below = base, below
        self._pool, self._reuse, self._heartbeat = pool, reuse, heartbeat
        self._directories: dict[str, int] = {}
        self._seen: dict[str, Identity] = {}
        self._listed: dict[str, _Listing] = {}
        self._lock = threading.RLock()
        try:
            self._open_root()
        except BaseException:
            self.close()
            raise

    # --- walking

    def _open_root(self) -> None:
        with _os_errors(self.location):
            fd = os.open(self._base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
                _refuse_type(path, os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode, "a directory")
            raise

    def _directory(self, path: str) -> int:
        fd = self._directories.get(path)
        if fd is None:
            with self._lock:
                fd = self._directories.get(path)
                if fd is None:
                    head, _, name = path.rpartition("/")
                    parent = self._directory(head)
                    with _os_errors(path):
                        fd = self._step(parent, name, path)
                    self._directories[path] = fd
        return fd

    def _stat(self, path: str) -> os.stat_result:
        head, _, name = path.rpartition("/")
        parent = self._directory(head)
        with _os_errors(path):
            return os.stat(name, dir_fd=parent, follow_symlinks=False)

    def _identity(self, path: str) -> Identity:
        info = self._stat(path)
        if not stat.S_ISREG(info.st_mode):
            _refuse_type(path, info.st_mode, "a regular file")
        return identity_of(info)

    def _observe(self, path: str, identity: Identity) -> None:
        if self._seen.setdefault(path, identity) != identity:
            raise EvidenceChanged(f"{path} changed between two looks at it", path=path)

    def kind(self, path: str) -> Kind:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        try:
            mode = self._stat(path).st_mode
        except EvidenceMissing:
            return Kind.ABSENT
        if stat.S_ISREG(mode):
            return Kind.FILE
        if stat.S_ISDIR(mode):
            return Kind.DIRECTORY
        _refuse_type(path, mode, "a regular file or directory")

    # --- listing

    def _list(self, path: str) -> _Listing:
        with _os_errors(path):
            entries: list[tuple[str, bool]] = []
            with os.scandir(self._directory(path)) as scan:
                for entry in scan:
                    if len(entries) >= MAX_FILES:
                        raise EvidenceRefused(
                            f"{path} holds more than {MAX_FILES} entries",
                            Reason.EVIDENCE_TOO_LARGE,
                            path=path,
                        )
                    entries.append((entry.name, self._is_directory(path, entry)))
        listing = tuple(sorted(entries))
        if self._listed.setdefault(path, listing) != listing:
            raise EvidenceChanged(f"{path} gained or lost entries while it was being read", path=path)
        return listing

    @staticmethod
    def _is_directory(path: str, entry: os.DirEntry[str]) -> bool:
        full = f"{path}/{entry.name}"
        try:
            entry.name.encode("utf-8")
            check_relative_posix(entry.name)
        except ValueError as error:
            raise EvidenceRefused(
                f"the file name {entry.name!r} in {path} cannot be listed: {error}", path=path
            ) from error
        if entry.is_dir(follow_symlinks=False):
            return True
        if entry.is_file(follow_symlinks=False):
            return False
        return _refuse_type(full, entry.stat(follow_symlinks=False).st_mode, "a regular file or directory")

    def files_under(self, path: str) -> list[str]:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        found: list[str] = []
        pending = [path]
        deepest = path.count("/") + MAX_DEPTH
        while pending:
            directory = pending.pop()
            if directory.count("/") > deepest:
                raise EvidenceRefused(f"{path} is nested deeper than {MAX_DEPTH}", Reason.EVIDENCE_TOO_LARGE, path=path)
            for name, is_directory in self._list(directory):
                (pending if is_directory else found).append(f"{directory}/{name}")
            if len(found) > MAX_FILES:
                raise EvidenceRefused(f"{path} holds more than {MAX_FILES} files", Reason.EVIDENCE_TOO_LARGE, path=path)
        return sorted(found)

    def files_matching(self, path: str) -> list[str]:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        head, _, pattern = path.rpartition("/")
        matches = re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL).fullmatch
        found: list[str] = []
        for name, is_directory in self._list(head):
            if matches(name) is None:
                continue
            full = f"{head}/{name}" if head else name
            if is_directory:
                _refuse_type(full, stat.S_IFDIR, "a regular file")
            found.append(full)
        return found

    # --- reading

    @contextmanager
    def _opened(self, path: str) -> Iterator[tuple[int, Identity]]:
        """A descriptor of one regular file; refuses if the file changed meanwhile."""
        head, _, name = path.rpartition("/")
        parent = self._directory(head)
        with _os_errors(path):
            fd = os.open(name, _FILE, dir_fd=parent)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                _refuse_type(path, info.st_mode, "a regular file")
            before = identity_of(info)
            yield fd, before
            if identity_of(os.fstat(fd)) != before:
                raise EvidenceChanged(f"{path} changed while it was being read", path=path)
        finally:
            os.close(fd)

    def read(self, path: str, limit: int) -> bytes:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        with self._opened(path) as (fd, identity):
            if identity[2] > limit:
                raise EvidenceRefused(
                    f"{path} holds {identity[2]} bytes, at most {limit} are read",
                    Reason.EVIDENCE_TOO_LARGE,
                    path=path,
                )
            self._observe(path, identity)
            with _os_errors(path):
                chunks, left = [], identity[2]
                while left > 0 and (chunk := os.read(fd, left)):
                    chunks.append(chunk)
                    left -= len(chunk)
            if left:
                raise EvidenceChanged(f"{path} shrank while it was being read", path=path)
        return b"".join(chunks)

    def digest(self, sequences: Sequence[Sequence[str]]) -> list[SequenceDigest | Refusal]:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        results: list[SequenceDigest | Refusal] = []
        large: list[tuple[int, int, Sequence[str], tuple[Identity, ...]]] = []
        for place, paths in enumerate(sequences):
            try:
                identities = tuple([self._identity(path) for path in paths])
                for path, identity in zip(paths, identities, strict=True):
                    self._observe(path, identity)
                size = sum(identity[2] for identity in identities)
                known = self._reuse.find(identities, size) if self._reuse else None
                if known is not None:
                    results.append(_sequence(paths, identities, known))
                elif size >= _PARALLEL_FROM:
                    large.append((size, place, paths, identities))
                    results.append(EvidenceChanged("not read yet", path=""))
                else:
                    results.append(self._hash(paths, identities, size))
            except Refusal as refusal:
                results.append(refusal)
        for place, result in self._hash_large(large):
            results[place] = result
        return results

    def _hash_large(
        self, work: list[tuple[int, int, Sequence[str], tuple[Identity, ...]]]
    ) -> Iterator[tuple[int, SequenceDigest | Refusal]]:
        work.sort(reverse=True)  # the largest first keeps the threads busy to the end
        futures = [(place, self._pool.submit(self._hash, paths, known, size)) for size, place, paths, known in work]
        try:
            for place, future in futures:
                try:
                    yield place, future.result()
                except Refusal as refusal:
                    yield place, refusal
        finally:
            for _, future in futures:
                future.cancel()

    def _hash(self, paths: Sequence[str], identities: tuple[Identity, ...], size: int) -> SequenceDigest:
        started = time.time_ns()
        whole = hashlib.sha256()
        members: list[str] = []
        alone = len(paths) == 1
        for path, identity in zip(paths, identities, strict=True):
            with self._opened(path) as (fd, now):
                if now != identity:
                    raise EvidenceChanged(f"{path} changed before it was read", path=path)
                with _os_errors(path):
                    members.append(self._hash_file(fd, path, now[2], whole, alone=alone))
        digests = (whole.hexdigest(), *members)
        if self._reuse and all(max(identity[3], identity[4]) < started - RACY_NS for identity in identities):
            self._reuse.keep(identities, size, digests)
        return _sequence(paths, identities, digests)

    def _hash_file(self, fd: int, path: str, size: int, whole: "hashlib._Hash", *, alone: bool) -> str:
        own = whole if alone else hashlib.sha256()
        buffer = memoryview(bytearray(min(_BUFFER, max(size, 1))))
        left = size
        while left > 0:
            count = os.readv(fd, [buffer[:left]])
            if count == 0:
                raise EvidenceChanged(f"{path} shrank while it was being read", path=path)
            chunk = buffer[:count]
            own.update(chunk)
            if not alone:
                whole.update(chunk)
            left -= count
            self._heartbeat(count)
        return own.hexdigest()

    # --- looking again

    def confirm(self) -> None:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        seen, listed = self._seen, self._listed
        self.close()
        self._seen, self._listed = {}, {}
        try:
            self._open_root()
            for path, listing in listed.items():
                if self._list(path) != listing:
                    raise EvidenceChanged(f"{path} gained or lost entries after it was read", path=path)
            for path, identity in seen.items():
                if self._identity(path) != identity:
                    raise EvidenceChanged(f"{path} changed after it was read", path=path)
        except EvidenceMissing as error:
            raise EvidenceChanged(f"{error.path} disappeared after it was read", path=error.path) from error
        self._seen, self._listed = seen, listed

    def close(self) -> None:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        directories, self._directories = self._directories, {}
        for fd in directories.values():
            os.close(fd)


def _sequence(paths: Sequence[str], identities: tuple[Identity, ...], digests: tuple[str, ...]) -> SequenceDigest:
    files = tuple(
        [FileDigest(path, known[2], digest) for path, known, digest in zip(paths, identities, digests[1:], strict=True)]
    )
    return SequenceDigest(digests[0], files)


class LocalArtifacts:
    """Opens run roots that lie under the allowed roots.

    Args:
        roots: Absolute paths of the allowed roots.
        threads: How many files are hashed at the same time.
        reuse: Digests of unchanged files; None reads everything (``digest_reuse: off``).
    """

    def __init__(self, roots: Sequence[str], threads: int, reuse: DigestReuse | None) -> None:
        self._roots = [os.path.realpath(root) for root in roots]
        self._given = [os.path.abspath(root) for root in roots]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="hash")
        self._reuse = reuse

    def open(self, engine_run_root: str, heartbeat: Callable[[int], None]) -> LocalRunRoot:
        """See :class:`~scenario_runner.artifacts.base.Artifacts`."""
        for given, real in sorted(zip(self._given, self._roots, strict=True), key=lambda pair: -len(pair[0])):
            prefix = given.rstrip("/") + "/"
            if engine_run_root == given or engine_run_root.startswith(prefix):
                root = LocalRunRoot(real, engine_run_root[len(prefix) :], self._pool, self._reuse, heartbeat)
                root.location = engine_run_root
                return root
        raise EvidenceRefused(
            f"{engine_run_root} is not under an allowed engine root",
            Reason.ENGINE_ROOT_NOT_ALLOWED,
            path=engine_run_root,
        )

    def close(self) -> None:
        """Stop the hashing threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
