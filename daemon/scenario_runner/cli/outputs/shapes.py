"""The shape of what a command prints as JSON: it completes documents when they are printed, and gives their schema.

A shape names the keys of an object. A document is printed with all of them: null stands for what is unknown or does not
apply. Nothing is validated when it is printed; tests validate what the commands print against the schemas.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from scenario_runner.contracts.canonical import Json

SCHEMA_VERSION: Final = 1
"""Version of all documents of the commands. Keys are added to a version; a key that changes or goes needs a new one."""


class Kind(Protocol):
    """A kind of value."""

    def schema(self) -> Json:
        """Its JSON Schema."""
        ...

    def complete(self, value: Any) -> Any:  # noqa: ANN401 - whatever JSON can say
        """The value with every key that its kind has; null for an object that is empty."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """A value without keys.

    Attributes:
        types: Types of JSON Schema that it may have; none for any.
        pattern: Of a text; empty for any.
        values: The only ones that it may have, besides null; none for any.
    """

    types: tuple[str, ...] = ()
    pattern: str = ""
    values: tuple[str, ...] = ()

    def schema(self) -> Json:
        """See :class:`Kind`."""
        found: Json = {"type": self.types[0] if len(self.types) == 1 else list(self.types)} if self.types else {}
        if self.pattern:
            found["pattern"] = self.pattern
        if self.values:
            found["enum"] = [*self.values, None] if "null" in self.types else list(self.values)
        return found

    def complete(self, value: Any) -> Any:  # noqa: ANN401 - see Kind
        """The value as it is."""
        return value


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list."""

    item: Kind

    def schema(self) -> Json:
        """See :class:`Kind`."""
        return {"type": "array", "items": self.item.schema()}

    def complete(self, value: Any) -> Any:  # noqa: ANN401 - see Kind
        """The list with its items completed."""
        return [self.item.complete(item) for item in value]


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object whose keys are data, such as paths."""

    value: Kind

    def schema(self) -> Json:
        """See :class:`Kind`."""
        return {"type": "object", "additionalProperties": self.value.schema()}

    def complete(self, value: Any) -> Any:  # noqa: ANN401 - see Kind
        """The object with its values completed."""
        return {key: self.value.complete(item) for key, item in value.items()}


class Shape:
    """An object whose keys are known.

    Args:
        keys: The kind of each value.
    """

    def __init__(self, keys: Mapping[str, Kind]) -> None:
        self.keys = dict(keys)
        self._blank = dict.fromkeys(keys)
        self._with_keys = [(key, kind) for key, kind in keys.items() if not isinstance(kind, Plain)]

    def schema(self) -> Json:
        """See :class:`Kind`."""
        return {
            "type": "object",
            "properties": {key: kind.schema() for key, kind in self.keys.items()},
            "required": list(self.keys),
        }

    def complete(self, value: Json) -> Json:
        """The object with all keys. A key that the shape does not name stays: what is known is shown."""
        found = {**self._blank, **value}
        for key, kind in self._with_keys:
            if found[key] is not None:
                found[key] = kind.complete(found[key])
        return found

    def stamped(self, value: Json) -> Json:
        """The completed object as a document of its own: with ``schema_version``."""
        return {"schema_version": SCHEMA_VERSION, **self.complete(value)}


@dataclass(frozen=True, slots=True)
class OrNull:
    """A value, or null where there is none. An empty object is none."""

    kind: Kind

    def schema(self) -> Json:
        """See :class:`Kind`."""
        return {"anyOf": [self.kind.schema(), {"type": "null"}]}

    def complete(self, value: Any) -> Any:  # noqa: ANN401 - see Kind
        """The value completed, or null."""
        return None if value is None or value == {} else self.kind.complete(value)


TEXT: Final = Plain(("string",))
TEXT_OR_NULL: Final = Plain(("string", "null"))
HEX32: Final = Plain(("string",), "^[0-9a-f]{32}$")
TIME: Final = Plain(("string",), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")
TIME_OR_NULL: Final = Plain(("string", "null"), TIME.pattern)
INTEGER: Final = Plain(("integer",))
INTEGER_OR_NULL: Final = Plain(("integer", "null"))
NUMBER: Final = Plain(("number",))
NUMBER_OR_NULL: Final = Plain(("number", "null"))
BOOLEAN: Final = Plain(("boolean",))
BOOLEAN_OR_NULL: Final = Plain(("boolean", "null"))
ANY: Final = Plain()


@dataclass(frozen=True, slots=True)
class ListShape:
    """What a command that lists prints: one document under ``--json``, a line for each item under ``--jsonl``.

    Attributes:
        name: Key of the list in the document.
        item: An item. As a line it carries ``schema_version`` too.
    """

    name: str
    item: Shape

    @property
    def document(self) -> Shape:
        """The document of ``--json``; ``next`` is where the next page begins, null at the end of the list."""
        return Shape({self.name: ListOf(self.item), "next": TEXT_OR_NULL})


NEXT_LINE: Final = Shape({"next": TEXT})
"""Last line of ``--jsonl`` where more items follow."""


def document_schema(name: str, *shapes: Shape) -> Json:
    """The JSON Schema of a document, or of a line that has one of some shapes."""
    bodies = []
    for shape in shapes:
        body = shape.schema()
        version: Json = {"const": SCHEMA_VERSION}
        body["properties"] = {"schema_version": version, **body["properties"]}
        body["required"] = ["schema_version", *body["required"]]
        bodies.append(body)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"{name}.schema.yaml", "title": name}
    return {**head, **bodies[0]} if len(bodies) == 1 else {**head, "oneOf": bodies}
