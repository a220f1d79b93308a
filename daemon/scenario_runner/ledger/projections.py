"""Projections: the documents that follow the rows (run_record, run_status). They only move forward."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from scenario_runner.contracts.canonical import parse_json, sha256_hex
from scenario_runner.contracts.documents import RunStatus
from scenario_runner.contracts.errors import LedgerDrift, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import FINAL_STATES
from scenario_runner.ledger.write_once import MAX_DOCUMENT, Failure, drift_of
from scenario_runner.storage.base import ObjectStore, UnreadableObjectError

_REPLACE_TRIES: Final = 20
"""How often a replace may find that another writer was faster; more than the relays that share one ledger."""

Projection = tuple[str, bytes, bool]
"""A document that follows the rows: key, bytes, and whether an earlier one was written before."""

Step = Callable[[bytes, bytes], bool]
"""Whether new bytes (second) are ahead of the stored ones (first); ValueError when they do not continue them."""


Map = Callable[[Callable[[Projection], "Failure | None"], Sequence[Projection]], Iterable["Failure | None"]]
"""Applies a function to each item, in parallel or not."""


def project(
    store: ObjectStore, items: Sequence[Projection], step: Step, in_parallel: Map = map
) -> list[Failure | None]:
    """Write projections: create those that are new, replace those that the new bytes are ahead of.

    A writer that is late finds a document that is ahead of its own, and leaves it.

    Args:
        store: Where.
        items: Documents with different keys.
        step: Whether new bytes are ahead of stored ones.
        in_parallel: Replaces documents: each waits for a read and for two fsyncs or requests.

    Returns:
        One result each: None, or why it failed.
    """
    results: list[Failure | None] = [None] * len(items)
    new = [number for number, (_, _, earlier) in enumerate(items) if not earlier]
    made = dict(zip(new, store.create_many([items[number][:2] for number in new]), strict=True))
    older = []
    for number in range(len(items)):
        result = made.get(number, False)
        if isinstance(result, Unavailable):
            results[number] = result
        elif not result:
            older.append(number)

    def replace(item: Projection) -> Failure | None:
        try:
            replace_older(store, item[0], item[1], step)
        except (LedgerDrift, Unavailable) as failure:
            return failure
        return None

    for number, failure in zip(older, in_parallel(replace, [items[number] for number in older]), strict=True):
        results[number] = failure
    return results


def replace_older(store: ObjectStore, key: str, data: bytes, step: Step) -> None:
    """Replace a stored document by one that is ahead of it; one that was removed since is created again.

    A document that needs no replacing is made durable before it is believed: a writer that was killed, or failed, after
    it had put the document in place promised nothing.

    Raises:
        LedgerDrift: ``RECORD_DRIFT``: the stored document is not one that the new bytes continue.
        Unavailable: the store does not answer, or other writers were faster each time.
    """
    for _ in range(_REPLACE_TRIES):
        try:
            stored = store.read(key, MAX_DOCUMENT)
            if stored is None:
                if store.create(key, data):
                    return
                raise Unavailable(f"{store.locate(key)} exists for a create but not for a read")
            if not _ahead(store, key, stored.data, data, step):
                store.settle(key)
                return
            if store.replace(key, data, stored.version):
                return
        except UnreadableObjectError as error:
            raise drift_of(store, key, Reason.RECORD_DRIFT, sha256_hex(data), "", error.detail) from error
    raise Unavailable(f"{store.locate(key)} was changed by others at each of {_REPLACE_TRIES} tries")


def _ahead(store: ObjectStore, key: str, stored: bytes, data: bytes, step: Step) -> bool:
    try:
        return step(stored, data)
    except ValueError as error:
        expected, actual = sha256_hex(data), sha256_hex(stored)
        raise drift_of(store, key, Reason.RECORD_DRIFT, expected, actual, str(error)) from error


def record_step(stored: bytes, data: bytes) -> bool:
    """True when ``data`` continues the stored record; ValueError when they differ."""
    if stored.startswith(data):
        return False
    if data.startswith(stored):
        return True
    raise ValueError("is not a prefix of the run's events; restore it")


def status_step(stored: bytes, data: bytes) -> bool:
    """True when ``data`` is the later status; ValueError when a final one would be replaced, or comes too early."""
    if stored == data:
        return False
    new = RunStatus.model_validate(parse_json(data))
    try:
        old = RunStatus.model_validate(parse_json(stored))
    except ValueError:
        old = None
    if old is None or old.run_id != new.run_id:
        raise ValueError("is no status of this run; move it away")
    if old.state in FINAL_STATES:
        raise ValueError("holds another final status; find out which is true, and move it away if it is ours")
    ahead = old.updated_at_utc < new.updated_at_utc
    if not ahead and new.state in FINAL_STATES:
        raise ValueError("holds a status that is not the run's final one; move it away")
    return ahead
