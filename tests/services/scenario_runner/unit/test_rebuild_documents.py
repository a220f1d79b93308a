"""Documents of a run in a rebuild: what a listing tells is not read."""

import hashlib
from pathlib import Path

from scenario_runner.contracts import refs
from scenario_runner.rebuild.documents import RunDocuments, RunToRead
from scenario_runner.storage.base import StoredObject
from scenario_runner.storage.filesystem import FilesystemStore

RUN_ID = "0" * 32
WANTED, OTHER = b'{"state":"READY"}', b'{"state":"FAILED"}'


class CountingStore(FilesystemStore):
    """A folder that notes what is read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), ".private")
        self.reads: list[str] = []

    def read(self, key: str, limit: int) -> StoredObject | None:
        """Read, and note the key."""
        self.reads.append(key)
        return super().read(key, limit)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def store_with(folder: Path, status: bytes | None) -> CountingStore:
    store = CountingStore(folder)
    if status is not None:
        store.create(refs.status_ref(RUN_ID), status)
    return store


def test_a_document_with_the_listed_digest_of_the_wanted_bytes_is_not_read(tmp_path: Path) -> None:
    store = store_with(tmp_path, WANTED)
    status = RunDocuments(store, RunToRead(RUN_ID, {"run_status": md5(WANTED)})).status
    assert status.exists
    assert status.holds(WANTED)
    assert store.reads == []


def test_a_document_is_read_once_when_its_listed_digest_is_another_one_or_none(tmp_path: Path) -> None:
    for digest in ("", "0" * 32):
        store = store_with(tmp_path / (digest or "none"), WANTED)
        status = RunDocuments(store, RunToRead(RUN_ID, {"run_status": digest})).status
        assert status.holds(WANTED), "an encrypted object has digits that are no digest of its bytes"
        assert not status.holds(OTHER)
        assert status.data == WANTED
        assert store.reads == [refs.status_ref(RUN_ID)]


def test_a_listed_digest_never_stands_for_other_bytes(tmp_path: Path) -> None:
    store = store_with(tmp_path, OTHER)
    assert not RunDocuments(store, RunToRead(RUN_ID, {"run_status": md5(OTHER)})).status.holds(WANTED)


def test_what_a_listing_lacks_is_asked_for_unless_few_runs_have_it(tmp_path: Path) -> None:
    store = store_with(tmp_path, None)
    documents = RunDocuments(store, RunToRead(RUN_ID, {}))
    assert not documents.ready_signal.exists
    assert not documents.quarantine.exists
    assert not documents.supersession.exists
    assert store.reads == [refs.ready_signal_ref(RUN_ID)]


def test_without_a_listing_everything_is_asked_for(tmp_path: Path) -> None:
    store = store_with(tmp_path, None)
    documents = RunDocuments(store, RunToRead(RUN_ID))
    assert documents.supersession.data is None
    assert not documents.quarantine.exists
    assert store.reads == [refs.supersession_ref(RUN_ID), refs.quarantine_ref(RUN_ID)]
