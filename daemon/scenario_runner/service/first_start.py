"""What the first start of a profile makes: whether it can, found out without making anything."""

import os

from scenario_runner.contracts.errors import Unavailable


def require_makeable(path: str) -> None:
    """Require that a file or folder that is not there can be made, with the folders above it.

    Raises:
        Unavailable: the nearest folder above it that is there may not be written to, or is none.
    """
    above = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise Unavailable(f"{path} is not there and cannot be made: {above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise Unavailable(f"{path} is not there and cannot be made: the user {this_user()} may not write to {above}")


def this_user() -> str:
    """Name or number of the user of this process, for a person."""
    if not hasattr(os, "geteuid"):
        return os.environ.get("USERNAME", "unknown")
    import pwd  # noqa: PLC0415 - not on Windows

    uid = os.geteuid()
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
