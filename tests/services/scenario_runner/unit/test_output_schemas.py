"""What the commands print under ``--json`` is a contract: which schemas there are, and how documents are completed."""

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import yaml
from commands_support import commands
from json_contract import closed
from support import REPO

from scenario_runner.cli.contracts import FOLDER, exported
from scenario_runner.cli.outputs.shapes import (
    INTEGER_OR_NULL,
    TEXT,
    TEXT_OR_NULL,
    ListOf,
    MapOf,
    OrNull,
    Shape,
    document_schema,
)
from scenario_runner.cli.outputs.table import DOCUMENTS, LINES, LISTS, output_schemas

pytestmark = pytest.mark.unit


def options_of_commands() -> Iterator[tuple[str, set[str]]]:
    """The name and the options of every command, such as ``("runs list", {"--json", ...})``."""
    for name, command in commands():
        yield name, {option for item in command.params for option in item.opts}


def test_every_command_with_json_has_a_schema_and_no_schema_is_without_its_command() -> None:
    with_json = {name for name, options in options_of_commands() if "--json" in options}
    assert with_json == {*DOCUMENTS, *LISTS, *LINES}
    with_lines = {name for name, options in options_of_commands() if "--jsonl" in options}
    assert with_lines == {*LISTS, "submit"}
    assert set(LINES) < with_json


def test_only_the_commands_without_an_answer_have_no_json() -> None:
    assert {name for name, options in options_of_commands() if "--json" not in options} == {"serve"}


def test_every_schema_is_valid_and_every_document_carries_the_version() -> None:
    for name, schema in output_schemas().items():
        jsonschema_rs.meta.validate(schema)
        assert schema["$id"] == f"{name}.schema.yaml"
        for body in schema.get("oneOf", [schema]):
            assert body["properties"]["schema_version"] == {"const": 1}
            assert body["required"] == list(body["properties"]), "keys are always there"


def test_the_committed_files_are_what_is_exported() -> None:
    folder = REPO / "config" / FOLDER
    committed = {f"{FOLDER}/{path.name}": yaml.safe_load(path.read_text("utf-8")) for path in folder.iterdir()}
    assert committed == {name: schema for name, schema in exported().items() if name.startswith(FOLDER)}


NESTED = Shape({
    "name": TEXT, "note": TEXT_OR_NULL, "lease": OrNull(Shape({"owner": TEXT, "epoch": INTEGER_OR_NULL})),
    "items": OrNull(ListOf(Shape({"id": TEXT, "detail": TEXT_OR_NULL}))), "by_path": OrNull(MapOf(TEXT)),
})  # fmt: skip


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        ({"name": "x"}, {"name": "x", "note": None, "lease": None, "items": None, "by_path": None}),
        (
            {"name": "x", "lease": {}, "items": [], "by_path": {"a/b": "c"}},
            {"name": "x", "note": None, "lease": None, "items": [], "by_path": {"a/b": "c"}},
        ),
        (
            {"name": "x", "lease": {"owner": "me"}, "items": [{"id": "1"}]},
            {"name": "x", "note": None, "lease": {"owner": "me", "epoch": None},
             "items": [{"id": "1", "detail": None}], "by_path": None},
        ),
    ],
)  # fmt: skip
def test_every_key_of_a_shape_is_printed_and_null_stands_for_what_is_unknown(
    given: dict[str, Any], completed: dict[str, Any]
) -> None:
    assert NESTED.complete(given) == completed
    validator = jsonschema_rs.validator_for(closed(document_schema("nested", NESTED)))
    assert validator.is_valid(NESTED.stamped(given))


def test_a_key_without_a_schema_is_printed_and_found_by_the_closed_schema_alone() -> None:
    schema = document_schema("nested", NESTED)
    document = NESTED.stamped({"name": "x", "new": 1})
    assert document["new"] == 1
    assert jsonschema_rs.validator_for(schema).is_valid(document), "a reader takes what a later release adds"
    assert not jsonschema_rs.validator_for(closed(schema)).is_valid(document)


def test_a_key_that_is_left_out_or_of_another_type_is_found() -> None:
    validator = jsonschema_rs.validator_for(document_schema("nested", NESTED))
    document = NESTED.stamped({"name": "x"})
    assert not validator.is_valid({key: value for key, value in document.items() if key != "note"})
    assert not validator.is_valid(document | {"name": None})
    assert not validator.is_valid(document | {"schema_version": 2})
