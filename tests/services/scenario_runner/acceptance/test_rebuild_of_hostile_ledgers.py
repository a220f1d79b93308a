"""``authority rebuild`` of ledgers that do not hold together: what they cannot prove does not come back."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest
from rebuild_support import Lost, canonical, edit, later_pack
from support import PACK

from scenario_runner.gates.receipts import bundle_hash_of
from scenario_runner.interface_pack.loader import load_pack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest_plugins = ("rebuild_fixtures",)
pytestmark = pytest.mark.integration


def drop_line(number: int) -> Callable[[bytes], bytes]:
    return lambda data: b"".join(line for at, line in enumerate(data.splitlines(keepends=True), 1) if at != number)


def planted_ready(lost: Lost) -> None:
    """The waiting run is made READY in the ledger: every document is forged, and all of them agree."""
    run, real = lost.runs["waiting"], lost.runs["ready"]
    record = [json.loads(line) for line in lost.document("run_record", "waiting").read_bytes().splitlines()][:4]
    view = json.loads(lost.document("run_facts_view").read_bytes().replace(real.encode(), run.encode()))
    view["pins"] |= {"seed": 3}
    parts = (view["locators"], view["gate_receipts"], view["instance_receipts"], view["policy_rev"])
    view["bundle_hash"] = bundle_hash_of(*parts)
    data = canonical(view)
    lost.document("run_facts_view", "waiting").write_bytes(data)
    ready = {"run_id": run, "facts_view_ref": view["record_ref"].replace("run_record", "run_facts_view")
             .replace(".jsonl", ".json"), "bundle_hash": view["bundle_hash"]}  # fmt: skip
    lost.document("ready_signal", "waiting").write_bytes(canonical(ready))
    real_record = [json.loads(line) for line in lost.document("run_record").read_bytes().splitlines()]
    digest = hashlib.sha256(data).hexdigest()
    for line in real_record[4:]:
        line["run_id"], line["policy_rev"] = run, record[0]["policy_rev"]
        line["event_id"] = hashlib.sha256(f"event|{run}|{line['details']['seq']}".encode()).hexdigest()
        if "digest" in line["details"]:
            line["details"]["digest"] = digest
        if "bundle_hash" in line["details"]:
            line["details"]["bundle_hash"] = view["bundle_hash"]
        if "reemit_key" in line["details"]:
            line["details"]["reemit_key"] = hashlib.sha256(f"ready|{run}|{view['bundle_hash']}".encode()).hexdigest()
        if "ready" in line["details"]:
            line["details"]["ready"] = ready
            message = hashlib.sha256(f"ready|{run}|{view['bundle_hash']}".encode()).hexdigest()
            line["details"]["message_id"] = message
        line["ts_utc"] = (
            line["ts_utc"].replace("2026", "2999") if line["ts_utc"] < record[-1]["ts_utc"] else line["ts_utc"]
        )
        record.append(line)
    lost.document("run_record", "waiting").write_bytes(b"".join(canonical(line) + b"\n" for line in record))
    status = {
        "run_id": run, "state": "READY", "updated_at_utc": record[-1]["ts_utc"],
        "record_ref": f"fraud-platform/sr/run_record/{run}.jsonl",
        "facts_view_ref": f"fraud-platform/sr/run_facts_view/{run}.json",
    }  # fmt: skip
    lost.document("run_status", "waiting").write_bytes(canonical(status))


def of_another_run(lost: Lost) -> None:
    data = lost.document("run_facts_view").read_bytes()
    lost.document("run_facts_view").write_bytes(data.replace(b'"seed":0', b'"seed":1'))


def before_ready(lost: Lost) -> None:
    """Record and status are those of a moment before READY, as in an older copy; whatever READY wrote is there."""
    lines = lost.document("run_record").read_bytes().splitlines(keepends=True)[:5]
    last = json.loads(lines[-1])
    assert last["event_kind"] == "VERIFICATION_STARTED"
    lost.document("run_record").write_bytes(b"".join(lines))
    run = lost.runs["ready"]
    status = {
        "run_id": run, "state": "VERIFYING", "updated_at_utc": last["ts_utc"],
        "record_ref": f"fraud-platform/sr/run_record/{run}.jsonl",
    }  # fmt: skip
    lost.document("run_status").write_bytes(canonical(status))


def planted_id(run: str) -> str:
    return hashlib.sha256(run.encode()).hexdigest()


def signal_of(lost: Lost, run: str) -> Path:
    """The file of the only signal of a run that is not planted."""
    files = [path for path in lost.world.signals_folder.glob("*.json") if path.stem != planted_id(run)]
    (found,) = (path for path in files if lost.runs[run].encode() in path.read_bytes())
    return found


def published_for(lost: Lost, run: str, as_of: str) -> None:
    """The end of another run is on the bus for this one as well, under a message id of its own."""
    signal = signal_of(lost, as_of).read_bytes().replace(lost.runs[as_of].encode(), lost.runs[run].encode())
    envelope = json.loads(signal) | {"message_id": planted_id(run)}
    (lost.world.signals_folder / f"{planted_id(run)}.json").write_bytes(canonical(envelope))


def before_ready_without_signal(lost: Lost) -> None:
    """An older copy of the ledger, from before READY: only the bus knows better."""
    before_ready(lost)
    for folder in ("ready_signal", "run_facts_view"):
        lost.document(folder).unlink()


def repeated_only(lost: Lost) -> None:
    """READY was repeated, and the file of the first one is gone."""
    lost.world.command("reemit", lost.runs["ready"], "--wiring", str(lost.world.wiring), "--reason", "x")
    before_ready_without_signal(lost)
    (first,) = (p for p in lost.world.signals_folder.glob("*.json") if b'"kind":"READY"' in p.read_bytes())
    first.unlink()


def quarantine_for(lost: Lost, run: str) -> None:
    shutil.copyfile(lost.document("quarantine", "quarantined"), lost.document("quarantine", run))


def act_on(lost: Lost, key: str) -> None:
    """READY was repeated, and the record names the act of another kind."""
    lost.world.command("reemit", lost.runs["ready"], "--wiring", str(lost.world.wiring), "--reason", "x")
    edit(lost.document("run_record"), lambda data: re.sub(rb'"cli/[0-9a-f]{32}"', canonical(key), data))


def in_a_folder_below(lost: Lost, *, contradicted: bool = False) -> None:
    """READY's file lies where no reader of the bus looks; in its own place may lie one that says something else."""
    signal = signal_of(lost, "ready")
    data = signal.read_bytes()
    (signal.parent / "archive").mkdir()
    signal.rename(signal.parent / "archive" / signal.name)
    if contradicted:
        envelope = json.loads(data)
        envelope["payload"]["bundle_hash"] = "0" * 64
        signal.write_bytes(canonical(envelope))


