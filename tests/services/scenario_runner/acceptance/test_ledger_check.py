"""``ledger check``: every difference between ledger and database is a finding with its remedy."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from rebuild_support import Lost, edit

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ("rebuild_fixtures",)
pytestmark = pytest.mark.integration


def test_a_sound_ledger_is_clean(lost: Lost) -> None:
    code, findings, summary = lost.check()
    assert (code, findings, summary["outcome"], summary["runs"]) == (0, [], "CLEAN", 4)
    assert summary["objects"]["run_record"] == 4
    assert lost.check("--since", "1h")[2]["runs"] == 4
    assert lost.check("--run", "ready")[2]["by_state"] == {"READY": 1}


CHECKED: dict[str, tuple[Callable[[Lost], object], str]] = {
    "no record": (lambda lost: lost.document("run_record", "failed").unlink(), "RECORD_MISSING"),
    "a record with another line": (
        lambda lost: edit(lost.document("run_record"), lambda data: data + b"{}\n"), "RECORD_DRIFT",
    ),
    "no plan": (lambda lost: lost.document("run_plan", "failed").unlink(), "PLAN_MISSING"),
    "another plan": (lambda lost: edit(lost.document("run_plan"), lambda data: data + b" "), "PLAN_DRIFT"),
    "no status": (lambda lost: lost.document("run_status", "failed").unlink(), "STATUS_MISSING"),
    "another status": (lambda lost: edit(lost.document("run_status"), lambda data: data + b" "), "STATUS_DRIFT"),
    "no facts view": (lambda lost: lost.document("run_facts_view").unlink(), "FACTS_VIEW_MISSING"),
    "another facts view": (
        lambda lost: edit(lost.document("run_facts_view"), lambda data: data + b" "), "FACTS_VIEW_DRIFT",
    ),
    "no ready signal": (lambda lost: lost.document("ready_signal").unlink(), "READY_SIGNAL_MISSING"),
    "a ready signal of a run that failed": (
        lambda lost: shutil.copyfile(lost.document("ready_signal"), lost.document("ready_signal", "failed")),
        "READY_SIGNAL_DRIFT",
    ),
    "no quarantine object": (lambda lost: lost.document("quarantine", "quarantined").unlink(), "QUARANTINE_MISSING"),
    "another quarantine object": (
        lambda lost: edit(lost.document("quarantine", "quarantined"), lambda data: data + b" "), "QUARANTINE_DRIFT",
    ),
    "no receipt": (lambda lost: next(lost.world.ledger.rglob("instance_receipt.json")).unlink(), "RECEIPT_MISSING"),
    "another receipt": (
        lambda lost: next(lost.world.ledger.rglob("instance_receipt.json")).write_bytes(b"{}"),
        "INSTANCE_RECEIPT_DRIFT",
    ),
    "no bundle manifest": (
        lambda lost: next(lost.world.ledger.rglob("bundle_manifest.json")).unlink(), "MANIFEST_MISSING",
    ),
    "another bundle manifest": (
        lambda lost: next(lost.world.ledger.rglob("bundle_manifest.json")).write_bytes(b"[]"), "MANIFEST_DRIFT",
    ),
    "no pack": (lambda lost: next(lost.world.ledger.glob("interface_pack/*")).unlink(), "PACK_MISSING"),
    "another pack": (lambda lost: next(lost.world.ledger.glob("interface_pack/*")).write_bytes(b"{}"), "PACK_DRIFT"),
    "an event that is lost": (
        lambda lost: lost.sql(f"DELETE FROM run_events WHERE run_id = '{lost.runs['ready']}' AND seq = 3"), "EVENT_GAP",
    ),
    "documents that are owed for long": (
        lambda lost: lost.sql(
            "UPDATE runs SET projected_seq = 3 WHERE state = 'FAILED'; "
        ) or lost.sql("UPDATE run_events SET ts_us = ts_us - 3600000000 WHERE run_id = "
                      f"'{lost.runs['failed']}'"),
        "DOCUMENTS_OWED",
    ),
    "a run that nobody knows": (
        lambda lost: shutil.copyfile(lost.document("run_plan"), lost.world.ledger / "run_plan" / f"{'f' * 32}.json"),
        "RUN_UNKNOWN",
    ),
    "a foreign folder": (
        lambda lost: ((lost.world.ledger / "mine").mkdir(), (lost.world.ledger / "mine/x").write_text("x")),
        "FOREIGN_OBJECT",
    ),
    "a name in another form": (
        lambda lost: (lost.world.ledger / "run_plan" / "README").write_text("x"), "FOREIGN_OBJECT",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
def test_every_difference_is_a_finding_with_its_remedy(lost: Lost, name: str) -> None:
    damage, code = CHECKED[name]
    damage(lost)
    before = lost.files()
    found_code, findings, summary = lost.check()
    assert found_code == 1, summary
    assert code in {item["code"] for item in findings}, findings
    assert set(findings[0]) == {"code", "run_id", "object", "expected", "actual", "detail", "remedy", "schema_version"}
    assert summary["findings"] == len(findings)
    assert lost.files() == before


def test_an_old_temporary_file_is_a_finding_and_a_new_one_is_not(lost: Lost) -> None:
    import os

    path = lost.world.ledger / ".private" / "abc.tmp"
    path.write_text("x")
    assert lost.check()[0] == 0
    os.utime(path, (1, 1))
    assert [item["code"] for item in lost.check()[1]] == ["TEMPORARY_LEFT"]


def test_another_store_or_no_authority_is_exit_5(lost: Lost) -> None:
    (lost.world.ledger / ".private/store.json").write_text(json.dumps({"store_id": "0" * 32}))
    assert lost.check()[0] == 5
    lost.lose()
    assert lost.check()[0] == 5
    assert not lost.world.database.exists()


def test_a_run_that_nobody_knows_is_a_usage_error(lost: Lost) -> None:
    assert lost.check("--run", "0" * 32)[0] == 2
