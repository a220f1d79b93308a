"""YAML as configuration may use it: no duplicate keys, no object tags, no bombs; every error names its line.

Aliases are allowed (dumpers write them for repeated lists) but count as often as they are used.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

from scenario_runner.contracts.errors import ConfigurationError

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Bytes of a document. A catalogue of 71 outputs has 51 KB and 2,500 nodes; one of 340 outputs five times as much.
MAX_BYTES: Final = 16 * 1024 * 1024
#: Nodes once aliases are followed: 400 times such a catalogue. Aliases of aliases come to billions in a few lines.
MAX_NODES: Final = 1_000_000
#: Nesting. Interface packs have 6 levels; the parser recurses, and 64 levels are far from the interpreter's limit.
MAX_DEPTH: Final = 64
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _place(source: str, node: Any) -> str:  # noqa: ANN401 - PyYAML nodes are untyped
    return f"{source}, line {node.start_mark.line + 1}"


class _Builder:
    """Turns one node tree into plain values, checking as it goes."""

    def __init__(self, source: str, loader: Any, env: Mapping[str, str] | None) -> None:  # noqa: ANN401
        self.source, self.loader, self.env, self.nodes = source, loader, env, 0

    def build(self, node: Any, depth: int = 0) -> Any:  # noqa: ANN401
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ConfigurationError(
                _place(self.source, node),
                f"more than {MAX_NODES} values or {MAX_DEPTH} levels once aliases are followed",
                "write the document out without nested aliases",
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode):
            self._plain_tag(node, "seq")
            return [self.build(item, depth + 1) for item in node.value]
        return self._scalar(node)

    def _plain_tag(self, node: Any, kind: str) -> None:  # noqa: ANN401
        if node.tag != f"tag:yaml.org,2002:{kind}":
            raise ConfigurationError(_place(self.source, node), f"the tag {node.tag} is not allowed", "remove it")

    def _mapping(self, node: Any, depth: int) -> dict[str, Any]:  # noqa: ANN401
        self._plain_tag(node, "map")
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.build(key_node, depth + 1)
            if not isinstance(key, str):
                raise ConfigurationError(
                    _place(self.source, key_node), f"a key is {type(key).__name__}, not text", "quote it"
                )
            if key in result:
                raise ConfigurationError(
                    _place(self.source, key_node), f"the key {key!r} is given twice", "keep one of the two"
                )
            result[key] = self.build(value_node, depth + 1)
        return result

    def _scalar(self, node: Any) -> Any:  # noqa: ANN401
        text, tag = node.value, node.tag
        if self.env is not None and "${" in text:
            text = _VARIABLE.sub(lambda match: self._expand(node, match), text)
            if node.style in (
                None,
                "",
            ):  # a plain scalar: the value takes the type that it would have if written here
                tag = self.loader.resolve(yaml.ScalarNode, text, (True, False))
        kind = tag.rpartition(":")[2]
        if kind == "merge":
            raise ConfigurationError(
                _place(self.source, node), "the merge key '<<' is not allowed", "write the keys out"
            )
        if tag == f"tag:yaml.org,2002:{kind}":
            if kind in ("str", "timestamp", "value"):
                return text
            if kind in ("int", "float", "bool", "null"):
                return self._typed(node, kind, tag, text)
        raise ConfigurationError(_place(self.source, node), f"the tag {tag} is not allowed", "use a plain value")

    def _typed(self, node: Any, kind: str, tag: str, text: str) -> Any:  # noqa: ANN401
        plain = yaml.ScalarNode(tag, text, node.start_mark, node.end_mark)
        try:
            return getattr(self.loader, f"construct_yaml_{kind}")(plain)
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise ConfigurationError(
                _place(self.source, node), f"{text[:40]!r} is not a valid {kind}", "quote it to mean text"
            ) from error

    def _expand(self, node: Any, match: re.Match[str]) -> str:  # noqa: ANN401
        name, default = match.group(1), match.group(2)
        value = (self.env or {}).get(name)
        if value is None or (value == "" and default is not None):
            if default is None:
                raise ConfigurationError(
                    _place(self.source, node),
                    f"the environment variable {name} is not set",
                    f"set {name}, or give a default: ${{{name}:-value}}",
                )
            return default
        problem = _problem_of(value)
        if problem:
            raise ConfigurationError(
                _place(self.source, node), f"the environment variable {name} {problem}", f"set {name} without them"
            )
        return value


def _problem_of(value: str) -> str:
    """What a variable's value holds by mistake of the file it was read from; empty when nothing."""
    if "\r" in value:
        return "holds carriage returns, as from a file with CRLF line ends"
    if not value.isprintable():
        return "holds control characters"
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return "is wrapped in quotes that are part of it, as docker --env-file keeps them"
    return ""


def _check_depth(text: str, source: str) -> None:
    """Refuse deep nesting before nodes are composed: composing recurses in C and would end the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_BASE):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ConfigurationError(
                _place(source, event), f"nested deeper than {MAX_DEPTH} levels", "write the document out flat"
            )


def load_yaml(data: bytes, source: str, *, env: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401
    """Load one YAML document strictly.

    Args:
        data: The document, UTF-8.
        source: Its name, for messages.
        env: When given, ``${NAME}`` and ``${NAME:-default}`` in scalars are expanded from it.

    Returns:
        Plain dict, list, str, int, float, bool and None. Dates stay strings.

    Raises:
        ConfigurationError: malformed, too large, duplicate key, object tag or unset variable; names the line.
    """
    if len(data) > MAX_BYTES:
        raise ConfigurationError(source, f"larger than {MAX_BYTES} bytes", "split or shorten it")
    try:
        text = data.decode("utf-8")
        _check_depth(text, source)
        loader = _BASE(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise ConfigurationError(source, "the document is empty", "write the keys it needs")
            return _Builder(source, loader, env).build(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is nested too deeply"
        raise ConfigurationError(
            f"{source}{_line_of(error, data)}", f"not valid YAML in UTF-8: {problem}", "correct the syntax"
        ) from error


def _line_of(error: Exception, data: bytes) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f", line {mark.line + 1}"
    if isinstance(error, UnicodeDecodeError):
        position = error.start
    elif isinstance(error, yaml.reader.ReaderError):
        position = error.position
    else:
        return ""
    line = 1 + data.count(b"\n", 0, position)
    return f", line {line}"


def read_bytes(path: str) -> bytes:
    """The bytes of a file, one more than :func:`load_yaml` takes at most.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        with open(os.fspath(path), "rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(path, f"cannot be read ({why})", "check the path and its permissions") from error


def read_yaml(path: str, *, env: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401
    """Read and load one YAML file; see :func:`load_yaml`."""
    return load_yaml(read_bytes(path), path, env=env)
