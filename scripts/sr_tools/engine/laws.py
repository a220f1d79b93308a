"""The hashing laws, as the engine computes them.

Written from the text of the interface pack and independently of ``scenario_runner.gates``: two implementations that
agree over every run of the tests are the second opinion. Digests are lowercase hex sha256.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from sr_tools.engine.files import CHUNK
from sr_tools.engine.identity import sha256_hex
from sr_tools.engine.pack import BUNDLE_LAW, CONCAT_LAW, Gate

#: Shapes of an index document, chosen by gate position: a list, or an object with the list under one of these names.
INDEX_SHAPES: Final = ("items", "entries", "list", "files", "members")


def digest_of(paths: Iterable[Path]) -> str:
    """Digest of the raw bytes of files, one after the other."""
    state = hashlib.sha256()
    for chunk in _chunks(paths):
        state.update(chunk)
    return state.hexdigest()


def _chunks(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk


def files_below(directory: Path) -> list[Path]:
    """Every regular file under a directory, in byte order of its relative POSIX path."""
    found = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(found, key=lambda path: os.fsencode(path.relative_to(directory).as_posix()))


def index_entries(document: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - any JSON document
    """The list of entries within an index document of any shape; changing it changes the document."""
    if isinstance(document, dict):
        document = next(document[shape] for shape in INDEX_SHAPES if shape in document)
    entries: list[dict[str, Any]] = document
    return entries


def law_digest(root: Path, gate: Gate) -> str:
    """The digest that the gate's law gives over the bundle as it lies under ``root``.

    It trusts the index: no listed digest is checked, entries without a path or digest are skipped. Damaged bundles are
    sealed again with it, so that only a reader who checks more than the flag notices.

    Raises:
        OSError: A listed member cannot be read.
    """
    if gate.law == BUNDLE_LAW:
        files = files_below(root / gate.bundle)
        return digest_of(p for p in files if not gate.is_excluded(p.relative_to(root).as_posix()))
    entries = index_entries(json.loads((root / str(gate.index)).read_bytes()))
    if gate.law == CONCAT_LAW:
        return sha256_hex("".join(e[gate.digest_field] for e in entries if gate.digest_field in e).encode())
    paths = [entry["path"] for entry in entries if "path" in entry]
    if gate.by_path:
        paths.sort(key=os.fsencode)
    kept = (path for path in paths if not gate.is_excluded(gate.member_base + path))
    return digest_of(root / gate.member_base / path for path in kept)
