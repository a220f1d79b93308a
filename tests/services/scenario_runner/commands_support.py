"""Every command of the command line, as click knows it; and what tests of several commands write and read."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main
from support import World

from scenario_runner.cli.main import app


def commands(group: Any = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The name and the command of each, such as ``("runs list", <Command>)``."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


UNKNOWN = "0" * 32


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its bytes; SQLite's own working files are left out."""
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.name.endswith(("-wal", "-shm"))
    }


def write_request(world: World, request: dict[str, Any], name: str = "request.json") -> str:
    path = world.root / name
    path.write_text(json.dumps(request), "utf-8")
    return str(path)


def edit(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        path.write_text(json.dumps(change(json.loads(path.read_bytes()))), "utf-8")

    return apply


def attributes(**fields: Any) -> Callable[[Path], None]:
    return edit(lambda document: document | {"attributes": document["attributes"] | fields})
