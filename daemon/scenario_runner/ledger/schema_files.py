"""JSON Schema files with references to each other, put together into documents that refer to nothing else.

A reference is relative to the file that holds it. When no file is there, the same path without its ``interface_pack``
part is tried: packs are published with references of their source tree. Nothing outside the configured folders' own
trees is read, and nothing is ever fetched.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.contracts.schema_export import DRAFT
from scenario_runner.contracts.strict_yaml import read_yaml

_PACK: Final = "interface_pack"
#: Files that references pull in: a platform's folders have tens of them.
_MAX_FILES: Final = 256
#: Parts of them that references lead to: some 80 of each file, where documents have tens of definitions.
_MAX_SCHEMAS: Final = 20_000
_REMEDY: Final = "correct the reference, or put the file where it leads, inside the tree of the schema folders"
_DYNAMIC: Final = ("$dynamicRef", "$recursiveRef")
_DROPPED: Final = frozenset({"$id", "$schema", "$anchor", "$dynamicAnchor", "$recursiveAnchor"})
_IN_PLACE: Final = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas"})
"""Keywords whose schemas apply to the same value again: a circle of them never ends."""
_SCHEMAS: Final = _IN_PLACE | {
    "additionalProperties", "unevaluatedProperties", "propertyNames", "items", "prefixItems", "additionalItems",
    "unevaluatedItems", "contains", "contentSchema",
}  # fmt: skip
_MAPS: Final = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})


@dataclass(frozen=True, slots=True)
class _Place:
    """A schema in a file: the file's real path and the steps of a JSON pointer."""

    path: str
    steps: tuple[str, ...]


@dataclass(slots=True)
class _Reference:
    """A reference as it stands in a file, and where it leads."""

    holder: str
    text: str
    target: _Place

    def refused(self, problem: str) -> ConfigurationError:
        return _refused(self.holder, self.text, problem)


def _refused(holder: str, text: str, problem: str) -> ConfigurationError:
    return ConfigurationError(holder, f"the reference {text[:200]!r} {problem}", _REMEDY)


def tree_of(folder: str) -> str:
    """The tree that a schema folder's references may lead into.

    The folder itself; of a folder below an ``interface_pack``, the folder that holds the ``interface_pack``.
    """
    real = os.path.realpath(folder)
    parts = real.split(os.sep)
    if _PACK not in parts:
        return real
    last = len(parts) - 1 - parts[::-1].index(_PACK)
    holder = os.sep.join(parts[:last])
    return holder or os.sep.join(parts[: last + 1])  # never all of the file system


@dataclass
class SchemaFiles:
    """The schema files of some trees.

    Args:
        trees: Real paths of folders; see :func:`tree_of`.
    """

    trees: Sequence[str]
    _documents: dict[str, Json] = field(default_factory=dict, init=False)

    def bundle(self, path: str) -> Json:
        """The schema in a file with everything that it refers to, as one document without outward references.

        Raises:
            ConfigurationError: a file cannot be read, or a reference leads to nothing, to a URL, out of the trees, or
                for ever back to itself; names the file and the reference.
        """
        made = _Bundle(self)
        made.number(self.root(path))
        return made.document()

    def root(self, path: str) -> _Place:
        """The schema that is all of a file."""
        real = os.path.realpath(path)
        if not self._inside(real):
            raise ConfigurationError(path, "it is a link out of the schema folder's tree", "put the file itself there")
        return _Place(real, ())

    def _inside(self, path: str) -> bool:
        return any(path == tree or path.startswith(tree.rstrip(os.sep) + os.sep) for tree in self.trees)

    def _document(self, path: str) -> Json:
        """A file's document, read once."""
        if path not in self._documents:
            if len(self._documents) >= _MAX_FILES:
                raise ConfigurationError(path, f"more than {_MAX_FILES} schema files refer to each other", _REMEDY)
            document = read_yaml(path)
            dialect = str(document.get("$schema", DRAFT)).removesuffix("#") if isinstance(document, dict) else ""
            if dialect != DRAFT:
                raise ConfigurationError(path, f"it is no JSON Schema of the draft {DRAFT}", "restore or convert it")
            self._documents[path] = document
        return self._documents[path]

    def schema_at(self, place: _Place) -> Any:  # noqa: ANN401 - a schema is an object or a boolean
        """The schema at a place that a reference led to."""
        found: Any = self._document(place.path)
        for step in place.steps:
            found = _child(found, step)
        return found

    def reference(self, holder: str, text: str) -> _Reference:
        """Where a reference in a file leads."""
        file, _, fragment = text.partition("#")
        path = self._file(holder, text, file) if file else holder
        document: Any = self._document(path)
        pointer = unquote(fragment)
        if pointer and not pointer.startswith("/"):
            steps = _anchor(document, pointer)
        else:
            steps = tuple(step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:])
        for step in steps or ():
            document = _child(document, step)
        if steps is None or not isinstance(document, dict | bool):
            raise _refused(holder, text, f"leads to nothing: {path} has no schema there")
        return _Reference(holder, text, _Place(path, steps))

    def _file(self, holder: str, text: str, file: str) -> str:
        """The real path of a referenced file."""
        if urlsplit(file).scheme or file.startswith("//"):
            raise _refused(holder, text, "leads to a URL; only files are read")
        wanted = os.path.normpath(os.path.join(os.path.dirname(holder), unquote(file)))
        if not self._inside(wanted) or not wanted.isprintable():
            raise _refused(holder, text, f"leads out of {' and '.join(self.trees)}")
        for path in (wanted, _without_pack(wanted)):
            real = os.path.realpath(path)
            if os.path.lexists(path) and not self._inside(real):
                raise _refused(holder, text, "leads out of the schema folder's tree by a link")
            if os.path.isfile(real):
                return real
        raise _refused(holder, text, f"leads to nothing: there is no file {wanted}")


