"""From a DSN to an authority."""

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from scenario_runner.authority.base import Authority
from scenario_runner.contracts.errors import ConfigurationError, install_extra
from scenario_runner.storage.modes import PRIVATE, Modes

if TYPE_CHECKING:
    from scenario_runner.authority.postgres_dsn import PostgresDsn
    from scenario_runner.authority.views.base import Views

_SQLITE: Final = "sqlite:///"
_NO_FILE: Final = re.compile(r"[?#]|^:")
"""Options and ``:memory:`` of other programs: here they would become part of a file's name."""
_POSTGRES: Final = ("postgresql://", "postgres://")
_KEY_VALUE: Final = re.compile(r"(?:^|\s)(?:dbname|host)\s*=")
_MORE_PLACES: Final = (("hostaddr", "PGHOSTADDR"), ("service", "PGSERVICE"))
"""Parameters that say where a server is, and the variables for them."""
#: How a host begins that is a socket of this machine: a folder, or an abstract name.
_SOCKETS: Final = ("/", "@")
_SCHEME: Final = re.compile(r"^[a-z][a-z0-9+.-]{0,39}(?=:)")


def sqlite_path(dsn: str) -> str | None:
    """File of a ``sqlite:///relative/path`` or ``sqlite:////absolute/path`` DSN; None for anything else."""
    path = dsn.removeprefix(_SQLITE)
    if not dsn.startswith(_SQLITE) or not path or path.endswith("/") or _NO_FILE.search(path):
        return None
    return os.path.abspath(path)


def is_postgres(dsn: str) -> bool:
    """True for a URI of PostgreSQL, and for ``key=value`` text that names a database or host."""
    return dsn.startswith(_POSTGRES) or ("://" not in dsn.partition("=")[0] and _KEY_VALUE.search(dsn) is not None)


def check_dsn(dsn: str, place: str) -> None:
    """Check a DSN without connecting.

    Args:
        dsn: ``authority_store_dsn``. Never shown: it may hold a password.
        place: The profile, for messages.

    Raises:
        ConfigurationError: the scheme is not known, nothing is named, or the driver is not installed.
    """
    if is_postgres(dsn):
        _postgres_dsn(dsn, place)
    elif sqlite_path(dsn) is None:
        scheme = _SCHEME.match(dsn)
        raise ConfigurationError(
            f"{place}, key 'authority_store_dsn'",
            f"the scheme {scheme.group() if scheme else ''!r} is not served or names no file",
            "use sqlite:///relative/file.db, sqlite:////absolute/file.db, or postgresql://user:password@host/database",
        )


def connect_authority(dsn: str, place: str, modes: Modes = PRIVATE) -> Authority:
    """Open the authority that a profile names; see :func:`check_dsn` for the first arguments.

    Args:
        dsn: ``authority_store_dsn``.
        place: The profile, for messages.
        modes: Of the files of an embedded one that does not exist yet.

    Raises:
        ConfigurationError: the DSN cannot be used.
        Unavailable: the authority cannot be opened.
    """
    check_dsn(dsn, place)
    path = sqlite_path(dsn)
    if path is None:
        from scenario_runner.authority.postgres import PostgresAuthority

        return PostgresAuthority(dsn, place)
    from scenario_runner.authority.sqlite import SqliteAuthority

    return SqliteAuthority(path, modes=modes)


def connect_views(dsn: str, place: str) -> "Views":
    """Open the authority that a profile names for reading only; see :func:`connect_authority`.

    Raises:
        ConfigurationError: the DSN cannot be used, or a newer release made the database.
        Unavailable: the authority cannot be opened; a file that is not there is not made.
    """
    check_dsn(dsn, place)
    path = sqlite_path(dsn)
    if path is None:
        from scenario_runner.authority.views.postgres import PostgresViews

        return PostgresViews(dsn, place)
    from scenario_runner.authority.views.sqlite import SqliteViews

    return SqliteViews(path)


def prove_server(dsn: str, place: str) -> None:
    """Prove that the server of a PostgreSQL authority is fit for one, as opening it does; nothing is written.

    Raises:
        ConfigurationError: its version, encoding or durability is not fit, or its connections are no sessions.
        Unavailable: it does not answer.
    """
    if is_postgres(dsn):
        from scenario_runner.authority.postgres_pool import Connections

        Connections(_postgres_dsn(dsn, place), lambda _: None).close()


def describe_server(dsn: str) -> tuple[str, str]:
    """Server and user that the DSN of a PostgreSQL authority names, without anything secret; empty where none."""
    if not is_postgres(dsn):
        return "", ""
    parameters = _postgres_dsn(dsn, "").parameters
    host, port = parameters.get("host") or "this host", parameters.get("port") or "5432"
    return f"{host}:{port}/{parameters.get('dbname', '')}", str(parameters.get("user", ""))


def tls_of(dsn: str, env: Mapping[str, str]) -> str:
    """``sslmode`` of the connections of a PostgreSQL DSN; empty where they never leave this machine (a socket)."""
    parameters = _postgres_dsn(dsn, "").parameters
    hosts = str(parameters.get("host") or env.get("PGHOST", "")).split(",")
    elsewhere = any(parameters.get(name) or env.get(variable) for name, variable in _MORE_PLACES)
    if not elsewhere and all(host.startswith(_SOCKETS) for host in hosts):
        return ""
    return str(parameters.get("sslmode") or env.get("PGSSLMODE") or "prefer")


def _postgres_dsn(dsn: str, place: str) -> "PostgresDsn":
    missing = [name for name in ("psycopg", "psycopg_pool") if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"{place}, key 'authority_store_dsn'",
            f"it names PostgreSQL, and {', '.join(missing)} is not installed",
            install_extra("postgres"),
        )
    from scenario_runner.authority.postgres_dsn import PostgresDsn

    return PostgresDsn(dsn, place)
