"""Object store on S3: conditional creates, replaces guarded by ETag. An answered write is durable."""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from scenario_runner.contracts.errors import ConfigurationError, SequenceError, Unavailable
from scenario_runner.contracts.paths import check_relative_posix
from scenario_runner.contracts.reasons import Reason
from scenario_runner.storage.base import ObjectTooLargeError, StoredObject
from scenario_runner.storage.identity import MARKER, MAX_MARKER, another_store, marker_bytes, parse_marker
from scenario_runner.storage.s3_client import BadKeyError, S3Bucket, TooLargeError

_MAX_LISTED: Final = 10_000_000
_PROBES: Final = 5
_SLOTS: Final = 256
_LANES: Final = 16
#: A proof costs a request: one a second, however many runs there are.
_PROOF_SECONDS: Final = 1.0
_NO_ETAG: Final = '"00000000000000000000000000000000"'


class S3Store:
    """See :class:`~scenario_runner.storage.base.ObjectStore`.

    Args:
        bucket: The bucket.
        prefix: Key prefix of the root, without slashes at its ends; may be empty.
        private: Folder under the root, as a key, for probes and the store's marker.
        pool: Threads that write many objects at once; one after the other without.
        token: Source of random words.
        monotonic: Seconds, never going back.
    """

    def __init__(
        self,
        bucket: S3Bucket,
        prefix: str,
        private: str,
        pool: ThreadPoolExecutor | None = None,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bucket, self._prefix, self._private, self._pool, self._token = bucket, prefix, private, pool, token
        self._monotonic = monotonic
        self._expected = ""
        self._found, self._proof_due = "", 0.0
        self._proving = threading.Lock()

    def _key(self, key: str) -> str:
        try:
            check_relative_posix(key)
            key.encode("utf-8")
        except ValueError as error:
            raise SequenceError(f"the object key {key!r} is not a normalised relative path: {error}") from error
        return f"{self._prefix}/{key}" if self._prefix else key

    # --- identity

    @property
    def _marker(self) -> str:
        return f"{self._private}/{MARKER}"

    @property
    def where(self) -> str:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        return self._bucket.uri(self._prefix).rstrip("/")

    def identity(self) -> str:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        where = self.locate(self._marker)
        try:
            found = self._bucket.get(self._key(self._marker), MAX_MARKER)
        except TooLargeError:
            return parse_marker(b"", where)
        return "" if found is None else parse_marker(bytes(found.data), where)

    def leave_identity(self, proposed: str) -> str:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        self._bucket.put(self._key(self._marker), marker_bytes(proposed))
        return self.identity()

    def expect(self, identity: str) -> None:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        self._expected, self._proof_due = identity, 0.0
        self._prove()

    def _prove(self) -> None:
        """Read the marker, unless that was a moment ago.

        Raises:
            Unavailable: this is another bucket, or an emptied one.
        """
        if not self._expected:
            return
        with self._proving:
            if self._monotonic() >= self._proof_due:
                self._found = self.identity()
                self._proof_due = self._monotonic() + _PROOF_SECONDS
        if self._found != self._expected:
            raise another_store(self.where, self._expected, self._found)

    # --- objects

    def create(self, key: str, data: bytes) -> bool:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        path = self._key(key)
        self._prove()
        return self._bucket.put(path, data)

    def create_many(self, items: Sequence[tuple[str, bytes]]) -> list[bool | Unavailable]:
        """See :class:`~scenario_runner.storage.base.ObjectStore`. Objects are written in parallel."""
        for key, _ in items:
            self._key(key)
        if not items:
            return []
        try:
            self._prove()
        except Unavailable as error:
            return [error] * len(items)
        first: dict[str, int] = {}
        for place, (key, _) in enumerate(items):
            first.setdefault(key, place)
        places = list(first.values())
        made = dict(zip(places, self._create_all([items[place] for place in places]), strict=True))
        return [made[place] if place in made else self._create_one(item) for place, item in enumerate(items)]

    def _create_one(self, item: tuple[str, bytes]) -> bool | Unavailable:
        try:
            return self.create(*item)
        except Unavailable as error:
            return error

    def _create_all(self, items: Sequence[tuple[str, bytes]]) -> list[bool | Unavailable]:
        """Create objects, in parallel where there are threads: each takes every n-th, so that few hands touch many."""
        lanes = min(_LANES, len(items))
        if self._pool is None or lanes <= 1:
            return [self._create_one(item) for item in items]
        made: list[bool | Unavailable] = [False] * len(items)

        def some(first: int) -> None:
            for place in range(first, len(items), lanes):
                made[place] = self._create_one(items[place])

        list(self._pool.map(some, range(lanes)))
        return made

    def read(self, key: str, limit: int) -> StoredObject | None:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        path = self._key(key)
        self._prove()  # nothing is absent from a store that is not there itself
        try:
            found = self._bucket.get(path, limit)
        except TooLargeError as error:
            raise ObjectTooLargeError(
                f"{self.locate(key)} holds {error.size} bytes, at most {limit} are read"
            ) from error
        return None if found is None else StoredObject(bytes(found.data), found.etag)

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        self._prove()
        return self._bucket.put(self._key(key), data, replacing=version or _NO_ETAG)

    def keys(self, prefix: str) -> list[str]:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        if prefix:
            self._key(prefix.removesuffix("/"))
        self._prove()
        folder = prefix.rpartition("/")[0]
        try:
            found = self._bucket.listing("/".join(filter(None, (self._prefix, folder))), _MAX_LISTED)
        except BadKeyError as error:
            raise Unavailable(f"cannot list {self._bucket.uri(folder)}: {error}") from error
        if found is None:
            raise Unavailable(f"{self._bucket.uri(folder)} holds more than {_MAX_LISTED} objects")
        skip = len(self._prefix) + 1 if self._prefix else 0
        keys = [item.key[skip:] for item in found]
        return [key for key in keys if key.startswith(prefix) and not key.startswith(self._private + "/")]

    def locate(self, key: str) -> str:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        return self._bucket.uri(self._key(key))

    def probe(self) -> None:
        """See :class:`~scenario_runner.storage.base.ObjectStore`.

        Uses a few objects again and again, so that it needs no permission to delete and leaves no heap behind.
        """
        if not any(self._probe_once(f"{self._private}/{self._slot()}") for _ in range(_PROBES)):
            raise ConfigurationError(
                self._bucket.uri(self._prefix),
                "the object store does not honour conditional writes (If-None-Match, If-Match), so write-once "
                "cannot be kept",
                "use a bucket of AWS S3, or a server and version that honours them",
                Reason.STORE_UNSAFE,
            )

    def _slot(self) -> str:
        return f"probe-{int(hashlib.sha256(self._token().encode()).hexdigest(), 16) % _SLOTS:03d}"

    def _probe_once(self, key: str) -> bool:
        """True when everything held; false also when another process probed at the same time."""
        first, second = (f"probe {self._token()}".encode() for _ in range(2))
        self.create(key, first)
        if self.create(key, second):
            return False
        before = self.read(key, 1 << 16)
        if before is None or before.data == second or not before.version:
            return False
        if self.replace(key, second, _NO_ETAG):
            return False
        replaced = self.replace(key, second, before.version)
        after = self.read(key, 1 << 16)
        return replaced and after is not None and after.data == second and after.version != before.version

    def sweep(self) -> int:
        """See :class:`~scenario_runner.storage.base.ObjectStore`. Nothing is ever left behind here."""
        return 0
