"""Printing lists of any length in bounded memory: as one JSON document, as JSON Lines, or as text.

A list that ends before the last item there is says where the next page begins: ``next`` in JSON, a last line of JSON
Lines, a line on stderr in text, so that a pipe gets items and nothing else.
"""

import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import chain, islice

from scenario_runner.cli.console import print_err, print_json_line, print_line
from scenario_runner.cli.outputs.shapes import NEXT_LINE, SCHEMA_VERSION, ListShape
from scenario_runner.cli.text import Part
from scenario_runner.contracts.canonical import Json

Line = str | Sequence[Part]
"""An item of a list as text."""


class Form(StrEnum):
    """How a list is printed."""

    TEXT = "text"
    DOCUMENT = "document"
    LINES = "lines"

    @classmethod
    def of(cls, *, as_json: bool, as_lines: bool) -> "Form":
        """The form that the flags ask for."""
        if as_lines:
            return cls.LINES
        return cls.DOCUMENT if as_json else cls.TEXT


class Page:
    """The items of a list up to a limit, one after the other, and the place where the next page begins.

    Args:
        items: Items as they are read.
        limit: At most so many are given out; one more is read, to know whether there are more.
        cursor_of: The place after an item.
    """

    def __init__(self, items: Iterable[Json], limit: int, cursor_of: Callable[[Json], str]) -> None:
        self._source, self._limit, self._cursor_of = iter(items), limit, cursor_of
        # Read before anything is printed: an authority that does not answer is an error and no list.
        self._first = list(islice(self._source, 1))
        self.next = ""

    def __iter__(self) -> Iterator[Json]:
        """Give the items out once; ``next`` is known at the end."""
        last: Json | None = None
        items = chain(self._first, self._source)
        for last in islice(items, self._limit):
            yield last
        if last is not None and next(items, None) is not None:
            self.next = self._cursor_of(last)


def print_list(shape: ListShape, page: Page, form: Form, line_of: Callable[[Json], Line]) -> None:
    """Print a list.

    Args:
        shape: Its shape in JSON.
        page: What is printed.
        form: How.
        line_of: An item as text.
    """
    if form is Form.DOCUMENT:
        _print_document(shape, page)
    elif form is Form.LINES:
        for item in page:
            print_json_line(item, shape.item)
        if page.next:
            print_json_line({"next": page.next}, NEXT_LINE)
    else:
        for item in page:
            line = line_of(item)
            print_line(*([line] if isinstance(line, str) else line))
        if page.next:
            sys.stdout.flush()
            print_err(f"more follow: --after {page.next}")
    sys.stdout.flush()


def _print_document(shape: ListShape, page: Page) -> None:
    """The document, an item at a time; ``next`` is known behind the list."""
    empty = True
    sys.stdout.write(f'{{\n  "schema_version": {SCHEMA_VERSION},\n  "{shape.name}": [')
    for item in page:
        text = textwrap.indent(json.dumps(shape.item.complete(item), indent=2, sort_keys=True), "    ")
        sys.stdout.write(("" if empty else ",") + "\n" + text)
        empty = False
    sys.stdout.write("]" if empty else "\n  ]")
    sys.stdout.write(f',\n  "next": {json.dumps(page.next or None)}\n}}\n')
