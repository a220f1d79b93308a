"""What letters are redriven with: the authority, with the deployed interface pack pinned in the ledger.

A run that is admitted is verified under the pack of its admission, so the pack is kept before any letter is judged, as
a daemon does it. Nothing is delivered or driven here: that is a daemon's, whichever runs.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from scenario_runner.authority.base import Authority
from scenario_runner.intake.admission_policy import AdmissionPolicy
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.ledger.packs import PinnedPacks
from scenario_runner.profiles.wiring import Wiring
from scenario_runner.service.compose import open_authority, open_schemas, open_store
from scenario_runner.service.control_bus import open_spool, state_modes
from scenario_runner.service.identity import named_stores, require_known


@contextmanager
def open_for_redrive(wiring: Wiring, admission: AdmissionPolicy) -> Iterator[Authority]:
    """Open the authority of a profile for redrives.

    Args:
        wiring: The profile.
        admission: What letters are judged by.

    Raises:
        ConfigurationError: the profile is not valid, names what this platform does not have, or another pack lies in
            the ledger under the pack's digest.
        Unavailable: the authority or a store cannot be reached, or another store is there.
    """
    os.umask(state_modes(wiring).umask)
    with ThreadPoolExecutor(1, thread_name_prefix="io") as pool:
        store, spool, schemas = open_store(wiring, pool), open_spool(wiring), open_schemas(wiring)
        authority = open_authority(wiring)
        try:
            for item in named_stores(store, spool):
                require_known(item, authority)
            PinnedPacks(admission.pack, Ledger(store, schemas, pool=pool)).pin()
            yield authority
        finally:
            authority.close()
