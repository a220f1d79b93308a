"""Interface packs by digest: a run is verified under the pack it was admitted with, whatever is deployed now."""

from collections.abc import Mapping, Sequence

from scenario_runner.contracts.errors import ConfigurationError, LedgerDrift, Unavailable
from scenario_runner.interface_pack.loader import pack_from_document
from scenario_runner.interface_pack.model import InterfacePack
from scenario_runner.ledger.ledger import Ledger


class PinnedPacks:
    """The deployed pack, and pinned ones from the ledger.

    Args:
        current: The deployed pack.
        ledger: The ledger.
        named: Further packs, which the operator vouches for.
    """

    def __init__(self, current: InterfacePack, ledger: Ledger, named: Sequence[InterfacePack] = ()) -> None:
        self.current = current
        self.vouched: Mapping[str, InterfacePack] = {pack.digest: pack for pack in (*named, current)}
        """Packs that the operator vouches for, by digest: nothing of them was read in the ledger."""
        self._ledger = ledger
        self._known = dict(self.vouched)

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
