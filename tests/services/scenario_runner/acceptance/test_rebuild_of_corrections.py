"""A correction and the run that it supersedes, rebuilt: both ends come back, or neither does."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from rebuild_support import Lost, as_kept, canonical, edit, keep
from test_supersession import Scene

from scenario_runner.contracts.ids import supersedes_message_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with a READY correction of a READY run, one that failed and one that waits; copied for each test."""
    root = tmp_path_factory.mktemp("corrections") / "w"
    scene = Scene(root)
    scene.submit("new", "--supersedes", scene.runs["ready"], "--purpose", "late data", "--reason-code", "LATE")
    scene.submit("broken", "--supersedes", scene.runs["ready"], "--purpose", "a try")
    scene.drain()
    return keep(root, scene)


@pytest.fixture
def lost(made: Path) -> Lost:
    return as_kept(made)


def test_both_ends_come_back_and_everything_goes_on(lost: Lost) -> None:
    before, files = lost.rows(), lost.files()
    lost.lose()
    code, findings, report = lost.rebuild("--policy", str(lost.world.policy))
    assert (code, findings, report["restored"]) == (0, [], 5)
    assert lost.rows() == before
    lost.serve()
    assert lost.files() == files
    assert lost.check()[:2] == (0, [])
    assert lost.world.query("verify", lost.runs["new"])[0] == 0
    shown = json.loads(
        lost.world.command("status", lost.runs["new"], "--wiring", str(lost.world.wiring), "--json").stdout
    )
    assert (shown["supersedes"]["run_id"], shown["supersedes"]["in_force"]) == (lost.runs["ready"], True)


def supersession(lost: Lost) -> Path:
    return lost.document("supersession", "new")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def supersedes_nobody(lost: Lost) -> None:
    """Every document of the correction, and its signal, names a run that does not exist."""
    old, nobody = lost.runs["ready"], "e" * 32
    for folder in ("run_record", "supersession"):
        edit(lost.document(folder, "new"), lambda data: data.replace(old.encode(), nobody.encode()))
    (signal,) = (p for p in lost.world.signals_folder.iterdir() if b"RUN_SUPERSEDES" in p.read_bytes())
    was = supersedes_message_id(old, lost.runs["new"], "late data")
    now = supersedes_message_id(nobody, lost.runs["new"], "late data")
    edit(lost.document("run_record", "new"), lambda data: data.replace(was.encode(), now.encode()))
    data = signal.read_bytes().replace(old.encode(), nobody.encode()).replace(was.encode(), now.encode())
    (signal.parent / f"{now}.json").write_bytes(data)


def forged_correction(lost: Lost) -> None:
    """A run that corrects none is made a READY correction in the ledger, with everything that belongs to it."""
    own, old = lost.runs["ready"], lost.runs["bad"]
    ids = {"supersedes_run_id": old, "supersession_purpose": "p"}
    payload = {
        "old_run_id": old, "new_run_id": own, "purpose": "p", "reason_code": "", "old_facts_view_ref": "",
        "new_facts_view_ref": f"fraud-platform/sr/run_facts_view/{own}.json",
    }  # fmt: skip
    message_id = supersedes_message_id(old, own, "p")
    record = lines(lost.document("run_record", "ready"))
    record[0]["details"] |= ids
    own_end = next(at for at, line in enumerate(record) if line["event_kind"] == "RUN_READY")
    event = json.loads(json.dumps(record[own_end])) | {"event_kind": "SUPERSEDES"}
    event["details"] = {"supersedes": payload, "message_id": message_id, "state": "READY"}
    record.insert(own_end + 1, event)
    write_record(lost, "ready", record)
    bad = lines(lost.document("run_record", "bad"))
    event = json.loads(json.dumps(bad[-1])) | {"event_kind": "SUPERSEDED_BY"}
    event["details"] = {"superseded_by": payload, "message_id": message_id, "state": bad[-1]["details"]["state"]}
    write_record(lost, "bad", [*bad, event])
    lost.document("supersession", "ready").write_bytes(canonical(payload))


def write_record(lost: Lost, run: str, record: list[dict[str, Any]]) -> None:
    for seq, line in enumerate(record, 1):
        line["details"]["seq"] = seq
        line["event_id"] = hashlib.sha256(f"event|{lost.runs[run]}|{seq}".encode()).hexdigest()
    lost.document("run_record", run).write_bytes(b"".join(canonical(line) + b"\n" for line in record))


def drop_last(data: bytes) -> bytes:
    return b"".join(data.splitlines(keepends=True)[:-1])


