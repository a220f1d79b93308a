"""Documents made from a schema, and every single change of them, for model and schemas to judge alike."""

import copy
import json
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from pydantic import ValidationError

from scenario_runner.contracts import times, types
from scenario_runner.contracts.documents import BOUNDARY_DOCUMENTS, DOCUMENTS

CONFIG = Path(__file__).resolve().parents[3] / "config"
FOLDERS = {**dict.fromkeys(DOCUMENTS, "platform/contracts/scenario_runner"),
           **dict.fromkeys(BOUNDARY_DOCUMENTS, "engine/interface_pack/contracts")}  # fmt: skip
MODELS = {**DOCUMENTS, **BOUNDARY_DOCUMENTS}
quick = settings(max_examples=60, deadline=None, database=None, derandomize=True,
                 suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])  # fmt: skip


@cache
def committed(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((CONFIG / FOLDERS[name] / f"{name}.schema.yaml").read_text("utf-8"))
    assert isinstance(loaded, dict)
    return loaded


@cache
def validators(name: str) -> dict[str, Callable[[Any], bool]]:
    return {
        "jsonschema": Draft202012Validator(committed(name), format_checker=FormatChecker()).is_valid,
        "jsonschema_rs": jsonschema_rs.validator_for(committed(name), validate_formats=True).is_valid,
    }


def accepted_by_model(name: str, document: object) -> bool:
    try:
        MODELS[name].model_validate(document)
    except ValidationError:
        return False
    return True


def values_in(document: object) -> Iterator[object]:
    yield document
    if isinstance(document, dict):
        for key, value in document.items():
            yield key
            yield from values_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from values_in(value)


def holds_whole_float(document: object) -> bool:
    return any(isinstance(value, float) and value.is_integer() for value in values_in(document))


def holds_line_ending_text(document: object) -> bool:
    return any(isinstance(value, str) and value.endswith("\n") for value in values_in(document))


def holds_backward_window(document: object) -> bool:
    for value in values_in(document):
        if isinstance(value, dict) and {"window_start_utc", "window_end_utc"} <= value.keys():
            try:
                start, end = (datetime.fromisoformat(value[f"window_{edge}_utc"]) for edge in ("start", "end"))
                backward = start >= end
            except (TypeError, ValueError):
                continue
            if backward:
                return True
    return False


def holds_instant_beyond_the_calendar(document: object) -> bool:
    for value in values_in(document):
        if isinstance(value, str) and value[:4] in ("1000", "2999"):
            try:
                shown = datetime.fromisoformat(value)
            except ValueError:
                continue
            offset = shown.utcoffset()
            if offset is not None and not 1000 <= (shown.replace(tzinfo=None) - offset).year <= 2999:
                return True
    return False


def holds_lone_surrogate(document: object) -> bool:
    return any(isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value)
               for value in values_in(document))  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """Something that the model refuses and the named validators let through."""

    why: str
    validators: frozenset[str]
    holds: Callable[[object], bool]


BOTH = frozenset({"jsonschema", "jsonschema_rs"})
DIFFERENCES = (
    Difference("JSON Schema calls 7.0 an integer; a uint64 is never a float", BOTH, holds_whole_float),
    Difference("JSON Schema cannot compare two fields: the window's start is before its end", BOTH,
               holds_backward_window),
    Difference("a pattern cannot see that an offset carries an instant out of the years 1000 to 2999 in UTC", BOTH,
               holds_instant_beyond_the_calendar),
    Difference("in Python's re, '$' also matches before a final line feed", frozenset({"jsonschema"}),
               holds_line_ending_text),
    Difference("a lone surrogate is no text in UTF-8; the validators look at code points, or only at the length",
               BOTH, holds_lone_surrogate),
)  # fmt: skip


def disagreements(name: str, document: object) -> list[str]:
    """What must not be: validators that disagree with the model beyond ``DIFFERENCES``."""
    wanted = accepted_by_model(name, document)
    found = []
    for which, is_valid in validators(name).items():
        try:
            got = is_valid(document)
        except UnicodeEncodeError:  # jsonschema_rs cannot even be handed a lone surrogate
            got = False
        excused = not wanted and any(which in item.validators and item.holds(document) for item in DIFFERENCES)
        if got != wanted and not excused:
            found.append(f"{name}: the model says {wanted}, {which} says {got}")
    return found


HEX = "0123456789abcdef"
WORD = string.ascii_letters + string.digits + "_-"


def dotted(alphabet: str) -> st.SearchStrategy[str]:
    return st.lists(st.text(alphabet, min_size=1, max_size=9), min_size=1, max_size=4).map(".".join)


