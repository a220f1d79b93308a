"""Checks what a command printed under ``--json`` against the schema that ``contracts export`` writes for it.

The schemas are closed here: they let keys through that a later release may add, and a command of this release prints
none that its schema does not name.
"""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import jsonschema_rs

from scenario_runner.cli.outputs.table import DOCUMENTS, LINES, LISTS, file_name, output_schemas

COMMANDS = {*DOCUMENTS, *LINES, *LISTS}


def closed(schema: Any) -> Any:
    """The schema with ``additionalProperties: false`` for every object whose keys it names."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    return found | {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else found


@cache
def validator(name: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(closed(output_schemas()[name]))


def command_of(arguments: Sequence[str]) -> str:
    """The command of a command line; empty when it is none that prints JSON."""
    return next((name for name in (" ".join(arguments[:2]), *arguments[:1]) if name in COMMANDS), "")


#: Commands that print lines under --json, with the options that make them do so.
LINES_OF_JSON = {
    "reemit": ("--state", "--resume"),
    "runs wake": ("--missing",),
    "watch": ("--json",),
    "authority rebuild": ("--json",),
    "ledger check": ("--json",),
    "scrub": ("--json",),
}


def prints_lines(command: str, arguments: Sequence[str]) -> bool:
    if command == "dead-letter redrive":
        return arguments[2].startswith("-")
    return any(option in arguments for option in LINES_OF_JSON.get(command, ("--jsonl",)))


def check_output(arguments: Sequence[str], stdout: bytes) -> None:
    """Validate what a command printed; does nothing when it was not asked for JSON."""
    command = command_of(arguments)
    lines = bool(command) and prints_lines(command, arguments)
    asked = "--json" in arguments or "--jsonl" in arguments
    if not command or not asked or "--print" in arguments or not stdout:
        return
    for text in stdout.splitlines() if lines else [stdout]:
        document = json.loads(text)
        name = "error" if "error" in document and "line" not in document else file_name(command, line=lines)
        problems = [f"{error.instance_path}: {error.message}" for error in validator(name).iter_errors(document)]
        assert not problems, f"{' '.join(arguments)} printed no {name}: {problems[:3]}"
