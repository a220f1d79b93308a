"""Who acts, and why: what every act of an operator takes from the command line."""

import getpass
from typing import Final

from scenario_runner.contracts.errors import UsageError
from scenario_runner.intake.reemit import UNNAMED

#: Characters of a name: as many as a REEMIT_REQUEST may hold.
_LONGEST_NAME: Final = 256
#: Characters of a reason: likewise.
_LONGEST_REASON: Final = 4096


def actor_of(requested_by: str | None) -> str:
    """Who asks: the name that was given, or else this user's."""
    if requested_by is not None:
        return requested_by
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        return UNNAMED


def checked_actor(requested_by: str | None) -> str:
    """Who asks, as it is put on record.

    Raises:
        UsageError: it is no name.
    """
    actor = actor_of(requested_by)
    if not actor.strip() or len(actor) > _LONGEST_NAME or not actor.isprintable():
        raise UsageError(f"--requested-by: a name of 1 to {_LONGEST_NAME} printable characters is needed")
    return actor


def checked_reason(text: str, option: str = "--reason", *, needed: bool = True) -> str:
    """Why something is done, as it is put on record.

    Raises:
        UsageError: it is empty and needed, or too long.
    """
    if needed and not text.strip():
        raise UsageError(f"{option} is empty: the act is put on record with its reason")
    if len(text) > _LONGEST_REASON:
        raise UsageError(f"{option} has more than {_LONGEST_REASON} characters")
    return text
