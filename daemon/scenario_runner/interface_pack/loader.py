"""Reading a pack: every enumeration is checked here, so nothing unknown reaches a verdict. Unknown keys are ignored."""

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final, TypeVar

from scenario_runner.contracts.canonical import Json, canonical_sha256
from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.contracts.strict_yaml import read_yaml
from scenario_runner.contracts.types import NAME_MAX_LENGTH, NAME_PATTERN
from scenario_runner.interface_pack.model import GateSpec, InterfacePack, Law, Ordering, OutputSpec, PathBase
from scenario_runner.interface_pack.templates import TOKENS, Shape, Template, parse_template

T = TypeVar("T")

PARTITIONS: Final = ("manifest_fingerprint", "parameter_hash", "seed", "scenario_id", "run_id")
_SCOPE_WORDS: Final = {
    "manifest_fingerprint": "manifest_fingerprint",
    "fingerprint": "manifest_fingerprint",
    "parameter_hash": "parameter_hash",
    "parameter": "parameter_hash",
    "seed": "seed",
    "scenario_id": "scenario_id",
    "scenario": "scenario_id",
    "run_id": "run_id",
    "utc_day": "utc_day",
    "release_tag": "release_tag",
}
_ORDERINGS: Final[dict[Law, dict[str, Ordering]]] = {
    Law.BUNDLE: {"ascii_lex": Ordering.ASCII_LEX},
    Law.INDEX_RAW_BYTES: {"ascii_lex": Ordering.ASCII_LEX, "index_order": Ordering.AS_LISTED},
    Law.MEMBER_DIGESTS: {
        "members_array_order": Ordering.AS_LISTED,
        "index_order": Ordering.AS_LISTED,
        "listed_order": Ordering.AS_LISTED,
    },
}
#: Similarity (difflib). A slip of one letter gives 0.95 and more; index_path_template is no path_template (0.81).
_ALL_BUT_THE_NAME: Final = 0.85
_REMEDY: Final = "correct the interface pack, or point the profile at the right one"


