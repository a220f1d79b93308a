"""From a DSN to an authority."""

import os
from typing import Final

from scenario_runner.authority.base import Authority
from scenario_runner.contracts.errors import ConfigurationError

_SQLITE: Final = "sqlite:///"


def sqlite_path(dsn: str) -> str | None:
    """File of a ``sqlite:///relative/path`` or ``sqlite:////absolute/path`` DSN; None for other schemes."""
    return os.path.abspath(dsn.removeprefix(_SQLITE)) if dsn.startswith(_SQLITE) else None


def connect_authority(dsn: str, place: str) -> Authority:
    """Open the authority that a profile names.

    Args:
        dsn: ``authority_store_dsn``. Never echoed: it may hold a password.
        place: The profile, for messages.

    Raises:
        ConfigurationError: the scheme is not known.
        Unavailable: it cannot be opened.
    """
    path = sqlite_path(dsn)
    if path is None or path.endswith("/"):
        raise ConfigurationError(
            f"{place}, key 'authority_store_dsn'",
            f"the scheme {dsn.partition(':')[0]!r} is not served or names no file",
            "use sqlite:///relative/file.db or sqlite:////absolute/file.db",
        )
    from scenario_runner.authority.sqlite import SqliteAuthority

    return SqliteAuthority(path)
