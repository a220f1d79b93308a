"""The embedded control bus: a spool directory.

Requests are dropped as ``requests/*.json`` and move to ``consumed/`` or ``rejected/`` once they are disposed of; in
between they lie in ``.private/claimed/``. Signals appear as ``{topic}/{message_id}.json``.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from typing_extensions import override

from scenario_runner.authority.base import OutboxRow
from scenario_runner.bus.base import PublishResult, SignalPublisher
from scenario_runner.bus.envelope import signal_envelope, without_publication_time
from scenario_runner.contracts.errors import ScenarioRunnerError, Unavailable
from scenario_runner.posix import O_CLOEXEC, O_DIRECTORY
from scenario_runner.storage.anchored import AnchoredRoot, anchored, fsync_directory
from scenario_runner.storage.base import UnreadableObjectError
from scenario_runner.storage.filesystem import FilesystemStore

PRIVATE: Final = ".private"
CLAIMED: Final = f"{PRIVATE}/claimed"
MAX_RECORD_BYTES: Final = 1 << 20
"""A message of the control bus holds at most 1 MiB, as on Kinesis."""


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
        """Files that are being written or processed; nobody but the daemon opens this folder."""
        return os.path.join(self.root, PRIVATE)

    @property
    def claimed(self) -> str:
        """Requests that an intake has claimed and not moved on yet; each lot of claims is a folder."""
        return os.path.join(self.root, CLAIMED)

    def make(self, root: AnchoredRoot | None = None) -> None:
        """Create the folders that are missing, and the root itself if no identity of it is known.

        Args:
            root: The root, when it is open already.

        Raises:
            Unavailable: The root is another one than the known one, or a folder cannot be created.
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


class SpoolPublisher(SignalPublisher):
    """Publishes signals as files, write-once.

    Args:
        root: Root folder of the spool.
        topic: Folder and topic of the signals.
        pool: Threads that write; None to write in the calling thread.
    """

    def __init__(self, root: str | AnchoredRoot, topic: str, pool: ThreadPoolExecutor | None = None) -> None:
        self._store = spool_store(root, pool)
        self._topic = topic

    @override
    def publish(self, rows: Sequence[OutboxRow]) -> list[PublishResult]:
        envelopes = [(f"{self._topic}/{row.message_id}.json", signal_envelope(self._topic, row)) for row in rows]
        fitting = [item for item in envelopes if len(item[1]) <= MAX_RECORD_BYTES]
        made = dict(zip((key for key, _ in fitting), self._store.create_many(fitting), strict=True))
        return [
            self._result(row.outbox_id, key, data, made.get(key))
            for row, (key, data) in zip(rows, envelopes, strict=True)
        ]

    def _result(self, outbox_id: int, key: str, data: bytes, made: object) -> PublishResult:
        """The result of one signal.

        Args:
            outbox_id: The signal.
            key: Key of its file.
            data: Its envelope.
            made: What creating the file returned; None when the signal is too large, so that it was not tried.
        """
        if made is None:
            problem = f"the signal holds {len(data)} bytes, the bus takes at most {MAX_RECORD_BYTES}"
            return PublishResult(outbox_id, problem, permanent=True)
        if isinstance(made, Unavailable):
            return PublishResult(outbox_id, made.detail)
        try:
            stored = None if made else self._store.read(key, MAX_RECORD_BYTES)
        except UnreadableObjectError as error:
            return PublishResult(outbox_id, error.detail, permanent=True)
        except ScenarioRunnerError as error:
            return PublishResult(outbox_id, error.detail)
        if made or (stored is not None and without_publication_time(stored.data) == without_publication_time(data)):
            return PublishResult(outbox_id, "")
        return PublishResult(
            outbox_id, f"{self._store.locate(key)} already holds another message; move it away", permanent=True
        )


def drop_request(spool: str | AnchoredRoot, message_id: str, data: bytes) -> str:
    """Drop a request durably into the spool: written under a hidden name, then renamed into place.

    Every user who may write to ``requests/`` may do so; the caller's umask decides who may read the file.

    Returns:
        The path of the file.

    Raises:
        Unavailable: It could not be written; nothing was dropped.
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
