"""Engine run roots on S3: read by streaming, in bounded memory, members and parts of a member at the same time.

What is read is pinned: every request names the ETag that the listing gave, so bytes of two versions never meet in one
digest, and after the examination everything is listed once more.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from typing_extensions import override

from scenario_runner.artifacts.base import (
    Artifacts,
    Kind,
    RootsSeen,
    SequenceDigest,
    root_not_allowed,
)
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.artifacts.examined import ExaminedRoot, Unread, check_size
from scenario_runner.artifacts.listing import Listing
from scenario_runner.artifacts.parallel import Found, in_parallel, map_ahead, or_refusal
from scenario_runner.artifacts.reuse import DigestReuse, Unfinished
from scenario_runner.artifacts.s3_look import look_at_prefix, look_at_prefixes
from scenario_runner.artifacts.s3_tree import Files, S3Tree
from scenario_runner.contracts.depth import DigestSource
from scenario_runner.contracts.errors import (
    ConfigurationError,
    EvidenceArchived,
    EvidenceChanged,
    EvidenceMissing,
    Refusal,
    ScenarioRunnerError,
)
from scenario_runner.storage.s3_checksums import S3Checksums, StoredChecksum
from scenario_runner.storage.s3_client import (
    ArchivedError,
    ChangedError,
    Fetched,
    Listed,
    S3Bucket,
    S3Settings,
    split_s3_uri,
)
from scenario_runner.storage.s3_small import SMALL_BYTES, Asked, SmallRead, SmallReads

Identity = tuple[str, str, str, int, int]
"""Bucket, key, ETag, size in bytes, time of the last write in microseconds."""
#: Bytes of one request for a part of an object: they take longer than the 10 to 30 ms that every request costs.
_BLOCK: Final = 4 << 20
#: Bytes of one sequence that are requested ahead of the digest: one block arrives while another is digested.
_AHEAD_BYTES: Final = 2 * _BLOCK
#: Small objects that are requested ahead, of however many sequences: those of a small run in one round trip.
_AHEAD_BLOCKS: Final = 64
#: Requests of the process for large objects at one time: those of a few sequences that read ahead.
_REQUESTS: Final = 32
#: Checksums of one examination that are asked for at a time: all threads are busy, and others wait for a moment only.
_CHECKSUMS_AHEAD: Final = 2 * _REQUESTS
#: Documents up to this size are fetched before they are read.
_SMALL: Final = 1 << 20
#: Bytes that one examination keeps of what was fetched before it is read; the others are fetched when they are read.
_SMALL_KEPT: Final = 4 << 20
#: Empty objects that are known to be files; about 300 bytes each.
_FILES_KEPT: Final = 100_000


@dataclass(frozen=True, slots=True)
class _Readers:
    """Threads: some hash, and some wait for the network.

    Attributes:
        threads: How many large sequences of a long examination are hashed at the same time, by threads of its own.
        requests: Wait for blocks of large objects.
        small: Reads small objects, for all examinations of the process.
    """

    threads: int
    requests: ThreadPoolExecutor
    small: SmallReads


Block = Fetched | SmallRead


class _Requested:
    """A request for an object or a part of one.

    Args:
        pending: Its result; None when the object has to be asked for in another way.
        otherwise: That way.
    """

    def __init__(self, pending: "Future[Fetched] | Asked", otherwise: Callable[[], Fetched]) -> None:
        self._pending, self._otherwise = pending, otherwise

    def result(self) -> Block:
        """Wait for the bytes."""
        return self._pending.result() or self._otherwise()

    def cancel(self) -> None:
        """Give it up, if it was not sent."""
        self._pending.cancel()


class S3RunRoot(ExaminedRoot[Identity]):
    """An engine run root below a prefix of a bucket.

    Args:
        bucket: The bucket.
        location: Of the run root, ``s3://bucket/prefix``.
        prefix: Key prefix of the run root.
        readers: Threads that read.
        reuse: Digests of unchanged objects; None reads everything.
        budget: What the examination may cost.
        files: See :class:`~scenario_runner.artifacts.s3_tree.S3Tree`.
        checksums: Asks S3 for the checksums that it keeps; None where its server has not proved that it can be trusted
            with them: then everything is read.
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
        checksums: S3Checksums | None = None,
    ) -> None:
        super().__init__(location, budget, reuse)
        self._bucket, self._prefix, self._readers = bucket, prefix, readers
        self._files, self._checksums = files, checksums
        self._entries: dict[str, Listed] = {}
        self._small: dict[Listed, Block] = {}
        self._tree = S3Tree(bucket, prefix, files, budget)
        if not self._tree.exists():
            raise EvidenceMissing(f"{location} is not there", path=location)

    @override
    @staticmethod
    def _size_of(identity: Identity) -> int:
        return identity[3]

    @override
    @staticmethod
    def _changed_ns(identity: Identity) -> int:
        return identity[4] * 1000

    @override
    def _read_ns(self) -> int:
        return self._opened_ns  # every read is of what the first listing showed

    # --- the tree

    @override
    def _kind_now(self, path: str) -> Kind:
        return self._tree.kind(path)

    @override
    def _list_now(self, path: str) -> Listing:
        return self._tree.listing(path)

    @override
    def _is_listing_now(self, path: str, listing: Listing) -> bool:
        return self._tree.listing(path) == listing

    @override
    def _identity_now(self, path: str) -> Identity:
        self.budget.operations()
        return _identity(self._bucket, self._tree.entry(path))

    @override
    def _reopen(self) -> None:
        if self._seen or self._listed or self._kinds:  # otherwise nothing is older than the opening
            self._tree = S3Tree(self._bucket, self._prefix, self._files, self.budget)

    @override
    def files_under(self, path: str, *, parts: bool = False) -> list[str]:
        if not self._list(path) and self.kind(path) is not Kind.DIRECTORY:
            raise EvidenceMissing(f"{path} is not there", path=path)  # a listing of nothing is empty, not an error
        return super().files_under(path, parts=parts)

    # --- reading

    def _entry(self, path: str) -> Listed:
        self.budget.operations()
        entry = self._tree.entry(path)
        identity = _identity(self._bucket, entry)
        if self._seen.setdefault(path, identity) != identity:
            raise EvidenceChanged(f"{path} changed during the examination", path=path)
        self._entries[path] = entry
        return entry

    @override
    def _identify(self, path: str) -> Identity:
        self._entry(path)
        return self._seen[path]

    def _request(self, entry: Listed, path: str, start: int, end: int) -> _Requested:
        """Request an object or a part of one."""
        fetch = partial(self._fetch, entry, path, start, end)
        if entry.size > SMALL_BYTES or end - start != entry.size:
            return _Requested(self._readers.requests.submit(fetch), fetch)
        return _Requested(self._readers.small.submit(self._bucket.small(entry)), fetch)

    def _fetch(self, entry: Listed, path: str, start: int, end: int) -> Fetched:
        try:
            found = self._bucket.get_range(entry.key, start, end, entry.etag)
        except ChangedError:
            found = None
        except ArchivedError as error:
            raise EvidenceArchived(f"{path} is archived in {error}; restore it", path=path) from error
        if found is None or found.size != entry.size:
            raise EvidenceChanged(f"{path} changed while it was being read", path=path)
        return found

    @override
    def read(self, path: str, limit: int) -> bytes:
        entry = self._entry(path)
        check_size(path, entry.size, limit)
        self.budget.document(entry.size)
        known = self._small.get(entry)
        return bytes((known or self._request(entry, path, 0, entry.size).result()).data)

    @override
    def prefetch(self, paths: Iterable[str], limit: int) -> None:
        wanted: dict[str, Listed] = {}
        kept = sum(entry.size for entry in self._small)
        for path in paths:
            self.budget.operations()
            try:
                entry = self._tree.entry(path)
            except Refusal:
                continue  # the read of this path will raise the same refusal
            if entry.size <= min(limit, _SMALL, _SMALL_KEPT - kept) and entry not in self._small:
                wanted[path] = entry
                kept += entry.size
        requested = [(entry, self._request(entry, path, 0, entry.size)) for path, entry in wanted.items()]
        for entry, request in requested:
            try:
                self._small[entry] = request.result()
            except (Refusal, EvidenceChanged):
                continue  # the read reports it

    @override
    def _stored_digests(self, work: Sequence[Unread[Identity]]) -> Iterator[tuple[int, SequenceDigest]]:
        if self._checksums is None:
            return
        asked: list[Unread[Identity]] = []
        for item in work:
            known = self._reuse.find(_checksum_key(item), 0) if self._reuse else None
            if known is None:
                asked.append(item)
            else:
                yield item.index, self._sequence(item.paths, item.identities, known, DigestSource.S3_CHECKSUM)
        ask = partial(self._stored_checksum, self._checksums)
        found = map_ahead(self._readers.requests, ask, self._charged(asked), _CHECKSUMS_AHEAD)
        for item, stored in zip(asked, found, strict=True):
            if stored is None:
                continue
            digests = (stored.sha256, stored.sha256, stored.version)
            if self._reuse and self._is_stable(item.identities, self._opened_ns):
                self._reuse.keep(_checksum_key(item), 0, digests)
            yield item.index, self._sequence(item.paths, item.identities, digests, DigestSource.S3_CHECKSUM)

    def _charged(self, work: Iterable[Unread[Identity]]) -> Iterator[Unread[Identity]]:
        for item in work:
            self.budget.operations()
            self.budget.beat()  # a request takes so long that every one may end the examination
            yield item

    def _stored_checksum(self, checksums: S3Checksums, item: Unread[Identity]) -> StoredChecksum | None:
        (path,) = item.paths
        try:
            return checksums.stored(self._bucket.name, self._entries[path])
        except ChangedError as error:
            raise EvidenceChanged(f"{path} changed during the examination", path=path) from error

    @override
    def _hash_all(self, work: list[Unread[Identity]]) -> list[tuple[int, Found]]:
        work.sort(key=lambda item: -item.size)  # the largest first, so that the threads end at about the same time
        large = [item for item in work if item.size > _BLOCK]
        small = work[len(large) :]
        jobs = [partial(self._hash_one, item) for item in large] + ([partial(self._hash_small, small)] if small else [])
        if not self.budget.share.patient:  # a batch hashes little: handing it over would cost more
            return [result for job in jobs for result in job()]
        with ThreadPoolExecutor(self._readers.threads, thread_name_prefix="hash") as pool:
            return [result for results in in_parallel(pool, self.budget, jobs) for result in results]

    def _hash_one(self, item: Unread[Identity]) -> list[tuple[int, Found]]:
        return [(item.index, or_refusal(partial(self._hash, item)))]

    def _hash_small(self, items: Sequence[Unread[Identity]]) -> list[tuple[int, Found]]:
        """Digest sequences whose objects are requested whole, ahead and across the sequences."""
        members = [(self._entries[path], path) for item in items for path in item.paths]
        unread = [(entry.size, (entry, path, 0, entry.size)) for entry, path in members if entry not in self._small]
        blocks = _Blocks(unread, self._request)
        try:
            return [(item.index, self._hash_next(item, blocks)) for item in items]
        finally:
            blocks.close()

    def _hash_next(self, item: Unread[Identity], blocks: "_Blocks") -> Found:
        """The digest of the sequence whose blocks are next; all of them are taken, also after a refusal."""
        whole, members, versions, refused = hashlib.sha256(), [], [], None
        for path in item.paths:
            try:
                block = self._small.get(self._entries[path]) or next(blocks)
            except Refusal as refusal:
                refused = refused or refusal
                continue
            whole.update(block.data)
            members.append(hashlib.sha256(block.data).hexdigest() if len(item.paths) > 1 else whole.hexdigest())
            versions.append(block.version)
            self.budget.beat(len(block.data))
        return refused or self._digested(item, (whole.hexdigest(), *members, *versions), self._opened_ns)

    def _hash(self, item: Unread[Identity]) -> SequenceDigest:
        entries = [self._entries[path] for path in item.paths]
        alone = len(item.paths) == 1
        whole = hashlib.sha256() if not alone else None
        kept = self._reuse.resume(item.identities[0]) if self._reuse and alone else None
        blocks = self._ahead(item.paths, entries, kept.offset if kept else 0)
        try:
            read = [self._hash_object(blocks, path, entry, whole, kept)
                    for path, entry in zip(item.paths, entries, strict=True)]  # fmt: skip
        finally:
            blocks.close()
        members = [state.hexdigest() for state, _ in read]
        digests = (whole.hexdigest() if whole else members[0], *members, *(version for _, version in read))
        return self._digested(item, digests, self._opened_ns)

    def _hash_object(
        self, blocks: "_Blocks", path: str, entry: Listed, whole: "hashlib._Hash | None", kept: Unfinished | None
    ) -> tuple["hashlib._Hash", str]:
        """Digest and version of one object; continued where an earlier examination was broken off, if it is alone."""
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
            identity = self._seen[path]
            if self._reuse and whole is None and offset and self._is_stable([identity], self._opened_ns):
                self._reuse.put_off(identity, Unfinished(own, offset, version or ""))
            raise
        return own, version or ""

    def _ahead(self, paths: Sequence[str], entries: Sequence[Listed], offset: int) -> "_Blocks":
        blocks = [
            (end - start, (entry, path, start, end))
            for path, entry in zip(paths, entries, strict=True)
            for start, end in _blocks_of(entry, offset)
        ]
        return _Blocks(blocks, self._request)

    @override
    def close(self) -> None:
        """Do nothing: no request is open between two calls."""


