"""What lies in an object store, seen past its interface; and calls of the system that fail when they are told to."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scenario_runner.storage.base import ObjectStore
from scenario_runner.storage.filesystem import FilesystemStore
from scenario_runner.storage.s3 import S3Store


def objects_in(store: ObjectStore, folder: str = "") -> list[str]:
    """Keys of the objects in a folder of a store, sorted; without those of its private folder."""
    if isinstance(store, FilesystemStore):
        root = Path(store.root)
        found = [path.relative_to(root).as_posix() for path in (root / folder).rglob("*") if not path.is_dir()]
    else:
        assert isinstance(store, S3Store)
        listed = store._bucket.listing("/".join(filter(None, (store._prefix, folder))), 100_000)
        assert listed is not None
        found = [item.key.removeprefix(store._prefix).lstrip("/") for item in listed]
    return sorted(key for key in found if not key.startswith(store._private + "/"))


PREFIX = "fraud-platform/sr"
PRIVATE = f"{PREFIX}/.private"
MANY = 1 << 20


def version(store: ObjectStore, key: str) -> str:
    found = store.read(key, MANY)
    assert found is not None
    return found.version


def private_files(store: FilesystemStore) -> list[str]:
    folder = os.path.join(store.root, PRIVATE)
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock")) if os.path.isdir(folder) else []


def failing(real: Callable[..., Any], code: int, when: Callable[..., bool]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        if when(*arguments):
            raise OSError(code, os.strerror(code))
        return real(*arguments, **options)

    return call
