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
from scenario_runner.posix import O_CLOEXEC, O_DIRECTORY
from scenario_runner.storage.anchored import AnchoredRoot, anchored, fsync_directory
from scenario_runner.storage.base import UnreadableObjectError
from scenario_runner.storage.filesystem import FilesystemStore

PRIVATE: Final = ".private"
CLAIMED: Final = f"{PRIVATE}/claimed"
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

    def make(self, root: AnchoredRoot | None = None) -> None:
        """Create what is missing below the root; the root itself only where no identity of it is known.

        Args:
            root: The root, where it is open already.

        Raises:
            Unavailable: the root is not the known one, or a folder cannot be created.
        """
        root = root or AnchoredRoot(self.root)
        anchor = root.make()
        for folder in (self.requests, self.consumed, self.rejected, self.private, self.claimed):
            try:
                os.mkdir(os.path.relpath(folder, self.root), root.modes.folder, dir_fd=anchor.fd)
            except FileExistsError:
                continue
            except OSError as error:
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


def drop_request(spool: str | AnchoredRoot, message_id: str, data: bytes) -> str:
    """Drop a request durably into the spool: written under a hidden name, then renamed into place.

    Whoever may write to ``requests/`` may do so; the caller's umask decides who may read the file.

    Returns:
        Where it lies.

    Raises:
        Unavailable: it could not be written; nothing was dropped.
    """
    root = anchored(spool)
    folder = SpoolPaths(root.path).requests
    path = os.path.join(folder, f"{message_id}.json")
    anchor = root.make()
    try:
        with suppress(FileExistsError):
            os.mkdir(os.path.basename(folder), root.modes.folder, dir_fd=anchor.fd)
        fd = os.open(os.path.basename(folder), os.O_RDONLY | O_DIRECTORY | O_CLOEXEC, dir_fd=anchor.fd)
        try:
            _drop(fd, f"{message_id}.json", f".{message_id}.tmp", data)
        finally:
            os.close(fd)
        fsync_directory(".", anchor.fd)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from error
    root.prove(anchor)
    return path


def _drop(folder: int, name: str, hidden: str, data: bytes) -> None:
    fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | O_CLOEXEC, 0o666, dir_fd=folder)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(hidden, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(hidden, dir_fd=folder)
        raise
    os.fsync(folder)
