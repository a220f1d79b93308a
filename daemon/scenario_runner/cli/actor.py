"""Who asks for an act of an operator."""

import getpass

from scenario_runner.intake.reemit import UNNAMED


def actor_of(requested_by: str | None) -> str:
    """The name that was given, or else this user's."""
    if requested_by is not None:
        return requested_by
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        return UNNAMED
