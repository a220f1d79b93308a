"""``authority rebuild``: what the ledger knows comes back, and who may work meanwhile."""

from __future__ import annotations

import json
import shutil
import time
from typing import Any

import pytest
import yaml
from crashing import until
from engine_scene import ended
from invariants import check, paths_of
from rebuild_support import SMALL, Lost, later_pack

from scenario_runner.cli.authority_rebuild import RebuildOptions, rebuild_authority
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.rebuild.reading import Reading

pytest_plugins = ("rebuild_fixtures",)
pytestmark = pytest.mark.integration


def test_every_row_that_the_ledger_knows_comes_back_and_everything_goes_on(lost: Lost) -> None:
    before, files = lost.rows(), lost.files()
    lost.lose()
    code, findings, report = lost.rebuild("--policy", str(lost.world.policy))
    assert (code, findings, report["outcome"], report["restored"]) == (0, [], "REBUILT", 4)
    assert report["by_state"] == {"FAILED": 1, "QUARANTINED": 1, "READY": 1, "WAITING_EVIDENCE": 1}
    assert report["cannot_know"]
    assert lost.rows() == before
    lost.serve()
    assert lost.files() == files, "nothing is published or written by a rebuild, nor by the daemon after it"
    assert lost.world.query("verify", lost.runs["ready"])[0] == 0
    assert lost.check()[:2] == (0, [])
    ((actor, via, subject, reason, outcome),) = lost.sql(
        "SELECT actor, via, subject, reason, outcome FROM operator_actions"
    )
    assert (via, subject, reason, outcome) == ("cli", str(lost.world.store), "a test", "REBUILT")
    assert actor


def test_the_same_requests_are_duplicates_and_a_signal_is_repeated_on_demand(lost: Lost) -> None:
    lost.lose()
    assert lost.rebuild()[0] == 0
    for name, request in lost.requests.items():
        lost.world.drop(request, f"{name}-again.json")
    lost.serve()
    assert [row[0] for row in lost.sql("SELECT disposition FROM intake_records")] == ["DUPLICATE"] * 4
    for run in ("ready", "failed", "quarantined"):
        done = lost.world.command(
            "reemit", lost.runs[run], "--wiring", str(lost.world.wiring), "--reason", "x", "--json"
        )
        answer = json.loads(done.stdout)
        first = json.loads((lost.world.signals_folder / f"{answer['message_id']}.json").read_bytes())
        again = json.loads((lost.world.signals_folder / f"{answer['message_id']}.reemit-1.json").read_bytes())
        assert (answer["outcome"], again["payload"]) == ("PUBLISHED", first["payload"])
    found = [item.sentence for item in check(paths_of(lost.world)) if item.invariant != "I8"]
    assert [text for text in found if not text.endswith("was accepted 0 times")] == []


def test_a_waiting_run_goes_on_to_ready(lost: Lost) -> None:
    lost.lose()
    assert lost.rebuild()[0] == 0
    root = lost.world.runs
    whole = lost.requests["ready"]["engine_run_root"]
    for flag in (p for p in type(root)(whole).rglob("_passed.flag")):
        target = type(root)(lost.requests["waiting"]["engine_run_root"]) / flag.relative_to(whole)
        if not target.exists():
            shutil.copyfile(flag, target)
    lost.sql("UPDATE runs SET due_us = 0 WHERE due_us IS NOT NULL")
    lost.serve()
    state = lost.states()["waiting"]
    assert state in ("READY", "QUARANTINED")
    record = lost.world.document("run_record", lost.runs["waiting"], "jsonl")
    assert [line["details"]["seq"] for line in record] == list(range(1, len(record) + 1))


def test_repeated_signals_and_their_acts_come_back(lost: Lost) -> None:
    reemit = ("reemit", lost.runs["ready"], "--wiring", str(lost.world.wiring), "--reason", "x", "--json")
    lost.world.command(*reemit)
    acts = "SELECT action_key, at, actor, via, action, subject, reason, outcome FROM operator_actions ORDER BY at"
    before = lost.sql(acts)
    lost.lose()
    assert lost.rebuild()[:2] == (0, [])
    assert lost.sql(acts)[:1] == before
    assert json.loads(lost.world.command(*reemit).stdout)["emission"] == 2
    assert lost.check()[:2] == (0, [])


