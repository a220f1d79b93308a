"""The documents of one run as they lie in the object store."""

from dataclasses import dataclass
from typing import NamedTuple

import orjson

from scenario_runner.contracts import refs
from scenario_runner.contracts.states import RunState
from scenario_runner.ledger.write_once import MAX_DOCUMENT
from scenario_runner.storage.base import ObjectStore, UnreadableObjectError


class RunToRead(NamedTuple):
    """A run, and which objects it may have that few runs have: where a listing has none of them, none is asked for."""

    run_id: str
    supersession: bool = True
    quarantine: bool = True


@dataclass(frozen=True, slots=True)
class RunDocuments:
    """Bytes of a run's documents; None for one that is not there, empty for one that cannot be read as an object."""

    run_id: str
    record: bytes | None
    plan: bytes | None
    status: bytes | None
    facts_view: bytes | None
    ready_signal: bytes | None
    supersession: bytes | None
    quarantine: bytes | None


def read_document(store: ObjectStore, key: str) -> bytes | None:
    """The bytes of a document; see :class:`RunDocuments`.

    Raises:
        Unavailable: the store does not answer.
    """
    try:
        stored = store.read(key, MAX_DOCUMENT)
    except UnreadableObjectError:
        return b""
    return None if stored is None else stored.data


def read_documents(store: ObjectStore, run: RunToRead) -> RunDocuments:
    """Read what a run is restored from; the facts view only of a run that its record calls READY.

    The ready_signal is read of every run: it is written after the record says READY, so a record that does not is an
    older one, or was changed.

    Args:
        store: The ledger's store.
        run: The run.

    Raises:
        Unavailable: the store does not answer.
    """
    run_id = run.run_id
    record = read_document(store, refs.record_ref(run_id))
    ready = record is not None and f'"state":"{RunState.READY}"'.encode() in record
    return RunDocuments(
        run_id,
        record,
        read_document(store, refs.plan_ref(run_id)),
        read_document(store, refs.status_ref(run_id)),
        read_document(store, refs.facts_view_ref(run_id)) if ready else None,
        read_document(store, refs.ready_signal_ref(run_id)),
        read_document(store, refs.supersession_ref(run_id)) if run.supersession else None,
        read_document(store, refs.quarantine_ref(run_id)) if run.quarantine else None,
    )


def superseded_runs(store: ObjectStore) -> frozenset[str]:
    """Runs that supersession objects name as superseded. Whatever else these objects say, their runs prove.

    Raises:
        Unavailable: the store does not answer.
    """
    found = set()
    for item in store.list_objects(f"{refs.PREFIX}/supersession"):
        try:
            found.add(str(orjson.loads(read_document(store, item.key) or b"")["old_run_id"]))
        except (ValueError, TypeError, KeyError):
            continue  # no document of ours, which is a finding about the run that it is named after
    return frozenset(found)
