"""Object store on S3: conditional creates, replaces guarded by ETag. An answered write is durable."""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from scenario_runner.contracts.errors import ConfigurationError, SequenceError, Unavailable
from scenario_runner.contracts.paths import check_relative_posix
from scenario_runner.contracts.reasons import Reason
from scenario_runner.storage.base import ObjectTooLargeError, StoredObject
from scenario_runner.storage.s3_client import BadKeyError, S3Bucket, TooLargeError

_MAX_LISTED: Final = 10_000_000
_PROBES: Final = 5
_SLOTS: Final = 256
_LANES: Final = 16
_NO_ETAG: Final = '"00000000000000000000000000000000"'


class S3Store:
    """See :class:`~scenario_runner.storage.base.ObjectStore`.

    Args:
        bucket: The bucket.
        prefix: Key prefix of the root, without slashes at its ends; may be empty.
        private: Folder under the root, as a key, for probes.
        pool: Threads that write many objects at once; one after the other without.
        token: Source of random words.
    """

    def __init__(
        self,
        bucket: S3Bucket,
        prefix: str,
        private: str,
        pool: ThreadPoolExecutor | None = None,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._bucket, self._prefix, self._private, self._pool, self._token = bucket, prefix, private, pool, token

    def _key(self, key: str) -> str:
        try:
            check_relative_posix(key)
            key.encode("utf-8")
        except ValueError as error:
            raise SequenceError(f"the object key {key!r} is not a normalised relative path: {error}") from error
        return f"{self._prefix}/{key}" if self._prefix else key

    def create(self, key: str, data: bytes) -> bool:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        return self._bucket.put(self._key(key), data)

    def create_many(self, items: Sequence[tuple[str, bytes]]) -> list[bool | Unavailable]:
        """See :class:`~scenario_runner.storage.base.ObjectStore`. Objects are written in parallel."""
        for key, _ in items:
            self._key(key)
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
        try:
            found = self._bucket.get(self._key(key), limit)
        except TooLargeError as error:
            raise ObjectTooLargeError(
                f"{self.locate(key)} holds {error.size} bytes, at most {limit} are read"
            ) from error
        return None if found is None else StoredObject(bytes(found.data), found.etag)

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        return self._bucket.put(self._key(key), data, replacing=version or _NO_ETAG)

    def keys(self, prefix: str) -> list[str]:
        """See :class:`~scenario_runner.storage.base.ObjectStore`."""
        if prefix:
            self._key(prefix.removesuffix("/"))
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