def test_a_dry_run_writes_nothing_and_says_the_same(lost: Lost) -> None:
    lost.lose()
    code, findings, report = lost.rebuild("--dry-run")
    assert (code, findings, report["outcome"], report["restored"], report["action_key"]) == (0, [], "DRY_RUN", 4, None)
    assert not lost.world.database.exists()


def test_evidence_can_be_the_witness(lost: Lost) -> None:
    lost.lose()
    shutil.rmtree(lost.world.signals_folder)
    code, findings, _ = lost.rebuild("--dry-run")
    assert (code, sorted(item["code"] for item in findings)) == (
        1, ["READY_NOT_WITNESSED", "TERMINAL_NOT_WITNESSED", "TERMINAL_NOT_WITNESSED"],
    )  # fmt: skip
    assert lost.rebuild("--witness", "evidence", "--dry-run")[:2] == (0, [])
    next((lost.world.runs).glob(f"*/{lost.runs['ready']}/data/layer1/1A/s3*/*/*/part-*")).write_bytes(b"other")
    code, findings, _ = lost.rebuild("--witness", "evidence")
    assert (code, [item["code"] for item in findings]) == (1, ["READY_CONTRADICTED"])
    assert "ready" not in lost.states()


# --- what is refused


def test_a_database_with_rows_is_refused(lost: Lost) -> None:
    before = lost.rows()
    for more in ((), ("--dry-run",)):
        code, _, report = lost.rebuild(*more)
        assert code == 2
        assert "AUTHORITY_NOT_EMPTY" in report["error"]
    assert lost.rows() == before


def test_a_rebuild_does_not_begin_while_daemons_work_on_the_database(lost: Lost) -> None:
    lost.lose()
    lost.serve()  # on the new database; it was stopped in order, so it left no row
    row = f"'host-a/12/34', 'runner', '1', 'host-a', 1, {time.time_ns() // 1000}"
    lost.sql(f"INSERT INTO daemons (owner, role, version, host, started_us, seen_us) VALUES ({row})")
    code, _, report = lost.rebuild()
    assert code == 2
    assert "DAEMONS_RUN: " in report["error"]
    assert "host-a/12/34 on host-a (runner); stop them" in report["error"]
    assert lost.rebuild("--dry-run")[0] == 0, "a dry run disturbs nobody"
    lost.sql("UPDATE daemons SET seen_us = seen_us - 60000000")
    assert lost.rebuild()[:2] == (0, [])


def test_a_daemon_that_began_before_a_rebuild_waits_until_it_has_ended(lost: Lost) -> None:
    made = lost.world.make_run("late", seed=9, **SMALL)
    count = "SELECT count(*) FROM runs"
    with ended(daemon := lost.world.start()):
        until(lambda: lost.sql("SELECT count(*) FROM daemons") == [(1,)], "the daemon works", 60)
        lost.sql("INSERT INTO unfinished_rebuild VALUES (1, 1, 1, 'somebody', 'terms')")
        path = lost.world.drop(made["request"], "late.json")
        until(lambda: not path.exists(), "the intake has taken the request", 60)
        time.sleep(1.0)  # it tries to admit it all the time
        assert lost.sql(count) == [(4,)]
        lost.sql("DELETE FROM unfinished_rebuild")
        until(lambda: lost.sql(count) == [(5,)], "the request is admitted", 60)
        daemon.terminate()
        _, log = daemon.communicate(timeout=60)
    assert b"the authority is being rebuilt, by somebody since 1970" in log
    assert b"Traceback" not in log


