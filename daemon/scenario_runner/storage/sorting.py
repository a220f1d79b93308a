"""Sorting a listing of any length in bounded memory: sorted parts go to temporary files, and are merged."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from heapq import merge
from itertools import islice
from operator import attrgetter
from tempfile import TemporaryFile
from typing import IO, Final

from scenario_runner.storage.base import ListedObject

#: Objects that are held in memory: some 15 MB.
_PART: Final = 50_000


def sorted_objects(objects: Iterable[ListedObject], part: int = _PART) -> Iterator[ListedObject]:
    """The objects in the order of their keys.

    Args:
        objects: In any order.
        part: Most that are held in memory.

    Raises:
        OSError: a temporary file cannot be written.
    """
    source = iter(objects)
    by_key = attrgetter("key")
    held = sorted(islice(source, part), key=by_key)
    if len(held) < part:
        yield from held
        return
    with ExitStack() as stack:
        files: list[IO[str]] = []
        while held:
            # ASCII: names that are no UTF-8 survive as escapes.
            file = stack.enter_context(TemporaryFile("w+", encoding="ascii"))
            file.writelines(json.dumps([item.key, item.size, item.modified_us, item.md5]) + "\n" for item in held)
            file.seek(0)
            files.append(file)
            held = sorted(islice(source, part), key=by_key)
        yield from merge(*map(_read, files), key=by_key)


def _read(file: IO[str]) -> Iterator[ListedObject]:
    return (ListedObject(*json.loads(line)) for line in file)
