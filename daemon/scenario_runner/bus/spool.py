"""The embedded control bus: a spool directory.

``requests/*.json`` in, ``consumed/`` and ``rejected/`` once disposed of, ``{topic}/{message_id}.json`` out. On
its way a request lies in ``.private/claimed/``.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from scenario_runner.authority.base import OutboxRow
from scenario_runner.bus.base import Published
from scenario_runner.bus.envelope import signal_envelope, timeless
from scenario_runner.contracts.errors import ScenarioRunnerError, Unavailable
from scenario_runner.storage.anchored import fsync_directory
from scenario_runner.storage.base import UnreadableObjectError
from scenario_runner.storage.filesystem import FilesystemStore

PRIVATE: Final = ".private"
CLAIMED: Final = f"{PRIVATE}/claimed"
FOLDER_MODE: Final = 0o700
"""Of folders that SR makes in a spool; one that is there keeps its mode."""
MAX_RECORD_BYTES: Final = 1 << 20
"""A record of the control bus holds at most 1 MiB, as on Kinesis."""


@dataclass(frozen=True, slots=True)
class SpoolPaths:
    """Folders of a spool."""

    root: str

    @property
    def requests(self) -> str:
        """Dropped requests, renamed into place."""
        return os.path.join(self.root, "requests")

    @property
    def consumed(self) -> str:
        """Requests that were durably admitted."""
        return os.path.join(self.root, "consumed")

    @property
    def rejected(self) -> str:
        """Requests that were refused, each with a reason file."""
        return os.path.join(self.root, "rejected")

    @property
    def private(self) -> str:
        """Files on their way."""
        return os.path.join(self.root, PRIVATE)

    @property
    def claimed(self) -> str:
        """Requests that an intake has taken and not put away yet, each lot in a folder of its own."""
        return os.path.join(self.root, CLAIMED)

    def make(self) -> None:
        """Create what is missing.

        Raises:
            Unavailable: a folder cannot be made.
        """
        for folder in (self.root, self.requests, self.consumed, self.rejected, self.private, self.claimed):
            _make_folder(folder)


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, FOLDER_MODE, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"cannot create the spool folder {folder}: {error.strerror}") from error


def spool_store(root: str, pool: ThreadPoolExecutor | None = None) -> FilesystemStore:
    """The spool as an object store: durable conditional creates."""
    return FilesystemStore(root, PRIVATE, pool)


class SpoolPublisher:
    """Publishes signals as files, write-once.

    Args:
        root: The spool's root.
        topic: Folder and topic of the signals.
        pool: Threads that write.
    """

    def __init__(self, root: str, topic: str, pool: ThreadPoolExecutor | None = None) -> None:
        self._store = spool_store(root, pool)
        self._topic = topic

    def publish(self, rows: Sequence[OutboxRow]) -> list[Published]:
        """See :class:`~scenario_runner.bus.base.SignalPublisher`."""
        envelopes = [(f"{self._topic}/{row.message_id}.json", signal_envelope(self._topic, row)) for row in rows]
        fitting = [item for item in envelopes if len(item[1]) <= MAX_RECORD_BYTES]
        made = dict(zip((key for key, _ in fitting), self._store.create_many(fitting), strict=True))
        return [
            self._published(row.outbox_id, key, data, made.get(key))
            for row, (key, data) in zip(rows, envelopes, strict=True)
        ]

    def _published(self, outbox_id: int, key: str, data: bytes, made: object) -> Published:
        """What became of a signal; ``made`` is what its create gave, None when it was too large to be tried."""
        if made is None:
            problem = f"the signal holds {len(data)} bytes, the bus takes at most {MAX_RECORD_BYTES}"
            return Published(outbox_id, problem, lasting=True)
        if isinstance(made, Unavailable):
            return Published(outbox_id, made.detail)
        try:
            stored = None if made else self._store.read(key, MAX_RECORD_BYTES)
        except UnreadableObjectError as error:
            return Published(outbox_id, error.detail, lasting=True)
        except ScenarioRunnerError as error:
            return Published(outbox_id, error.detail)
        if made or (stored is not None and timeless(stored.data) == timeless(data)):
            return Published(outbox_id, "")
        return Published(
            outbox_id, f"{self._store.locate(key)} already holds another message; move it away", lasting=True
        )


def drop_request(root: str, message_id: str, data: bytes) -> str:
    """Drop a request durably into the spool: written under a hidden name, then renamed into place.

    Whoever may write to ``requests/`` may do so; the caller's umask decides who may read the file.

    Returns:
        Where it lies.

    Raises:
        Unavailable: it could not be written; nothing was dropped.
    """
    folder = SpoolPaths(root).requests
    _make_folder(root)
    _make_folder(folder)
    path, hidden = os.path.join(folder, f"{message_id}.json"), os.path.join(folder, f".{message_id}.tmp")
    try:
        try:
            with open(hidden, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(hidden, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(hidden)
            raise
        for made in (folder, root):
            fsync_directory(made)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from error
    return path