HOSTILE: dict[str, tuple[Callable[[Lost], object], str, str]] = {
    "READY below the folder of signals": (in_a_folder_below, "ready", "READY_NOT_WITNESSED"),
    "READY below the folder, and another in its place": (
        lambda lost: in_a_folder_below(lost, contradicted=True), "ready", "READY_CONTRADICTED",
    ),
    "a planted READY": (planted_ready, "waiting", "READY_NOT_WITNESSED"),
    "another run's facts view": (of_another_run, "ready", "FACTS_VIEW_DRIFT"),
    "no facts view": (lambda lost: lost.document("run_facts_view").unlink(), "ready", "FACTS_VIEW_MISSING"),
    "a record that is cut off": (
        lambda lost: edit(lost.document("run_record"), lambda data: data[:-9]), "ready", "RECORD_DAMAGED",
    ),
    "a record without its last event": (
        lambda lost: edit(lost.document("run_record"), drop_line(11)), "ready", "STATUS_DRIFT",
    ),
    "a record with a gap": (
        lambda lost: edit(lost.document("run_record"), drop_line(4)), "ready", "RECORD_DAMAGED",
    ),
    "an empty record": (lambda lost: lost.document("run_record").write_bytes(b""), "ready", "RECORD_DAMAGED"),
    "no record": (lambda lost: lost.document("run_record").unlink(), "ready", "RECORD_MISSING"),
    "another run's record": (
        lambda lost: shutil.copyfile(lost.document("run_record", "failed"), lost.document("run_record")), "ready",
        "RECORD_DAMAGED",
    ),
    "a record of another intent": (
        lambda lost: edit(lost.document("run_record"), lambda data: data.replace(b'"seed":0', b'"seed":9')), "ready",
        "ADMISSION_DRIFT",
    ),
    "a record of an older release": (
        lambda lost: edit(
            lost.document("run_record"),
            lambda data: canonical(
                (first := json.loads(data.splitlines()[0]))
                | {"details": {key: first["details"][key] for key in ("fingerprint", "seq", "state")}}
            ) + b"\n" + data.split(b"\n", 1)[1],
        ),
        "ready", "ADMISSION_UNKNOWN",
    ),
    "a plan with fewer gates": (
        lambda lost: edit(lost.document("run_plan", "waiting"), lambda data: data.replace(b"1A", b"2A")), "waiting",
        "PLAN_DRIFT",
    ),
    "no plan": (lambda lost: lost.document("run_plan").unlink(), "ready", "PLAN_MISSING"),
    "a status that says READY": (
        lambda lost: edit(
            lost.document("run_status", "waiting"), lambda data: data.replace(b"WAITING_EVIDENCE", b"READY")
        ),
        "waiting", "STATUS_DRIFT",
    ),
    "a status that does not": (
        lambda lost: edit(lost.document("run_status"), lambda data: data.replace(b'"READY"', b'"VERIFYING"')), "ready",
        "STATUS_DRIFT",
    ),
    "a record and a status from before READY": (before_ready, "ready", "READY_SIGNAL_DRIFT"),
    "a run that waits and no event says for what": (
        lambda lost: edit(
            lost.document("run_record", "waiting"),
            lambda data: data.replace(b'"event_kind":"EVIDENCE_MISSING"', b'"event_kind":"VERIFICATION_STARTED"'),
        ),
        "waiting", "RECORD_DAMAGED",
    ),
    "an act with the key of an acknowledgement": (
        lambda lost: act_on(lost, f"quarantine_ack/{lost.runs['waiting']}"), "ready", "RECORD_DAMAGED",
    ),
    "no ready signal": (lambda lost: lost.document("ready_signal").unlink(), "ready", "READY_SIGNAL_MISSING"),
    "no receipt": (
        lambda lost: next(lost.world.ledger.rglob("instance_receipt.json")).unlink(), "ready", "RECEIPT_MISSING",
    ),
    "another receipt": (
        lambda lost: next(lost.world.ledger.rglob("instance_receipt.json")).write_bytes(b"{}"), "ready",
        "INSTANCE_RECEIPT_DRIFT",
    ),
    "no bundle manifest": (
        lambda lost: next(lost.world.ledger.rglob("bundle_manifest.json")).unlink(), "ready", "MANIFEST_MISSING",
    ),
    "another bundle manifest": (
        lambda lost: next(lost.world.ledger.rglob("bundle_manifest.json")).write_bytes(b"[]"), "ready",
        "MANIFEST_DRIFT",
    ),
    "a folder in the place of a bundle manifest": (
        lambda lost: (
            (path := next(lost.world.ledger.rglob("bundle_manifest.json"))).unlink(), path.mkdir()
        ), "ready", "MANIFEST_DRIFT",
    ),
    "a READY on the bus with another digest": (
        lambda lost: [
            edit(path, lambda data: data.replace(b'"facts_view_digest":"', b'"facts_view_digest":"0'))
            for path in lost.world.signals_folder.glob("*.json")
        ],
        "ready", "READY_CONTRADICTED",
    ),
    "a ledger from before READY": (before_ready_without_signal, "ready", "STATE_CONTRADICTED"),
    "a ledger from before READY, which was repeated": (repeated_only, "ready", "STATE_CONTRADICTED"),
    "a run that failed and is READY on the bus": (
        lambda lost: published_for(lost, "failed", "ready"), "failed", "STATE_CONTRADICTED",
    ),
    "a run that waits and has failed on the bus": (
        lambda lost: published_for(lost, "waiting", "failed"), "waiting", "STATE_CONTRADICTED",
    ),
    "a READY run that has failed on the bus": (
        lambda lost: published_for(lost, "ready", "failed"), "ready", "STATE_CONTRADICTED",
    ),
    "a run that failed and is quarantined on the bus": (
        lambda lost: (path := signal_of(lost, "failed"), published_for(lost, "failed", "quarantined"), path.unlink()),
        "failed", "STATE_CONTRADICTED",
    ),
    "a run that failed, and the bus does not say so": (
        lambda lost: signal_of(lost, "failed").unlink(), "failed", "TERMINAL_NOT_WITNESSED",
    ),
    "a TERMINAL with another reason": (
        lambda lost: edit(signal_of(lost, "failed"), lambda data: data.replace(b"GATE_FAIL", b"EVIDENCE_CONFLICT")),
        "failed", "STATE_CONTRADICTED",
    ),
    "a quarantine object of a run that waits": (
        lambda lost: quarantine_for(lost, "waiting"), "waiting", "QUARANTINE_DRIFT",
    ),
    "a quarantine object of a READY run": (lambda lost: quarantine_for(lost, "ready"), "ready", "QUARANTINE_DRIFT"),
    "a quarantine object of a run that failed": (
        lambda lost: quarantine_for(lost, "failed"), "failed", "QUARANTINE_DRIFT",
    ),
    "a folder in the place of a status": (
        lambda lost: (lost.document("run_status").unlink(), lost.document("run_status").mkdir()), "ready",
        "STATUS_DRIFT",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_does_not_hold_together_is_a_finding_and_never_ready(lost: Lost, name: str) -> None:
    damage, run, code = HOSTILE[name]
    damage(lost)
    lost.lose()
    found_code, findings, report = lost.rebuild()
    assert found_code == 1, report
    assert [(item["run_id"], item["code"]) for item in findings] == [(lost.runs[run], code)], findings
    for item in findings:
        assert item["object"].startswith(str(lost.world.root))
        assert item["remedy"]
    assert run not in lost.states()
    assert len(lost.states()) == 3


@pytest.mark.parametrize("witness", ["bus", "evidence", "ledger"])
def test_an_end_on_the_bus_of_a_run_that_the_ledger_lost_is_a_finding(lost: Lost, witness: str) -> None:
    for run in ("ready", "failed"):
        for path in lost.world.ledger.glob(f"*/{lost.runs[run]}.json*"):
            path.unlink()
    wanted = {(lost.runs["ready"], "READY"), (lost.runs["failed"], "TERMINAL")}
    _, findings, _ = lost.check()
    assert "SIGNAL_WITHOUT_RUN" not in {item["code"] for item in findings}, "the authority knows the runs"
    lost.lose()
    code, findings, report = lost.rebuild("--witness", witness)
    assert (code, report["findings_by_code"]) == (1, {"SIGNAL_WITHOUT_RUN": 2})
    assert {(item["run_id"], item["detail"].split()[0]) for item in findings} == wanted
    assert all(item["object"] == str(lost.document("run_record", run)) for item, run in zip(
        sorted(findings, key=lambda item: str(item["detail"])), ("ready", "failed"), strict=True))  # fmt: skip
    assert all("in the spool" in item["remedy"] for item in findings)
    assert set(lost.states()) == {"quarantined", "waiting"}
    code, findings, report = lost.check()
    assert (code, report["findings_by_code"]) == (1, {"SIGNAL_WITHOUT_RUN": 2})
    assert {(item["run_id"], item["detail"].split()[0]) for item in findings} == wanted


@pytest.mark.parametrize("witness", ["bus", "evidence", "ledger"])
def test_no_run_goes_on_while_a_damaged_file_of_the_bus_may_be_its_end(lost: Lost, witness: str) -> None:
    before_ready_without_signal(lost)
    damaged = signal_of(lost, "ready")
    edit(damaged, lambda data: data[:-9])
    lost.lose()
    code, findings, _ = lost.rebuild("--witness", witness)
    found = {(item["run_id"], item["code"]) for item in findings}
    runs = [None, lost.runs["ready"], lost.runs["waiting"]]
    assert (code, len(findings), found) == (1, 3, {(run, "SIGNAL_UNREADABLE") for run in runs})
    assert findings[0]["object"] == str(damaged)
    assert all(damaged.name in item["detail"] for item in findings[1:])
    assert lost.states() == {"failed": "FAILED", "quarantined": "QUARANTINED"}


@pytest.mark.parametrize("witness", ["evidence", "ledger"])
def test_the_bus_contradicts_whoever_must_agree(lost: Lost, witness: str) -> None:
    published_for(lost, "failed", "ready")
    published_for(lost, "ready", "failed")
    signal_of(lost, "quarantined").unlink()  # nobody says anything else of it
    lost.lose()
    _, findings, _ = lost.rebuild("--witness", witness)
    assert sorted((item["run_id"], item["code"]) for item in findings) == sorted(
        (lost.runs[run], "STATE_CONTRADICTED") for run in ("failed", "ready")
    )
    assert lost.states() == {"quarantined": "QUARANTINED", "waiting": "WAITING_EVIDENCE"}


def test_a_quarantine_object_that_was_not_written_yet_is_written_by_the_daemon(lost: Lost) -> None:
    path = lost.document("quarantine", "quarantined")
    data = path.read_bytes()
    path.unlink()
    lost.lose()
    assert lost.rebuild()[:2] == (0, [])
    lost.serve()
    assert path.read_bytes() == data
    assert lost.check()[:2] == (0, [])


def test_the_request_of_a_run_that_stayed_out_publishes_nothing(lost: Lost) -> None:
    lost.document("ready_signal").unlink()
    lost.lose()
    assert lost.rebuild()[0] == 1
    assert [item["code"] for item in lost.check()[1]] == ["RUN_UNKNOWN"]
    signals = sorted(lost.world.signals_folder.iterdir())
    lost.world.drop(lost.requests["ready"], "again.json")
    lost.world.serve()
    assert lost.states()["ready"] == "QUARANTINED"
    assert sorted(lost.world.signals_folder.iterdir()) == signals


def test_the_pack_and_the_policy_are_the_operators_and_not_the_ledgers(lost: Lost) -> None:
    lost.lose()
    lost.world.policy_changes = {"evidence_wait_seconds": 7}
    lost.world.write_profiles()
    code, findings, _ = lost.rebuild("--policy", str(lost.world.policy), "--dry-run")
    assert (code, [(item["run_id"], item["code"]) for item in findings]) == (
        1, [(lost.runs["waiting"], "PLAN_NOT_ALLOWED")],
    )  # fmt: skip
    lost.world.write_profiles(engine_roots=[str(lost.world.root / "elsewhere")])
    code, findings, _ = lost.rebuild("--dry-run")
    assert [item["code"] for item in findings] == ["PLAN_NOT_ALLOWED"]


def test_runs_under_an_earlier_pack_need_it_to_be_named(lost: Lost) -> None:
    lost.lose()
    named = later_pack(lost)
    code, findings, report = lost.rebuild("--witness", "evidence", "--dry-run")
    assert (code, sorted((item["run_id"], item["code"]) for item in findings)) == (1, sorted([
        (lost.runs["ready"], "PACK_NOT_VOUCHED"), (lost.runs["waiting"], "PLAN_NOT_ALLOWED"),
    ]))  # fmt: skip
    assert all("--catalogue and --gate-map" in item["remedy"] for item in findings)
    assert report["next"] == [
        "Put right what the findings say; their runs would stay out. Then rebuild: the same command without --dry-run."
    ]
    assert [item["code"] for item in lost.rebuild("--dry-run")[1]] == ["PLAN_NOT_ALLOWED"], "the bus has its READY"
    code, findings, report = lost.rebuild("--witness", "evidence", *named, "--policy", str(lost.world.policy))
    assert (code, findings, report["restored"]) == (0, [], 4)
    ((detail,),) = lost.sql("SELECT detail FROM operator_actions WHERE action = 'authority.rebuild'")
    assert f", pack {load_pack(named[1], named[3]).digest}" in detail
    assert lost.check()[:2] == (0, [])
    lost.serve()


def test_evidence_is_not_believed_under_a_pack_that_only_the_ledger_has(lost: Lost) -> None:
    """Another pack than the one of the run is named, and the run's lies in the ledger."""
    lost.lose()
    later_pack(lost)
    other = ("--catalogue", str(lost.world.root / "later.yaml"), "--gate-map", str(PACK / "engine_gates.map.yaml"))
    assert "PACK_NOT_VOUCHED" in [item["code"] for item in lost.rebuild("--witness", "evidence", *other)[1]]
    assert "ready" not in lost.states()


def test_the_report_says_what_to_do_next(lost: Lost) -> None:
    lost.document("ready_signal").unlink()
    lost.lose()
    report = lost.rebuild()[2]
    assert "rebuild into another empty database" in report["next"][0]
    assert "ledger check" in report["next"][1]
    lost.lose()
    done = lost.world.command("authority", "rebuild", "--wiring", str(lost.world.wiring), "--reason", "a test")
    assert done.stdout.decode().splitlines()[-4:-2] == ["What to do next:", f"  - {report['next'][0]}"]


def test_foreign_objects_are_findings_and_nothing_else_suffers(lost: Lost) -> None:
    (lost.world.ledger / "run_record" / "notes.txt").write_text("x")
    (lost.world.ledger / "run_status" / f"{'0' * 32}.json").write_text("{}")
    lost.lose()
    code, findings, report = lost.rebuild()
    assert (code, sorted(item["code"] for item in findings)) == (1, ["FOREIGN_OBJECT", "RECORD_MISSING"])
    assert report["restored"] == 4
