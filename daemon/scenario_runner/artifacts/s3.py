"""Engine run roots on S3: read by streaming, in bounded memory, members and parts of a member at the same time.

What is read is pinned: every request names the ETag that the listing gave, so bytes of two versions never meet in one
digest, and after the look everything is listed once more.
"""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from scenario_runner.artifacts.base import (
    FileDigest,
    Kind,
    SequenceDigest,
    Snapshot,
    root_not_allowed,
)
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.artifacts.listing import Listing, files_matching, files_under
from scenario_runner.artifacts.parallel import digest_in_parallel
from scenario_runner.artifacts.reuse import RACY_NS, DigestReuse, Identity, Unfinished
from scenario_runner.artifacts.s3_tree import Files, S3Tree
from scenario_runner.contracts.errors import (
    EvidenceArchived,
    EvidenceChanged,
    EvidenceMissing,
    EvidenceRefused,
    Refusal,
    ScenarioRunnerError,
)
from scenario_runner.contracts.reasons import Reason
from scenario_runner.storage.s3_client import (
    ArchivedError,
    ChangedError,
    Fetched,
    Listed,
    S3Bucket,
    S3Settings,
    split_s3_uri,
)

_BLOCK: Final = 4 << 20
_AHEAD_BYTES: Final = 2 * _BLOCK
_AHEAD_BLOCKS: Final = 16
_REQUESTS: Final = 32
_SMALL: Final = 1 << 20
_FILES_KEPT: Final = 100_000


@dataclass(frozen=True, slots=True)
class _Readers:
    """Threads: some hash, and for each of them some wait for the network.

    Attributes:
        threads: How many sequences of a long examination are hashed at the same time, by threads of its own.
        small: Hash for examinations of a batch; they never queue behind long ones.
        requests: Wait for the network.
    """

    threads: int
    small: ThreadPoolExecutor
    requests: ThreadPoolExecutor


@dataclass(frozen=True, slots=True)
class _Unread:
    place: int
    paths: Sequence[str]
    entries: tuple[Listed, ...]
    identities: tuple[Identity, ...]
    size: int


