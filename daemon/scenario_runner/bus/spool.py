"""The embedded control bus: a spool directory.

Requests are dropped as ``requests/*.json`` and move to ``consumed/`` or ``rejected/`` once they are disposed of; in
between they lie in ``.private/claimed/``. Signals appear as ``{topic}/{message_id}.json``, and one that is published
again as ``{topic}/{message_id}.reemit-{n}.json``.
"""

import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

from typing_extensions import override

from scenario_runner.authority.values import OutboxRow
from scenario_runner.bus.base import PublishResult, SignalPublisher
from scenario_runner.bus.envelope import signal_envelope, signal_file_name, without_publication_time
from scenario_runner.contracts.errors import ScenarioRunnerError, Unavailable
from scenario_runner.storage.anchored import AnchoredRoot, anchored
from scenario_runner.storage.base import UnreadableObjectError
from scenario_runner.storage.filesystem import FilesystemStore

PRIVATE: Final = ".private"
CLAIMED: Final = f"{PRIVATE}/claimed"
MAX_RECORD_BYTES: Final = 1 << 20
"""A message of the control bus holds at most 1 MiB, as on Kinesis."""
#: Mode of a dropped request, which the daemon of another user must read; the umask of the producer narrows it.
_ANY_READER: Final = 0o666


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

    def folders(self) -> tuple[str, ...]:
        """The root and every folder of a spool."""
        return (self.root, self.requests, self.consumed, self.rejected, self.private, self.claimed)

    def make(self, root: AnchoredRoot | None = None) -> None:
        """Create the folders that are missing, and the root itself if no identity of it is known.

        Args:
            root: The root, when it is open already.

        Raises:
            Unavailable: The root is another one than the known one, or a folder cannot be created.
        """
        root = root or AnchoredRoot(self.root)
        anchor = root.make()
        for folder in self.folders()[1:]:
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
        self._root = anchored(root)
        self._store = spool_store(self._root, pool)
        self._topic = topic

    @override
    def publish(self, rows: Sequence[OutboxRow]) -> list[PublishResult]:
        envelopes = [
            (f"{self._topic}/{signal_file_name(row.message_id, row.emission)}", signal_envelope(self._topic, row))
            for row in rows
        ]
        fitting = [item for item in envelopes if len(item[1]) <= MAX_RECORD_BYTES]
        made = dict(zip((key for key, _ in fitting), self._store.create_many(fitting), strict=True))
        return [
            self._result(row.outbox_id, key, data, made.get(key))
            for row, (key, data) in zip(rows, envelopes, strict=True)
        ]

    @override
    def check(self) -> None:
        self._root.proven()

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


class RequestFolder:
    """Drops requests into a spool, durably, as any producer may who may write to ``requests/``.

    The caller's umask decides who may read the files. Nothing but ``requests/`` is written to: producers may not be
    allowed into the private folder.

    Args:
        spool: Root folder of the spool.
        pool: Threads that write; None to write in the calling thread.
    """

    def __init__(self, spool: str | AnchoredRoot, pool: ThreadPoolExecutor | None = None) -> None:
        root = anchored(spool)
        self._folder = os.path.basename(SpoolPaths(root.path).requests)
        # A temporary name begins with a dot, so that no intake takes the file before it is complete.
        self._store = FilesystemStore(root, self._folder, pool, _hidden_name, replace(root.modes, file=_ANY_READER))

    def drop(self, requests: Sequence[tuple[str, bytes]]) -> list[str | Unavailable]:
        """Drop requests, each as a file of its own; one fsync of the folder makes the names of all of them durable.

        Args:
            requests: Message id and envelope of each.

        Returns:
            For each the path of its file, or why it is not there. A request whose message id lies there already gets
            another name: nothing is overwritten, and every submission is a record of its own.
        """
        dropped = self._create([f"{message_id}.json" for message_id, _ in requests], requests)
        again = [index for index, result in enumerate(dropped) if result is None]
        names = [f"{requests[index][0]}.{secrets.token_hex(4)}.json" for index in again]
        for index, result in zip(again, self._create(names, [requests[index] for index in again]), strict=True):
            dropped[index] = result
        return [result or Unavailable("the file's name is taken") for result in dropped]

    def _create(self, names: Sequence[str], requests: Sequence[tuple[str, bytes]]) -> list[str | Unavailable | None]:
        """Create files; a result is None where the name is taken."""
        keys = [f"{self._folder}/{name}" for name in names]
        made = self._store.create_many([(key, data) for key, (_, data) in zip(keys, requests, strict=True)])
        return [
            result if isinstance(result, Unavailable) else self._store.locate(key) if result else None
            for key, result in zip(keys, made, strict=True)
        ]


def _hidden_name() -> str:
    return f".{secrets.token_hex(8)}"
