"""``contracts export``: the JSON Schemas as YAML files."""

import os

import yaml

from scenario_runner.cli.console import exit_on_error, print_json, print_line
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.contracts.schema_export import all_schemas


def run(directory: str, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        written = export_contracts(directory)
    if as_json:
        print_json({"written": written})
        return
    for path in written:
        print_line(path)


def export_contracts(directory: str) -> list[str]:
    """Write every schema; returns the paths.

    Raises:
        Unavailable: a file cannot be written.
    """
    written = []
    for name, schema in all_schemas().items():
        path = os.path.join(directory, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8", newline="\n") as file:
                file.write(_as_yaml(schema))
        except OSError as error:
            raise Unavailable(f"cannot write {path}: {error.strerror}") from error
        written.append(path)
    return written


def _as_yaml(schema: object) -> str:
    return yaml.safe_dump(schema, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False)
