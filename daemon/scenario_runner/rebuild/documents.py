"""The documents of one run as they lie in the object store."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from scenario_runner.audit.ends_on_bus import OnBus
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import parse_rendered
from scenario_runner.ledger.write_once import MAX_DOCUMENT
from scenario_runner.storage.base import ObjectReader, ObjectStore, UnreadableObjectError


class RunToRead(NamedTuple):
    """A run, what a listing shows of its objects, and what the control bus says of it.

    Attributes:
        listed: The MD5 of an object by the name of its folder; empty where the store does not give it. None where
            nothing was listed.
    """

    run_id: str
    listed: Mapping[str, str] | None = None
    on_bus: OnBus = OnBus()


class Document:
    """One document of a run. It is read when something of it is asked that the listing does not answer.

    An MD5 in a listing of S3 is that of the bytes that lie there, so a document that must have certain bytes is known
    to have them without a request (ADR 0030).

    Args:
        store: The ledger's store.
        key: Its key.
        listed: Its MD5, empty where that is not known; None where it was not listed.
        absent: Whether it is known not to be there.
    """

    __slots__ = ("_data", "_key", "_listed", "_read", "_store")

    def __init__(self, store: ObjectReader, key: str, listed: str | None, *, absent: bool = False) -> None:
        self._store, self._key, self._listed = store, key, listed
        self._data: bytes | None = None
        self._read = absent

    @property
    def data(self) -> bytes | None:
        """Its bytes; None when it is not there, empty when it cannot be read as an object.

        Raises:
            Unavailable: the store does not answer.
        """
        if not self._read:
            self._data, self._read = read_document(self._store, self._key), True
        return self._data

    @property
    def exists(self) -> bool:
        """Whether something lies there; see :attr:`data`."""
        return self._listed is not None or self.data is not None

    def holds(self, wanted: bytes) -> bool:
        """Whether it has exactly these bytes; see :attr:`data`."""
        if self._listed and self._listed == hashlib.md5(wanted, usedforsecurity=False).hexdigest():
            return True
        return self.data == wanted


class RunDocuments:
    """The documents of a run.

    Args:
        store: The ledger's store.
        run: The run.
    """

    def __init__(self, store: ObjectReader, run: RunToRead) -> None:
        listed = run.listed or {}

        def document(folder: str, key: str, *, rare: bool = False) -> Document:
            """Few runs have a rare one: where a listing has none of a run, it is not asked for."""
            absent = rare and run.listed is not None and folder not in listed
            return Document(store, key, listed.get(folder), absent=absent)

        self.run_id = run_id = run.run_id
        self.on_bus = run.on_bus
        self.record = document("run_record", refs.record_ref(run_id))
        self.plan = document("run_plan", refs.plan_ref(run_id))
        self.status = document("run_status", refs.status_ref(run_id))
        self.facts_view = document("run_facts_view", refs.facts_view_ref(run_id))
        self.ready_signal = document("ready_signal", refs.ready_signal_ref(run_id))
        self.supersession = document("supersession", refs.supersession_ref(run_id), rare=True)
        self.quarantine = document("quarantine", refs.quarantine_ref(run_id), rare=True)


def read_document(store: ObjectReader, key: str) -> bytes | None:
    """The bytes of a document; None when it is not there, empty when it cannot be read as an object.

    Raises:
        Unavailable: the store does not answer.
    """
    try:
        stored = store.read(key, MAX_DOCUMENT)
    except UnreadableObjectError:
        return b""
    return None if stored is None else stored.data


def superseded_runs(store: ObjectStore) -> frozenset[str]:
    """Runs that supersession objects name as superseded. Whatever else these objects say, their runs prove.

    Raises:
        Unavailable: the store does not answer.
    """
    found = set()
    for item in store.list_objects(f"{refs.PREFIX}/supersession"):
        try:
            found.add(str(parse_rendered(read_document(store, item.key) or b"")["old_run_id"]))
        except (ValueError, TypeError, KeyError):
            continue  # no document of ours, which is a finding about the run that it is named after
    return frozenset(found)
