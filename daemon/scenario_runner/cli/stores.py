"""``stores adopt``: an operator confirms that a store was really replaced."""

import os

from scenario_runner.cli.console import exit_on_error, print_json, print_line
from scenario_runner.cli.outputs.acting import STORES_ADOPT
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import UsageError
from scenario_runner.service.compose import open_authority, open_store
from scenario_runner.service.control_bus import open_spool, state_modes
from scenario_runner.service.identity import adopt, named_stores
from scenario_runner.service.production import load_to_write


def run(wiring_path: str, only: str | None, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        found = adopt_stores(wiring_path, only)
    if as_json:
        print_json({"stores": found}, STORES_ADOPT)
        return
    for item in found:
        print_line(f"{item['store']}  {item['where']}")
        print_line(f"  known until now: {item['old'] or 'none'}")
        print_line(f"  known from now on: {item['new']}" if item["adopted"] else "  unchanged: no other store is there")


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
    wiring = load_to_write(wiring_path)
    os.umask(state_modes(wiring).umask)
    stores = [item for item in named_stores(open_store(wiring), open_spool(wiring)) if only in (None, item.kind)]
    if not stores:
        raise UsageError(f"profile {wiring.profile_id} has no store {only!r}; it is object_store or spool")
    authority = open_authority(wiring)
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
