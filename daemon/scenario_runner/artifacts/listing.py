"""Questions to folder listings, on any store."""

import os
import re
from collections.abc import Callable
from typing import Final

from scenario_runner.artifacts.base import MAX_DEPTH
from scenario_runner.contracts.errors import EvidenceRefused
from scenario_runner.contracts.reasons import Reason

BAD_NAME: Final = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
"""Characters that no file name of an engine may hold: controls, backslashes, bytes that are no text."""

Listing = tuple[tuple[str, bool], ...]
"""Names in a folder, sorted, and whether each is a folder."""


def wildcard(pattern: str) -> Callable[[str], bool]:
    """Whether a name matches a pattern in which ``*`` is any run of characters."""
    compiled = re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)
    return lambda name: compiled.fullmatch(name) is not None


def refuse_folders_for_parts(directory: str, listing: Listing, *, top: bool) -> None:
    """Refuse folders where a part should be: empty ones, and those with the ending of a file next to them."""
    if not listing and not top:
        raise EvidenceRefused(f"{directory} is an empty folder where a part should be", path=directory)
    endings = {os.path.splitext(name)[1] for name, is_directory in listing if not is_directory} - {""}
    for name, is_directory in listing:
        if is_directory and os.path.splitext(name)[1] in endings:
            raise EvidenceRefused(f"{directory}/{name} is a folder named like a part", path=f"{directory}/{name}")


def too_many(path: str, found: str, limit: int) -> EvidenceRefused:
    """The refusal of a folder with more files than the policy allows."""
    return EvidenceRefused(
        f"{path} holds {found} files, the policy's max_output_files allows {limit}",
        Reason.EVIDENCE_TOO_LARGE,
        path=path,
    )


def files_under(list_folder: Callable[[str], Listing], path: str, limit: int, *, parts: bool) -> list[str]:
    """Every file below a folder, in byte order; see :meth:`~scenario_runner.artifacts.base.RunRoot.files_under`.

    Args:
        list_folder: Lists one folder.
        path: The folder.
        limit: Most files.
        parts: Refuse folders that stand where a part should be.
    """
    found: list[str] = []
    pending = [path]
    deepest = path.count("/") + MAX_DEPTH
    while pending:
        folder = pending.pop()
        if folder.count("/") > deepest:
            raise EvidenceRefused(f"{path} is nested deeper than {MAX_DEPTH}", Reason.EVIDENCE_TOO_LARGE, path=path)
        listing = list_folder(folder)
        if parts:
            refuse_folders_for_parts(folder, listing, top=folder == path)
        for name, is_folder in listing:
            (pending if is_folder else found).append(f"{folder}/{name}")
        if len(found) > limit:
            raise too_many(path, f"at least {len(found)}", limit)
    return sorted(found)


def files_matching(list_folder: Callable[[str], Listing], path: str, limit: int) -> list[str]:
    """Files of one folder whose names match the last segment of a path, in byte order."""
    head, _, pattern = path.rpartition("/")
    matches = wildcard(pattern)
    found = []
    for name, is_folder in list_folder(head):
        if not matches(name):
            continue
        full = f"{head}/{name}" if head else name
        if is_folder:
            raise EvidenceRefused(f"{full} is a directory; a regular file is needed", path=full)
        found.append(full)
    if len(found) > limit:
        raise too_many(path, str(len(found)), limit)
    return found
