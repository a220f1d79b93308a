"""Changes of single files that several kinds of damage share."""

import os
from collections.abc import Callable
from pathlib import Path


def replace_by(path: Path, make: Callable[[Path], object]) -> None:
    """Put something else in place of a file."""
    path.unlink()
    make(path)


def replace_by_symlink(root: Path, path: Path) -> None:
    """Move a file elsewhere under the run root and leave a relative symlink to it."""
    parked = root / "parked" / path.name
    parked.parent.mkdir()
    path.rename(parked)
    path.symlink_to(os.path.relpath(parked, path.parent))


def hold_in_directory(path: Path) -> None:
    """Put a directory of the same name around a file."""
    held = path.with_name(path.name + ".held")
    path.rename(held)
    path.mkdir()
    held.rename(path / path.name)


def flip_first_byte(path: Path) -> None:
    """Change one byte, keep the size."""
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 0xFF]))


def one_bit_off(digest: str) -> str:
    """The digest with one bit changed."""
    return digest[:-1] + format(int(digest[-1], 16) ^ 1, "x")
