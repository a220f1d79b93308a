"""What a schema library finds, as a sentence for a person: ``must be an integer, is the text "7"``.

There is a function for each library. A value is quoted in short; :data:`HIDDEN` keeps it out where it may be a secret.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from scenario_runner.contracts.canonical import UINT64_MAX
from scenario_runner.contracts.errors import one_line
from scenario_runner.contracts.times import PATTERN
from scenario_runner.contracts.types import NAME_PATTERN, SCENARIO_PATTERN, TEXT_PATTERN, ZONE_PATTERN

#: Characters of a value that are quoted: enough to find it in a document, and too few to fill a line.
_QUOTED: Final = 40
#: Choices that are listed; the contract names the rest.
_LISTED: Final = 12
HIDDEN: Final = object()
"""Stands for a value that is not quoted."""

_FORMS: Final = {
    "^[0-9a-f]{32}$": "must be 32 lowercase hex characters",
    "^[0-9a-f]{64}$": "must be 64 lowercase hex characters",
    NAME_PATTERN: "must be a name of letters, digits, '_' and '-', with single dots inside",
    SCENARIO_PATTERN: "must be a scenario id of letters, digits and any of _:+@~-, with single dots inside",
    ZONE_PATTERN: "must be a zone of the tz database, e.g. UTC or Europe/London",
    TEXT_PATTERN: "must hold no control character and no mark that turns the direction of text",
    PATTERN: "must be an RFC 3339 time with an offset, e.g. 2026-01-01T00:00:00Z",
    "^[A-Z][A-Z0-9_]*$": "must be a code of capital letters, digits and '_'",
}
"""Patterns of the contracts, as people say them."""
_TYPES: Final = {
    "integer": "an integer", "int": "an integer", "number": "a number", "float": "a number",
    "finite_number": "a number", "string": "a text", "boolean": "true or false", "bool": "true or false",
    "array": "a list", "list": "a list", "tuple": "a list", "object": "an object", "dict": "an object",
    "model": "an object", "model_attributes": "an object", "mapping": "an object", "null": "null",
    "none_required": "null",
}  # fmt: skip


def of_pydantic(item: Mapping[str, Any], *, quotes: bool = True) -> str:
    """The sentence of one error of pydantic.

    Args:
        item: One of ``ValidationError.errors()``.
        quotes: Whether the value may be quoted.
    """
    kind, context = str(item["type"]), item.get("ctx", {})
    value = item.get("input", HIDDEN) if quotes else HIDDEN
    if kind in _FIXED:
        return _FIXED[kind]
    if kind == "value_error":
        return str(context.get("error", item["msg"]))  # a rule of our own, which is a sentence already
    rule = _RULES.get(kind)
    if rule is not None:
        return _wrong(rule(context), value)
    wanted = _TYPES.get(kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float"))
    return _wrong(f"must be {wanted}", value) if wanted else str(item["msg"])


def of_json_schema(name: str, error: Any) -> str:  # noqa: ANN401 - an untyped library, which this room does not import
    """The place and the sentence of one error of ``jsonschema_rs``.

    Args:
        name: Of the schema.
        error: Its ``ValidationError``.
    """
    where = "/".join(str(step) for step in error.instance_path) or "the document"
    return one_line(f"{name}: {where}: {_of_keyword(error)}")


def _of_keyword(error: Any) -> str:  # noqa: ANN401 - as above
    kind = error.kind
    if kind.name == "required":
        return f"{_short(kind.property)} is missing"
    if kind.name in ("additionalProperties", "unevaluatedProperties"):
        unexpected = sorted(kind.unexpected)
        return f"{_listed(unexpected)} {'is not a known key' if len(unexpected) == 1 else 'are not known keys'}"
    if kind.name in ("anyOf", "oneOf") and getattr(kind, "context", None):
        choices = [_of_keyword(errors[0]) for errors in kind.context if errors]
        return _alternatives(choices)
    rule = _KEYWORDS.get(kind.name)
    return _wrong(rule(kind), error.instance) if rule else str(error.message)[: 4 * _QUOTED]


def _alternatives(sentences: Sequence[str]) -> str:
    """Sentences of which one must become true, without saying twice what the value is."""
    return " or ".join(dict.fromkeys(sentences))


def _wrong(rule: str, value: object) -> str:
    shown = shown_value(value)
    return f"{rule}, is {shown}" if shown else rule


def shown_value(value: object) -> str:
    """A value as a sentence names it; empty for one that must not be quoted."""
    if value is HIDDEN:
        return ""
    if value is None or isinstance(value, bool | float):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the text {_short(value)}"
    if isinstance(value, int):  # Python refuses to write one of thousands of digits
        return str(value) if abs(value) <= UINT64_MAX else "an integer of more than 64 bits"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, Mapping) else f"of type {type(value).__name__}"


def _short(text: str) -> str:
    """A text in quotes, cut to a length that fits a line."""
    if len(text) <= _QUOTED:
        return json.dumps(text, ensure_ascii=False)
    return f"{json.dumps(text[:_QUOTED], ensure_ascii=False)}... ({len(text)} characters)"


def _listed(values: Sequence[object]) -> str:
    shown = [_short(item) if isinstance(item, str) else json.dumps(item) for item in values[:_LISTED]]
    return ", ".join(shown) + (f" and {len(values) - _LISTED} more" if len(values) > _LISTED else "")


def _one_of(values: Sequence[object]) -> str:
    return f"must be one of {_listed(values)}" if len(values) > 1 else f"must be {_listed(values)}"


def _form(pattern: str) -> str:
    return _FORMS.get(pattern, f"must have the form {pattern[: 2 * _QUOTED]}")


def _sized(least_or_most: str, count: int, what: str) -> str:
    return f"must have at {least_or_most} {count} {what if count != 1 else what.removesuffix('s')}"


_FIXED: Final = {
    "missing": "is missing",
    "extra_forbidden": "is not a known key",
    "recursion_loop": "holds itself",
}
"""Kinds of pydantic whose value says nothing."""
_RULES: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "literal_error": lambda found: "must be one of " + str(found["expected"]).replace("'", '"').replace(" or ", ", "),
    "enum": lambda found: "must be one of " + str(found["expected"]).replace("'", '"').replace(" or ", ", "),
    "greater_than_equal": lambda found: f"must be at least {found['ge']}",
    "less_than_equal": lambda found: f"must be at most {found['le']}",
    "greater_than": lambda found: f"must be greater than {found['gt']}",
    "less_than": lambda found: f"must be less than {found['lt']}",
    "string_too_short": lambda found: _sized("least", found["min_length"], "characters"),
    "string_too_long": lambda found: _sized("most", found["max_length"], "characters"),
    "string_pattern_mismatch": lambda found: _form(found["pattern"]),
    "too_short": lambda found: _sized("least", found["min_length"], "items"),
    "too_long": lambda found: _sized("most", found["max_length"], "items"),
}
_KEYWORDS: Final[Mapping[str, Callable[[Any], str]]] = {
    "type": lambda kind: "must be " + " or ".join(_TYPES.get(name, name) for name in kind.types),
    "enum": lambda kind: _one_of(kind.options),
    "const": lambda kind: _one_of([kind.expected_value]),
    "minimum": lambda kind: f"must be at least {kind.limit}",
    "maximum": lambda kind: f"must be at most {kind.limit}",
    "exclusiveMinimum": lambda kind: f"must be greater than {kind.limit}",
    "exclusiveMaximum": lambda kind: f"must be less than {kind.limit}",
    "multipleOf": lambda kind: f"must be a multiple of {kind.multiple_of}",
    "minLength": lambda kind: _sized("least", kind.limit, "characters"),
    "maxLength": lambda kind: _sized("most", kind.limit, "characters"),
    "minItems": lambda kind: _sized("least", kind.limit, "items"),
    "maxItems": lambda kind: _sized("most", kind.limit, "items"),
    "minProperties": lambda kind: _sized("least", kind.limit, "keys"),
    "maxProperties": lambda kind: _sized("most", kind.limit, "keys"),
    "uniqueItems": lambda _kind: "must name nothing twice",
    "pattern": lambda kind: _form(kind.pattern),
    "format": lambda kind: _FORMS[PATTERN] if kind.format == "date-time" else f"must be a {kind.format}",
    "falseSchema": lambda _kind: "must not be there",
}
