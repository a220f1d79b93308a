"""What the schema libraries find, in the words of people: a table of cases for each library."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from pydantic import ValidationError

from scenario_runner.contracts.documents import PolicyRev, RunRequest
from scenario_runner.contracts.sentences import HIDDEN, of_json_schema, shown_value
from scenario_runner.contracts.validation import explain_validation

HEX = "a" * 64
NO_CONTROLS = "must hold no control character and no mark that turns the direction of text"
REQUEST: dict[str, Any] = {
    "run_equivalence_key": "k", "manifest_fingerprint": HEX, "parameter_hash": HEX, "seed": 7,
    "scenario": {"scenario_id": "s"},
    "window": {"window_start_utc": "2026-01-01T00:00:00Z", "window_end_utc": "2026-01-02T00:00:00Z",
               "window_tz": "UTC"},
}  # fmt: skip


def of_request(**changes: Any) -> str:
    document = {key: value for key, value in (REQUEST | changes).items() if value is not ...}
    with pytest.raises(ValidationError) as refused:
        RunRequest.model_validate(document)
    return explain_validation(refused.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": "7"}, 'seed: must be an integer, is the text "7"'),
        ({"seed": 7.5}, "seed: must be an integer, is 7.5"),
        ({"seed": True}, "seed: must be an integer, is true"),
        ({"seed": -1}, "seed: must be at least 0, is -1"),
        ({"seed": 1 << 64}, "seed: must be at most 18446744073709551615, is an integer of more than 64 bits"),
        ({"seed": ...}, "seed: is missing"),
        ({"sead": 7}, "sead: is not a known key"),
        ({"manifest_fingerprint": "A" * 64},
         f'manifest_fingerprint: must be 64 lowercase hex characters, is the text "{"A" * 40}"... (64 characters)'),
        ({"manifest_fingerprint": "abc"},
         'manifest_fingerprint: must have at least 64 characters, is the text "abc"'),
        ({"requested_strategy": "REUSE"},
         'requested_strategy: must be one of "AUTO", "FORCE_INVOKE", "FORCE_REUSE", is the text "REUSE"'),
        ({"output_ids": []}, "output_ids: must have at least 1 item, is a list of 0"),
        ({"output_ids": "a"}, 'output_ids: must be a list, is the text "a"'),
        ({"output_ids": ["a b"]},
         "output_ids.0: must be a name of letters, digits, '_' and '-', with single dots inside, is the text \"a b\""),
        ({"scenario": []}, "scenario: must be an object, is a list of 0"),
        ({"scenario": {}}, "scenario: exactly one of scenario_id and scenario_set is needed"),
        ({"invoker": "a\x1bb"}, f"invoker: {NO_CONTROLS}, is the text " + r'"a\u001bb"'),
        ({"notes": None}, "document: 'notes' is null; leave the field out instead"),
        ({"window": REQUEST["window"] | {"window_end_utc": "tomorrow"}},
         "window.window_end_utc: needs an RFC 3339 time with an offset, e.g. 2026-01-01T00:00:00Z"),
        ({"window": REQUEST["window"] | {"window_tz": "Mars Base"}},
         'window.window_tz: must be a zone of the tz database, e.g. UTC or Europe/London, is the text "Mars Base"'),
    ],
)  # fmt: skip
def test_what_pydantic_finds(changes: dict[str, Any], sentence: str) -> None:
    assert of_request(**changes) == sentence


def test_a_field_of_two_types_is_named_once_with_both() -> None:
    with pytest.raises(ValidationError) as refused:
        PolicyRev.model_validate({"policy_id": "p", "revision": [], "content_digest": HEX})
    assert explain_validation(refused.value) == (
        "revision: must be a text, is a list of 0 or must be an integer, is a list of 0"
    )


def test_many_errors_are_counted_and_cost_little() -> None:
    found = of_request(**{f"key{number}": 1 for number in range(5000)})
    assert found.endswith("key4: is not a known key; and 4995 more")


SCHEMA: dict[str, Any] = {
    "type": "object", "required": ["a"], "additionalProperties": False,
    "properties": {
        "a": {"type": "integer", "minimum": 1, "maximum": 9, "multipleOf": 1}, "b": {"enum": ["x", "y"]},
        "c": {"type": "string", "pattern": "^[0-9a-f]{32}$"}, "d": {"const": "v0"},
        "e": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": ["string", "null"]},
              "uniqueItems": True},
        "f": {"anyOf": [{"type": "string"}, {"type": "integer"}]}, "g": {"type": "string", "format": "date-time"},
        "h": {"exclusiveMinimum": 0}, "i": {"exclusiveMaximum": 0}, "j": {"maxLength": 2}, "k": {"minProperties": 1},
        "l": False, "m": {"pattern": "^z$"}, "n": {"type": "string", "format": "uri"},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({}, 'doc: the document: "a" is missing'),
        ({"a": "7"}, 'doc: a: must be an integer, is the text "7"'),
        ({"a": 0}, "doc: a: must be at least 1, is 0"),
        ({"a": 10}, "doc: a: must be at most 9, is 10"),
        ({"a": 1, "z": 1}, 'doc: the document: "z" is not a known key'),
        ({"a": 1, "z": 1, "y": 1}, 'doc: the document: "y", "z" are not known keys'),
        ({"a": 1, "b": "q"}, 'doc: b: must be one of "x", "y", is the text "q"'),
        ({"a": 1, "c": "b"}, 'doc: c: must be 32 lowercase hex characters, is the text "b"'),
        ({"a": 1, "d": "v1"}, 'doc: d: must be "v0", is the text "v1"'),
        ({"a": 1, "e": []}, "doc: e: must have at least 1 item, is a list of 0"),
        ({"a": 1, "e": ["a", None, "b"]}, "doc: e: must have at most 2 items, is a list of 3"),
        ({"a": 1, "e": [1]}, "doc: e/0: must be null or a text, is 1"),
        ({"a": 1, "e": ["a", "a"]}, "doc: e: must name nothing twice, is a list of 2"),
        ({"a": 1, "f": {}}, "doc: f: must be a text, is an object or must be an integer, is an object"),
        ({"a": 1, "g": "x"},
         'doc: g: must be an RFC 3339 time with an offset, e.g. 2026-01-01T00:00:00Z, is the text "x"'),
        ({"a": 1, "h": 0}, "doc: h: must be greater than 0, is 0"),
        ({"a": 1, "i": 0}, "doc: i: must be less than 0, is 0"),
        ({"a": 1, "j": "abc"}, 'doc: j: must have at most 2 characters, is the text "abc"'),
        ({"a": 1, "k": {}}, "doc: k: must have at least 1 key, is an object"),
        ({"a": 1, "l": 1}, "doc: l: must not be there, is 1"),
        ({"a": 1, "m": "\u202e" + "y" * 50},
         f'doc: m: must have the form ^z$, is the text "\\u202e{"y" * 39}"... (51 characters)'),
        ({"a": 1, "n": "x"}, 'doc: n: must be a uri, is the text "x"'),
        ({"a": 1, "h": 0.5, "b": False}, 'doc: b: must be one of "x", "y", is false'),
    ],
)  # fmt: skip
def test_what_jsonschema_finds(document: dict[str, Any], sentence: str) -> None:
    validator = jsonschema_rs.Draft202012Validator(SCHEMA, validate_formats=True)
    assert of_json_schema("doc", next(iter(validator.iter_errors(document)))) == sentence


def test_a_value_that_must_not_be_quoted_is_left_out() -> None:
    assert shown_value(HIDDEN) == ""
    assert shown_value(object()) == "of type object"