ONE, DRIFT = "SUPERSESSION_ONE_SIDED", "SUPERSESSION_DRIFT"
#: What is done to the ledger, and what is found of which run; a correction that failed goes with its target.
HOSTILE: dict[str, tuple[Callable[[Lost], object], dict[str, str]]] = {
    "a forged supersession object": (
        lambda lost: edit(supersession(lost), lambda data: data.replace(b"late data", b"my data")),
        {"new": DRIFT, "ready": ONE, "broken": ONE},
    ),
    "no supersession object": (
        lambda lost: supersession(lost).unlink(),
        {"new": "SUPERSESSION_MISSING", "ready": ONE, "broken": ONE},
    ),
    "a supersession object of a run that corrects none": (
        lambda lost: shutil.copyfile(supersession(lost), lost.document("supersession", "bad")), {"bad": DRIFT},
    ),
    "a record that supersedes a run that does not exist": (
        supersedes_nobody, {"new": ONE, "ready": ONE, "broken": ONE},
    ),
    "a run made a correction by its documents": (
        forged_correction, {"ready": "READY_NOT_WITNESSED", "bad": ONE, "new": ONE, "broken": ONE},
    ),
    "a correction whose RUN_SUPERSEDES was not published": (
        lambda lost: [p.unlink() for p in lost.world.signals_folder.iterdir() if b"RUN_SUPERSEDES" in p.read_bytes()],
        {"new": "READY_NOT_WITNESSED", "ready": ONE, "broken": ONE},
    ),
    "another RUN_SUPERSEDES on the bus": (
        lambda lost: [
            edit(p, lambda data: data.replace(b"late data", b"my data"))
            for p in lost.world.signals_folder.iterdir() if b"RUN_SUPERSEDES" in p.read_bytes()
        ],
        {"new": "READY_CONTRADICTED", "ready": ONE, "broken": ONE},
    ),
    "a correction that lost its supersession": (
        lambda lost: write_record(lost, "new", without_supersession(lost)),
        {"new": DRIFT, "ready": ONE, "broken": ONE},
    ),
    "SUPERSEDED_BY of another purpose": (
        lambda lost: edit(lost.document("run_record", "ready"), lambda data: data.replace(b"late data", b"my data")),
        {"ready": ONE, "new": ONE, "broken": ONE},
    ),
    "the number of an emission that no column holds": (
        lambda lost: write_record(lost, "bad", [*lines(lost.document("run_record", "bad")), repeated(lost)]),
        {"bad": "RECORD_DAMAGED"},
    ),
}  # fmt: skip


def without_supersession(lost: Lost) -> list[dict[str, Any]]:
    record = [line for line in lines(lost.document("run_record", "new")) if line["event_kind"] != "SUPERSEDES"]
    first = record[0]["details"]
    record[0]["details"] = {name: value for name, value in first.items() if not name.startswith("supersed")
                            and not name.startswith("supersession")}  # fmt: skip
    return record


def repeated(lost: Lost) -> dict[str, Any]:
    line = lines(lost.document("run_record", "bad"))[-1] | {"event_kind": "REEMIT_PUBLISHED"}
    line["details"] = {"state": "QUARANTINED", "emission": 2**31, "action_key": "x"}
    return line


@pytest.mark.parametrize("name", HOSTILE)
def test_an_end_without_its_other_end_is_a_finding_and_stays_out(lost: Lost, name: str) -> None:
    damage, expected = HOSTILE[name]
    damage(lost)
    lost.lose()
    code, findings, report = lost.rebuild()
    assert code == 1, report
    assert {item["run_id"]: item["code"] for item in findings} == {
        lost.runs[run]: found for run, found in expected.items()
    }, findings
    assert set(lost.states()) == set(lost.runs) - set(expected)


def test_a_correction_that_was_not_delivered_comes_back_with_the_evidence_as_witness(lost: Lost) -> None:
    before = lost.rows()
    lost.lose()
    for path in [p for p in lost.world.signals_folder.iterdir() if lost.runs["new"].encode() in p.read_bytes()]:
        path.unlink()
    code, findings, _ = lost.rebuild("--dry-run")
    assert (code, len(findings)) == (1, 3)
    assert lost.rebuild("--witness", "evidence")[:2] == (0, [])
    assert lost.rows() == before


def test_superseded_by_that_was_not_written_yet_is_made_from_the_correction(lost: Lost) -> None:
    before = lost.rows()
    whole = lost.document("run_record", "ready").read_bytes()
    edit(lost.document("run_record", "ready"), drop_last)
    lost.lose()
    assert lost.rebuild()[:2] == (0, [])
    lost.serve()
    assert lost.rows()["outbox"] == before["outbox"]
    record, wanted = lines(lost.document("run_record", "ready")), [json.loads(line) for line in whole.splitlines()]
    assert [line["details"] for line in record] == [line["details"] for line in wanted]
    assert lost.check()[:2] == (0, [])


def test_a_correction_whose_record_is_older_than_its_ready_goes_on(lost: Lost) -> None:
    """The record of the superseded run was written, its own was not, and the database was lost."""
    new = lost.runs["new"]
    edit(lost.document("run_record", "new"), lambda data: b"".join(data.splitlines(keepends=True)[:4]))
    for folder in ("run_status", "ready_signal", "supersession"):
        lost.document(folder, "new").unlink()
    for path in [p for p in lost.world.signals_folder.iterdir() if new.encode() in p.read_bytes()]:
        path.unlink()
    lost.lose()
    code, findings, report = lost.rebuild("--policy", str(lost.world.policy))
    assert (code, findings, report["by_state"].get("PLANNED")) == (0, [], 1)
    lost.serve()
    assert lost.states()["new"] == "READY"
    assert supersession(lost).exists()


# --- ledger check

CHECKED: dict[str, tuple[Callable[[Lost], object], str]] = {
    "no object": (lambda lost: supersession(lost).unlink(), "SUPERSESSION_MISSING"),
    "another object": (lambda lost: edit(supersession(lost), lambda data: data + b" "), DRIFT),
    "a planted object": (lambda lost: shutil.copyfile(supersession(lost), lost.document("supersession", "bad")), DRIFT),
    "an object of nobody": (
        lambda lost: shutil.copyfile(supersession(lost), lost.world.ledger / "supersession" / f"{'f' * 32}.json"),
        "RUN_UNKNOWN",
    ),
    "another name": (lambda lost: (lost.world.ledger / "supersession" / "x").write_text("x"), "FOREIGN_OBJECT"),
}


@pytest.mark.parametrize("name", CHECKED)
def test_a_supersession_object_is_compared_in_both_directions(lost: Lost, name: str) -> None:
    damage, code = CHECKED[name]
    assert lost.check()[0] == 0
    damage(lost)
    found_code, findings, _ = lost.check()
    assert (found_code, [item["code"] for item in findings]) == (1, [code])