plain_text = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
instants = st.builds(
    lambda moment, digits, zone: moment.strftime("%Y-%m-%dT%H:%M:%S") + digits + zone,
    st.datetimes(datetime(1001, 1, 1), datetime(2998, 12, 31)),  # noqa: DTZ001 - the offset is drawn on its own
    st.sampled_from(["", ".0", ".5", ".123456", ".999"]),
    st.sampled_from(["Z", "+00:00", "-00:00", "+02:00", "-11:30", "+23:59"]),
)
PATTERNS: dict[str, st.SearchStrategy[str]] = {
    "^[0-9a-f]{32}$": st.text(HEX, min_size=32, max_size=32),
    "^[0-9a-f]{64}$": st.text(HEX, min_size=64, max_size=64),
    types.NAME_PATTERN: dotted(WORD),
    types.SCENARIO_PATTERN: dotted(WORD + ":+@~"),
    types.TEXT_PATTERN: plain_text,
    types.ZONE_PATTERN: st.lists(st.text(WORD + "+", min_size=1, max_size=9), min_size=1, max_size=3).map("/".join),
    "^[A-Z][A-Z0-9_]*$": st.from_regex(r"\A[A-Z][A-Z0-9_]{0,20}\Z"),
    times.PATTERN: instants,
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | plain_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_text, inner, max_size=3),
    max_leaves=5,
)