class S3RunRoot:
    """See :class:`~scenario_runner.artifacts.base.RunRoot`.

    Args:
        bucket: The bucket.
        location: Of the run root, ``s3://bucket/prefix``.
        prefix: Key prefix of the run root.
        readers: Threads that read.
        reuse: Digests of unchanged objects; None reads everything.
        budget: What the examination may cost.
        files: See :class:`~scenario_runner.artifacts.s3_tree.S3Tree`.
    """

    def __init__(
        self,
        bucket: S3Bucket,
        location: str,
        prefix: str,
        readers: _Readers,
        reuse: DigestReuse | None,
        budget: ReadBudget,
        files: Files,
    ) -> None:
        self.location, self.budget = location, budget
        self._bucket, self._prefix, self._readers = bucket, prefix, readers
        self._reuse, self._files = reuse, files
        self._opened_us = time.time_ns() // 1000
        self._seen: dict[str, Identity] = {}
        self._listed: dict[str, Listing] = {}
        self._kinds: dict[str, Kind] = {}
        self._newest_us = 0
        self._small: dict[Listed, Fetched] = {}
        self._tree = S3Tree(bucket, prefix, files, budget)
        if not self._tree.exists():
            raise EvidenceMissing(f"{location} is not there", path=location)

    # --- looking

    def kind(self, path: str) -> Kind:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        self._kinds[path] = kind = self._tree.kind(path)
        return kind

    def _list(self, path: str) -> Listing:
        self._listed[path] = listing = self._tree.listing(path)
        return listing

    def files_under(self, path: str, *, parts: bool = False) -> list[str]:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        if not self._list(path) and self.kind(path) is not Kind.DIRECTORY:
            raise EvidenceMissing(f"{path} is not there", path=path)
        return files_under(self._list, path, self.budget.bounds.max_output_files, parts=parts)

    def files_matching(self, path: str) -> list[str]:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        return files_matching(self._list, path, self.budget.bounds.max_output_files)

    # --- reading

    def _entry(self, path: str) -> tuple[Listed, Identity]:
        self.budget.operations()
        entry = self._tree.entry(path)
        identity = _identity(self._bucket, entry)
        if self._seen.setdefault(path, identity) != identity:
            raise EvidenceChanged(f"{path} changed between two looks at it", path=path)
        self._newest_us = max(self._newest_us, entry.modified_us)
        return entry, identity

    def _fetch(self, entry: Listed, path: str, start: int, end: int) -> Fetched:
        if entry in self._small and end - start == entry.size:
            return self._small[entry]
        try:
            found = self._bucket.get_range(entry.key, start, end, entry.etag)
        except ChangedError:
            found = None
        except ArchivedError as error:
            raise EvidenceArchived(f"{path} is archived in {error}; restore it", path=path) from error
        if found is None or found.size != entry.size:
            raise EvidenceChanged(f"{path} changed while it was being read", path=path)
        return found

    def read(self, path: str, limit: int) -> bytes:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        entry, _ = self._entry(path)
        if entry.size > limit:
            raise EvidenceRefused(
                f"{path} holds {entry.size} bytes, at most {limit} are read", Reason.EVIDENCE_TOO_LARGE, path=path
            )
        self.budget.document(entry.size)
        return bytes(self._fetch(entry, path, 0, entry.size).data)

    def prefetch(self, paths: Iterable[str], limit: int) -> None:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        wanted: dict[str, Listed] = {}
        for path in paths:
            self.budget.operations()
            try:
                entry = self._tree.entry(path)
            except Refusal:
                continue  # whoever reads it is told
            if entry.size <= min(limit, _SMALL):
                wanted[path] = entry
        fetched = [
            (entry, self._readers.requests.submit(self._fetch, entry, path, 0, entry.size))
            for path, entry in wanted.items()
        ]
        for entry, future in fetched:
            try:
                self._small[entry] = future.result()
            except (Refusal, EvidenceChanged):
                continue  # the read reports it

    def size(self, paths: Iterable[str]) -> int:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        total = 0
        for path in paths:
            with suppress(EvidenceMissing, EvidenceRefused):
                total += self._entry(path)[0].size
        return total

    def derive(self, path: str, limit: int, name: str, function: Callable[[bytes], str]) -> str:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        entry, identity = self._entry(path)
        key = ((name, *identity),)
        known = self._reuse.find(key, entry.size) if self._reuse else None
        if known is not None:
            return known[0]
        answer = function(self.read(path, limit))
        if self._reuse and _settled([entry], self._opened_us):
            self._reuse.keep(key, entry.size, (answer,))
        return answer

    def digest(self, sequences: Sequence[Sequence[str]]) -> list[SequenceDigest | Refusal]:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        results: list[SequenceDigest | Refusal | None] = []
        unread: list[_Unread] = []
        for place, paths in enumerate(sequences):
            try:
                found = [self._entry(path) for path in paths]
            except Refusal as refusal:
                results.append(refusal)
                continue
            entries, identities = tuple(item[0] for item in found), tuple(item[1] for item in found)
            size = sum(entry.size for entry in entries)
            known = self._reuse.find(identities, size) if self._reuse else None
            results.append(_sequence(paths, entries, known) if known is not None else None)
            if known is None:
                unread.append(_Unread(place, paths, entries, identities, size))
        self.budget.hashing(sum(item.size for item in unread))
        for place, result in self._hash_all(unread):
            results[place] = result
        return [result for result in results if result is not None]

    def _hash_all(self, work: list[_Unread]) -> list[tuple[int, SequenceDigest | Refusal]]:
        if not work:
            return []
        work.sort(key=lambda item: -item.size)  # the largest first keeps the threads busy to the end
        jobs = [(item.place, partial(self._hash, item)) for item in work]
        if not self.budget.share.patient:
            return digest_in_parallel(self._readers.small, self.budget, jobs)
        with ThreadPoolExecutor(self._readers.threads, thread_name_prefix="hash") as pool:
            return digest_in_parallel(pool, self.budget, jobs)

    def _hash(self, item: _Unread) -> SequenceDigest:
        alone = len(item.paths) == 1
        whole = hashlib.sha256() if not alone else None
        kept = self._reuse.resume(item.identities[0]) if self._reuse and alone else None
        blocks = self._ahead(item, kept.offset if kept else 0)
        try:
            read = [self._hash_object(blocks, path, entry, whole, kept)
                    for path, entry in zip(item.paths, item.entries, strict=True)]  # fmt: skip
        finally:
            blocks.close()
        members = [state.hexdigest() for state, _ in read]
        digests = (whole.hexdigest() if whole else members[0], *members, *(version for _, version in read))
        if self._reuse and _settled(item.entries, self._opened_us):
            self._reuse.keep(item.identities, item.size, digests)
        return _sequence(item.paths, item.entries, digests)

    def _hash_object(
        self, blocks: "_Blocks", path: str, entry: Listed, whole: "hashlib._Hash | None", kept: Unfinished | None
    ) -> tuple["hashlib._Hash", str]:
        """Digest and version of one object; one that is alone goes on where an earlier examination was broken off."""
        own, offset = (kept.state, kept.offset) if kept else (hashlib.sha256(), 0)
        version = kept.version if kept else None
        try:
            for start, end in _blocks_of(entry, offset):
                block = next(blocks)
                if version not in (None, block.version):
                    raise EvidenceChanged(f"{path} changed while it was being read", path=path)
                version = block.version
                own.update(block.data)
                if whole is not None:
                    whole.update(block.data)
                offset += end - start
                self.budget.beat(end - start)
        except ScenarioRunnerError:
            if self._reuse and whole is None and offset and _settled([entry], self._opened_us):
                self._reuse.put_off(_identity(self._bucket, entry), Unfinished(own, offset, version or ""))
            raise
        return own, version or ""

    def _ahead(self, item: _Unread, offset: int) -> "_Blocks":
        return _Blocks(
            self._readers.requests,
            [
                (end - start, (entry, path, start, end))
                for path, entry in zip(item.paths, item.entries, strict=True)
                for start, end in _blocks_of(entry, offset)
            ],
            self._fetch,
        )

    # --- looking again

    def snapshot(self) -> Snapshot:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        settled = self._newest_us < self._opened_us - RACY_NS // 1000
        return Snapshot(self._seen, self._listed, self._kinds, settled)

    def confirm(self, snapshot: Snapshot) -> None:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""
        looked = self._seen or self._listed or self._kinds
        tree = S3Tree(self._bucket, self._prefix, self._files, self.budget) if looked else self._tree
        try:
            for path, listing in snapshot.listings.items():
                if tree.listing(path) != listing:
                    raise EvidenceChanged(f"{path} gained or lost entries after it was read", path=path)
            for path, identity in snapshot.files.items():
                self.budget.operations()
                if _identity(self._bucket, tree.entry(path)) != identity:
                    raise EvidenceChanged(f"{path} changed after it was read", path=path)
            for path, kind in snapshot.kinds.items():
                if tree.kind(path) is not kind:
                    raise EvidenceChanged(f"{path} was {kind} and is not any more", path=path)
        except (EvidenceMissing, EvidenceRefused) as error:
            raise EvidenceChanged(f"it changed after it was read: {error.detail}", path=error.path) from error

    def close(self) -> None:
        """See :class:`~scenario_runner.artifacts.base.RunRoot`."""


