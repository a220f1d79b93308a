"""Which engine run roots a request may name. Prefixes are whole folders: ``run1`` does not allow ``run10``."""

import os
from collections.abc import Sequence
from typing import Final

from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.reasons import Reason

_FILE_SCHEME: Final = "file://"


def normalise_root(text: str, allowed: Sequence[str], cwd: str) -> str:
    """The location of an engine run root in its one normal form.

    Args:
        text: As the request writes it: a path, relative to the working directory or absolute, or a ``file://`` URI.
        allowed: Absolute paths of the allowed roots.
        cwd: The working directory.

    Returns:
        An absolute path at or under one of the allowed roots.

    Raises:
        RequestRefused: ``ENGINE_ROOT_NOT_ALLOWED``.
    """
    path = text.removeprefix(_FILE_SCHEME)
    if "://" in path or (text.startswith(_FILE_SCHEME) and not path.startswith("/")):
        raise _refused(text, "its scheme is not served; name a folder")
    if ".." in path.split("/") or "\\" in path or "*" in path:
        raise _refused(text, "it holds '..', a backslash or a wildcard")
    location = os.path.normpath(os.path.join(cwd, path))
    location = "/" + location.lstrip("/")
    for root in allowed:
        if location == root or location.startswith(root.rstrip("/") + "/"):
            return location
    raise _refused(text, "it is not under any of the profile's engine_roots")


def _refused(text: str, why: str) -> RequestRefused:
    return RequestRefused(f"engine_run_root {text[:200]!r}: {why}", Reason.ENGINE_ROOT_NOT_ALLOWED)
