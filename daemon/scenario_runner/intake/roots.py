"""Which engine run roots a request may name. Prefixes are whole folders: ``run1`` does not allow ``run10``."""

import posixpath
from collections.abc import Sequence
from typing import Final

from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.reasons import Reason
from scenario_runner.storage.s3_client import split_s3_uri

_FILE_SCHEME: Final = "file://"
_S3_SCHEME: Final = "s3://"
#: Bytes of a key prefix: S3 has keys of 1,024 bytes at most, and refuses to list below a longer prefix, which looks
#: like an outage for ever. A slash and a name follow.
_LONGEST_PREFIX: Final = 1022


def normalise_root(text: str, allowed: Sequence[str], cwd: str) -> str:
    """The location of an engine run root in its one normal form.

    Args:
        text: As the request writes it: a path, relative to the working directory or absolute, a ``file://`` URI, or
            ``s3://bucket/prefix``.
        allowed: Absolute paths and ``s3://`` URIs of the allowed roots.
        cwd: The working directory.

    Returns:
        An absolute path, or a URI without a slash at its end, at or under one of the allowed roots.

    Raises:
        RequestRefused: ``ENGINE_ROOT_NOT_ALLOWED``.
    """
    if text.startswith(_S3_SCHEME):
        return _under(_s3(text), allowed, text)
    path = text.removeprefix(_FILE_SCHEME)
    if "://" in path or (text.startswith(_FILE_SCHEME) and not path.startswith("/")):
        raise _refused(text, "its scheme is not served; name a folder, or s3://bucket/prefix")
    if ".." in path.split("/") or "\\" in path or "*" in path:
        raise _refused(text, "it holds '..', a backslash or a wildcard")
    location = posixpath.normpath(posixpath.join(cwd, path))
    try:
        location.encode()
    except UnicodeEncodeError as error:  # no authority can hold it, or look for it
        raise _refused(text, "the working directory has a name that is not UTF-8; name an absolute path") from error
    return _under("/" + location.lstrip("/"), allowed, text)


def is_absolute(text: str) -> bool:
    """Whether a root means the same for every working directory; an empty one names none."""
    return not text or "://" in text or text.startswith("/")


def _s3(text: str) -> str:
    try:
        bucket, prefix = split_s3_uri(text)
    except ValueError as error:
        raise _refused(text, str(error)) from error
    if any(char in prefix for char in "*?#%"):
        raise _refused(text, "it holds a wildcard or one of '?', '#', '%'")
    if len(prefix.encode()) > _LONGEST_PREFIX:
        raise _refused(text, f"no key of S3 is so long: a prefix has {_LONGEST_PREFIX} bytes at most")
    return f"{_S3_SCHEME}{bucket}/{prefix}".rstrip("/")


def _under(location: str, allowed: Sequence[str], text: str) -> str:
    for root in allowed:
        if location == root or location.startswith(root.rstrip("/") + "/"):
            return location
    raise _refused(text, "it is not under any of the profile's engine_roots")


def _refused(text: str, why: str) -> RequestRefused:
    return RequestRefused(f"engine_run_root {text[:200]!r}: {why}", Reason.ENGINE_ROOT_NOT_ALLOWED)