def test_an_unfinished_rebuild_stops_every_daemon_until_it_is_begun_again(lost: Lost) -> None:
    lost.lose()
    assert lost.rebuild()[0] == 0
    ((detail,),) = lost.sql("SELECT detail FROM operator_actions WHERE action = 'authority.rebuild'")
    terms = detail.partition("; ")[2]
    assert "witness bus" in terms
    lost.sql(f"INSERT INTO unfinished_rebuild VALUES (1, 1, 1, 'somebody', '{terms}')")
    for table in ("run_events", "outbox", "runs"):
        lost.sql(f"DELETE FROM {table} WHERE run_id = '{lost.runs['failed']}'")
    served = lost.world.serve()
    assert served.returncode == 2
    assert b"REBUILD_UNFINISHED" in served.stderr
    assert b"Traceback" not in served.stderr
    code, _, refused = lost.rebuild("--witness", "ledger")  # what it restored stays, so it goes on by the same witness
    assert (code, "REBUILD_UNFINISHED" in refused["error"]) == (2, True)
    code, findings, report = lost.rebuild()
    assert (code, findings, report["restored"]) == (0, [], 4)
    lost.serve()


def test_an_interrupted_rebuild_goes_on_by_the_rules_of_its_profile_only(lost: Lost) -> None:
    wiring = yaml.safe_load(lost.world.wiring.read_text())
    lost.lose()
    assert lost.rebuild()[0] == 0
    ((detail,),) = lost.sql("SELECT detail FROM operator_actions WHERE action = 'authority.rebuild'")
    lost.sql(f"INSERT INTO unfinished_rebuild VALUES (1, 1, 1, 'somebody', '{detail.partition('; ')[2]}')")
    shutil.copytree(lost.world.signals_folder.parent, lost.world.root / "other-spool")
    later_pack(lost)
    others: list[dict[str, Any]] = [
        {"engine_catalogue_path": str(lost.world.root / "later.yaml")},
        {"control_bus_root": str(lost.world.root / "other-spool")},
        {"auth_mode": "allowlist", "auth_allowlist": ["somebody"]},
        {"engine_roots": [*wiring["engine_roots"], str(lost.world.root)]},
        {"control_bus_topic": "another.topic"},
    ]
    for other in others:
        lost.world.wiring.write_text(yaml.safe_dump(wiring | other))
        code, _, refused = lost.rebuild()
        assert (code, "REBUILD_UNFINISHED" in refused["error"]) == (2, True), (other, refused)
    lost.world.wiring.write_text(yaml.safe_dump(wiring))
    assert lost.rebuild()[:2] == (0, [])


def test_the_control_bus_is_read_when_no_daemon_can_publish_any_more(
    lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost.lose()
    read, marks = Reading.ends, list[Any]()

    def marked(*arguments: Any) -> Any:
        marks.extend(lost.sql("SELECT actor FROM unfinished_rebuild"))
        return read(*arguments)

    monkeypatch.setattr(Reading, "ends", marked)
    monkeypatch.setattr("scenario_runner.cli.authority_rebuild.collect_rarely", lambda: None)
    monkeypatch.setattr("os.umask", lambda _: 0)
    options = RebuildOptions("a test", "", "", "ops", dry_run=False)
    report = rebuild_authority(load_wiring(str(lost.world.wiring)), options, as_json=True)
    assert (marks, report["restored"]) == ([("ops",)], 4)
    assert lost.sql("SELECT actor FROM unfinished_rebuild") == []


def test_a_store_without_an_identity_is_a_missing_mount(lost: Lost) -> None:
    lost.lose()
    shutil.rmtree(lost.world.store)
    lost.world.store.mkdir()
    code, _, report = lost.rebuild()
    assert code == 5
    assert "has no identity" in report["error"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--reason", " "),
        ("--witness", "nobody"),
        ("--policy", "no-such-file"),
        ("--catalogue", "c"),
        ("--catalogue", "c", "--gate-map", "g"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(lost: Lost, arguments: tuple[str, ...]) -> None:
    lost.lose()
    assert lost.rebuild(*arguments)[0] == 2
    assert not lost.world.database.exists()


def test_a_name_that_is_no_unicode_is_on_record_as_it_can_be_written(lost: Lost) -> None:
    lost.lose()
    assert lost.rebuild("--requested-by", "ops\udcff")[:2] == (0, [])
    assert lost.sql("SELECT actor FROM operator_actions") == [("ops\\udcff",)]
