"""The object-store contract. Keys are relative POSIX paths; every backend passes the same contract test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scenario_runner.contracts.errors import ScenarioRunnerError, Unavailable
from scenario_runner.contracts.reasons import Reason


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that was read.

    Attributes:
        data: Its bytes.
        version: Opaque token that changes whenever the bytes do; pass it to ``replace``.
    """

    data: bytes
    version: str


class UnreadableObjectError(ScenarioRunnerError):
    """Something lies at a key that cannot be read as an object of ours: neither absent nor an outage."""

    default_reason = Reason.EVIDENCE_MALFORMED


class ObjectTooLargeError(UnreadableObjectError):
    """An object is larger than the bound of the read."""

    default_reason = Reason.EVIDENCE_TOO_LARGE


class NotAnObjectError(UnreadableObjectError):
    """A folder, link, FIFO or device lies at the key."""


class ObjectStore(Protocol):
    """Small objects of SR's own, durable once a call returns.

    Every method raises ``Unavailable`` when the store cannot be reached or forbids access: that is never "absent".
    """

    def create(self, key: str, data: bytes) -> bool:
        """Create the object unless one is there; True when this call created it."""
        ...

    def create_many(self, items: Sequence[tuple[str, bytes]]) -> list[bool | Unavailable]:
        """Create many objects, in no promised order; in the place of each, what ``create`` returns or would raise.

        Of several with one key the first is meant.
        """
        ...

    def read(self, key: str, limit: int) -> StoredObject | None:
        """The object, or None when there is none.

        Raises:
            ObjectTooLargeError: larger than ``limit`` bytes.
            NotAnObjectError: it is no regular file.
        """
        ...

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """Replace the object if it still has ``version``; False when it does not."""
        ...

    def keys(self, prefix: str) -> list[str]:
        """All keys that start with ``prefix``, sorted; a folder's sibling (``run1``/``run10``) is kept apart."""
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
        """Leave a marker with this id unless one is there; returns the id that is there now."""
        ...

    def expect(self, identity: str) -> None:
        """Prove now, and with every method from now on, that the store has this id; raises ``Unavailable`` otherwise.

        A file system is looked at before and after each call, an object store on a network once a second at most.
        """
        ...

    def probe(self) -> None:
        """Check that conditional creates and guarded replaces are honoured.

        Raises:
            ConfigurationError: ``STORE_UNSAFE``; write-once could not be kept.
        """
        ...

    def sweep(self) -> int:
        """Remove what killed processes left behind unseen; returns how many objects were removed."""
        ...
