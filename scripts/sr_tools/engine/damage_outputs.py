"""Damage to one written output."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sr_tools.engine.damage_files import replace_by, replace_by_symlink
from sr_tools.engine.errors import MakeRunError


@dataclass(frozen=True)
class WrittenOutput:
    """The output that a damage goes to; ``outside`` is a directory next to the run root."""

    root: Path
    files: list[Path]
    outside: Path


def _remove(output: WrittenOutput, *, directories: bool) -> None:
    """Remove the files of an output, and if asked the directories that this leaves empty."""
    for path in output.files:
        path.unlink()
    empty = output.files[0].parent
    while directories and empty != output.root and not any(empty.iterdir()):
        empty.rmdir()
        empty = empty.parent


def _move_outside(output: WrittenOutput) -> None:
    """Move the directory of the files out of the run root and leave a relative symlink to it."""
    parent = output.files[0].parent
    if parent == output.root:
        raise MakeRunError("this output lies at the run root itself; name another with --damage-target")
    output.outside.mkdir()
    target = parent.rename(output.outside / parent.name)
    parent.symlink_to(os.path.relpath(target, parent.parent))


OUTPUT_DAMAGES: Final[Mapping[str, Callable[[WrittenOutput], object]]] = {
    "output_missing": lambda o: _remove(o, directories=True),
    "output_empty_directory": lambda o: _remove(o, directories=False),
    "output_part_is_directory": lambda o: replace_by(o.files[-1], os.mkdir),
    "output_part_symlink": lambda o: replace_by_symlink(o.root, o.files[-1]),
    "output_part_fifo": lambda o: replace_by(o.files[-1], os.mkfifo),
    "output_root_symlink": _move_outside,
}
