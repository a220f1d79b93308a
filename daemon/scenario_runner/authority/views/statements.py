"""The named statements of the views. A line that ends in ``-- if TERM`` is sent when the term is asked for."""

import re
from collections.abc import Collection
from functools import cache
from typing import Final

from scenario_runner.authority.statements import load_statements

_TERM: Final = re.compile(r"^(.*)  -- if ([a-z]+)\n", re.MULTILINE)


@cache
def _texts(engine: str) -> dict[str, str]:
    return load_statements(engine, "views")


def names(engine: str) -> list[str]:
    """Names of the statements of the views."""
    return list(_texts(engine))


def terms_of(engine: str, name: str) -> frozenset[str]:
    """The terms that a statement may be asked for with."""
    return frozenset(found[2] for found in _TERM.finditer(_texts(engine)[name]))


def statement(engine: str, name: str, terms: Collection[str] = ()) -> str:
    """A statement with the lines of some terms; one of the authority's own when the views have none of this name."""
    text = _texts(engine).get(name) or load_statements(engine)[name]
    return _TERM.sub(lambda found: f"{found[1]}\n" if found[2] in terms else "", text)
