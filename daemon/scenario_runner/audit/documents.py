"""Reading what was published for a run, without trusting any of it."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from scenario_runner.contracts.canonical import Json, parse_json, sha256_hex
from scenario_runner.ledger.write_once import MAX_DOCUMENT
from scenario_runner.storage.base import ObjectStore, UnreadableObjectError

UNREADABLE: Final = "not a readable object"
"""In the place of a digest."""


@dataclass(frozen=True)
class PublishedView:
    """A facts view that is well formed.

    Attributes:
        data: Its bytes as they were found.
        document: The same, parsed.
    """

    data: bytes
    document: Json

    @property
    def run_id(self) -> str:
        """The run that it is about."""
        return str(self.document["run_id"])

    @property
    def digest(self) -> str:
        """sha256 of its bytes."""
        return sha256_hex(self.data)

    @property
    def gates(self) -> list[str]:
        """Ids of the gates that it has receipts of, sorted."""
        return sorted(receipt["gate_id"] for receipt in self.document["gate_receipts"])

    @property
    def outputs(self) -> list[str]:
        """Ids of the intended outputs."""
        return list(self.document.get("intended_outputs", []))


class Manifest(NamedTuple):
    """The bundle manifest that an instance receipt names, and its digest."""

    ref: str
    digest: str


def manifest_of(receipt: Json) -> Manifest | None:
    """The manifest of a receipt; None of an output of one file, which has none."""
    ref = receipt.get("bundle_manifest_ref")
    return None if ref is None else Manifest(str(ref), str(receipt["target_digest"]["hex"]))


class PublishedDocuments:
    """The ledger's documents as they lie in the object store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def read_bytes(self, ref: str) -> bytes | None:
        """The bytes of an object; None when there is none, or when it is not a readable object."""
        try:
            stored = self._store.read(ref, MAX_DOCUMENT)
        except UnreadableObjectError:
            return None
        return None if stored is None else stored.data

    def digest_of(self, ref: str) -> str:
        """sha256 of an object; empty when there is none, :data:`UNREADABLE` when it is not a readable object."""
        try:
            stored = self._store.read(ref, MAX_DOCUMENT)
        except UnreadableObjectError:
            return UNREADABLE
        return "" if stored is None else sha256_hex(stored.data)

    def read_object(self, ref: str) -> Json | None:
        """A JSON object; None when there is none, or when it is not one."""
        data = self.read_bytes(ref)
        try:
            document = None if data is None else parse_json(data)
        except ValueError:
            return None
        return document if isinstance(document, dict) else None