def text_like(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    pattern = schema.get("pattern")
    if pattern is not None:
        return PATTERNS[pattern]
    return st.text(st.characters(exclude_categories=("Cs",)), max_size=min(schema.get("maxLength", 30), 30))


def from_schema(schema: Any, root: dict[str, Any]) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one per keyword
    """Documents that satisfy a schema, written for the keywords that our schemas use (an unknown one is an error)."""
    if schema is True:
        return json_values
    if "$ref" in schema:
        return from_schema(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "type" not in schema:
        return st.one_of([from_schema(item, root) for item in schema["anyOf"]])
    kind = schema["type"]
    if kind == "string":
        return text_like(schema)
    if kind == "integer":
        edges = [schema["minimum"], schema["maximum"]]
        return st.sampled_from(edges) | st.integers(schema["minimum"], schema["maximum"])
    if kind == "boolean":
        return st.booleans()
    if kind == "array":
        size = {"min_size": schema.get("minItems", 0), "max_size": max(3, schema.get("minItems", 0))}
        return st.lists(from_schema(schema["items"], root), **size)
    assert kind == "object", schema
    return objects(schema, root)


def objects(schema: dict[str, Any], root: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    fields = {key: from_schema(value, root) for key, value in schema.get("properties", {}).items()}
    if not fields:
        (keys, values), *_ = schema.get("patternProperties", {"": True}).items()
        return st.dictionaries(PATTERNS.get(keys, plain_text), from_schema(values, root), max_size=3)
    required = set(schema.get("required", ()))
    groups = [set(item["required"]) for item in schema.get("oneOf", schema.get("anyOf", ({"required": ()},)))]
    exclusive = set().union(*groups) if "oneOf" in schema else set()

    def shaped(group: set[str]) -> st.SearchStrategy[dict[str, Any]]:
        needed = required | group
        optional = fields.keys() - needed - exclusive
        return st.fixed_dictionaries({key: fields[key] for key in sorted(needed)},
                                     optional={key: fields[key] for key in sorted(optional)})  # fmt: skip

    return st.one_of([shaped(group) for group in groups])


def ordered_windows(document: Any) -> Any:
    """The same document with its window, if it has one, running forward."""
    window = document.get("window")
    if isinstance(window, dict):
        edges = sorted((window["window_start_utc"], window["window_end_utc"]), key=datetime.fromisoformat)
        window["window_start_utc"], window["window_end_utc"] = edges
    return document


@cache
def documents(name: str) -> st.SearchStrategy[Any]:
    built = from_schema(committed(name), committed(name)).map(ordered_windows)
    return built.filter(lambda document: not holds_backward_window(document))


STAMP, LATER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00.5+02:00"
SAMPLES: dict[str, object] = {
    "^[0-9a-f]{32}$": "0123456789abcdef" * 2,
    "^[0-9a-f]{64}$": "0123456789abcdef" * 4,
    types.NAME_PATTERN: "arrival_events_5B",
    types.SCENARIO_PATTERN: "baseline_v1",
    types.TEXT_PATTERN: "fraud-platform/sr/x.json",
    types.ZONE_PATTERN: "Europe/Athens",
    "^[A-Z][A-Z0-9_]*$": "GATE_FAIL",
    times.PATTERN: STAMP,
}


def full(schema: Any, root: dict[str, Any]) -> Any:  # noqa: PLR0911 - one per keyword
    """One document with every field that may stand together."""
    if schema is True:
        return {"a": [1, None, {"b": "c"}]}
    if "$ref" in schema:
        return full(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    if "const" in schema or "enum" in schema:
        return schema.get("const") or schema["enum"][0]
    if "type" not in schema:
        return full(schema["anyOf"][0], root)
    kind = schema["type"]
    if kind == "array":
        return [full(schema["items"], root)]
    if kind == "object":
        left_out = {item["required"][0] for item in schema.get("oneOf", ())[1:]}
        body = {key: full(value, root) for key, value in schema.get("properties", {}).items() if key not in left_out}
        if "window_end_utc" in body:
            body["window_end_utc"] = LATER
        if "patternProperties" in schema:
            ((pattern, value),) = schema["patternProperties"].items()
            body[SAMPLES[pattern]] = full(value, root)
        return body
    return {"string": SAMPLES.get(schema.get("pattern"), "notes\nover two lines"), "integer": 7, "boolean": True}[kind]


@cache
def full_text(name: str) -> str:
    return json.dumps(full(committed(name), committed(name)))


def full_example(name: str) -> Any:
    return json.loads(full_text(name))


Step = str | int
MISSING = object()


def places(document: Any, here: tuple[Step, ...] = ()) -> Iterator[tuple[Step, ...]]:
    """Every place of a document, the top included."""
    yield here
    items: Any = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*here, key))


def at(document: Any, place: tuple[Step, ...]) -> Any:
    for step in place:
        document = document[step]
    return document


def changed(document: Any, place: tuple[Step, ...], value: Any) -> Any:
    """A copy of the document with another value, or nothing (``MISSING``), at a place."""
    if not place:
        return {} if value is MISSING else value
    result = copy.deepcopy(document)
    parent = at(result, place[:-1])
    if value is MISSING:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return result


INTEGERS = [-1, 0, 1, 2**63, 2**64 - 1, 2**64, 2**65, 10**30, -(2**63) - 1, 7.0, 7.5, 1e30, True, False, "7"]
OTHERS: list[Any] = [MISSING, None, True, 0, 1.5, "", "x", [], {}, [None], {"unknown": None}, ["a", 1]]
NOT_TIMES = [
    "2026-01-01T00:00:00", "2026-01-01", "2026-02-30T00:00:00Z", "2026-02-29T12:00:00Z", "2024-02-29T12:00:00Z",
    "2026-13-01T00:00:00Z", "2026-01-01T24:00:00Z", "2026-06-30T23:59:60Z", "2026-01-01T00:60:00Z",
    "2026-01-01 00:00:00Z", "2026-01-01t12:00:00z",
    "2026-01-01T12:00:00.123456000Z", "2026-01-01T12:00:00.1234567Z", "2026-01-01T00:00:00+0200",
    "2026-01-01T00:00:00+24:00",
    "2026-01-01T00:00Z", "20260101T000000Z", "2026-W01-1T00:00:00Z", "2026-01-01T00:00:00.Z",
    "2026-01-01T00:00:00.1234567Z", "2026-01-01T00:00:00,5Z", "0000-01-01T00:00:00Z", "0999-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z", "+2026-01-01T00:00:00Z", "٢٠٢٦-01-01T00:00:00Z", "2026-01-01T00:00:00-00:00",
    "1767225600", "now", "1000-01-01T00:00:00+00:01", "2999-12-31T23:59:59-23:59", "1000-01-01T00:00:00Z",
    "2999-12-31T23:59:59.999999Z",
]  # fmt: skip
STAY_WITHIN = ["2026-01-01T00:00:00.1Z", "2026-01-01T02:00:00+02:00", "1999-12-31T23:59:59.999999-11:30"]


def damaged_texts(text: str) -> list[str]:
    return [text.upper(), text.lower(), text + "\n", "\n" + text, text + "\r\n", " " + text, text + " ", text + "\x00",
            text[:-1] + "\x1f", text[:-1] + "\x7f", text[:-1], text + "0", text[:1] * 5000, "../" + text, "/" + text,
            text + "..", "." + text, "a..b", "{run_id}", "a/b", "é" + text[1:], text[:-1] + "٣", text[:-1] + "\u2028",
            "\ud800" + text[1:], text + "*"]  # fmt: skip


def alternatives(value: Any) -> list[Any]:
    """Everything that is tried instead of a value."""
    if isinstance(value, bool):
        return [*OTHERS, "true", 1, 0]
    if isinstance(value, int):
        return [*OTHERS, *INTEGERS]
    if isinstance(value, str):
        stamps = [*NOT_TIMES, *STAY_WITHIN] if value in (STAMP, LATER) else []
        return [*OTHERS, *damaged_texts(value), *stamps]
    if isinstance(value, dict):
        first = next(iter(value), "a")
        grown = [
            {**value, key: 1}
            for key in ("unknown", "", first + "\n", first.upper(), " ", "a b", "é", "\ud800", "x" * 200)
        ]
        return [*OTHERS, *grown, {**value, "unknown": None}, [value]]
    if isinstance(value, list):
        return [*OTHERS, [*value, *value], [*value, None], value[0] if value else 0]
    return list(OTHERS)
