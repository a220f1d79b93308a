"""Relative POSIX paths: one form each, nothing that climbs out. Pure."""


def check_relative_posix(path: str) -> str:
    """The path itself, when it is a normalised relative POSIX path.

    Raises:
        ValueError: absolute, empty, with ``.``/``..``/empty segments, a backslash or control characters.
    """
    if not path:
        raise ValueError("the path is empty")
    if path.startswith("/"):
        raise ValueError("the path is absolute")
    if "\\" in path or any(ord(char) < 32 or ord(char) == 127 for char in path):
        raise ValueError("the path holds a backslash or a control character")
    for segment in path.split("/"):
        if segment in ("", ".", ".."):
            raise ValueError(f"the path holds the segment {segment!r}")
    return path
