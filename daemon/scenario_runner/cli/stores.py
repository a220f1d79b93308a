"""``stores adopt``: what an operator does when a store was really replaced."""

import os

from scenario_runner.authority.connect import connect_authority
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import UsageError
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import open_store
from scenario_runner.service.control_bus import open_spool, state_modes
from scenario_runner.service.identity import adopt, named_stores


def adopt_stores(wiring_path: str, only: str | None) -> list[Json]:
    """Make the stores that are there now the known ones.

    Args:
        wiring_path: The profile.
        only: ``object_store`` or ``spool``; None for all stores of the profile.

    Returns:
        For each ``{store, where, old, new, adopted}``; ``old`` and ``new`` are ids, empty where none is known yet.

    Raises:
        Unavailable: the authority or a store cannot be reached.
        UsageError: the profile has no such store.
    """
    wiring = load_wiring(wiring_path)
    os.umask(state_modes(wiring).umask)
    stores = [item for item in named_stores(open_store(wiring), open_spool(wiring)) if only in (None, item.kind)]
    if not stores:
        raise UsageError(f"profile {wiring.profile_id} has no store {only!r}; it is object_store or spool")
    authority = connect_authority(wiring.authority_store_dsn, f"profile {wiring.profile_id}", state_modes(wiring))
    try:
        adopted = [adopt(item, authority) for item in stores]
    finally:
        authority.close()
    return [
        {
            "store": item.store.kind, "where": item.store.where, "old": item.old, "new": item.new,
            "adopted": item.old != item.new,
        }
        for item in adopted
    ]  # fmt: skip
