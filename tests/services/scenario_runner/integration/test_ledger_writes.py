"""What the ledger asks of its store: what it reads back, what it believes, and what it does about an outage."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from authority_support import SECOND, START, hex32
from support import PACK, REPO

from scenario_runner.authority.values import ProjectionTask, StoredEvent
from scenario_runner.contracts import refs
from scenario_runner.contracts.canonical import canonical_bytes, canonical_sha256, parse_json
from scenario_runner.contracts.errors import LedgerDrift, SequenceError, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import EventKind, RunState
from scenario_runner.gates.receipts import InstanceReceiptFile
from scenario_runner.ledger.ledger import Ledger
from scenario_runner.ledger.schemas import Schemas
from scenario_runner.storage.filesystem import FilesystemStore

pytestmark = pytest.mark.integration

RUN = hex32("run")
POLICY = {"policy_id": "p", "revision": "v0", "content_digest": "0" * 64}
PLAN = Reason.PLAN_DRIFT


class Watched:
    """A file-system store that notes every call, and whose answers a test may replace by others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[str] = []
        self.answers: dict[str, Any] = {}
        self._store = FilesystemStore(str(folder), ".private")

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)

        def noted(*arguments: Any) -> Any:
            if name != "locate":
                self.calls.append(name)
            if name not in self.answers:
                return call(*arguments)
            answer = self.answers[name]
            return [answer] * len(arguments[0]) if name == "create_many" else answer

        return noted

    def called(self) -> list[str]:
        """The calls since the last question."""
        made, self.calls = self.calls, []
        return made


class Time:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def store(tmp_path: Path) -> Watched:
    made = Watched(tmp_path / "store")
    made.create("used", b"")
    made.called()
    return made


@pytest.fixture(scope="module")
def schemas() -> Schemas:
    return Schemas(str(REPO / "config/platform/contracts/scenario_runner"), str(PACK / "contracts"))


def ledger_on(store: Any, schemas: Any = None, cache_ttl_seconds: float = 0.0, time: Any = None) -> Ledger:
    return Ledger(store, schemas, cache_ttl_seconds, time or Time())


def write_once(ledger: Ledger, *item: Any) -> None:
    (failure,) = ledger._objects.write([item])
    if failure is not None:
        raise failure


# --- objects that are written once


def test_an_object_that_was_created_is_not_read_back_and_one_that_was_there_is_compared(store: Watched) -> None:
    assert ledger_on(store)._objects.write([("a", b"1", PLAN), ("b", b"2", PLAN)]) == [None, None]
    assert store.called() == ["create_many"]
    same, other, new = ledger_on(store)._objects.write([("a", b"1", PLAN), ("b", b"3", PLAN), ("c", b"4", PLAN)])
    assert same is None
    assert isinstance(other, LedgerDrift)
    assert new is None
    assert store.called() == ["create_many", "read", "read"]


def test_an_object_that_was_met_and_is_there_is_read_and_not_created_again(store: Watched) -> None:
    ledger = ledger_on(store)
    write_once(ledger, "a", b"1", PLAN)
    store.called()
    write_once(ledger, "a", b"1", PLAN)
    assert store.called() == ["create_many", "read"], "create_many of nothing"
    store.answers["create_many"] = Unavailable("nothing is to be created")
    write_once(ledger, "a", b"1", PLAN)


