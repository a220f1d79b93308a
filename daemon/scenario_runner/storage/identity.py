"""The identity of a store: a small object with a random id, left there once and never changed.

The authority knows the id too. A folder or bucket in the store's place without it, or with another one, is a bare
mount point or somebody else's store.
"""

import secrets
from typing import Final

from scenario_runner.contracts.canonical import canonical_bytes, parse_json
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.ids import HEX32

MARKER: Final = "store.json"
"""Name of the marker in the private folder of a store."""
MAX_MARKER: Final = 4096
"""Bytes of a marker that are read; ours has 50."""
_FIELD: Final = "store_id"


class HiddenMarkerError(Unavailable):
    """This user may not read the private folder with the marker: a store is there, but its identity is unknown."""


def new_identity() -> str:
    """A random id: 32 hex characters."""
    return secrets.token_hex(16)


def marker_bytes(identity: str) -> bytes:
    """What the marker of a store holds."""
    return canonical_bytes({_FIELD: identity})


def parse_marker(data: bytes, where: str) -> str:
    """The id in a marker.

    Raises:
        Unavailable: it is not a marker: damaged, or somebody else's file.
    """
    try:
        identity = parse_json(data)[_FIELD]
        if not HEX32.fullmatch(identity):
            raise ValueError(identity)
    except (ValueError, TypeError, KeyError) as error:
        raise Unavailable(f"{where} does not hold the identity of a store; restore it from a backup") from error
    return str(identity)


class AnotherStoreError(Unavailable):
    """The store is not the one that the authority knows; made by :func:`another_store`."""


def another_store(where: str, expected: str, found: str) -> AnotherStoreError:
    """The error of a store that the authority does not know.

    Args:
        where: The store's root, for a person.
        expected: The id that the authority knows.
        found: The id that is there; empty when there is none.
    """
    return AnotherStoreError(
        f"{where} is not the store that this authority knows: its identity is {found or 'absent'}, {expected} is "
        "expected. Mount the right one there; only if it was really replaced, run: scenario-runner stores adopt"
    )
