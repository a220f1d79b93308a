"""``contracts export``: the JSON Schemas of the wire contracts and of what the commands print, as YAML files."""

import os
from typing import Final

import yaml

from scenario_runner.cli.console import exit_on_error, print_json, print_line
from scenario_runner.cli.outputs.acting import CONTRACTS_EXPORT
from scenario_runner.cli.outputs.table import output_schemas
from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.schema_export import all_schemas

FOLDER: Final = "platform/contracts/scenario_runner_cli"
"""Folder of the schemas of what the commands print; beside that of the wire contracts."""


def run(directory: str, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        written = export_contracts(directory)
    if as_json:
        print_json({"written": written}, CONTRACTS_EXPORT)
        return
    for path in written:
        print_line(path)


def export_contracts(directory: str) -> list[str]:
    """Write every schema; returns the paths.

    Raises:
        Unavailable: a file cannot be written.
    """
    written = []
    for name, schema in exported().items():
        path = os.path.join(directory, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8", newline="\n") as file:
                file.write(_as_yaml(schema))
        except OSError as error:
            raise Unavailable(f"cannot write {path}: {error.strerror}") from error
        written.append(path)
    return written


def exported() -> dict[str, Json]:
    """Every schema by its path below the directory."""
    return all_schemas() | {f"{FOLDER}/{name}.schema.yaml": schema for name, schema in output_schemas().items()}


def _as_yaml(schema: object) -> str:
    return yaml.safe_dump(schema, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False)