class _Blocks:
    """Blocks in order, with some requested ahead: bounded by their number and their bytes."""

    def __init__(
        self,
        blocks: list[tuple[int, tuple[Listed, str, int, int]]],
        request: Callable[[Listed, str, int, int], _Requested],
    ) -> None:
        self._request, self._waiting = request, deque(blocks)
        self._under_way: deque[tuple[int, _Requested]] = deque()
        self._bytes = 0

    def _go_ahead(self) -> None:
        while self._waiting and (
            not self._under_way
            or (len(self._under_way) < _AHEAD_BLOCKS and self._bytes + self._waiting[0][0] <= _AHEAD_BYTES)
        ):
            size, block = self._waiting.popleft()
            self._bytes += size
            self._under_way.append((size, self._request(*block)))

    def __next__(self) -> Block:
        self._go_ahead()
        size, requested = self._under_way.popleft()
        self._bytes -= size
        block = requested.result()
        self._go_ahead()
        return block

    def close(self) -> None:
        """Give up what was requested and is not needed any more."""
        for _, requested in self._under_way:
            requested.cancel()


def _blocks_of(entry: Listed, offset: int = 0) -> Iterator[tuple[int, int]]:
    """Start and end of every block; one that is empty for an empty object, whose ETag is checked too."""
    for start in range(offset, entry.size, _BLOCK) if entry.size else (0,):
        yield start, min(start + _BLOCK, entry.size)


