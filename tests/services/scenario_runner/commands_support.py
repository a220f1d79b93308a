"""Every command of the command line, as click knows it."""

from collections.abc import Iterator
from typing import Any

import typer.main

from scenario_runner.cli.main import app


def commands(group: Any = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The name and the command of each, such as ``("runs list", <Command>)``."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command
