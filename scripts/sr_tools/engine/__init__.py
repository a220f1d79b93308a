"""A simulator of the data engine: writes sealed engine runs to verify against, for any interface pack.

A sealed run is what the data engine leaves behind: for every gate that the chosen outputs need, a validation bundle
(members, index document, and last of all the passed flag), then the outputs, then ``run_receipt.json``. With ``damage``
exactly one thing in it is wrong.

The package is the independent second implementation of the hashing laws, so it imports nothing from
``scenario_runner``. All bytes follow from ``data_seed`` and the identity: the same call writes the same run.

Units: every size is in bytes; digests are lowercase hex sha256; a "rel" path is a POSIX path relative to the engine run
root.
"""

from sr_tools.engine.command import main
from sr_tools.engine.damage import DAMAGE_KINDS, TARGET_FORMS, TARGET_LAWS
from sr_tools.engine.damage_gates import GATE_DAMAGES
from sr_tools.engine.damage_outputs import OUTPUT_DAMAGES
from sr_tools.engine.errors import MakeRunError
from sr_tools.engine.laws import index_entries, law_digest
from sr_tools.engine.make import make_run
from sr_tools.engine.pack import BUNDLE_LAW, CONCAT_LAW, INDEX_LAW, LAWS
from sr_tools.engine.plan import DEFAULT_OUTPUTS

__all__ = [
    "BUNDLE_LAW",
    "CONCAT_LAW",
    "DAMAGE_KINDS",
    "DEFAULT_OUTPUTS",
    "GATE_DAMAGES",
    "INDEX_LAW",
    "LAWS",
    "OUTPUT_DAMAGES",
    "TARGET_FORMS",
    "TARGET_LAWS",
    "MakeRunError",
    "index_entries",
    "law_digest",
    "main",
    "make_run",
]
