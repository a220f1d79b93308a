"""Digest reuse: a file that is provably the same one, unchanged, is not read again.

The key is the identity of the files: (device, inode, size, mtime_ns, ctime_ns) on a file system, (bucket, key, ETag,
size, time of the last write) on S3. Git's racily-clean rule: a digest is only kept when the file was stable, that is,
last changed well before it was read. Otherwise another change in the same tick of the clock would leave the identity as
it is.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from scenario_runner.counters import count

Identity = tuple[object, ...]
"""What makes an artifact the same, unchanged one; equal identities mean equal bytes."""
RACY_NS: Final = 2_000_000_000
"""How long before the read a file must have changed last. The coarsest clock of a file system in use has ticks of 2 s
(FAT); S3 gives whole seconds."""
PERSIST_FROM_BYTES: Final = 1 << 20
"""Digests of smaller files are not stored: reading 1 MiB again takes about a millisecond, a commit as long."""
#: What a sequence of files and its digests take besides the texts of its identities, measured: 1.5 KB in all with three
#: members on S3. Many sequences have one.
_BYTES_A_SEQUENCE, _BYTES_A_MEMBER = 350, 320
#: All of them together.
_MAX_BYTES: Final = 15_000_000
#: Large files whose reading was broken off: a few hundred bytes each; more than one examination holds.
_MAX_UNFINISHED: Final = 1000


def is_stable(changed_ns: Iterable[int], read_ns: int) -> bool:
    """The racily-clean rule: whether files changed last so long before they were read that the identity shows changes.

    Args:
        changed_ns: When each file changed last, in nanoseconds since the epoch.
        read_ns: When the reading began.
    """
    return all(changed < read_ns - RACY_NS for changed in changed_ns)


class DigestStore(Protocol):
    """Keeps digests of large files beyond the life of the process."""

    def find_digests(self, key: str) -> list[str] | None:
        """Digests kept under a key (hex64), or None."""
        ...

    def keep_digests(self, key: str, digests: list[str]) -> None:
        """Keep digests; if they are lost, files are read again."""
        ...


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The digest of one large file whose reading was broken off, to be continued.

    Attributes:
        state: sha256 of its first bytes.
        offset: How many bytes those are.
        version: See :class:`~scenario_runner.artifacts.base.FileDigest`.
    """

    state: "hashlib._Hash"
    offset: int
    version: str = ""


class DigestReuse:
    """A bounded cache of digests, with a store behind it for files that are expensive to read."""

    def __init__(self, store: DigestStore | None = None, max_bytes: int = _MAX_BYTES) -> None:
        self._store = store
        self._max_bytes, self._bytes = max_bytes, 0
        self._kept: OrderedDict[tuple[Identity, ...], tuple[str, ...]] = OrderedDict()
        self._unfinished: OrderedDict[Identity, Unfinished] = OrderedDict()
        self._lock = threading.Lock()

    def put_off(self, identity: Identity, unfinished: Unfinished) -> None:
        """Keep what was read of a file that was stable."""
        with self._lock:
            self._unfinished[identity] = unfinished
            while len(self._unfinished) > _MAX_UNFINISHED:
                self._unfinished.popitem(last=False)

    def resume(self, identity: Identity) -> Unfinished | None:
        """Take what was kept of the same file out of the cache: its state is changed by whoever continues."""
        with self._lock:
            return self._unfinished.pop(identity, None)

    @staticmethod
    def _key(identities: tuple[Identity, ...]) -> str:
        return hashlib.sha256(repr(identities).encode()).hexdigest()

    def find(self, identities: tuple[Identity, ...], size: int) -> tuple[str, ...] | None:
        """Digest of the whole sequence, then of each member; None when it must be read."""
        found = self._find(identities, size)
        if found is not None:
            count("sr_digest_reuse_hits_total")
        return found

    def _find(self, identities: tuple[Identity, ...], size: int) -> tuple[str, ...] | None:
        found = self._kept.get(identities)
        if found is not None or self._store is None or size < PERSIST_FROM_BYTES:
            return found
        stored = self._store.find_digests(self._key(identities))
        if stored is None:
            return None
        self._remember(identities, tuple(stored))
        return tuple(stored)

    def keep(self, identities: tuple[Identity, ...], size: int, digests: tuple[str, ...]) -> None:
        """Keep the digests of files that were stable."""
        self._remember(identities, digests)
        if self._store is not None and size >= PERSIST_FROM_BYTES:
            self._store.keep_digests(self._key(identities), list(digests))

    def _remember(self, identities: tuple[Identity, ...], digests: tuple[str, ...]) -> None:
        size = _bytes_of(identities)
        if size > self._max_bytes:  # it would drive out all others, and then itself
            return
        with self._lock:
            if identities in self._kept:
                return
            self._kept[identities] = digests
            self._bytes += size
            while self._bytes > self._max_bytes:
                oldest, _ = self._kept.popitem(last=False)
                self._bytes -= _bytes_of(oldest)


def _bytes_of(identities: tuple[Identity, ...]) -> int:
    """About what an entry takes."""
    texts = sum(len(part) for identity in identities for part in identity if isinstance(part, str))
    return _BYTES_A_SEQUENCE + _BYTES_A_MEMBER * len(identities) + texts
