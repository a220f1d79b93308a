"""What is asked of folder listings, whatever they come from."""

import os
import re
from collections.abc import Callable
from typing import Final

from scenario_runner.contracts.errors import EvidenceRefused

BAD_NAME: Final = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
"""What no file name of an engine may hold: control characters, backslashes, bytes that are no text."""

Listing = tuple[tuple[str, bool], ...]
"""Names in a folder, sorted, and whether each is a folder."""


def wildcard(pattern: str) -> Callable[[str], bool]:
    """Whether a name matches a pattern in which ``*`` is any run of characters."""
    compiled = re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)
    return lambda name: compiled.fullmatch(name) is not None


def refuse_folders_for_parts(directory: str, listing: Listing, *, top: bool) -> None:
    """Refuse folders that stand where a part should be: empty ones, and those with the ending of a file beside them."""
    if not listing and not top:
        raise EvidenceRefused(f"{directory} is an empty folder where a part should be", path=directory)
    endings = {os.path.splitext(name)[1] for name, is_directory in listing if not is_directory} - {""}
    for name, is_directory in listing:
        if is_directory and os.path.splitext(name)[1] in endings:
            raise EvidenceRefused(f"{directory}/{name} is a folder named like a part", path=f"{directory}/{name}")
