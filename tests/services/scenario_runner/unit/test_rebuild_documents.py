"""Documents of a run in a rebuild: what a listing tells is not read."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import canonical_bytes, sha256_hex
from scenario_runner.contracts.depth import DigestSource
from scenario_runner.contracts.ids import ready_message_id
from scenario_runner.contracts.states import EventKind
from scenario_runner.rebuild.bus import Witness
from scenario_runner.rebuild.documents import RunDocuments, RunToRead
from scenario_runner.rebuild.ready import ReadyProver, _own_part, _RightView
from scenario_runner.rebuild.values import NotRestoredError
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


def test_the_evidence_is_examined_for_the_bytes_that_were_compared(tmp_path: Path) -> None:
    """A view that the listing vouches for is never read: another one may lie there by the time it were."""
    inputs = SimpleNamespace(output_digest_source=DigestSource.READ)
    intent = SimpleNamespace(identity=lambda: {"seed": 43})
    view_parts = ("pins", "plan_ref", "record_ref", "run_id", "status_ref")
    right = _RightView(inputs, view_parts)  # type: ignore[arg-type]
    ready = {"run_id": RUN_ID, "facts_view_ref": refs.facts_view_ref(RUN_ID), "bundle_hash": "b"}
    details = {"ready": ready, "message_id": ready_message_id(RUN_ID, "b")}
    end = SimpleNamespace(details=details, ts_us=1)
    admitted: Any = SimpleNamespace(run_id=RUN_ID, intent=intent, inputs=inputs, end=end, supersedes=None)
    wanted = right.view_of(_own_part(admitted))
    committed = SimpleNamespace(kind=EventKind.FACTS_VIEW_COMMITTED, details={"digest": sha256_hex(wanted)})
    admitted.events = (committed,)

    store = CountingStore(tmp_path)
    store.create(refs.facts_view_ref(RUN_ID), b'{"pins":{"seed":42}}')
    store.create(refs.ready_signal_ref(RUN_ID), canonical_bytes(ready))
    examined: list[bytes] = []

    def examine(data: bytes) -> Any:
        examined.append(data)
        return SimpleNamespace(ok=False, checks=[{"check": "outputs", "ok": False}])

    bus: Any = SimpleNamespace(witness=Witness.EVIDENCE, end=lambda _admitted, draft, _said: draft)
    prover = ReadyProver(store, SimpleNamespace(), bus, examine)  # type: ignore[arg-type]
    prover._right["b"] = right
    prover._require_vouched = lambda _admitted: None  # type: ignore[method-assign]
    documents = RunDocuments(store, RunToRead(RUN_ID, {"run_facts_view": md5(wanted)}))
    with pytest.raises(NotRestoredError, match="outputs"):
        prover.prove(admitted, documents)
    assert examined == [wanted]
    assert refs.facts_view_ref(RUN_ID) not in store.reads
