"""Writes the parts of the documents that are generated from the code: `python docs/site/generate.py`.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end of generated -->``. A test fails when one is
stale. NAME is one of:

* ``reason codes``: the closed list, a sentence each;
* ``fields NAME``: the fields of a wire document, or of a part that documents share, from its JSON Schema;
* ``commands``: the ``--help`` of every command;
* ``output schemas``: which command prints documents of which schema;
* ``metrics``: every metric of a daemon;
* ``alerts``: every alert of infra/monitoring/alerts.yaml;
* ``cost``, ``cost assumptions``, ``cost measured``: the tables of scripts/sr_tools/cost.py.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from scenario_runner.cli.outputs.table import DOCUMENTS as OUTPUTS
from scenario_runner.cli.outputs.table import LINES, LISTS, file_name
from scenario_runner.contracts.canonical import UINT64_MAX
from scenario_runner.contracts.documents import BOUNDARY_DOCUMENTS, DOCUMENTS
from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.contracts.schema_export import schema_of
from scenario_runner.contracts.types import NAME_PATTERN, SCENARIO_PATTERN
from scenario_runner.service.metrics import METRICS

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from sr_tools import cost

Json = dict[str, Any]
DOCS: Final = Path(__file__).resolve().parents[1]
ALERTS: Final = DOCS.parent / "infra/monitoring/alerts.yaml"
COMMAND: Final = Path(sys.executable).with_name("scenario-runner")
#: Width of the help texts: about as wide as a code block of the site.
COLUMNS: Final = "96"
_PART: Final = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end of generated -->)", flags=re.DOTALL)
_PATTERNS: Final = {
    "^[0-9a-f]{32}$": "`hex32`",
    "^[0-9a-f]{64}$": "`hex64`",
    NAME_PATTERN: "name",
    SCENARIO_PATTERN: "scenario id",
}


def reason_codes() -> str:
    """The table of reason codes."""
    rows = [f"| `{reason}` | {SENTENCES[reason]} |" for reason in Reason]
    return "\n".join(["| code | meaning |", "|---|---|", *rows])


# --- fields


def _parts() -> dict[str, Json]:
    """Every document and every part that documents share: name to JSON Schema. A shared document goes by its name."""
    models = {**DOCUMENTS, **BOUNDARY_DOCUMENTS}
    schemas = {name: schema_of(name, model) for name, model in models.items()}
    names = {model.__name__: name for name, model in models.items()}
    found = dict(schemas)
    for schema in schemas.values():
        for name, part in schema.get("$defs", {}).items():
            found.setdefault(names.get(name, name), part)
    return found


def _text(schema: Json) -> str:
    if schema.get("format") == "date-time":
        return "time"
    most = schema.get("maxLength")
    known = _PATTERNS.get(schema.get("pattern", ""), "text")
    return known if known.startswith("`") or most is None else f"{known}, at most {most} characters"


def _number(schema: Json) -> str:
    if (schema.get("minimum"), schema.get("maximum")) == (0, UINT64_MAX):
        return "`uint64`"
    return f"integer, at least {schema['minimum']}"


def _reference(schema: Json) -> str:
    models = {model.__name__: name for name, model in {**DOCUMENTS, **BOUNDARY_DOCUMENTS}.items()}
    name = schema["$ref"].rpartition("/")[2]
    name = models.get(name, name)
    return f"[{name}](#{name.lower()})"


def _list(schema: Json) -> str:
    least = schema.get("minItems", 0)
    return f"list of {_form(schema['items'])}" + (f"; at least {least}" if least else "")


def _object(schema: Json) -> str:
    if "patternProperties" not in schema:
        return "object, open"
    (value,) = schema["patternProperties"].values()
    return f"object: name to {_form(value)}"


def _form(schema: Json) -> str:
    """What a value looks like, in a few words."""
    keys: dict[str, Callable[[Json], str]] = {
        "$ref": _reference,
        "const": lambda schema: f"`{schema['const']}`",
        "enum": lambda schema: ", ".join(f"`{value}`" for value in schema["enum"]),
        "anyOf": lambda schema: " or ".join(_form(item) for item in schema["anyOf"]),
    }
    types: dict[str, Callable[[Json], str]] = {
        "string": _text, "integer": _number, "array": _list, "object": _object, "boolean": lambda _: "`true`, `false`",
    }  # fmt: skip
    for key, form in keys.items():
        if key in schema:
            return form(schema)
    return types[schema["type"]](schema)


def fields(name: str) -> str:
    """The table of the fields of a document, or of a part that documents share."""
    schema = _parts()[name]
    required = set(schema.get("required", ()))
    rows = [
        f"| `{field}` | {'yes' if field in required else ''} | {_form(form)} |"
        for field, form in schema["properties"].items()
    ]
    return "\n".join(["| field | required | form |", "|---|---|---|", *rows])


# --- commands


def _help_of(names: tuple[str, ...]) -> str:
    environment = {**os.environ, "COLUMNS": COLUMNS, "NO_COLOR": "1", "TERM": "dumb"}
    shown = subprocess.run(
        [COMMAND, *names, "--help"], capture_output=True, text=True, check=True, env=environment
    ).stdout
    return "\n".join(line.rstrip() for line in shown.strip().splitlines())


def _commands(names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command with its help, groups before their commands."""
    text = _help_of(names)
    yield names, text
    # Commands stand in the sections after the options, one or more of them.
    sections = text.partition("\nOptions:\n")[2].partition("\n\n")[2]
    for name in re.findall(r"^  ([a-z][a-z-]*)  ", sections, flags=re.MULTILINE):
        yield from _commands((*names, name))


