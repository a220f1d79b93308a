"""How much an output or a gate's members may be: known from metadata, before anything is hashed."""

from collections.abc import Collection

from scenario_runner.artifacts.base import RunRoot
from scenario_runner.artifacts.listing import too_many
from scenario_runner.contracts.errors import EvidenceRefused
from scenario_runner.contracts.reasons import Reason


def check_extent(root: RunRoot, place: str, files: Collection[str]) -> None:
    """Compare the number and the total size of some files with the bounds of the run's policy.

    Args:
        root: The engine run root, opened.
        place: Path of the output or bundle that the files make, for the refusal.
        files: Paths of the files.

    Raises:
        EvidenceRefused: ``EVIDENCE_TOO_LARGE``, naming the policy's key, its value and what was found.
    """
    bounds = root.budget.bounds
    if len(files) > bounds.max_output_files:
        raise too_many(place, str(len(files)), bounds.max_output_files)
    size = root.size(files)
    if size > bounds.max_output_bytes:
        raise EvidenceRefused(
            f"{place} holds {size} bytes, the policy's max_output_bytes allows {bounds.max_output_bytes}",
            Reason.EVIDENCE_TOO_LARGE,
            path=place,
        )
