"""The object-store contract. Keys are relative POSIX paths; every backend passes the same contract test."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from scenario_runner.contracts.errors import ScenarioRunnerError, SequenceError, Unavailable
from scenario_runner.contracts.paths import check_relative_posix
from scenario_runner.contracts.reasons import Reason


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that was read.

    Attributes:
        data: Its bytes.
        token: What the store itself gives as a token of the bytes; None where it has none.
    """

    data: bytes
    token: str | None = None

    @property
    def version(self) -> str:
        """Opaque token that changes whenever the bytes do; pass it to ``replace``."""
        return version_of(self.data) if self.token is None else self.token


def version_of(data: bytes) -> str:
    """The version of bytes in a store that gives no token of its own."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object as a listing shows it.

    Attributes:
        modified_us: When it was written last, on the store's clock: microseconds since the epoch.
        md5: MD5 of its bytes as 32 hex digits, where the store may give it; other digits where they are encrypted.
    """

    key: str
    size: int
    modified_us: int
    md5: str = ""


class UnreadableObjectError(ScenarioRunnerError):
    """What lies at a key cannot be read as an object of ours: it is neither absent, nor is the store away."""

    default_reason = Reason.EVIDENCE_MALFORMED


class ObjectTooLargeError(UnreadableObjectError):
    """An object is larger than the bound of the read."""

    default_reason = Reason.EVIDENCE_TOO_LARGE


class NotAnObjectError(UnreadableObjectError):
    """A folder, link, FIFO or device lies at the key."""


def check_key(key: str) -> None:
    """Require that a key is a normalised relative path that every store can hold.

    Raises:
        SequenceError: it is not: keys are made by SR.
    """
    try:
        check_relative_posix(key)
        if not key.isascii():
            key.encode("utf-8")
    except ValueError as error:
        raise SequenceError(f"the object key {key!r} is not a normalised relative path: {error}") from error


class ObjectReader(Protocol):
    """What reads objects."""

    def read(self, key: str, limit: int) -> StoredObject | None:
        """The object, or None when there is none.

        Raises:
            Unavailable: the store cannot be reached, or is another one.
            ObjectTooLargeError: larger than ``limit`` bytes.
            NotAnObjectError: it is no regular file.
        """
        ...


class ObjectStore(ObjectReader, Protocol):
    """Small objects of SR's own, durable once a call returns.

    Every method raises ``Unavailable`` when the store cannot be reached or forbids access: that is never "absent". A
    key that is not a normalised relative path is a ``SequenceError``.
    """

    def create(self, key: str, data: bytes) -> bool:
        """Create the object unless one is there; True when this call created it."""
        ...

    def create_many(self, items: Sequence[tuple[str, bytes]]) -> list[bool | Unavailable]:
        """Create many objects, in no particular order; of several with one key, the first.

        Returns:
            For each what :meth:`create` returns, or would raise.
        """
        ...

    def held(self) -> ObjectReader:
        """Reads a few objects at once, such as those of one run, after one proof of the store.

        All come from the store that is proven here, and what is absent is proven to be absent from it.
        """
        ...

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """Replace the object if it still has ``version``; False when it does not."""
        ...

    def settle(self, key: str) -> None:
        """Make durable that this key has the object that was read.

        Whoever replaced it may have been killed, or may have failed, between the new name and the flush of it.
        """
        ...

    def list_objects(self, folder: str) -> Iterator[ListedObject]:
        """All that lies below a folder, in the order of the keys' UTF-8 bytes, in bounded memory.

        What is written meanwhile may be left out. Names that no object of ours can have are listed as well.

        Args:
            folder: A key without a slash at its end; nothing is listed where there is no such folder.
        """
        ...

    def locate(self, key: str) -> str:
        """Where the object is, for a person: a path or URI."""
        ...

    @property
    def where(self) -> str:
        """The root of the store, for a person and as its name: an absolute path, or a URI."""
        ...

    def identity(self) -> str:
        """The id in the store's marker, read now; empty when there is none.

        Raises:
            Unavailable: also when what is there is not a marker.
        """
        ...

    def leave_identity(self, proposed: str) -> str:
        """Write a marker with this id unless there is one; returns the id in the marker now."""
        ...

    def expect(self, identity: str) -> None:
        """Prove now, and in every method from now on, that the store has this id; raises ``Unavailable`` otherwise.

        On a file system the proof is made before and after each call, on a network at most once a second.
        """
        ...

    def probe(self) -> None:
        """Check that the store honours conditional creates and replaces.

        Raises:
            ConfigurationError: ``STORE_UNSAFE``: it does not, so an object could be overwritten.
        """
        ...

    def examine(self) -> bool:
        """Like :meth:`probe`, and leaves nothing behind; False when that cannot be tried before the first start.

        Raises:
            ConfigurationError: ``STORE_UNSAFE``.
        """
        ...

    def sweep(self) -> int:
        """Remove temporary objects of killed processes; returns how many."""
        ...