def _checksum_key(item: Unread[Identity]) -> tuple[tuple[object, ...]]:
    """Under what a checksum is kept: never that of a digest that was read. Size 0 keeps it out of the database."""
    return ((DigestSource.S3_CHECKSUM.value, *item.identities[0]),)


def _identity(bucket: S3Bucket, entry: Listed) -> Identity:
    return (bucket.name, entry.key, entry.etag, entry.size, entry.modified_us)


class S3Artifacts(Artifacts):
    """Opens run roots that lie under the allowed ``s3://`` roots.

    Args:
        roots: ``s3://bucket/prefix`` of the allowed roots.
        settings: How to reach S3.
        threads: How many sequences of one run are hashed at the same time.
        reuse: Digests of unchanged objects; None reads everything (``digest_reuse: off``).
        checksums: See :class:`S3RunRoot`.
    """

    remote = True

    def __init__(
        self,
        roots: Sequence[str],
        settings: S3Settings,
        threads: int,
        reuse: DigestReuse | None,
        checksums: S3Checksums | None = None,
    ) -> None:
        self._roots = [root.rstrip("/") for root in roots]
        self._settings, self._reuse, self._checksums = settings, reuse, checksums
        self._readers = _Readers(
            threads,
            ThreadPoolExecutor(_REQUESTS, thread_name_prefix="s3"),
            SmallReads(),
        )
        self._buckets: dict[str, S3Bucket] = {}
        self._files: Files = {}
        self._lock = threading.Lock()

    @override
    def open(self, engine_run_root: str, budget: ReadBudget) -> S3RunRoot:
        if self._allowed_base(engine_run_root) is None:
            raise root_not_allowed(engine_run_root, self._roots)
        name, prefix = split_s3_uri(engine_run_root)
        bucket = self._bucket(name)
        with self._lock:
            if len(self._files) > _FILES_KEPT:
                self._files = {}
        return S3RunRoot(
            bucket, engine_run_root, prefix, self._readers, self._reuse, budget, self._files, self._checksums
        )

    def _bucket(self, name: str) -> S3Bucket:
        with self._lock:
            if name not in self._buckets:
                self._buckets[name] = S3Bucket(name, self._settings)
            return self._buckets[name]

    def _allowed_base(self, engine_run_root: str) -> str | None:
        """The allowed root that a run root lies at or under, the shortest of several."""
        bases = (root for root in self._roots if engine_run_root == root or engine_run_root.startswith(root + "/"))
        return min(bases, key=len, default=None)

    @override
    def look(self, roots: Sequence[str]) -> RootsSeen:
        base = self._allowed_base(roots[0])
        ours = [root for root in roots if self._allowed_base(root) == base]
        if base is None:
            return RootsSeen(unknown={root: root_not_allowed(root, self._roots).detail for root in ours})
        name, _ = split_s3_uri(base)
        try:
            if roots[0] in self._roots:  # a policy of the bucket may allow nothing beside it to be listed
                return look_at_prefix(self._bucket(name), roots[0])
            return look_at_prefixes(self._bucket(name), [root for root in ours if root != base])
        except ConfigurationError as error:  # what a person corrects while we serve, as credentials
            return RootsSeen(unknown=dict.fromkeys(ours, error.detail))

    @override
    def close(self) -> None:
        self._readers.requests.shutdown(wait=True, cancel_futures=True)
        self._readers.small.close()
