"""A PostgreSQL DSN: the parameters that SR adds, its name in messages, and how its secrets stay out of every text.

Nothing here connects. The text of a DSN is never shown, not even in the message that it is malformed.
"""

import os
import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote, quote_plus

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from scenario_runner.contracts.errors import ConfigurationError

_OPTION: Final = re.compile(r"(?:-c\s*|--)([A-Za-z_][\w.-]*)\s*=")
_SECRETS: Final = ("password", "sslpassword")
_URI_PASSWORD: Final = re.compile(r"://[^/?#]*?:(.*)@", re.DOTALL)
#: Parameters unless the DSN names them. A dead server or network is noticed within some 10 s: three keep-alives, 2 s
#: apart, after 5 s of silence, and as long for data that is not acknowledged.
_DEFAULTS: Final = {
    "application_name": "scenario-runner",
    "connect_timeout": "5",
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_SETTINGS: Final = {
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "15s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "10s",
    "jit": "off",
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
}
"""Settings of every session; the DSN's own ``options`` win. They are set on the open connection rather than requested
with it, because poolers that keep sessions do not forward ``options``. Values are spelled as the server shows them.

Statements take milliseconds, so 15 s, and 5 s for a lock, only end what hangs. ``enable_seqscan`` is off because every
statement has an index, most of them a small one over the few rows that are due; the planner guesses that a third of all
rows is due, and would read the whole table. ``jit`` costs more than any statement. A generic plan is as good as a
custom one here, and is made once.
"""


class PostgresDsn:
    """A DSN that was parsed.

    Args:
        dsn: A URI or ``key=value`` text.
        place: The profile, for messages.

    Attributes:
        place: The key of the profile, for messages.
        name: What is connected to, without user and password.
        parameters: libpq parameters of every connection.
        settings: What is set in every session, by name.
        option_names: Settings that the DSN's own ``options`` name.

    Raises:
        ConfigurationError: it cannot be parsed.
    """

    def __init__(self, dsn: str, place: str) -> None:
        self.place = f"{place}, key 'authority_store_dsn'"
        try:
            given = _parsed(dsn)
        except (ProgrammingError, ValueError):
            raise ConfigurationError(
                self.place,
                "it is not a valid PostgreSQL connection string",
                "use postgresql://user:password@host:5432/database with reserved characters percent-encoded, or "
                "host=... dbname=... user=... password=... with values in single quotes",
            ) from None
        self._hidden = sorted({text for text in _secrets(dsn, given) if text}, key=len, reverse=True)
        options = given.get("options") or os.environ.get("PGOPTIONS", "")
        self.option_names = [name.replace("-", "_").lower() for name in _OPTION.findall(options)]
        self.settings = {name: value for name, value in _SETTINGS.items() if name not in self.option_names}
        self.parameters: dict[str, Any] = {**_DEFAULTS, **given, "client_encoding": "utf8"}
        if options:
            self.parameters["options"] = options
        host = given.get("host") or given.get("hostaddr") or "the default host"
        port = f":{given['port']}" if given.get("port") else ""
        self.name = self.redacted(f"the PostgreSQL authority at {host}{port}, database {given.get('dbname', '')!r},")

    def redacted(self, text: object) -> str:
        """A text without the secrets of the DSN, in any spelling."""
        clean = str(text)
        for secret in self._hidden:
            clean = clean.replace(secret, "***")
        return clean


def _parsed(dsn: str) -> dict[str, Any]:
    """The parameters of a DSN.

    libpq reads a part of a password with a bare ``@`` or ``/`` as a host, a port or a database, and shows it in its
    errors. Such a DSN is refused before libpq sees it.
    """
    scheme, _, rest = dsn.partition("://")
    if "=" not in scheme:
        user, at, tail = rest.partition("@")
        if "@" in (tail if at and "/" not in user else rest).partition("?")[0]:
            raise ValueError
    given = conninfo_to_dict(dsn)
    if not re.fullmatch(r"[0-9,]*", str(given.get("port", ""))):
        raise ValueError
    return dict(given)


def _secrets(dsn: str, given: dict[str, Any]) -> Iterator[str]:
    yield dsn
    uri = _URI_PASSWORD.search(dsn)
    if uri is not None:
        yield uri.group(1)
    for key in _SECRETS:
        value = str(given.get(key) or "")
        yield from (value, quote(value), quote(value, safe=""), quote_plus(value))
        yield value.replace("\\", "\\\\").replace("'", "\\'")
        yield from (repr(value)[1:-1], ascii(value)[1:-1])
