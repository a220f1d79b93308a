"""Write-once objects: created, or found with the same bytes. Anything else in their place is drift."""

import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

from scenario_runner.contracts.canonical import sha256_hex
from scenario_runner.contracts.errors import LedgerDrift, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.storage.base import ObjectStore, UnreadableObjectError

MAX_DOCUMENT: Final = 64 << 20
"""Most bytes that are read of a document of our own: far more than any holds, and little enough for memory."""

WriteOnce = tuple[str, bytes, Reason]
"""An object to write once: key, bytes, and the reason code when other bytes are there."""

Same = Callable[[Any, Any], bool]
"""Whether stored bytes (first) count as the bytes to write (second)."""

Failure = LedgerDrift | Unavailable

#: Keys in the cache: some 9 MB, which it takes within minutes and never exceeds. At the highest rate these are the keys
#: of 15 seconds; a key that was dropped costs one call to create and one read more.
_MAX_CACHED: Final = 20_000


def drift_of(store: ObjectStore, key: str, reason: Reason, expected: str, actual: str, problem: str) -> LedgerDrift:
    """What is wrong with an object of ours, naming it and both digests.

    Args:
        store: Where it lies.
        key: Its key.
        reason: Reason code.
        expected: sha256 of what belongs there.
        actual: sha256 of what is there; empty when no bytes could be read.
        problem: What is wrong with it; may begin with the object's location.
    """
    location = store.locate(key)
    found = f"sha256 {actual} is there" if actual else "no readable object is there"
    detail = f"{location}: {problem.removeprefix(location).strip()}; {found}, sha256 {expected} belongs there"
    return LedgerDrift(detail, reason, place=location, expected=expected, actual=actual)


class WriteOnceObjects:
    """Writes objects once, in batches.

    Keeps the digests of objects that this process wrote or compared. Within ``cache_ttl_seconds`` an object whose
    digest is the wanted one is not read again. So the cache can only say that an object holds what is to be written; a
    write of other bytes always reads the store. The cost of a stale entry: an object that was replaced in the meantime
    is found one write later.

    Args:
        store: The object store.
        cache_ttl_seconds: How long a digest is used; 0 compares every time.
        monotonic: Seconds, never going back.
    """

    def __init__(self, store: ObjectStore, cache_ttl_seconds: float, monotonic: Callable[[], float]) -> None:
        self._store, self._ttl_seconds, self._monotonic = store, cache_ttl_seconds, monotonic
        self._cache: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def write(self, items: Sequence[WriteOnce], same: Same = operator.eq) -> list[Failure | None]:
        """Write objects; one result each: None, or why it failed.

        Objects that this process has met before are read and compared, unless the cache knows them; others are
        created, and read only when the create finds them there.

        Args:
            items: What to write; equal keys with equal bytes may repeat.
            same: Whether stored bytes count as the given ones.
        """
        distinct = list(dict.fromkeys(items))
        results = dict(zip(distinct, self._write_distinct(distinct, same), strict=True))
        return [results[item] for item in items]

    def cached(self, key: str, data: bytes) -> bool:
        """Whether the object was seen to hold just these bytes within the last ``cache_ttl_seconds``."""
        digest, seen = self._cache.get(key, ("", 0.0))
        return self._monotonic() - seen < self._ttl_seconds and digest == sha256_hex(data)

    def _write_distinct(self, items: Sequence[WriteOnce], same: Same) -> list[Failure | None]:
        new = {key: data for key, data, _ in items if key not in self._cache}
        created = dict(zip(new, self._store.create_many(list(new.items())), strict=True))
        results: list[Failure | None] = []
        for key, data, drift in items:
            made = created[key] if new.get(key) == data else False  # one key may be asked to hold two things
            if isinstance(made, Unavailable):
                results.append(made)
            elif self.cached(key, data):
                results.append(None)  # a hit does not extend the entry's life
            else:
                failure = None if made else self._compare(key, data, drift, same)
                if failure is None:
                    self._put(key, data)
                results.append(failure)
        return results

    def _put(self, key: str, data: bytes) -> None:
        self._cache[key] = (sha256_hex(data) if self._ttl_seconds else "", self._monotonic())
        while len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)

    def _compare(self, key: str, data: bytes, drift: Reason, same: Same) -> Failure | None:
        """Compare an object with what belongs there; one that was removed since is created again."""
        try:
            stored = self._store.read(key, MAX_DOCUMENT)
            if stored is None and self._store.create(key, data):
                return None
        except UnreadableObjectError as error:
            return drift_of(self._store, key, drift, sha256_hex(data), "", error.detail)
        except Unavailable as error:
            return error
        if stored is None:
            return Unavailable(f"{self._store.locate(key)} exists for a create but not for a read")
        if not same(stored.data, data):
            return drift_of(
                self._store, key, drift, sha256_hex(data), sha256_hex(stored.data), "already exists with other bytes"
            )
        return None
