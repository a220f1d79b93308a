"""Invocation documents of engines as write-once objects, for engines that read the object store."""

import time

from scenario_runner.contracts import refs
from scenario_runner.contracts.reasons import Reason
from scenario_runner.ledger.write_once import WriteOnceObjects
from scenario_runner.storage.base import ObjectStore


class ObjectInvocations:
    """Documents under ``engine_invocations/`` of the ledger.

    Args:
        store: The object store.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._objects = WriteOnceObjects(store, 0.0, time.monotonic)

    def write(self, attempt_id: str, data: bytes) -> str:
        """Write the document of an attempt. The same bytes may be written again.

        Args:
            attempt_id: hex32.
            data: The document as canonical JSON.

        Returns:
            Where it lies: the location of the object.

        Raises:
            LedgerDrift: ``ENGINE_INVOCATION_INVALID``: other bytes are there.
            Unavailable: The store does not answer.
        """
        key = refs.engine_invocation_ref(attempt_id)
        (failure,) = self._objects.write([(key, data, Reason.ENGINE_INVOCATION_INVALID)])
        if failure is not None:
            raise failure
        return self._store.locate(key)
