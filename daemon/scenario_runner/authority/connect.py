"""From a DSN to an authority."""

import os
import re
from typing import Final

from scenario_runner.authority.base import Authority
from scenario_runner.contracts.errors import ConfigurationError

_SQLITE: Final = "sqlite:///"
_NO_FILE: Final = re.compile(r"[?#]|^:")
"""Options and ``:memory:`` of other programs: here they would only be part of a new file's name."""


def sqlite_path(dsn: str) -> str | None:
    """File of a ``sqlite:///relative/path`` or ``sqlite:////absolute/path`` DSN; None for anything else."""
    path = dsn.removeprefix(_SQLITE)
    if not dsn.startswith(_SQLITE) or not path or path.endswith("/") or _NO_FILE.search(path):
        return None
    return os.path.abspath(path)


def check_dsn(dsn: str, place: str) -> str:
    """The file that a DSN names.

    Args:
        dsn: ``authority_store_dsn``. Never echoed: it may hold a password.
        place: The profile, for messages.

    Raises:
        ConfigurationError: the scheme is not known, or no file is named.
    """
    path = sqlite_path(dsn)
    if path is None:
        raise ConfigurationError(
            f"{place}, key 'authority_store_dsn'",
            f"the scheme {dsn.partition(':')[0][:40]!r} is not served or names no file",
            "use sqlite:///relative/file.db or sqlite:////absolute/file.db",
        )
    return path


def connect_authority(dsn: str, place: str) -> Authority:
    """Open the authority that a profile names; see :func:`check_dsn` for the arguments.

    Raises:
        ConfigurationError: the DSN cannot be used.
        Unavailable: the authority cannot be opened.
    """
    path = check_dsn(dsn, place)
    from scenario_runner.authority.sqlite import SqliteAuthority

    return SqliteAuthority(path)