def commands() -> str:
    """A section for each command with its help."""
    return "\n\n".join(
        f"## scenario-runner {' '.join(names)}".rstrip() + f"\n\n```text\n{text}\n```" for names, text in _commands()
    )


def output_schemas() -> str:
    """The table of the schemas of what the commands print."""
    with_lines = sorted({*LINES, *LISTS})
    rows = [f"| `{name} --json` | `{file_name(name)}.schema.yaml` |" for name in sorted({*OUTPUTS, *LISTS})]
    rows += [f"| a line of `{name}` | `{file_name(name, line=True)}.schema.yaml` |" for name in with_lines]
    return "\n".join(["| printed by | schema |", "|---|---|", *rows])


# --- metrics


def metrics() -> str:
    """The table of metrics; labels with many values are listed elsewhere."""
    rows = []
    for metric in METRICS:
        values = ", ".join(f"`{value}`" for value in metric.values)
        if metric.label == "reason":
            values = "[reason codes](../contracts.md#5-reason-codes), `other`"
        label = f"`{metric.label}`: {values or 'name of the shard, `spool`, `other`'}" if metric.label else ""
        rows.append(f"| `{metric.name}` | {metric.kind} | {metric.help} | {label} |")
    build = "| `sr_build_info` | gauge | 1; its labels say what runs. | `version`, `role` |"
    return "\n".join(["| metric | kind | meaning | label |", "|---|---|---|---|", *rows, build])


def alerts() -> str:
    """The table of alerts, in the order of their file."""
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    rows = []
    for alert in (alert for group in groups for alert in group["rules"]):
        name, condition = alert["alert"], " ".join(alert["expr"].split()).replace("|", "\\|")
        rows.append(f"| [{name}](#{name.lower()}) | {alert['labels']['severity']} | `{condition}` | {alert['for']} |")
    return "\n".join(["| alert | severity | condition | for |", "|---|---|---|---|", *rows])


# --- documents


def part(name: str) -> str:
    """The text of a generated part."""
    parts = {
        "reason codes": reason_codes, "commands": commands, "output schemas": output_schemas, "metrics": metrics,
        "alerts": alerts,
    }  # fmt: skip
    if name in parts:
        return parts[name]()
    if name in cost.TABLES:
        return cost.TABLES[name](yaml.safe_load(cost.ASSUMPTIONS.read_text("utf-8")))
    return fields(name.removeprefix("fields "))


def generated(text: str) -> str:
    """A document with its generated parts written anew."""
    return _PART.sub(lambda found: f"{found[1]}\n{part(found[2])}\n\n{found[3]}", text)


def documents() -> list[Path]:
    """The documents that have generated parts."""
    found = [*DOCS.glob("*.md"), *DOCS.glob("guides/*.md")]
    return [path for path in sorted(found) if _PART.search(path.read_text("utf-8"))]


def main() -> None:
    """Write every generated part anew; name the documents that changed."""
    for path in documents():
        old = path.read_text("utf-8")
        new = generated(old)
        if new != old:
            path.write_text(new, "utf-8", newline="\n")
            print(f"{path.relative_to(DOCS.parent)} is new")


if __name__ == "__main__":
    main()
