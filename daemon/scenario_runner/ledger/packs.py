"""Interface packs by digest: a run is verified under the pack it was admitted with, whatever is deployed now."""

from scenario_runner.contracts.errors import ConfigurationError, LedgerDrift, Unavailable
from scenario_runner.interface_pack.loader import pack_from_document
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.ledger.ledger import Ledger


class PinnedPacks:
    """The deployed pack, and pinned ones from the ledger."""

    def __init__(self, current: InterfacePack, ledger: Ledger) -> None:
        self.current = current
        self._ledger = ledger
        self._known = {current.digest: current}

    def pin(self) -> None:
        """Keep the deployed pack in the ledger, before any run is planned with it.

        Raises:
            ConfigurationError: other bytes are there under its digest.
        """
        try:
            self._ledger.write_pack(self.current.digest, self.current.document)
        except LedgerDrift as drift:
            raise ConfigurationError(
                "the interface pack in the ledger", drift.detail, "move that object away; the daemon writes it anew"
            ) from drift

    def get(self, digest: str) -> InterfacePack:
        """The pack with this digest.

        Raises:
            LedgerDrift: ``PACK_DRIFT``: the ledger holds something else in its place.
            Unavailable: it is not in the ledger, or this release cannot read it.
        """
        known = self._known.get(digest)
        if known is not None:
            return known
        document = self._ledger.read_pack(digest)
        if document is None:
            raise Unavailable(f"the pinned interface pack {digest} is not in the ledger; restore it there")
        try:
            pack = pack_from_document(document)
        except ConfigurationError as error:
            raise Unavailable(f"this release cannot read the pinned interface pack {digest}: {error.detail}") from error
        if pack.digest != digest:
            raise Unavailable(f"the interface pack {digest} was pinned by another release, which must drive its runs")
        self._known[digest] = pack
        return pack
