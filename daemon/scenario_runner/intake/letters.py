"""Names of dead letters and of their redrives. A letter is named by the key under which its bytes came from the bus."""

import re
from typing import Final

from scenario_runner.authority.acts import ActionRow
from scenario_runner.authority.base import RunReader

ACTION: Final = "redrive"
"""``operator_actions.action`` of a redrive; its subject is the letter."""
_KEY: Final = re.compile(r"redrive/[1-9][0-9]*/(.+)", re.ASCII | re.DOTALL)


def letter_of(record_key: str) -> str:
    """The letter of a record: that of a redrive is the one that was redriven."""
    found = _KEY.fullmatch(record_key)
    return found[1] if found else record_key


def redrive_key(number: int, letter: str) -> str:
    """The record key of a redrive."""
    return f"redrive/{number}/{letter}"


def redrives_of(reader: RunReader, letter: str) -> tuple[ActionRow, ...]:
    """The acts on a letter, in their order: the n-th one made the record of number n."""
    return tuple(act for act in reader.actions(letter) if act.action == ACTION)
