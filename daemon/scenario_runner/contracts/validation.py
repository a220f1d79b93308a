"""A document that is not valid, as one line for a person: which fields, and what is wrong with each."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pydantic import ValidationError

from scenario_runner.contracts.errors import one_line
from scenario_runner.contracts.sentences import of_pydantic

#: Errors that one field may have, one for each type that it may be of; so many are looked at for each field named.
_ERRORS_OF_A_FIELD: Final = 4
#: How pydantic names the types of a field that may be of more than one.
_BRANCHES: Final = frozenset({"str", "int", "constrained-str", "constrained-int"})


def explain_validation(
    error: ValidationError, limit: int = 5, names: Mapping[str, str] = MappingProxyType({}), *, quotes: bool = True
) -> str:
    """One line for a person: which fields, and what is wrong with each.

    Args:
        error: The error.
        limit: Most fields to name.
        names: What to call a field instead of its path, such as ``window.window_tz``, and the fields below it.
        quotes: Whether values may be quoted; not where one may be a secret.
    """
    parts: dict[str, list[str]] = {}
    for item in error.errors(include_url=False)[: limit * _ERRORS_OF_A_FIELD]:
        steps = _keys(item["loc"])
        paths = [".".join(steps[:length]) for length in range(len(steps), 0, -1)]
        where = next((names[path] for path in paths if path in names), paths[0] if paths else "document")
        parts.setdefault(where, []).append(of_pydantic(item, quotes=quotes))
    shown = list(parts.items())[:limit]
    more = error.error_count() - sum(len(found) for _, found in shown)
    text = "; ".join(f"{where}: {' or '.join(dict.fromkeys(found))}" for where, found in shown)
    return one_line(text + (f"; and {more} more" if more > 0 else ""))


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """The keys of a place, without pydantic's names for a choice among types."""
    steps = [str(step) for step in place if not str(step).startswith("function-")]
    return steps[:-1] if len(steps) > 1 and steps[-1] in _BRANCHES else steps
