"""Relative POSIX paths: one form each, nothing that climbs out. Pure."""

import re
from typing import Final

_NO_NAMES: Final = frozenset(("", ".", ".."))
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def check_relative_posix(path: str) -> str:
    """The path itself, when it is a normalised relative POSIX path.

    Raises:
        ValueError: absolute, empty, with ``.``/``..``/empty segments, a backslash or control characters.
    """
    if not path:
        raise ValueError("the path is empty")
    if path.startswith("/"):
        raise ValueError("the path is absolute")
    if "\\" in path or _CONTROL.search(path):
        raise ValueError("the path holds a backslash or a control character")
    segments = path.split("/")
    if not _NO_NAMES.isdisjoint(segments):
        segment = next(segment for segment in segments if segment in _NO_NAMES)
        raise ValueError(f"the path holds the segment {segment!r}")
    return path