class _Bundle:
    """Schemas as they are reached, each under a number, with references that lead to numbers."""

    def __init__(self, files: SchemaFiles) -> None:
        self._files = files
        self._numbers: dict[_Place, int] = {}
        self._circles: dict[_Place, list[_Reference]] = {}

    def number(self, place: _Place) -> int:
        return self._numbers.setdefault(place, len(self._numbers))

    def document(self) -> Json:
        schemas: Json = {}
        while len(schemas) < len(self._numbers):
            for place in list(self._numbers)[len(schemas) :]:
                self._circles[place] = []
                schemas[str(len(schemas))] = self._copied(self._files.schema_at(place), place, in_place=True)
        _check_circles(self._circles)
        return {"$schema": DRAFT, "$ref": "#/$defs/0", "$defs": schemas}

    def _copied(self, schema: Any, place: _Place, *, in_place: bool) -> Any:  # noqa: ANN401
        """A schema at a place or inside it; ``in_place`` while it judges the same value as the one at the place."""
        if not isinstance(schema, dict):
            return schema
        copy: Json = {}
        for keyword, value in schema.items():
            same = in_place and keyword in _IN_PLACE
            if keyword == "$ref":
                copy[keyword] = self._led(value, place, in_place=in_place)
            elif keyword in _DYNAMIC:
                raise _refused(place.path, str(value), f"is a {keyword}, which is not read")
            elif keyword in _MAPS and isinstance(value, dict):
                copy[keyword] = {name: self._copied(child, place, in_place=same) for name, child in value.items()}
            elif keyword in _SCHEMAS and isinstance(value, list):
                copy[keyword] = [self._copied(child, place, in_place=same) for child in value]
            elif keyword in _SCHEMAS:
                copy[keyword] = self._copied(value, place, in_place=same)
            elif keyword not in _DROPPED:
                copy[keyword] = value
        return copy

    def _led(self, text: object, place: _Place, *, in_place: bool) -> str:
        if not isinstance(text, str):
            raise _refused(place.path, str(text), "is no text")
        reference = self._files.reference(place.path, text)
        if in_place:
            self._circles[place].append(reference)
        if len(self._numbers) >= _MAX_SCHEMAS:
            raise reference.refused(f"is one of more than {_MAX_SCHEMAS}")
        return f"#/$defs/{self.number(reference.target)}"


def _without_pack(path: str) -> str:
    head, found, tail = path.rpartition(f"{os.sep}{_PACK}{os.sep}")
    return f"{head}{os.sep}{tail}" if found else path


def _child(node: Any, step: str) -> Any:  # noqa: ANN401
    """A member of a document; None when there is none."""
    if isinstance(node, dict):
        return node.get(step)
    if isinstance(node, list) and step.isascii() and step.isdigit() and int(step) < len(node):
        return node[int(step)]
    return None


def _anchor(node: Any, name: str) -> tuple[str, ...] | None:  # noqa: ANN401
    """Steps to the schema with an ``$anchor``; None when there is none."""
    if isinstance(node, dict) and node.get("$anchor") == name:
        return ()
    members = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for step, member in members:
        below = _anchor(member, name)
        if below is not None:
            return (str(step), *below)
    return None


def _check_circles(circles: dict[_Place, list[_Reference]]) -> None:
    """Refuse references that lead back to where they stand without going into the value that is judged."""
    done: set[_Place] = set()
    for start, first in circles.items():
        path: dict[_Place, Iterator[_Reference]] = {} if start in done else {start: iter(first)}
        while path:
            place = next(reversed(path))
            reference = next(path[place], None)
            if reference is None:
                done.add(place)
                del path[place]
            elif reference.target in path:
                raise reference.refused("leads for ever back to itself")
            elif reference.target not in done:
                path[reference.target] = iter(circles[reference.target])
