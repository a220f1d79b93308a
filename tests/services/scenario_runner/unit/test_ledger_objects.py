"""What counts as an object of ours: receipts but for the path of their target, statuses, and the end of a race."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scenario_runner.contracts.canonical import canonical_bytes
from scenario_runner.contracts.errors import LedgerDrift, Unavailable
from scenario_runner.contracts.reasons import Reason
from scenario_runner.contracts.states import RunState
from scenario_runner.ledger.documents import status_document
from scenario_runner.ledger.ledger import Ledger, same_receipt
from scenario_runner.ledger.projections import project, status_step
from scenario_runner.ledger.write_once import WriteOnceObjects
from scenario_runner.storage.base import NotAnObjectError, ObjectTooLargeError
from scenario_runner.storage.filesystem import FilesystemStore

pytestmark = pytest.mark.unit

RUN = "a" * 32
RECEIPT: dict[str, Any] = {
    "output_id": "out",
    "scope": {"seed": 1},
    "status": "PASS",
    "target_ref": {"output_id": "out", "path": "/runs/one/out", "seed": 1},
}
OURS = canonical_bytes(RECEIPT)


def changed(**target: Any) -> bytes:
    document = {**RECEIPT, "target_ref": {**RECEIPT["target_ref"], **target}}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def test_a_receipt_for_another_copy_of_the_engine_run_is_the_same_receipt() -> None:
    assert same_receipt(OURS, OURS)
    assert same_receipt(changed(path="/runs/copy/out"), OURS)


@pytest.mark.parametrize(
    "stored",
    [
        changed(seed=2),
        changed(seed=1.0),
        changed(seed=True),
        changed(path=7),
        changed(path=None),
        changed(path=["/runs/one/out"]),
        changed(more="x"),
        json.dumps(RECEIPT, indent=2, sort_keys=True).encode(),
        json.dumps({**RECEIPT, "target_ref": "out"}, sort_keys=True, separators=(",", ":")).encode(),
        OURS + b" ",
        OURS.replace(b"/runs/one/out", b"\\ud800"),
        OURS[:-1] + b',"status":"PASS"}',
        b"[]",
        b"[" * 100_000,
        b"null",
        b"\xff",
        b"",
    ],
)
def test_a_receipt_that_differs_in_anything_else_also_in_its_form_is_another(stored: bytes) -> None:
    assert not same_receipt(stored, OURS)


def status(state: RunState, at_us: int, run_id: str = RUN, **more: Any) -> bytes:
    return canonical_bytes(status_document(run_id, state, "", at_us) | more)


def test_a_status_moves_forward_only_and_only_over_a_status_of_its_run() -> None:
    old, new = status(RunState.WAITING_EVIDENCE, 10), status(RunState.READY, 20)
    assert status_step(old, new) is True
    assert status_step(new, new) is False
    assert status_step(status(RunState.WAITING_EVIDENCE, 30), status(RunState.VERIFYING, 20)) is False
    for wrong in (
        status(RunState.FAILED, 10),
        status(RunState.WAITING_EVIDENCE, 30),
        status(RunState.WAITING_EVIDENCE, 10, "b" * 32),
        status(RunState.WAITING_EVIDENCE, 10, version="v9"),
        canonical_bytes({"state": "VERIFYING", "updated_at_utc": "0"}),
        b"",
        b"[]",
    ):
        with pytest.raises(ValueError, match=r"status"):
            status_step(wrong, new)


class Racing:
    """A store in which somebody else is always faster, or in which no object of ours can be read."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.replaced = error, 0

    def create_many(self, items: Any) -> list[bool]:
        return [False for _ in items]

    def read(self, _key: str, _limit: int) -> Any:
        if self.error is not None:
            raise self.error
        return SimpleNamespace(data=b"a", version="v")

    def replace(self, *_: Any) -> bool:
        self.replaced += 1
        return False

    def locate(self, key: str) -> str:
        return f"/store/{key}"


def ledger_on(store: Any) -> Ledger:
    schemas: Any = SimpleNamespace(check=lambda *_: None)
    return Ledger(store, schemas)


def test_a_replace_that_never_wins_is_an_outage_and_no_endless_loop() -> None:
    store: Any = Racing()
    (failure,) = project(store, [("key", b"ab", False)], lambda _stored, _data: True)
    assert isinstance(failure, Unavailable)
    assert 2 < store.replaced < 100


@pytest.mark.parametrize("kind", [ObjectTooLargeError, NotAnObjectError])
def test_what_cannot_be_read_as_an_object_is_drift_that_names_it_and_what_belongs_there(kind: Any) -> None:
    store: Any = Racing(kind("/store/key is not for reading"))
    ledger = ledger_on(store)
    (written,) = WriteOnceObjects(store, 0.0, lambda: 0.0).write([("key", b"ours", Reason.PLAN_DRIFT)])
    (moved,) = project(store, [("key", b"ours", True)], lambda _stored, _data: True)
    with pytest.raises(LedgerDrift) as pack:
        ledger.read_pack("f" * 64)
    reasons = [Reason.PLAN_DRIFT, Reason.RECORD_DRIFT, Reason.PACK_DRIFT]
    for failure, reason in zip((written, moved, pack.value), reasons, strict=True):
        assert isinstance(failure, LedgerDrift)
        assert (failure.reason, failure.actual, len(failure.expected)) == (reason, "", 64)
        assert failure.detail.startswith(failure.place + ": ")
        assert failure.expected in failure.detail
        assert failure.facts()["object"] == failure.place


def test_one_key_that_is_to_hold_two_things_in_one_batch_holds_one_of_them_and_the_other_is_drift(
    tmp_path: Path,
) -> None:
    objects = WriteOnceObjects(FilesystemStore(str(tmp_path), ".private"), 60.0, lambda: 0.0)
    first, second = objects.write([("key", b"one", Reason.PLAN_DRIFT), ("key", b"two", Reason.PLAN_DRIFT)])
    assert isinstance(first, LedgerDrift)
    assert second is None
    assert (tmp_path / "key").read_bytes() == b"two"
    assert objects.cached("key", b"two")
    assert not objects.cached("key", b"one")
