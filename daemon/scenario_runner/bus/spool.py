"""The embedded control bus: a spool directory.

``requests/*.json`` in, ``consumed/`` and ``rejected/`` once disposed of, ``{topic}/{message_id}.json`` out.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from scenario_runner.authority.base import OutboxRow
from scenario_runner.bus.base import Published
from scenario_runner.bus.envelope import signal_envelope, timeless
from scenario_runner.contracts.errors import ScenarioRunnerError, Unavailable
from scenario_runner.storage.anchored import AnchoredRoot, anchored
from scenario_runner.storage.filesystem import FilesystemStore

PRIVATE: Final = ".private"
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

    def make(self, root: AnchoredRoot | None = None) -> None:
        """Create what is missing below the root; the root itself only where no identity of it is known.

        Args:
            root: The root, where it is open already.

        Raises:
            Unavailable: the root is not the known one, or a folder cannot be created.
        """
        root = root or AnchoredRoot(self.root)
        anchor = root.make()
        for folder in (self.requests, self.consumed, self.rejected, self.private):
            try:
                os.mkdir(os.path.relpath(folder, self.root), root.modes.folder, dir_fd=anchor.fd)
            except OSError as error:
                if not os.path.isdir(folder):
                    raise Unavailable(f"cannot create the spool folder {folder}: {error.strerror}") from error


def spool_store(root: str | AnchoredRoot, pool: ThreadPoolExecutor | None = None) -> FilesystemStore:
    """The spool as an object store: durable conditional creates."""
    return FilesystemStore(root, PRIVATE, pool)


class SpoolPublisher:
    """Publishes signals as files, write-once.

    Args:
        root: The spool's root.
        topic: Folder and topic of the signals.
        pool: Threads that write.
    """

    def __init__(self, root: str | AnchoredRoot, topic: str, pool: ThreadPoolExecutor | None = None) -> None:
        self._store = spool_store(root, pool)
        self._topic = topic

    def publish(self, rows: Sequence[OutboxRow]) -> list[Published]:
        """See :class:`~scenario_runner.bus.base.SignalPublisher`."""
        envelopes = [(f"{self._topic}/{row.message_id}.json", signal_envelope(self._topic, row)) for row in rows]
        fitting = [item for item in envelopes if len(item[1]) <= MAX_RECORD_BYTES]
        made = dict(zip((key for key, _ in fitting), self._store.create_many(fitting), strict=True))
        return [
            Published(row.outbox_id, self._error(key, data, made.get(key)))
            for row, (key, data) in zip(rows, envelopes, strict=True)
        ]

    def _error(self, key: str, data: bytes, made: object) -> str:
        """Empty when the signal is durably on the bus."""
        if made is None:
            return f"the signal holds {len(data)} bytes, the bus takes at most {MAX_RECORD_BYTES}"
        if isinstance(made, Unavailable):
            return made.detail
        try:
            stored = None if made else self._store.read(key, MAX_RECORD_BYTES)
        except ScenarioRunnerError as error:
            return error.detail
        if made or (stored is not None and timeless(stored.data) == timeless(data)):
            return ""
        return f"{self._store.locate(key)} already holds another message; move it away"


def drop_request(spool: str | AnchoredRoot, message_id: str, data: bytes) -> str:
    """Drop a request durably into the spool.

    Returns:
        Where it lies.
    """
    root = anchored(spool)
    SpoolPaths(root.path).make(root)
    store = spool_store(root)
    key = f"requests/{message_id}.json"
    store.create(key, data)
    return store.locate(key)