class _Blocks:
    """Blocks in order, with some requested ahead: bounded by their number and their bytes."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        blocks: list[tuple[int, tuple[Listed, str, int, int]]],
        fetch: Callable[[Listed, str, int, int], Fetched],
    ) -> None:
        self._pool, self._fetch = pool, fetch
        self._waiting = deque(blocks)
        self._under_way: deque[tuple[int, Future[Fetched]]] = deque()
        self._bytes = 0

    def _request(self) -> None:
        while self._waiting and (
            not self._under_way
            or (len(self._under_way) < _AHEAD_BLOCKS and self._bytes + self._waiting[0][0] <= _AHEAD_BYTES)
        ):
            size, block = self._waiting.popleft()
            self._bytes += size
            self._under_way.append((size, self._pool.submit(self._fetch, *block)))

    def __next__(self) -> Fetched:
        self._request()
        size, future = self._under_way.popleft()
        block = future.result()
        self._bytes -= size
        self._request()
        return block

    def close(self) -> None:
        """Give up what was requested and is not needed any more."""
        for _, future in self._under_way:
            future.cancel()


def _blocks_of(entry: Listed, offset: int = 0) -> Iterator[tuple[int, int]]:
    """Start and end of every block; one that is empty for an empty object, whose ETag is checked too."""
    for start in range(offset, entry.size, _BLOCK) if entry.size else (0,):
        yield start, min(start + _BLOCK, entry.size)


def _identity(bucket: S3Bucket, entry: Listed) -> Identity:
    return (bucket.name, entry.key, entry.etag, entry.size, entry.modified_us)


def _settled(entries: Iterable[Listed], read_us: int) -> bool:
    """The racily-clean rule: every object was last written well before the moment it was read."""
    return all(entry.modified_us < read_us - RACY_NS // 1000 for entry in entries)


def _sequence(paths: Sequence[str], entries: Sequence[Listed], digests: tuple[str, ...]) -> SequenceDigest:
    members, versions = digests[1 : len(paths) + 1], digests[len(paths) + 1 :]
    files = [
        FileDigest(path, entry.size, digest, version)
        for path, entry, digest, version in zip(paths, entries, members, versions, strict=True)
    ]
    return SequenceDigest(digests[0], tuple(files))


class S3Artifacts:
    """Opens run roots that lie under the allowed ``s3://`` roots.

    Args:
        roots: ``s3://bucket/prefix`` of the allowed roots.
        settings: How to reach S3.
        threads: How many sequences of one run are hashed at the same time.
        reuse: Digests of unchanged objects; None reads everything (``digest_reuse: off``).
    """

    remote = True

    def __init__(self, roots: Sequence[str], settings: S3Settings, threads: int, reuse: DigestReuse | None) -> None:
        self._roots = [root.rstrip("/") for root in roots]
        self._settings, self._reuse = settings, reuse
        self._readers = _Readers(
            threads,
            ThreadPoolExecutor(threads, thread_name_prefix="hash-small"),
            ThreadPoolExecutor(_REQUESTS, thread_name_prefix="s3"),
        )
        self._buckets: dict[str, S3Bucket] = {}
        self._files: Files = {}
        self._lock = threading.Lock()

    def open(self, engine_run_root: str, budget: ReadBudget) -> S3RunRoot:
        """See :class:`~scenario_runner.artifacts.base.Artifacts`."""
        if not any(engine_run_root == root or engine_run_root.startswith(root + "/") for root in self._roots):
            raise root_not_allowed(engine_run_root, self._roots)
        name, prefix = split_s3_uri(engine_run_root)
        with self._lock:
            if name not in self._buckets:
                self._buckets[name] = S3Bucket(name, self._settings)
            if len(self._files) > _FILES_KEPT:
                self._files = {}
        bucket = self._buckets[name]
        return S3RunRoot(bucket, engine_run_root, prefix, self._readers, self._reuse, budget, self._files)

    def close(self) -> None:
        """See :class:`~scenario_runner.artifacts.base.Artifacts`."""
        self._readers.small.shutdown(wait=True, cancel_futures=True)
        self._readers.requests.shutdown(wait=True, cancel_futures=True)
