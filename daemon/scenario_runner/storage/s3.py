"""Object store on S3: conditional creates, replaces guarded by ETag. An answered write is durable."""

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from typing_extensions import override

from scenario_runner.contracts.errors import ConfigurationError, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.storage.base import (
    ListedObject,
    ObjectReader,
    ObjectStore,
    ObjectTooLargeError,
    StoredObject,
    check_key,
)
from scenario_runner.storage.identity import MARKER, MAX_MARKER, another_store, marker_bytes, parse_marker
from scenario_runner.storage.s3_client import S3Bucket, TooLargeError

#: Probes before a store is called unsafe: one fails when another process probes the same object at the same time.
_PROBES: Final = 5
#: Objects that probes use. Few, because they are never deleted; enough that two processes seldom take the same one.
_PROBE_OBJECTS: Final = 256
#: Most threads for one batch: as many as it has runs, so that each of its stages takes one round trip.
_CREATORS: Final = 64
#: A proof costs a request: one a second, however many runs there are.
_PROOF_SECONDS: Final = 1.0
#: An ETag that no object has.
_NO_ETAG: Final = '"00000000000000000000000000000000"'
#: The ETag of an object that was put at once: the MD5 of its bytes, or of what they were encrypted to.
_MD5: Final = re.compile(r'"([0-9a-f]{32})"')


class S3Store(ObjectStore):
    """Objects below a prefix of a bucket.

    Args:
        bucket: The bucket.
        prefix: Key prefix of the root, without slashes at its ends; may be empty.
        private: Folder under the root, as a key, for probes and the store's marker.
        pool: Threads that write many objects at once; one after the other without.
        token: Source of random names.
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
        check_key(key)
        return f"{self._prefix}/{key}" if self._prefix else key

    # --- identity

    @property
    def _marker(self) -> str:
        return f"{self._private}/{MARKER}"

    @property
    @override
    def where(self) -> str:
        return self._bucket.uri(self._prefix).rstrip("/")

    @override
    def identity(self) -> str:
        where = self.locate(self._marker)
        try:
            found = self._bucket.get(self._key(self._marker), MAX_MARKER)
        except TooLargeError:
            return parse_marker(b"", where)
        return "" if found is None else parse_marker(bytes(found.data), where)

    @override
    def leave_identity(self, proposed: str) -> str:
        self._bucket.put(self._key(self._marker), marker_bytes(proposed))
        return self.identity()

    @override
    def expect(self, identity: str) -> None:
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

    @override
    def create(self, key: str, data: bytes) -> bool:
        path = self._key(key)
        self._prove()
        return self._bucket.put(path, data)

    @override
    def create_many(self, items: Sequence[tuple[str, bytes]]) -> list[bool | Unavailable]:
        """Create the objects in parallel."""
        for key, _ in items:
            self._key(key)
        if not items:
            return []
        try:
            self._prove()
        except Unavailable as error:
            return [error] * len(items)
        first: dict[str, int] = {}
        for index, (key, _) in enumerate(items):
            first.setdefault(key, index)
        firsts = list(first.values())
        created = dict(zip(firsts, self._create_all([items[index] for index in firsts]), strict=True))
        return [created[index] if index in created else self._create_one(item) for index, item in enumerate(items)]

    def _create_one(self, item: tuple[str, bytes]) -> bool | Unavailable:
        try:
            return self.create(*item)
        except Unavailable as error:
            return error

    def _create_all(self, items: Sequence[tuple[str, bytes]]) -> list[bool | Unavailable]:
        """Create objects with different keys, in parallel where there is a pool.

        The items are striped over few tasks: handing a task to a thread costs about as much CPU as a request.
        """
        stripes = min(_CREATORS, len(items))
        if self._pool is None or stripes <= 1:
            return [self._create_one(item) for item in items]
        created: list[bool | Unavailable] = [False] * len(items)

        def create_stripe(first: int) -> None:
            for index in range(first, len(items), stripes):
                created[index] = self._create_one(items[index])

        list(self._pool.map(create_stripe, range(stripes)))
        return created

    @override
    def held(self) -> ObjectReader:
        return self  # each use of the store proves it, at most once a second

    @override
    def read(self, key: str, limit: int) -> StoredObject | None:
        path = self._key(key)
        self._prove()  # otherwise an object would seem absent from a bucket that is not ours
        try:
            found = self._bucket.get(path, limit)
        except TooLargeError as error:
            raise ObjectTooLargeError(
                f"{self.locate(key)} holds {error.size} bytes, at most {limit} are read"
            ) from error
        return None if found is None else StoredObject(bytes(found.data), found.etag)

    @override
    def replace(self, key: str, data: bytes, version: str) -> bool:
        self._prove()
        return self._bucket.put(self._key(key), data, replacing=version or _NO_ETAG)

    @override
    def settle(self, key: str) -> None:
        """Do nothing: what can be read is durable."""

    @override
    def list_objects(self, folder: str) -> Iterator[ListedObject]:
        path, own = self._key(folder), len(self._key(folder)) - len(folder)
        self._prove()
        last = ""
        for item in self._bucket.pages(path):
            if item.key <= last:
                raise Unavailable(f"{self.locate(folder)} is not listed in the order of its keys")
            last = item.key
            yield ListedObject(item.key[own:], item.size, item.modified_us, _md5_of(item.etag))
        self._prove()

    @override
    def locate(self, key: str) -> str:
        return self._bucket.uri(self._key(key))

    @override
    def probe(self) -> None:
        """Probe with a few objects that are used again and again.

        So no permission to delete is needed, and the number of objects does not grow.
        """
        if not any(self._probe_once(f"{self._private}/{self._probe_object()}") for _ in range(_PROBES)):
            raise self._unsafe()

    @override
    def examine(self) -> bool:
        """Try conditions that do not hold, on the marker of the store and with its own bytes.

        A server that ignores them then changes nothing. Before the first start there is no marker: then only a replace
        is tried, of an object that is not there.
        """
        found = self.read(self._marker, MAX_MARKER)
        key = self._marker if found is not None else f"{self._private}/{self._probe_object()}"
        data = found.data if found is not None else b"probe"
        if self.replace(key, data, _NO_ETAG) or (found is not None and self.create(key, data)):
            raise self._unsafe()
        return found is not None

    def _unsafe(self) -> ConfigurationError:
        return ConfigurationError(
            self._bucket.uri(self._prefix),
            "the object store does not honour conditional writes (If-None-Match, If-Match), so write-once cannot be "
            "kept",
            "use a bucket of AWS S3, or a server and version that honours them",
            Reason.STORE_UNSAFE,
        )

    def _probe_object(self) -> str:
        return f"probe-{int(hashlib.sha256(self._token().encode()).hexdigest(), 16) % _PROBE_OBJECTS:03d}"

    def _probe_once(self, key: str) -> bool:
        """True when every condition held; False also when another process probed the same object at the same time."""
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

    @override
    def sweep(self) -> int:
        """Do nothing: there are no temporary objects."""
        return 0


def _md5_of(etag: str) -> str:
    """The MD5 that an ETag may be; empty when it is none."""
    found = _MD5.fullmatch(etag)
    return found[1] if found else ""