def test_the_keys_that_were_met_first_are_forgotten_so_that_memory_has_a_bound(
    store: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenario_runner.ledger.write_once._MAX_CACHED", 2)
    ledger = ledger_on(store, cache_ttl_seconds=60)
    for key in ("a", "b", "c"):
        write_once(ledger, key, b"1", PLAN)
    assert [ledger._objects.cached(key, b"1") for key in ("a", "b", "c")] == [False, True, True]
    store.called()
    write_once(ledger, "a", b"1", PLAN)
    assert store.called() == ["create_many", "read"]


def test_an_object_that_was_met_and_removed_since_is_written_again(store: Watched) -> None:
    ledger = ledger_on(store)
    write_once(ledger, "a", b"1", PLAN)
    (store.folder / "a").unlink()
    write_once(ledger, "a", b"1", PLAN)
    assert (store.folder / "a").read_bytes() == b"1"


def test_an_object_that_can_be_neither_created_nor_read_is_an_outage(store: Watched) -> None:
    store.answers = {"create_many": False, "create": False, "read": None}
    ledger = ledger_on(store)
    with pytest.raises(Unavailable, match="exists for a create but not for a read"):
        write_once(ledger, "a", b"1", PLAN)
    (record,) = ledger.project_many([owed()])
    assert isinstance(record, Unavailable)
    assert "exists for a create but not for a read" in record.detail


def test_a_store_that_cannot_create_is_not_asked_anything_else(store: Watched) -> None:
    down = Unavailable("the store is down")
    store.answers = {"create_many": down}
    ledger = ledger_on(store)
    assert ledger._objects.write([("a", b"1", PLAN)]) == [down]
    assert ledger.project_many([owed()]) == [down]
    assert set(store.called()) == {"create_many"}


def test_what_was_seen_in_place_is_believed_for_a_while_and_only_of_the_same_bytes(store: Watched) -> None:
    time = Time()
    ledger = ledger_on(store, None, 60.0, time)
    write_once(ledger, "a", b"1", PLAN)
    store.called()
    (store.folder / "a").write_bytes(b"2")
    time.seconds += 59
    write_once(ledger, "a", b"1", PLAN)
    assert "read" not in store.called()
    with pytest.raises(LedgerDrift):
        write_once(ledger, "a", b"3", PLAN)
    time.seconds += 1
    with pytest.raises(LedgerDrift):
        write_once(ledger, "a", b"1", PLAN)


def test_receipts_are_believed_to_be_in_place_when_each_was_seen_there_with_its_manifest(store: Watched) -> None:
    time = Time()
    ledger = ledger_on(store, None, 60.0, time)
    whole = InstanceReceiptFile("a", "receipt", {}, b"r", "manifest", b"m")
    alone = InstanceReceiptFile("b", "other", {}, b"r", "", b"")
    assert not ledger.receipts_in_place([alone])
    assert ledger.write_receipts([alone]) == [None]
    assert ledger.receipts_in_place([alone])
    write_once(ledger, "receipt", b"r", PLAN)
    assert not ledger.receipts_in_place([alone, whole]), "its manifest was not seen"
    assert ledger.write_receipts([whole]) == [None]
    assert ledger.receipts_in_place([alone, whole])
    for other in (replace(whole, data=b"x"), replace(whole, manifest=b"x"), replace(alone, data=b"x")):
        assert not ledger.receipts_in_place([other])
    time.seconds += 60
    assert not ledger.receipts_in_place([alone])


def test_a_receipt_whose_manifest_is_not_in_place_is_not_written(store: Watched) -> None:
    whole = InstanceReceiptFile("a", "receipt", {}, b"r", "manifest", b"m")
    alone = InstanceReceiptFile("b", "other", {}, b"r", "", b"")
    (store.folder / "manifest").write_bytes(b"another")
    drift, written = ledger_on(store).write_receipts([whole, alone])
    assert isinstance(drift, LedgerDrift)
    assert written is None
    assert not (store.folder / "receipt").exists()
    assert (store.folder / "other").read_bytes() == b"r"


def test_logs_of_an_attempt_are_named_when_they_are_in_place_and_left_out_when_others_are(store: Watched) -> None:
    ledger = ledger_on(store)
    assert ledger.write_attempt_logs(RUN, 1, b"", b"") == {}
    named = ledger.write_attempt_logs(RUN, 1, b"out", b"err")
    assert {(store.folder / ref).read_bytes() for ref in named.values()} == {b"out", b"err"}
    assert set(named) == {"stdout_ref", "stderr_ref"}
    assert ledger.write_attempt_logs(RUN, 1, b"out", b"another") == {}


def test_a_pack_is_what_its_digest_says_and_none_when_it_is_not_in_the_ledger(store: Watched) -> None:
    ledger = ledger_on(store)
    digest = canonical_sha256({"pack": 1})
    assert ledger.read_pack(digest) is None
    ledger.write_pack(digest, {"pack": 1})
    assert ledger.read_pack(digest) == {"pack": 1}
    ledger.write_pack("0" * 64, {"pack": 1})
    with pytest.raises(LedgerDrift, match="is not the interface pack of its name") as refused:
        ledger.read_pack("0" * 64)
    assert (refused.value.reason, refused.value.actual) == (Reason.PACK_DRIFT, digest)


def test_a_pack_in_whose_place_lies_something_else_is_refused_and_an_outage_is_one(store: Watched) -> None:
    ledger = ledger_on(store)
    digest = canonical_sha256({"pack": 1})
    ledger.write_pack(digest, {"pack": 2})
    with pytest.raises(LedgerDrift, match="already exists with other bytes") as refused:
        ledger.write_pack(digest, {"pack": 1})
    assert (refused.value.reason, refused.value.expected) == (Reason.PACK_DRIFT, digest)
    store.answers["create_many"] = Unavailable("the store is away")
    with pytest.raises(Unavailable, match="the store is away"):
        ledger.write_pack("0" * 64, {"pack": 3})


# --- documents that follow the rows


def owed(state: Any = RunState.VERIFYING, seq: int = 2, projected_seq: int = 0, **details: Any) -> ProjectionTask:
    """A run with some events, whose documents are those of an earlier event or of none."""
    run: Any = SimpleNamespace(
        run_id=RUN,
        state=state,
        reason_code="" if state in (RunState.VERIFYING, RunState.READY) else "GATE_CONFLICT",
        inputs={"policy_rev": POLICY},
        updated_us=START + seq * SECOND,
        projected_seq=projected_seq,
    )
    kind = EventKind.EVIDENCE_MISSING
    return ProjectionTask(
        run, tuple(StoredEvent(place, kind, START + place * SECOND, details) for place in range(1, seq + 1))
    )


def record(store: Watched) -> list[bytes]:
    return (store.folder / refs.record_ref(RUN)).read_bytes().splitlines()


def test_documents_that_another_relay_has_moved_further_stay_as_they_are(store: Watched, schemas: Schemas) -> None:
    ledger = ledger_on(store, schemas)
    assert ledger.project_many([owed(seq=4)]) == [None]
    further = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    for projected in (0, 2):
        store.called()
        assert ledger.project_many([owed(seq=3, projected_seq=projected)]) == [None]
        assert "replace" not in store.called()
        assert {path: path.read_bytes() for path in further} == further
    assert len(record(store)) == 4


def test_documents_follow_the_rows(store: Watched, schemas: Schemas) -> None:
    ledger = ledger_on(store, schemas)
    for seq in (2, 3, 5):
        assert ledger.project_many([owed(seq=seq, projected_seq=2)]) == [None]
        assert len(record(store)) == seq


def test_documents_that_were_there_before_are_not_created(store: Watched, schemas: Schemas) -> None:
    ledger = ledger_on(store, schemas)
    assert ledger.project_many([owed(seq=2)]) == [None]
    store.answers["create_many"] = Unavailable("nothing is to be created")
    assert ledger.project_many([owed(seq=3, projected_seq=2)]) == [None]
    assert len(record(store)) == 3


def test_documents_that_are_there_already_are_not_written_a_second_time(store: Watched, schemas: Schemas) -> None:
    ledger = ledger_on(store, schemas)
    for projected in (0, 0, 2):
        assert ledger.project_many([owed(projected_seq=projected)]) == [None]
    assert "replace" not in store.called()


def test_a_document_that_was_replaced_and_not_made_durable_is_not_believed(
    store: Watched, schemas: Schemas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that failed, or was killed, after the rename promised nothing, although its bytes can be read."""
    ledger = ledger_on(store, schemas)
    assert ledger.project_many([owed(seq=2)]) == [None]
    folder, real = str((store.folder / refs.record_ref(RUN)).parent), os.fsync
    synced: list[str] = []

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        if synced[-1] == folder and fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    fails = True
    for _ in range(2):
        (failure,) = ledger.project_many([owed(seq=3, projected_seq=2)])
        assert isinstance(failure, Unavailable)
        assert len(record(store)) == 3, "it was replaced the first time"
    fails = False
    synced.clear()
    assert ledger.project_many([owed(seq=3, projected_seq=2)]) == [None]
    assert folder in synced


def test_documents_that_were_removed_are_written_again(store: Watched, schemas: Schemas) -> None:
    ledger = ledger_on(store, schemas)
    assert ledger.project_many([owed(seq=3, projected_seq=2)]) == [None]
    assert len(record(store)) == 3
    assert parse_json((store.folder / refs.status_ref(RUN)).read_bytes())["state"] == "VERIFYING"


class Nearly:
    """A state that is none."""

    value = "NEARLY"


@pytest.mark.parametrize(
    ("name", "write", "written"),
    [
        ("run_plan", lambda ledger: ledger.write_plans([{"run_id": RUN}]), set()),
        ("run_status", lambda ledger: ledger.project_many([owed(Nearly())]), {"run_record"}),
        (
            "quarantine_record",
            lambda ledger: ledger.project_many([owed(RunState.QUARANTINED, report="no object")]),
            {"run_record", "run_status"},
        ),
    ],
    ids=["plan", "status", "quarantine"],
)
def test_no_document_is_written_that_is_not_of_its_schema(
    store: Watched, schemas: Schemas, name: str, write: Any, written: set[str]
) -> None:
    with pytest.raises(SequenceError, match=f"{name}: "):
        write(ledger_on(store, schemas))
    assert {path.parent.name for path in store.folder.rglob("*.json*")} == written


def test_a_facts_view_and_its_signal_are_checked_each_against_its_schema() -> None:
    asked: list[str] = []
    schemas: Any = SimpleNamespace(check=lambda name, _document: asked.append(name))
    view: Any = SimpleNamespace(document={}, ready={})
    ledger_on(None, schemas).check_facts_view(view)
    assert asked == ["run_facts_view", "run_ready_signal"]


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("locators", Reason.LOCATOR_SCHEMA_INVALID),
        ("gate_receipts", Reason.RECEIPT_SCHEMA_INVALID),
        ("instance_receipts", Reason.RECEIPT_SCHEMA_INVALID),
        ("pins", None),
    ],
)
def test_what_was_found_and_cannot_be_expressed_is_drift_and_anything_else_a_defect(
    schemas: Schemas, part: str, reason: Reason | None
) -> None:
    view = facts_view()
    schemas.check("run_facts_view", view)
    view[part] = [{"output_id": 7}] if reason else {"run_id": 7}
    with pytest.raises(LedgerDrift if reason else SequenceError, match=f"run_facts_view: {part}") as refused:
        schemas.check("run_facts_view", view)
    if reason is not None:
        assert refused.value.reason is reason


def facts_view() -> dict[str, Any]:
    digest = {"algo": "sha256", "hex": "0" * 64}
    pins = {"run_id": RUN, "manifest_fingerprint": "0" * 64, "parameter_hash": "0" * 64, "seed": 1, "scenario_id": "s"}
    document = {
        "run_id": RUN,
        "pins": pins,
        "locators": [{"output_id": "o", "path": "/r/o", "manifest_fingerprint": "0" * 64, "content_digest": digest}],
        "output_roles": {"o": "business_traffic"},
        "intended_outputs": ["o"],
        "gate_receipts": [],
        "instance_receipts": [],
        "policy_rev": POLICY,
        "bundle_hash": "0" * 64,
        "plan_ref": refs.plan_ref(RUN),
        "record_ref": refs.record_ref(RUN),
        "status_ref": refs.status_ref(RUN),
    }
    return dict(parse_json(canonical_bytes(document)))
