"""``engine_run_root_template``: where the engine writes the run of a request that names no root.

Placeholders are replaced as in ``engine_command``: once, and a value is not looked at again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from scenario_runner.contracts.errors import ConfigurationError

ROOT_PLACEHOLDERS: Final = ("manifest_fingerprint", "parameter_hash", "seed", "scenario_id", "run_id")
"""All placeholders of a template; their values stand in ``Intent.tokens()``."""

_PIECE: Final = re.compile(r"\{([a-z_]+)\}")
_KNOWN: Final = " ".join(f"{{{name}}}" for name in ROOT_PLACEHOLDERS)


@dataclass(frozen=True, slots=True)
class RootTemplate:
    """A template that was checked.

    Attributes:
        pieces: Literals and placeholders in turn; placeholders stand at odd places.
    """

    pieces: tuple[str, ...]

    @property
    def is_of_one_run(self) -> bool:
        """Whether no two runs get the same root."""
        return "run_id" in self.pieces[1::2]

    def render(self, values: Mapping[str, str]) -> str:
        """The root for these values; not yet in its normal form, and not yet known to be allowed."""
        return "".join(values[piece] if odd % 2 else piece for odd, piece in enumerate(self.pieces))


def parse_root_template(text: str, place: str) -> RootTemplate:
    """Check a template.

    Args:
        text: The template.
        place: Where it is written, for a person.

    Raises:
        ConfigurationError: A placeholder is not known, or there are braces that are none.
    """
    pieces = tuple(_PIECE.split(text))
    for name in pieces[1::2]:
        if name not in ROOT_PLACEHOLDERS:
            raise ConfigurationError(place, f"the placeholder {{{name}}} is not known", f"one of {_KNOWN}")
    if any("{" in literal or "}" in literal for literal in pieces[::2]):
        raise ConfigurationError(place, "holds braces that are no placeholder", f"placeholders are {_KNOWN}")
    return RootTemplate(pieces)
