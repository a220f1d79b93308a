"""Text for people: tones and glyphs on a terminal, values that fit a line. Words say everything that a tone says.

:mod:`scenario_runner.cli.console` escapes what is not printable, at the one place where text leaves a command. Here it
is escaped only where a length depends on it.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TextIO

from scenario_runner.contracts.errors import printable

#: Columns of text that goes into a pipe or a file: what a terminal of a person shows, and an issue tracker too.
WIDTH: Final = 100
#: Columns of the narrowest terminal that text is fitted to; on a narrower one the terminal breaks the lines.
_NARROWEST: Final = 60
#: Columns of the labels of :class:`Sheet`.
_LABEL: Final = 10
_ELLIPSIS: Final = "..."
_RED, _GREEN, _YELLOW, _MAGENTA, _CYAN = "31", "32", "33", "35", "36"
#: Words that have a tone: the colour (SGR) and the glyph that stand beside them on a terminal.
_TONES: Final = {
    "READY": (_GREEN, "✔"), "PASS": (_GREEN, "✔"), "SUCCEEDED": (_GREEN, "✔"), "ok": (_GREEN, "✔"),
    "FAILED": (_RED, "✘"), "FAIL": (_RED, "✘"), "REJECTED": (_RED, "✘"), "CONFLICT": (_RED, "✘"),
    "QUARANTINED": (_MAGENTA, "▲"), "DRIFT": (_MAGENTA, "▲"),
    "WAITING_EVIDENCE": (_YELLOW, "…"), "MISSING": (_YELLOW, "…"), "n/a": (_YELLOW, "…"),
    "PLANNED": (_CYAN, "·"), "EXECUTING": (_CYAN, "▶"), "VERIFYING": (_CYAN, "▶"), "SUBMITTED": (_CYAN, "·"),
    "NOT_SEEN": (_CYAN, "·"), "RUNNING": (_CYAN, "▶"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Word:
    """A word that a terminal shows in a tone, such as a state.

    Attributes:
        text: The word.
        columns: Columns that it takes at least.
    """

    text: str
    columns: int = 0


Part = str | Word
"""A part of a line."""


def coloured(stream: TextIO) -> bool:
    """Whether text on a stream is coloured. ``NO_COLOR`` forbids it; ``FORCE_COLOR`` asks for it without a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    return os.environ.get("FORCE_COLOR", "0") not in ("", "0") or is_terminal(stream)


def has_glyphs(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can show glyphs."""
    return is_terminal(stream) and (stream.encoding or "").lower().replace("-", "") == "utf8"


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that obeys control sequences."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def toned(word: Word, shown: str, stream: TextIO) -> str:
    """A word as a stream shows it.

    Args:
        word: The word.
        shown: Its text, with nothing in it that a terminal would obey.
        stream: Where it goes.
    """
    colour, glyph = _TONES.get(word.text, ("", ""))
    text = f"{glyph} {shown}" if glyph and has_glyphs(stream) else shown
    gap = " " * (word.columns - len(text))
    return (f"\x1b[{colour}m{text}\x1b[0m" if colour and coloured(stream) else text) + gap


def width() -> int:
    """Columns of a line on stdout: those of the terminal, or :data:`WIDTH`."""
    if not sys.stdout.isatty():
        return WIDTH
    return max(_NARROWEST, shutil.get_terminal_size((WIDTH, 0)).columns)


def shortened(text: str, most: int) -> str:
    """A text with an ellipsis in its middle when it is longer than so many characters. Both ends of a path say most."""
    if len(text) <= most:
        return text
    kept = max(most - len(_ELLIPSIS), 2)
    head = kept // 2
    return f"{text[:head]}{_ELLIPSIS}{text[head - kept :]}"


def folded(text: str, columns: int, most_lines: int) -> list[str]:
    """A text as lines. Words longer than a line are shortened, and so is the middle of a text that needs more lines."""
    words = [shortened(word, columns) for word in text.split()]
    lines = textwrap.wrap(" ".join(words), columns, break_long_words=False, break_on_hyphens=False)
    if len(lines) <= most_lines:
        return lines
    last = " ".join(lines[most_lines - 1 :])
    return [*lines[: most_lines - 1], shortened(last, columns)]


class Sheet:
    """Labelled values, a line or a few each, that fit the width.

    Args:
        columns: Of a line.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self.lines: list[list[Part]] = []

    def add(self, label: str, text: str, most_lines: int = 1) -> None:
        """Add a value; nothing when it is empty."""
        room = self._columns - _LABEL
        # Escaped first: what is escaped is longer.
        for number, line in enumerate(folded(printable(text), room, most_lines)):
            self.lines.append([_label(label if not number else ""), line])

    def add_state(self, label: str, state: str, rest: str) -> None:
        """Add a state in its tone, and what stands behind it."""
        room = self._columns - _LABEL - len(state) - 4  # two of the gap, two of a glyph
        self.lines.append([_label(label), Word(state), *([f"  {shortened(printable(rest), room)}"] if rest else [])])


def _label(text: str) -> str:
    return f"{text + ':' if text else '':{_LABEL}}"


def counted(words: Iterable[str]) -> str:
    """How often each word comes, e.g. ``9 PASS, 1 FAIL``, in the order in which they come first."""
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{count} {word}" for word, count in counts.items())
