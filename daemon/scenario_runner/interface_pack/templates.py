"""Path templates: parsed once into literals and tokens, so a value that contains ``{run_id}`` never expands."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from scenario_runner.contracts.paths import check_relative_posix

TOKENS: Final = ("manifest_fingerprint", "parameter_hash", "seed", "scenario_id", "run_id")
"""Tokens that a run request has a value for."""

_PIECE: Final = re.compile(r"\{([^{}/]+)\}")


class Shape(StrEnum):
    """What a template's last segment stands for."""

    FILE = "file"
    DIRECTORY = "directory"
    GLOB = "glob"


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed path template, relative to the engine run root.

    Attributes:
        text: The template, stripped, without the trailing slash of a directory.
        pieces: Literals and tokens in turn; tokens stand at odd places.
        shape: File, directory or glob.
    """

    text: str
    pieces: tuple[str, ...]
    shape: Shape

    @property
    def tokens(self) -> frozenset[str]:
        """Names of the tokens in the template."""
        return frozenset(self.pieces[1::2])

    def render(self, values: Mapping[str, str]) -> str:
        """The relative path for these token values, in one pass.

        Raises:
            KeyError: a token has no value.
            ValueError: the result would not be a normalised relative path.
        """
        path = "".join(values[piece] if odd % 2 else piece for odd, piece in enumerate(self.pieces))
        check_relative_posix(path)
        if path.count("/") != self.text.count("/"):
            raise ValueError("a token value holds a path separator")
        if path.count("*") != self.text.count("*"):
            raise ValueError("a token value holds a wildcard")
        return path


def parse_template(text: str) -> Template:
    """Parse a template as the interface pack writes it.

    Raises:
        ValueError: not a relative POSIX path, stray braces, or a wildcard before the last segment.
    """
    text = text.strip()
    shape = Shape.DIRECTORY if text.endswith("/") else Shape.GLOB if "*" in text else Shape.FILE
    text = text.removesuffix("/")
    check_relative_posix(text)
    head, _, tail = text.rpartition("/")
    if "*" in head or (shape is Shape.DIRECTORY and "*" in tail):
        raise ValueError("a wildcard may only stand in the last segment of a file path")
    pieces = tuple(_PIECE.split(text))
    if any("{" in piece or "}" in piece for piece in pieces[::2]):
        raise ValueError("stray braces; a token is written {name}")
    return Template(text, pieces, shape)
