"""What an examination remembers of an engine run root, and what follows from it on every store."""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from typing import Generic, TypeVar

from typing_extensions import override

from scenario_runner.artifacts.base import FileDigest, Kind, RunRoot, SequenceDigest, Snapshot
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.artifacts.listing import Listing, files_matching, files_under
from scenario_runner.artifacts.reuse import DigestReuse, Identity, is_stable
from scenario_runner.contracts.depth import DigestSource
from scenario_runner.contracts.errors import EvidenceChanged, EvidenceMissing, EvidenceRefused, Refusal
from scenario_runner.contracts.reasons import Reason

F = TypeVar("F", bound=Identity)
"""The identity of a file on the store."""


@dataclass(frozen=True, slots=True)
class Unread(Generic[F]):
    """A sequence of files whose digest is not known.

    Attributes:
        index: Of the sequence in the call of ``digest``.
        size: Of all its files together, in bytes.
    """

    index: int
    paths: Sequence[str]
    identities: tuple[F, ...]
    size: int


class ExaminedRoot(RunRoot, Generic[F]):
    """One engine run root during one examination; a store adds how a path is identified, listed, read and hashed.

    Args:
        location: Of the run root, for a person.
        budget: What the examination may cost.
        reuse: Digests of unchanged files; None reads everything.
    """

    def __init__(self, location: str, budget: ReadBudget, reuse: DigestReuse | None) -> None:
        self.location, self.budget = location, budget
        self._reuse = reuse
        self._opened_ns = time.time_ns()
        self._seen: dict[str, F] = {}
        self._listed: dict[str, Listing] = {}
        self._kinds: dict[str, Kind] = {}

    # --- what a store adds

    @abstractmethod
    def _identify(self, path: str) -> F:
        """Identity of a file in this examination; raises as the methods of :class:`RunRoot`."""

    @staticmethod
    @abstractmethod
    def _size_of(identity: F) -> int:
        """Bytes of the file."""

    @staticmethod
    @abstractmethod
    def _changed_ns(identity: F) -> int:
        """When the file was last written, in nanoseconds since the epoch."""

    @abstractmethod
    def _read_ns(self) -> int:
        """A time before which nothing was read that is read from now on, in nanoseconds since the epoch."""

    @abstractmethod
    def _list_now(self, path: str) -> Listing:
        """Names in a folder, as they are now."""

    @abstractmethod
    def _kind_now(self, path: str) -> Kind:
        """What stands at a path now."""

    @abstractmethod
    def _identity_now(self, path: str) -> F:
        """Identity of the file at a path now."""

    @abstractmethod
    def _is_listing_now(self, path: str, listing: Listing) -> bool:
        """True when a folder still has the names of a listing."""

    @abstractmethod
    def _reopen(self) -> None:
        """Drop what is cached of the store and open the run root again."""

    @abstractmethod
    def _hash_all(self, work: list[Unread[F]]) -> Iterable[tuple[int, SequenceDigest | Refusal]]:
        """Read and digest sequences; yields each digest, or its refusal, with the index of the sequence."""

    def _stored_digests(self, work: Sequence[Unread[F]]) -> Iterable[tuple[int, SequenceDigest]]:  # noqa: ARG002
        """The digests that the store itself keeps, with the index of the sequence; none on most stores."""
        return ()

    # --- what follows

    @override
    def kind(self, path: str) -> Kind:
        kind = self._kind_now(path)
        if self._kinds.setdefault(path, kind) is not kind:
            raise EvidenceChanged(f"{path} was {self._kinds[path]} and is {kind}", path=path)
        return kind

    def _list(self, path: str) -> Listing:
        listing = self._list_now(path)
        if self._listed.setdefault(path, listing) != listing:
            raise EvidenceChanged(f"{path} gained or lost entries while it was being read", path=path)
        return listing

    @override
    def files_under(self, path: str, *, parts: bool = False) -> list[str]:
        return files_under(self._list, path, self.budget.bounds.max_output_files, parts=parts)

    @override
    def files_matching(self, path: str) -> list[str]:
        return files_matching(self._list, path, self.budget.bounds.max_output_files)

    @override
    def size(self, paths: Iterable[str]) -> int:
        total = 0
        for path in paths:
            with suppress(EvidenceMissing, EvidenceRefused):
                total += self._size_of(self._identify(path))
        return total

    @override
    def derive(self, path: str, limit: int, name: str, function: Callable[[bytes], str]) -> str:
        read_ns, identity = self._read_ns(), self._identify(path)
        key, size = ((name, *identity),), self._size_of(identity)
        known = self._reuse.find(key, size) if self._reuse else None
        if known is not None:
            return known[0]
        answer = function(self.read(path, limit))
        if self._reuse and self._is_stable([identity], read_ns):
            self._reuse.keep(key, size, (answer,))
        return answer

    @override
    def digest(
        self, sequences: Sequence[Sequence[str]], source: DigestSource = DigestSource.READ
    ) -> list[SequenceDigest | Refusal]:
        results: list[SequenceDigest | Refusal | None] = []
        unread: list[Unread[F]] = []
        for index, paths in enumerate(sequences):
            try:
                identities = tuple([self._identify(path) for path in paths])
            except Refusal as refusal:
                results.append(refusal)
                continue
            size = sum(map(self._size_of, identities))
            known = self._reuse.find(identities, size) if self._reuse else None
            results.append(self._sequence(paths, identities, known) if known is not None else None)
            if known is None:
                unread.append(Unread(index, paths, identities, size))
        if source is DigestSource.S3_CHECKSUM:
            for index, stored in self._stored_digests([item for item in unread if len(item.paths) == 1]):
                results[index] = stored
            unread = [item for item in unread if results[item.index] is None]
        self.budget.hashing(sum(item.size for item in unread))
        for index, result in self._hash_all(unread):
            results[index] = result
        return [result for result in results if result is not None]

    def _digested(self, item: Unread[F], digests: tuple[str, ...], read_ns: int) -> SequenceDigest:
        """The digest of a sequence that was read; kept for later examinations when that is safe."""
        if self._reuse and self._is_stable(item.identities, read_ns):
            self._reuse.keep(item.identities, item.size, digests)
        return self._sequence(item.paths, item.identities, digests)

    def _sequence(
        self,
        paths: Sequence[str],
        identities: tuple[F, ...],
        digests: tuple[str, ...],
        source: DigestSource = DigestSource.READ,
    ) -> SequenceDigest:
        """Digests as they are kept: of the whole, of each member, and the members' versions where the store has any."""
        members = digests[1 : len(paths) + 1]
        versions = digests[len(paths) + 1 :] or ("",) * len(paths)
        sizes = map(self._size_of, identities)
        return SequenceDigest(digests[0], tuple(map(FileDigest, paths, sizes, members, versions, repeat(source))))

    def _is_stable(self, identities: Iterable[F], read_ns: int) -> bool:
        return is_stable(map(self._changed_ns, identities), read_ns)

    @override
    def snapshot(self) -> Snapshot:
        stable = self._is_stable(self._seen.values(), self._opened_ns)
        return Snapshot(self._seen, self._listed, self._kinds, stable)

    @override
    def confirm(self, snapshot: Snapshot) -> None:
        try:
            self._reopen()
            for path, listing in snapshot.listings.items():
                if not self._is_listing_now(path, listing):
                    raise EvidenceChanged(f"{path} gained or lost entries after it was read", path=path)
            for path, identity in snapshot.files.items():
                if self._identity_now(path) != identity:
                    raise EvidenceChanged(f"{path} changed after it was read", path=path)
            for path, kind in snapshot.kinds.items():
                if self._kind_now(path) is not kind:
                    raise EvidenceChanged(f"{path} was {kind} and is not any more", path=path)
        except (EvidenceMissing, EvidenceRefused) as error:
            raise EvidenceChanged(f"it changed after it was read: {error.detail}", path=error.path) from error


def check_size(path: str, size: int, limit: int) -> None:
    """Refuse a document of more than ``limit`` bytes before it is read.

    Raises:
        EvidenceRefused: it is larger.
    """
    if size > limit:
        raise EvidenceRefused(
            f"{path} holds {size} bytes, at most {limit} are read", Reason.EVIDENCE_TOO_LARGE, path=path
        )