class _Entry:
    """One mapping of a pack document, read field by field with the place in every message."""

    def __init__(self, raw: object, place: str) -> None:
        if not isinstance(raw, dict):
            raise ConfigurationError(place, "an object is needed here", _REMEDY)
        self.raw: Mapping[str, Any] = {key: value for key, value in raw.items() if value is not None}
        self.place = place

    def refuse_misspelt(self, keys: Iterable[str]) -> None:
        """Unknown keys are ignored, but not one that is all but the name of a key that would be missed."""
        absent = [key for key in keys if key not in self.raw]
        for key in self.raw:
            meant = get_close_matches(key, absent, n=1, cutoff=_ALL_BUT_THE_NAME) if key not in keys else []
            if meant:
                raise self.fail(key, f"the key is not known; is {meant[0]!r} meant?")

    def fail(self, key: str, problem: str) -> ConfigurationError:
        return ConfigurationError(f"{self.place}, key {key!r}", problem, _REMEDY)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.raw.get(key, default)
        if not isinstance(value, str) or (not value.strip() and default is None):
            raise self.fail(key, "a non-empty text is needed")
        return value.strip()

    def name(self, key: str) -> str:
        value = self.text(key)
        if re.fullmatch(NAME_PATTERN, value, re.ASCII) is None or len(value) > NAME_MAX_LENGTH:
            raise self.fail(key, f"{value[:80]!r} is not a name (letters, digits, '_', '-', single dots)")
        return value

    def names(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        if required and key not in self.raw:
            raise self.fail(key, "the key is missing; write an empty list to mean none")
        value = self.raw.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.fail(key, "a list of names is needed")
        return tuple(dict.fromkeys(value))

    def parsed(self, key: str, parse: Callable[[str], T]) -> T:
        try:
            return parse(self.text(key))
        except ValueError as error:
            raise self.fail(key, str(error)) from error

    def choice(self, key: str, options: Mapping[str, T], default: str | None = None) -> T:
        value = self.raw.get(key, default)
        if not isinstance(value, str) or value.strip() not in options:
            raise self.fail(key, f"{value!r} is not one of {', '.join(sorted(options))}")
        return options[value.strip()]


def _scope_words(text: str, known: Iterable[str]) -> tuple[str, ...] | None:
    """Split ``a_b_c`` into known words, longest first; None when something is left over."""
    for word in sorted(known, key=len, reverse=True):
        if text == word:
            return (word,)
        if text.startswith(word + "_"):
            rest = _scope_words(text[len(word) + 1 :], known)
            if rest is not None:
                return (word, *rest)
    return None


def parse_scope(text: str, prefix: str, extra: Iterable[str] = ()) -> tuple[str, ...]:
    """Identity partitions named by a scope, in the fixed order; others (``utc_day``) are dropped.

    Raises:
        ValueError: the scope does not start with ``prefix`` or names an unknown partition.
    """
    if not text.startswith(prefix):
        raise ValueError(f"the scope {text!r} does not start with {prefix!r}")
    body = text[len(prefix) :]
    if body == "global":
        return ()
    words = _scope_words(body, {*_SCOPE_WORDS, *extra})
    if not words:
        raise ValueError(f"the scope {text!r} names an unknown partition")
    named = {_SCOPE_WORDS.get(word, word) for word in words}
    return tuple(key for key in PARTITIONS if key in named)


def _output(raw: object, place: str) -> OutputSpec:
    entry = _Entry(raw, place)
    output_id = entry.name("output_id")
    entry.place = f"{place} ({output_id})"
    entry.refuse_misspelt(_OUTPUT_KEYS)
    partitions = entry.names("partitions")
    template = entry.parsed("path_template", parse_template)
    return OutputSpec(
        output_id=output_id,
        template=template,
        scope=entry.parsed("scope", lambda text: parse_scope(text, "scope_", partitions)),
        read_requires_gates=entry.names("read_requires_gates"),
        optional=entry.text("availability", "required") == "optional",
        schema_ref=entry.text("schema_ref", ""),
        dictionary_ref=entry.text("dictionary_ref", ""),
    )


def _addressable(entry: _Entry, key: str, template: Template) -> Template:
    unknown = template.tokens - set(TOKENS)
    if unknown:
        raise entry.fail(key, f"the token {{{min(unknown)}}} has no value in a run request")
    return template


def _gate_paths(entry: _Entry) -> tuple[Template, Template, Template | None]:
    flag = _addressable(entry, "passed_flag_path_template", entry.parsed("passed_flag_path_template", parse_template))
    root = _addressable(
        entry,
        "bundle_root_template",
        entry.parsed("bundle_root_template", lambda text: parse_template(text.strip().rstrip("/") + "/")),
    )
    index = None
    if entry.text("index_path_template", ""):
        index = _addressable(entry, "index_path_template", entry.parsed("index_path_template", parse_template))
    for key, template in (("passed_flag_path_template", flag), ("index_path_template", index)):
        if template is not None and template.shape is not Shape.FILE:
            raise entry.fail(key, "one file is needed, not a directory or wildcard")
    return flag, root, index


def _gate(raw: object, place: str) -> GateSpec:
    entry = _Entry(raw, place)
    gate_id = entry.name("gate_id")
    entry.place = f"{place} ({gate_id})"
    entry.refuse_misspelt(_GATE_KEYS)
    flag, root, index = _gate_paths(entry)
    method = _Entry(entry.raw.get("verification_method"), f"{entry.place}, verification_method")
    method.refuse_misspelt(_METHOD_KEYS)
    law = method.choice("kind", {law.value: law for law in Law})
    ordering = method.choice("ordering", _ORDERINGS[law])
    if index is None and law is not Law.BUNDLE:
        raise entry.fail("index_path_template", f"the law {law} reads an index, so its path is needed")
    excluded = method.names("exclude_filenames")
    if any("/" in name or not name for name in excluded):
        raise method.fail("exclude_filenames", "plain file names are needed")
    return GateSpec(
        gate_id=gate_id,
        scope=entry.parsed("scope", lambda text: parse_scope(text, "")),
        flag=flag,
        bundle_root=root,
        index=index,
        law=law,
        digest_field=method.text("digest_field"),
        ordering=ordering,
        path_base=method.choice("path_base", {base.value: base for base in PathBase}, PathBase.BUNDLE_ROOT.value),
        exclude_filenames=frozenset(excluded),
        authorizes_outputs=entry.names("authorizes_outputs", required=True),
        upstream=entry.names("upstream_gate_dependencies"),
    )


def _by_id(specs: Iterable[tuple[str, T]], place: str) -> dict[str, T]:
    found: dict[str, T] = {}
    for key, spec in specs:
        if key in found:
            raise ConfigurationError(f"{place} ({key})", "the id is listed twice", _REMEDY)
        found[key] = spec
    if not found:
        raise ConfigurationError(place, "the list is empty", _REMEDY)
    return found


def _check_references(
    outputs: Mapping[str, OutputSpec], gates: Mapping[str, GateSpec], places: tuple[str, str]
) -> None:
    catalogue, gate_map = places
    for output in outputs.values():
        for gate_id in output.read_requires_gates:
            if gate_id not in gates:
                raise ConfigurationError(
                    f"{catalogue} ({output.output_id})",
                    f"requires the gate {gate_id!r}, which is not in {gate_map}",
                    _REMEDY,
                )
    for gate in gates.values():
        for kind, ids, known in (
            ("authorises the output", gate.authorizes_outputs, outputs),
            ("depends on the gate", gate.upstream, gates),
        ):
            for other in ids:
                if other not in known:
                    raise ConfigurationError(
                        f"{gate_map} ({gate.gate_id})",
                        f"{kind} {other!r}, which the pack does not define",
                        _REMEDY,
                    )


def _upstream_first(gates: Mapping[str, GateSpec], place: str) -> dict[str, GateSpec]:
    ordered: dict[str, GateSpec] = {}
    waiting = dict(gates)
    while waiting:
        free = [gate for gate in waiting.values() if all(dep in ordered for dep in gate.upstream)]
        if not free:
            raise ConfigurationError(
                place, f"the gates {', '.join(sorted(waiting))} depend on each other in a circle", _REMEDY
            )
        for gate in free:
            ordered[gate.gate_id] = gate
            del waiting[gate.gate_id]
    return ordered


_OUTPUT_KEYS: Final = (
    "output_id",
    "path_template",
    "partitions",
    "scope",
    "read_requires_gates",
    "availability",
    "schema_ref",
    "dictionary_ref",
)
_GATE_KEYS: Final = (
    "gate_id",
    "scope",
    "passed_flag_path_template",
    "bundle_root_template",
    "index_path_template",
    "verification_method",
    "authorizes_outputs",
    "upstream_gate_dependencies",
)
_METHOD_KEYS: Final = ("kind", "digest_field", "ordering", "path_base", "exclude_filenames")


def _pick(raw: Mapping[str, Any], keys: tuple[str, ...]) -> Json:
    picked = {key: raw[key] for key in keys if raw.get(key) is not None}
    if "verification_method" in picked:
        picked["verification_method"] = _pick(picked["verification_method"], _METHOD_KEYS)
    return picked


def _entries(document: object, key: str, place: str) -> list[Any]:
    value = document.get(key) if isinstance(document, dict) else None
    if not isinstance(value, list):
        raise ConfigurationError(place, f"the key {key!r} must hold a list", _REMEDY)
    return value


def build_pack(
    catalogue: object, gate_map: object, places: tuple[str, str] = ("catalogue", "gate map")
) -> InterfacePack:
    """Validate the two parsed documents into a pack.

    Raises:
        ConfigurationError: naming the file, the entry and the key.
    """
    raw_outputs = _entries(catalogue, "outputs", places[0])
    raw_gates = _entries(gate_map, "gates", places[1])
    outputs = _by_id(
        (
            (spec.output_id, spec)
            for spec in (_output(raw, f"{places[0]}, output {n}") for n, raw in enumerate(raw_outputs, 1))
        ),
        places[0],
    )
    gates = _by_id(
        ((spec.gate_id, spec) for spec in (_gate(raw, f"{places[1]}, gate {n}") for n, raw in enumerate(raw_gates, 1))),
        places[1],
    )
    _check_references(outputs, gates, places)
    document: Json = {
        "outputs": [_pick(raw, _OUTPUT_KEYS) for raw in raw_outputs],
        "gates": [_pick(raw, _GATE_KEYS) for raw in raw_gates],
    }
    return InterfacePack(outputs, _upstream_first(gates, places[1]), canonical_sha256(document), document)


def load_pack(catalogue_path: str, gate_map_path: str) -> InterfacePack:
    """Load a pack from its two YAML files.

    Raises:
        ConfigurationError: naming the file, the entry and the key.
    """
    return build_pack(read_yaml(catalogue_path), read_yaml(gate_map_path), (catalogue_path, gate_map_path))


def pack_from_document(document: Json) -> InterfacePack:
    """Load a pack again from :attr:`InterfacePack.document` (the pinned copy in the ledger)."""
    return build_pack(document, document, ("pinned pack", "pinned pack"))
